"""One prepared unit to function records, on one CPU, knowing nothing of who runs it.

In: a unit, its texts and sources, toolchains, levels. Out: a record for every function that some variant
emitted and whose source stands in the project, and a failure row for everything that went wrong.
Invariant: a bad unit, variant or function is a row in the result and never loses the others; what is raised
is the machine's fault. Equal inputs give equal results. Neither the project nor its headers are needed.
Cost: the compilers.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from corpus_builder import asm, objects
from corpus_builder.compile import CompiledUnit, compile_unit, ir_of, out_of_patience
from corpus_builder.config import DebianSource, GitSource, PathSource, Project, PypiSource, Source
from corpus_builder.csource import SourceFunction
from corpus_builder.errors import UserFacingError
from corpus_builder.licenses import is_permissive
from corpus_builder.prepare import Prepared, by_speed, with_sources
from corpus_builder.process import Limits
from corpus_builder.record import (
    Failure,
    FunctionMeta,
    FunctionRecord,
    SourceMeta,
    Unit,
    UnitResult,
    VariantMeta,
    function_key,
    internal_failure,
)
from corpus_builder.toolchain import Toolchain

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Wanted:
    """What a corpus asks of each unit."""

    levels: tuple[str, ...]
    limits: Limits
    permissive: bool = False
    """Whether to leave out functions of files under other licences."""
    text: str = "raw"
    """Form of the `.s` members, `raw` or `clean`."""
    members: tuple[str, ...] = ()
    """What is recorded besides: `inlined`, `ll`, `object`, `lines`."""


@dataclass(frozen=True)
class _Emitted:
    """One function in one variant."""

    text: str
    meta: VariantMeta
    extras: Mapping[str, bytes] = field(default_factory=dict)
    """Extension to content, the variant's name left out."""


Emitted = dict[str, dict[str, _Emitted]]
"""Function to variant to what was emitted."""


def build_unit(
    unit: Unit, prepared: Prepared, project: Project, toolchains: Sequence[Toolchain], wanted: Wanted
) -> UnitResult:
    """Compile one unit with every toolchain at every level and join the variants of each function.

    Records have an empty split and cluster, and stand in the order of their keys.

    Raises:
        ToolchainError: a compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    failures = list(prepared.failures)
    emitted: Emitted = {}
    ir: dict[str, dict[str, str]] = {}
    for work in _works(unit, prepared, toolchains, wanted):
        late = out_of_patience(unit, work.toolchain.id, failures)
        if late:
            failures.append(late)
            continue
        failures += _add_variants(emitted, work, wanted)
        if "ll" in wanted.members and work.toolchain.family != "gcc":
            ir |= _ir(work, wanted, failures)
    if not prepared.travels:
        prepared = _with_all_sources(prepared, unit, toolchains, emitted, wanted, failures)
    failures += _without_source(unit, emitted, prepared)
    records = [
        _record(unit, project, prepared, name, variants, ir)
        for name, variants in emitted.items()
        if name in prepared.sources and _is_allowed(prepared, name, wanted)
    ]
    records.sort(key=lambda record: record.key)
    return UnitResult(unit.id, tuple(records), tuple(failures))


def _is_allowed(prepared: Prepared, name: str, wanted: Wanted) -> bool:
    license = prepared.licenses.get(prepared.sources[name].file, "")
    return not (wanted.permissive and license) or is_permissive(license)


def source_meta(source: Source) -> SourceMeta:
    """Where a project came from, as its records tell it."""
    if isinstance(source, PypiSource):
        return SourceMeta(
            kind=source.kind, location=f"{source.package}=={source.version}", sha256=source.sha256
        )
    if isinstance(source, DebianSource):
        return SourceMeta(
            kind=source.kind, location=f"{source.package}={source.version}", sha256=source.sha256
        )
    if isinstance(source, GitSource):
        return SourceMeta(kind=source.kind, location=f"{source.url}@{source.commit}", sha256=None)
    if isinstance(source, PathSource):
        return SourceMeta(kind=source.kind, location=str(source.path), sha256=None)
    return SourceMeta(kind=source.kind, location=source.location, sha256=source.sha256)


@dataclass(frozen=True)
class _Work:
    """One unit and one toolchain."""

    unit: Unit
    toolchain: Toolchain
    levels: Sequence[str]
    texts: Mapping[str, bytes]
    """By macro class."""
    at_home: bool
    """Whether the unit's tree is here, and its own commands can run."""


