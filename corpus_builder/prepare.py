"""A unit made ready to travel: its preprocessed texts and its functions' sources, read where the tree is.

In: a unit whose project lies on this machine. Out: a `Prepared` that any machine with the compilers can turn
into records without the project, its headers or a shared file system.
Invariant: what fails for one toolchain is a failure row and costs the others nothing.
Cost: one preprocessor call for each toolchain and macro class, about a tenth of the compile time. A unit's
texts, which hardly differ, travel as one zstd frame of a few percent of their size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import zstandard

from corpus_builder import csource
from corpus_builder.compile import hermetic, out_of_patience, preprocess_levels, preprocess_unit
from corpus_builder.errors import UserFacingError
from corpus_builder.licenses import file_license
from corpus_builder.process import Limits
from corpus_builder.record import Failure, Unit, internal_failure
from corpus_builder.toolchain import Toolchain

_WINDOW_LOG = 24


@dataclass(frozen=True)
class Prepared:
    """What of a unit leaves the machine that holds its source."""

    frame: bytes
    """The texts, compressed: a line of JSON with their order and sizes, then their bytes."""
    sources: Mapping[str, csource.SourceFunction]
    """Function name to its definition, as the first instruction set saw it."""
    licenses: Mapping[str, str]
    """File of a source to the SPDX expression in its header."""
    failures: tuple[Failure, ...]

    def texts(self) -> dict[str, dict[str, bytes]]:
        """Toolchain to macro class to text."""
        data = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompress(self.frame)
        head, _, body = data.partition(b"\n")
        found: dict[str, dict[str, bytes]] = {}
        start = 0
        for toolchain, macro_class, size in json.loads(head):
            found.setdefault(toolchain, {})[macro_class] = body[start : start + size]
            start += size
        return found


def prepare_unit(
    unit: Unit, toolchains: Sequence[Toolchain], levels: Sequence[str], *, limits: Limits
) -> Prepared:
    """Preprocess a unit for every toolchain that has a command for it, and read its functions' sources.

    Raises:
        ToolchainError: a compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    texts: dict[tuple[str, str], bytes] = {}
    failures: list[Failure] = []
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
    sources = _sources(unit, toolchains, levels, texts, failures, limits)
    files = sorted({source.file for source in sources.values()})
    root = next(iter(unit.commands.values())).root
    return Prepared(
        frame=_frame(unit, toolchains, texts),
        sources=sources,
        licenses={file: file_license(root, file) for file in files},
        failures=tuple(failures),
    )


def macro_classes(toolchain: Toolchain, levels: Sequence[str]) -> list[str]:
    """The macro classes of the levels, each once, in their order."""
    return list(dict.fromkeys(toolchain.macro_class(level) for level in toolchain.levels(levels)))


def _frame(unit: Unit, toolchains: Sequence[Toolchain], texts: Mapping[tuple[str, str], bytes]) -> bytes:
    isas = {toolchain.id: toolchain.isa for toolchain in toolchains}
    bodies = {place: hermetic(text, unit.commands[isas[place[0]]]) for place, text in texts.items()}
    head = json.dumps([[*place, len(body)] for place, body in bodies.items()]).encode()
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=_WINDOW_LOG, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return compressor.compress(b"\n".join((head, b"".join(bodies.values()))))


def _sources(
    unit: Unit,
    toolchains: Sequence[Toolchain],
    levels: Sequence[str],
    texts: Mapping[tuple[str, str], bytes],
    failures: list[Failure],
    limits: Limits,
) -> dict[str, csource.SourceFunction]:
    """The functions that any instruction set sees; another one's own text is parsed only where it differs."""
    found: dict[str, csource.SourceFunction] = {}
    seen: set[str] = set()
    for isa, command in unit.commands.items():
        text = _expanded(unit, [item for item in toolchains if item.isa == isa], levels, texts, limits)
        if isinstance(text, Failure):
            failures.append(text)
        if not isinstance(text, bytes):
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
    texts: Mapping[tuple[str, str], bytes],
    limits: Limits,
) -> bytes | Failure | None:
    """A text of one instruction set with macros expanded: clang's, or one more from gcc.

    O2 where there is a choice: `__OPTIMIZE__` is defined in most variants.
    """
    for toolchain in sorted(toolchains, key=lambda item: item.family == "gcc"):
        classes = [name for name in macro_classes(toolchain, levels) if (toolchain.id, name) in texts]
        if not classes:
            continue
        level = "O2" if "O2" in classes else classes[0]
        if toolchain.family != "gcc":
            return texts[toolchain.id, level]
        return preprocess_unit(unit, toolchain, level, limits=limits, expand=True)
    return None
