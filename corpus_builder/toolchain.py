"""Compilers as argument lists: a command of a project's build in, the calls that replay it out.

`direct_argv` is the project's own command, run where its tree is. Elsewhere a unit is compiled in two steps,
of which the second needs nothing but the compiler: `preprocess_argv` makes one text for each macro class, and
`compile_argv` compiles that text at each level of the class. A text is plain `-E` output, but for gcc at -O0,
which keeps its macros (`-fdirectives-only`): with them expanded, gcc 12 numbers labels otherwise there.
Either way the assembly is that of the direct command, byte for byte.
Invariant: an argument list names no folder but the project's root, and the environment is the same
everywhere, so equal compilers give equal bytes on every machine.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from corpus_builder.process import Limits, run
from corpus_builder.record import Command

Family = Literal["gcc", "clang", "zig"]

PROBE_LIMITS = Limits(time_s=60.0, memory_mib=4096, output_mib=16)

_PREPROCESS: dict[Family, tuple[str, ...]] = {
    "gcc": ("-E", "-fno-working-directory"),
    "clang": ("-E",),
    "zig": ("-E",),
}
_PREPROCESSED: dict[Family, tuple[str, ...]] = {
    "gcc": ("-x", "cpp-output", "-fpreprocessed"),
    "clang": ("-x", "cpp-output"),
    "zig": (),  # goes by the ending, .i, and knows no name for it
}
_WITH_MACROS = "-fdirectives-only"
# Refused beside what _PREPROCESS adds; a warning that moves no code.
_CONFLICTING: dict[Family, frozenset[str]] = {
    "gcc": frozenset(["-Wunused-macros"]),
    "clang": frozenset(),
    "zig": frozenset(),
}
# The levels at which compilers predefine the same macros, by the level that stands for them (gcc, clang).
_MACRO_CLASS = {"O1": "O2", "O2": "O2", "O3": "O2", "Og": "O2", "Os": "Os", "Oz": "Os"}

# What decides nothing about a compiler's own options, and may not stand alone.
_NOT_PROBED = ("-I", "-D", "-U", "-W", "-include", "-isystem", "-iquote", "-idirafter", "-imacros", "-i")


@dataclass(frozen=True)
class Toolchain:
    """One compiler at one version for one target, probed."""

    isa: str
    family: Family
    compiler: str
    """Family and major version, `gcc12`: the middle of a variant's name."""
    command: tuple[str, ...]
    target: tuple[str, ...]
    """Tells a compiler of many targets which one is meant."""
    flags: tuple[str, ...]
    """Always passed, before those of the unit; `{root}` stands for the project's folder."""
    version: str
    """First line of --version."""
    triple: str = ""
    assembler: tuple[str, ...] = ()
    """Takes the text in place of the compiler's own; empty for none."""
    emulator: tuple[str, ...] = ()
    flag_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Those that this instruction set has, by name."""

    @property
    def id(self) -> str:
        """`aarch64.gcc12`: the prefix of its variants' names."""
        return f"{self.isa}.{self.compiler}"

    def levels(self, wanted: Sequence[str]) -> list[str]:
        """The levels among `wanted` whose flag set this toolchain has."""
        return [level for level in wanted if "-" not in level or flag_set(level) in self.flag_sets]

    def macro_class(self, level: str) -> str:
        """The level that stands for all which predefine the same macros."""
        base, dash, name = level.partition("-")
        return _MACRO_CLASS.get(base, base) + dash + name

    def arguments(self, command: Command, level: str) -> tuple[str, ...]:
        """What a record keeps: all arguments but input and output, the project's folder written as `.`."""
        flags = (*self.target, *self.flags, *self._accepted(command), *self._level_flags(level))
        return tuple(flag.replace("{root}", ".") for flag in flags)

    def direct_argv(self, command: Command, level: str) -> list[str]:
        """The direct compilation in the project's own folder, without input's and output's options."""
        flags = (*self.target, *self.flags, *self._accepted(command), *self._level_flags(level))
        return [*self.command, *(flag.replace("{root}", str(command.root)) for flag in flags)]

    def keeps_macros(self, level: str) -> bool:
        """Whether the text for the level has its macros unexpanded."""
        return self.family == "gcc" and level.partition("-")[0] == "O0"

    def own_argv(self, command: Command, level: str, output: str) -> list[str]:
        """The project's own compilation, to assembly; runs in the folder of the command."""
        return [*self.direct_argv(command, level), "-S", "-o", output, _input(command)]

    def preprocess_argv(self, command: Command, level: str, *, expand: bool = False) -> list[str]:
        """Preprocess to standard output, with line markers; `expand` all macros at every level."""
        kept = (_WITH_MACROS,) if self.keeps_macros(level) and not expand else ()
        return [*self.direct_argv(command, level), *_PREPROCESS[self.family], *kept, _input(command)]

    def compile_argv(self, command: Command, level: str, text: str, output: str) -> list[str]:
        """Compile a preprocessed text to assembly; runs anywhere."""
        kept = (_WITH_MACROS,) if self.keeps_macros(level) else ()
        flags = (*self.arguments(command, level), *_PREPROCESSED[self.family], *kept)
        return [*self.command, *flags, "-S", "-o", output, text]

    def assemble_argvs(self, command: Command, assembly: str, output: str) -> list[list[str]]:
        """Ways to assemble to an object, the next for a text that the one before does not understand."""
        machine = [flag for flag in self._accepted(command) if flag.startswith("-m")]
        own = [*self.command, *self.target, *machine, "-w", "-c", "-o", output, assembly]
        return [[*self.assembler, "-o", output, assembly], own] if self.assembler else [own]

    def _level_flags(self, level: str) -> tuple[str, ...]:
        base = level.partition("-")[0]
        return (f"-{base}", *self.flag_sets.get(flag_set(level), ()))

    def _accepted(self, command: Command) -> tuple[str, ...]:
        # Without macros and folders, which differ from file to file, so that a project is asked for once.
        probed = tuple(dict.fromkeys(flag for flag in command.flags if not flag.startswith(_NOT_PROBED)))
        rejected = _rejected(self.command, self.target, probed) | _CONFLICTING[self.family]
        return tuple(flag for flag in command.flags if flag not in rejected)

    def environment(self, temporary: Path) -> dict[str, str]:
        """The whole environment of a call: no CPATH, no locale, a fixed date, scratch space of its own."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "SOURCE_DATE_EPOCH": "0",
            # Fewer page faults, on which compilers spend up to a third of a small unit's time: huge pages
            # where the kernel has them, and memory in large steps. clang takes 5 to 12 % less, gcc 1 %.
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216",
            "TMPDIR": str(temporary),
            "ZIG_GLOBAL_CACHE_DIR": str(temporary / "zig-cache"),
            "ZIG_LOCAL_CACHE_DIR": str(temporary / "zig-cache"),
        }


def _input(command: Command) -> str:
    return command.input.replace("{root}", str(command.root))


def flag_set(level: str) -> str:
    """The name of the flag set in a level, `no-inline` of `O2-no-inline`; empty for none."""
    return level.partition("-")[2]


@lru_cache(1024)
def _rejected(command: tuple[str, ...], target: tuple[str, ...], flags: tuple[str, ...]) -> frozenset[str]:
    """The flags that this compiler does not know: a build was captured with another one's."""
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as folder:

        def accepts(some: Sequence[str]) -> bool:
            argv = [*command, *target, "-w", *some, "-x", "c", "-S", "-o", "/dev/null", "/dev/null"]
            try:
                return run(argv, cwd=Path(folder), limits=PROBE_LIMITS).ok
            except FileNotFoundError:
                return True  # whoever compiles says that the compiler is gone

        def refused(some: Sequence[str]) -> set[str]:
            """By halves: few of many flags are strange to a compiler."""
            if not some or accepts(some):
                return set()
            half = len(some) // 2
            return refused(some[:half]) | refused(some[half:]) if half else {some[0]}

        return frozenset(refused(flags))