def _works(
    unit: Unit, prepared: Prepared, toolchains: Sequence[Toolchain], wanted: Wanted
) -> Iterator[_Work]:
    """What each toolchain that could preprocess the unit is to compile: levels with a text, if it travels."""
    texts = prepared.texts()
    unread = {failure.variant for failure in prepared.failures if failure.stage == "preprocess"}
    for toolchain in toolchains:
        if toolchain.isa not in unit.commands or toolchain.id in unread:
            continue
        own = texts.get(toolchain.id, {})
        levels = [
            level
            for level in toolchain.levels(wanted.levels)
            if not prepared.travels or toolchain.macro_class(level) in own
        ]
        if levels:
            yield _Work(unit, toolchain, levels, own, at_home=not prepared.travels)


def _add_variants(emitted: Emitted, work: _Work, wanted: Wanted) -> list[Failure]:
    """Compile every level of a toolchain and add the functions to `emitted`."""
    unit, toolchain = work.unit, work.toolchain
    try:
        compiled, failures = compile_unit(
            unit,
            toolchain,
            work.levels,
            texts=work.texts,
            limits=wanted.limits,
            at_home=work.at_home,
            options=objects.LINE_FLAGS if "lines" in wanted.members else (),
            report="inlined" in wanted.members,
        )
    except UserFacingError:
        raise
    except Exception as error:
        return [internal_failure(unit, toolchain.id, error)]
    bodies: dict[str, asm.Body] = {}
    for variant in compiled:
        try:
            for name, function in _functions(variant, toolchain, wanted, bodies).items():
                emitted.setdefault(name, {})[str(variant.variant)] = function
        except Exception as error:
            failures.append(internal_failure(unit, str(variant.variant), error))
    return failures


def _functions(
    compiled: CompiledUnit, toolchain: Toolchain, wanted: Wanted, bodies: dict[str, asm.Body]
) -> dict[str, _Emitted]:
    """The functions of one variant; `bodies` are those of other levels' texts, a fifth of which are equal."""
    binary = objects.ObjectFile(compiled.object)
    sizes = binary.function_sizes()
    symbols = asm.split_symbols(compiled.assembly)
    joined = asm.join_clones({symbol: text for symbol, text in symbols.items() if symbol in sizes})
    inlined = objects.inlined_functions(compiled.inlining) if "inlined" in wanted.members else {}
    extras = _extras(compiled, binary, joined, wanted)
    functions = {}
    for name, function in joined.items():
        stored = asm.clean(function.text, toolchain.isa) if wanted.text == "clean" else function.text
        body = bodies.get(function.text) or asm.body(function.text, toolchain.isa)
        bodies[function.text] = body
        meta = VariantMeta(
            compiler=toolchain.version,
            flags=compiled.flags,
            sha256=hashlib.sha256(stored.encode()).hexdigest(),
            body_sha256=body.sha256,
            num_instructions=body.num_instructions,
            code_bytes=sizes[function.symbol],
            symbol=function.symbol,
            clones=tuple(function.clones),
            inlined=inlined.get(name, ()),
        )
        functions[name] = _Emitted(stored, meta, extras.get(name, {}))
    return functions


