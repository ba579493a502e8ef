"""One unit from C to function records, on one CPU, knowing nothing of who runs it.

In: a unit, its project, toolchains, levels. Out: a record for every function that some variant emitted and
whose source stands in the project, and a failure row for everything that went wrong.
Invariant: a bad unit, variant or function is a row in the result and never loses the others; what is raised
is the machine's fault. Equal inputs give equal results.
Cost: the compilers. The source is preprocessed and parsed once, and again for another toolchain only if that
one emitted functions which the first did not see (code under `#ifdef __aarch64__`).
"""

import hashlib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corpus_builder import asm, csource
from corpus_builder.compile import CompiledUnit, compile_unit, preprocess_unit
from corpus_builder.config import ArchiveSource, PathSource, Project, PypiSource
from corpus_builder.errors import UserFacingError
from corpus_builder.process import Limits
from corpus_builder.record import (
    Failure,
    FailureCause,
    FunctionMeta,
    FunctionRecord,
    SourceMeta,
    Unit,
    UnitResult,
    VariantMeta,
    function_key,
)
from corpus_builder.toolchain import Toolchain

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class _Emitted:
    """One function in one variant."""

    text: str
    meta: VariantMeta


Emitted = dict[str, dict[str, _Emitted]]
"""Symbol to variant to what was emitted."""


def build_unit(
    unit: Unit, project: Project, toolchains: Sequence[Toolchain], levels: Sequence[str], *, limits: Limits
) -> UnitResult:
    """Compile one unit with every toolchain at every level and join the variants of each function.

    Records have an empty split and cluster, and stand in the order of their keys.

    Raises:
        ToolchainError: a compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    failures: list[Failure] = []
    emitted: Emitted = {}
    for toolchain in toolchains:
        for level in levels:
            failures += _add_variant(emitted, unit, toolchain, level, limits)
    sources, trouble = _sources(unit, toolchains, levels, emitted, limits)
    failures += trouble
    records = [
        _record(unit, project, sources[symbol], variants)
        for symbol, variants in emitted.items()
        if symbol in sources
    ]
    records.sort(key=lambda record: record.key)
    return UnitResult(unit.id, tuple(records), tuple(failures))


def source_meta(source: PypiSource | ArchiveSource | PathSource) -> SourceMeta:
    """Where a project came from, as its records tell it."""
    if isinstance(source, PypiSource):
        location = f"{source.package}=={source.version}"
        return SourceMeta(kind=source.kind, location=location, sha256=source.sha256)
    if isinstance(source, ArchiveSource):
        return SourceMeta(kind=source.kind, location=source.location, sha256=source.sha256)
    return SourceMeta(kind=source.kind, location=str(source.path), sha256=None)


def _add_variant(
    emitted: Emitted, unit: Unit, toolchain: Toolchain, level: str, limits: Limits
) -> list[Failure]:
    """Compile one variant and add its functions to `emitted`; all of them, or none if one cannot be read."""
    try:
        compiled, failures = compile_unit(unit, toolchain, [level], limits=limits)
        for variant in compiled:
            for symbol, function in _functions(variant, toolchain).items():
                emitted.setdefault(symbol, {})[str(variant.variant)] = function
        return failures
    except UserFacingError:
        raise
    except Exception as error:
        return [_internal(unit, f"{toolchain.id}.{level.lower()}", error)]


def _functions(compiled: CompiledUnit, toolchain: Toolchain) -> dict[str, _Emitted]:
    functions: dict[str, _Emitted] = {}
    for symbol, text in asm.split_functions(compiled.assembly).items():
        # Clones and cold parts are pieces of another function, and no function of the source.
        if asm.origin(symbol) != symbol or symbol not in compiled.code_bytes:
            continue
        meta = VariantMeta(
            compiler=toolchain.version,
            flags=compiled.flags,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            body_sha256=asm.view_sha256(text, toolchain.isa),
            num_instructions=asm.num_instructions(asm.clean(text, toolchain.isa)),
            code_bytes=compiled.code_bytes[symbol],
        )
        functions[symbol] = _Emitted(text, meta)
    return functions


def _sources(
    unit: Unit, toolchains: Sequence[Toolchain], levels: Sequence[str], emitted: Emitted, limits: Limits
) -> tuple[dict[str, csource.SourceFunction], list[Failure]]:
    """The source of every emitted function that has one, and one row for those without."""
    found: dict[str, csource.SourceFunction] = {}
    failures: list[Failure] = []
    settled: set[str] = set()
    level = "O2" if "O2" in levels else levels[0]  # __OPTIMIZE__ is defined in most variants
    for toolchain in toolchains:
        own = {symbol for symbol, variants in emitted.items() if _is_among(toolchain, variants)}
        if own <= settled:
            continue
        try:
            text = preprocess_unit(unit, toolchain, level, limits=limits)
            if isinstance(text, Failure):
                failures.append(text)
                continue
            found = {**csource.functions_of(text, unit.root), **found}
        except UserFacingError:
            raise
        except Exception as error:
            failures.append(_internal(unit, toolchain.id, error))
        settled |= own  # what this toolchain compiled but the parser did not find, the next would not show it
    missing = sorted(emitted.keys() - found.keys())
    if missing:
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        names = ", ".join(missing[:_NAMES_SHOWN]) + more
        failures.append(_parse_failure(unit, "", "no_source", f"{len(missing)} without source: {names}"))
    return found, failures


def _is_among(toolchain: Toolchain, variants: Mapping[str, _Emitted]) -> bool:
    return any(variant.startswith(f"{toolchain.id}.") for variant in variants)


def _record(
    unit: Unit, project: Project, source: csource.SourceFunction, variants: Mapping[str, _Emitted]
) -> FunctionRecord:
    meta = FunctionMeta(
        project=project.name,
        version=project.version,
        source=source_meta(project.source),
        license=project.license,
        split="",
        unit=unit.file,
        file=source.file,
        name=source.name,
        signature=source.signature,
        lines=source.lines,
        comment=source.comment,
        source_sha256=source.source_sha256,
        cluster="",
        variants={name: variants[name].meta for name in sorted(variants)},
    )
    key = function_key(project.name, source.file, source.lines[0], source.name)
    return FunctionRecord(key, meta, source.text, {name: variants[name].text for name in sorted(variants)})


def _parse_failure(unit: Unit, variant: str, cause: FailureCause, tail: str) -> Failure:
    return Failure(unit=unit.id, variant=variant, stage="parse", cause=cause, exit=0, command="", tail=tail)


def _internal(unit: Unit, variant: str, error: Exception) -> Failure:
    """A mistake of ours, kept as a row with the place it happened."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    tail = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno} {last.name})"
    return _parse_failure(unit, variant, "internal", tail)
