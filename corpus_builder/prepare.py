"""What of a unit is read where its tree is: its functions' sources and, if it is to travel, its texts.

In: a unit whose project lies on this machine. Out: a `Prepared`. With texts, any machine with the compilers
can turn it into records without the project, its headers or a shared file system.
Invariant: what fails for one toolchain is a failure row and costs the others nothing.
Cost: one preprocessor call for each instruction set, whose text is worth its price to the three levels that
compile it; for a unit that travels one for each toolchain and macro class, about a third of what compiling
the texts costs. A unit's texts, which hardly differ, travel as one zstd frame of a few percent of their
size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import zstandard

from corpus_builder import csource
from corpus_builder.compile import hermetic, out_of_patience, preprocess_levels, preprocess_unit
from corpus_builder.errors import UserFacingError
from corpus_builder.licenses import file_license
from corpus_builder.process import Limits
from corpus_builder.record import Failure, Unit, internal_failure
from corpus_builder.toolchain import Toolchain

_WINDOW_LOG = 24
_HASH_LOG = 17


@dataclass(frozen=True)
class Prepared:
    """What was read of a unit."""

    frame: bytes
    """Texts, compressed: a line of JSON with their order and sizes, then their bytes."""
    sources: Mapping[str, csource.SourceFunction]
    """Function name to its definition, as the first instruction set saw it."""
    licenses: Mapping[str, str]
    """File of a source to the SPDX expression in its header."""
    failures: tuple[Failure, ...]
    travels: bool
    """Whether there is a text for all that can be compiled: the tree is out of reach."""

    def texts(self) -> dict[str, dict[str, bytes]]:
        """Toolchain to macro class to text."""
        data = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompress(self.frame)
        start = data.index(b"\n") + 1
        found: dict[str, dict[str, bytes]] = {}
        for toolchain, macro_class, size in json.loads(data[:start]):
            found.setdefault(toolchain, {})[macro_class] = data[start : start + size]
            start += size
        return found


def prepare_unit(
    unit: Unit, toolchains: Sequence[Toolchain], levels: Sequence[str], *, limits: Limits, travels: bool
) -> Prepared:
    """Read the sources of a unit's functions and, if it `travels`, make all texts that its levels need.

    Raises:
        ToolchainError: a compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    failures: list[Failure] = []
    texts = _texts(unit, toolchains, levels, failures, limits) if travels else {}
    sources = _sources(unit, toolchains, levels, texts, failures, limits)
    return Prepared(
        frame=_frame(unit, toolchains, texts),
        sources=sources,
        licenses=_licenses(unit, sources),
        failures=tuple(failures),
        travels=travels,
    )


def with_sources(
    prepared: Prepared, unit: Unit, toolchain: Toolchain, levels: Sequence[str], *, limits: Limits
) -> Prepared:
    """The same with the functions that stand in this toolchain's text alone, such as behind `__clang__`.

    Raises as `prepare_unit`.
    """
    level = _level_of_sources(toolchain, levels)
    text = preprocess_unit(unit, toolchain, level, limits=limits, expand=True)
    if isinstance(text, Failure):
        return prepared
    command = unit.commands[toolchain.isa]
    found = csource.functions_in(csource.own_text(text, command.root, command.cwd), command.root)
    sources = {**found, **prepared.sources}
    return replace(prepared, sources=sources, licenses=_licenses(unit, sources))


def _licenses(unit: Unit, sources: Mapping[str, csource.SourceFunction]) -> dict[str, str]:
    root = next(iter(unit.commands.values())).root
    return {file: file_license(root, file) for file in sorted({source.file for source in sources.values()})}


def by_speed(toolchains: Sequence[Toolchain]) -> list[Toolchain]:
    """The order in which they are asked for a text to read sources from: gcc's preprocessor takes less."""
    return sorted(toolchains, key=lambda toolchain: toolchain.family != "gcc")


def _level_of_sources(toolchain: Toolchain, levels: Sequence[str]) -> str:
    """O2 where there is a choice: `__OPTIMIZE__` is defined in most variants."""
    classes = macro_classes(toolchain, levels)
    return "O2" if "O2" in classes else classes[0]


def _texts(
    unit: Unit,
    toolchains: Sequence[Toolchain],
    levels: Sequence[str],
    failures: list[Failure],
    limits: Limits,
) -> dict[tuple[str, str], bytes]:
    """Toolchain and macro class to text, with the project's folder in it."""
    texts: dict[tuple[str, str], bytes] = {}
    for toolchain in toolchains:
        if toolchain.isa not in unit.commands:
            continue
        failure = out_of_patience(unit, toolchain.id, failures)
        if not failure:
            made, failure = preprocess_levels(
                unit, toolchain, macro_classes(toolchain, levels), limits=limits
            )
            texts |= {(toolchain.id, name): text for name, text in made.items()}
        if failure:
            failures.append(failure)
    return texts


def macro_classes(toolchain: Toolchain, levels: Sequence[str]) -> list[str]:
    """The macro classes of the levels, each once, in their order."""
    return list(dict.fromkeys(toolchain.macro_class(level) for level in toolchain.levels(levels)))


def _frame(unit: Unit, toolchains: Sequence[Toolchain], texts: Mapping[tuple[str, str], bytes]) -> bytes:
    isas = {toolchain.id: toolchain.isa for toolchain in toolchains}
    bodies = {place: hermetic(text, unit.commands[isas[place[0]]]) for place, text in texts.items()}
    head = json.dumps([[*place, len(body)] for place, body in bodies.items()]).encode()
    # A large table finds the text before again as well as a search for long matches does, in less time.
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=_WINDOW_LOG, hash_log=_HASH_LOG)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return compressor.compress(b"".join((head, b"\n", *bodies.values())))


def _sources(
    unit: Unit,
    toolchains: Sequence[Toolchain],
    levels: Sequence[str],
    texts: dict[tuple[str, str], bytes],
    failures: list[Failure],
    limits: Limits,
) -> dict[str, csource.SourceFunction]:
    """The functions that any instruction set sees; another one's own text is parsed only where it differs.

    A text that has to be made for this is added to `texts`.
    """
    found: dict[str, csource.SourceFunction] = {}
    seen: set[str] = set()
    for isa, command in unit.commands.items():
        own_tools = [item for item in toolchains if item.isa == isa]
        text = _expanded(unit, own_tools, levels, texts, failures, limits)
        if text is None:
            continue
        try:
            own = csource.own_text(text, command.root, command.cwd)
            if own.sha256 not in seen:
                seen.add(own.sha256)
                found = {**csource.functions_in(own, command.root), **found}
        except UserFacingError:
            raise
        except Exception as error:
            failures.append(internal_failure(unit, isa, error))
    return found


def _expanded(
    unit: Unit,
    toolchains: Sequence[Toolchain],
    levels: Sequence[str],
    texts: dict[tuple[str, str], bytes],
    failures: list[Failure],
    limits: Limits,
) -> bytes | None:
    """A text of one instruction set with macros expanded, from the first toolchain that can make one."""
    failed = {failure.variant for failure in failures}
    for toolchain in by_speed(toolchains):
        if toolchain.id in failed or not toolchain.levels(levels):
            continue
        level = _level_of_sources(toolchain, levels)
        keeps_macros = toolchain.keeps_macros(level)
        if (toolchain.id, level) in texts and not keeps_macros:
            return texts[toolchain.id, level]
        made = preprocess_unit(unit, toolchain, level, limits=limits, expand=True)
        if isinstance(made, Failure):
            failures.append(made)
            continue
        if not keeps_macros:
            texts[toolchain.id, level] = made
        return made
    return None