def _extras(
    compiled: CompiledUnit, binary: objects.ObjectFile, joined: Mapping[str, asm.Emitted], wanted: Wanted
) -> dict[str, dict[str, bytes]]:
    """What stands beside each function's text in one variant."""
    isa = compiled.variant.isa
    extras: dict[str, dict[str, bytes]] = {name: {} for name in joined}
    codes = (
        binary.codes(function.symbol for function in joined.values()) if "object" in wanted.members else {}
    )
    lines = (
        objects.source_lines(compiled.assembly.decode("utf-8", "replace"), isa)
        if "lines" in wanted.members
        else {}
    )
    for name, function in joined.items():
        if function.clones:
            texts = function.clones.values()
            clones = [asm.clean(text, isa) for text in texts] if wanted.text == "clean" else texts
            extras[name]["clones.s"] = "".join(clones).encode()
        if function.symbol in codes:
            extras[name]["object.json"] = objects.object_member(codes[function.symbol])
        if function.symbol in lines:
            extras[name]["lines.json"] = objects.lines_member(lines[function.symbol])
    return extras


def _ir(work: _Work, wanted: Wanted, failures: list[Failure]) -> dict[str, dict[str, str]]:
    """Variant to function to LLVM IR before optimisation, of the level that stands for O1 to O3."""
    toolchain = work.toolchain
    classes = list(dict.fromkeys(map(toolchain.macro_class, work.levels)))
    level = "O2" if "O2" in classes else classes[0]
    text = ir_of(work.unit, toolchain, level, text=work.texts.get(level), limits=wanted.limits)
    if isinstance(text, Failure):
        failures.append(text)
        return {}
    return {f"{toolchain.id}.{level.lower()}": objects.ll_functions(text)}


def _with_all_sources(
    prepared: Prepared,
    unit: Unit,
    toolchains: Sequence[Toolchain],
    emitted: Emitted,
    wanted: Wanted,
    failures: list[Failure],
) -> Prepared:
    """Look for the source of each function in the text of a compiler that emitted it."""
    asked = {toolchain.isa: toolchain for toolchain in reversed(by_speed(toolchains))}
    for toolchain in toolchains:
        if toolchain is asked[toolchain.isa]:
            continue
        missing = emitted.keys() - prepared.sources.keys()
        if any(variant.startswith(f"{toolchain.id}.") for name in missing for variant in emitted[name]):
            try:
                prepared = with_sources(prepared, unit, toolchain, wanted.levels, limits=wanted.limits)
            except UserFacingError:
                raise
            except Exception as error:
                failures.append(internal_failure(unit, toolchain.id, error))
    return prepared


def _without_source(unit: Unit, emitted: Emitted, prepared: Prepared) -> list[Failure]:
    missing = sorted(emitted.keys() - prepared.sources.keys())
    if not missing:
        return []
    more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
    tail = f"{len(missing)} without source: {', '.join(missing[:_NAMES_SHOWN])}{more}"
    return [
        Failure(unit=unit.id, variant="", stage="parse", cause="no_source", exit=0, command="", tail=tail)
    ]


def _record(
    unit: Unit,
    project: Project,
    prepared: Prepared,
    name: str,
    variants: Mapping[str, _Emitted],
    ir: Mapping[str, Mapping[str, str]],
) -> FunctionRecord:
    source: SourceFunction = prepared.sources[name]
    meta = FunctionMeta(
        project=project.name,
        version=project.version,
        source=source_meta(project.source),
        license=project.license,
        file_license=prepared.licenses.get(source.file, ""),
        split="",
        unit=unit.id.removeprefix(f"{project.name}/"),
        file=source.file,
        name=source.name,
        signature=source.signature,
        lines=source.lines,
        comment=source.comment,
        source_sha256=source.source_sha256,
        cluster="",
        variants={variant: variants[variant].meta for variant in sorted(variants)},
    )
    extras = {
        f"{variant}.{extension}": body
        for variant, function in variants.items()
        for extension, body in function.extras.items()
    }
    extras |= {f"{variant}.ll": text[name].encode() for variant, text in ir.items() if name in text}
    key = function_key(project.name, source.file, source.lines[0], source.name)
    texts = {variant: variants[variant].text for variant in sorted(variants)}
    return FunctionRecord(key, meta, source.text, texts, dict(sorted(extras.items())))
