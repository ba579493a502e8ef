"""Compilers: which are installed, and the argument lists that use them.

In: names such as `aarch64.gcc` and a toolchain file (configs/toolchains.yaml, which explains its keys). Out:
`Toolchain` values whose compiler has been run on a file with a system header, so that a missing compiler, or
one without the target's C headers, shows before a build and not as thousands of failures.

A unit is compiled in two steps, so that the second needs nothing but the compiler: `preprocess_argv` makes
one text for each macro class, and `compile_argv` compiles that text at each level of the class. For gcc the
text keeps its macros (`-fdirectives-only`): with them expanded, gcc 12 numbers labels otherwise at -O0.
clang's text is its plain `-E` output. Either way the assembly is that of the direct command, byte for byte.
Invariant: an argument list names no folder but the project's root, and the environment is the same
everywhere, so equal compilers give equal bytes on every machine.
Cost: a probe runs the compiler two or three times, 0.1 s.
"""

import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from corpus_builder.config import ConfigModel, Isa, load_config
from corpus_builder.errors import ConfigError, ToolchainError
from corpus_builder.process import Limits, run
from corpus_builder.record import Command

Family = Literal["gcc", "clang", "zig"]

_PROBE_LIMITS = Limits(time_s=60.0, memory_mib=4096, output_mib=16)
_PROBE_SOURCE = '#include <stdio.h>\nint probe(void) { return puts(""); }\n'

# Kept in records. -w silences warnings, and with them -Werror; it moves no code, where dropping -W flags can.
_COMMON_FLAGS = ("-w", "-ffile-prefix-map={root}=.")
# Errors of newer compilers that were warnings when most C was written; -w then silences them.
_TOLERANT = tuple(
    f"-Wno-error={name}"
    for name in (
        "implicit-function-declaration",
        "implicit-int",
        "int-conversion",
        "incompatible-function-pointer-types",
    )
)
_FAMILY_FLAGS: dict[Family, tuple[str, ...]] = {
    "gcc": (),
    # After a crash clang would preprocess again and leave a reproducer in /tmp. GNU as has no .addrsig, which
    # only tells a linker what it may fold.
    "clang": ("-fno-crash-diagnostics", "-fno-addrsig", *_TOLERANT),
    "zig": ("-fno-crash-diagnostics", "-fno-addrsig", *_TOLERANT),
}

_PREPROCESS: dict[Family, tuple[str, ...]] = {
    "gcc": ("-E", "-fdirectives-only", "-fno-working-directory"),
    "clang": ("-E",),
    "zig": ("-E",),
}
_PREPROCESSED: dict[Family, tuple[str, ...]] = {
    "gcc": ("-x", "cpp-output", "-fpreprocessed", "-fdirectives-only"),
    "clang": ("-x", "cpp-output"),
    "zig": (),  # goes by the ending, .i, and knows no name for it
}
# The levels at which compilers predefine the same macros, by the level that stands for them (gcc, clang).
_MACRO_CLASS = {"O1": "O2", "O2": "O2", "O3": "O2", "Og": "O2", "Os": "Os", "Oz": "Os"}

# What decides nothing about a compiler's own options, and may not stand alone.
_NOT_PROBED = ("-I", "-D", "-U", "-W", "-include", "-isystem", "-iquote", "-idirafter", "-imacros", "-i")


class ToolchainEntry(ConfigModel):
    """One compiler family for one instruction set, as the toolchain file gives it."""

    isa: Isa
    family: Family
    versions: tuple[int, ...] = ()
    """Major versions, preferred first; empty takes any and names it by what the compiler says."""
    triple: str
    commands: tuple[str, ...]
    flags: tuple[str, ...] = ()
    apt: str = ""
    apt_native: str = ""
    assembler: str = ""
    emulator: str = ""

    def packages(self, version: int | None) -> str:
        """The packages to install, for one version or the distribution's default."""
        apt = self.apt_native if self.isa == _machine() else self.apt
        return apt.replace("-{version}", "" if version is None else f"-{version}")


class FlagSet(ConfigModel):
    """Flags added to a level: `O2-no-inline` is -O2 with those of the flag set `no-inline`."""

    flags: tuple[str, ...]
    isas: tuple[Isa, ...] = ("aarch64", "x86_64", "riscv64")
    """Instruction sets that have it; for others the level is left out."""


class ToolchainFile(ConfigModel):
    """A toolchain file."""

    toolchains: tuple[ToolchainEntry, ...]
    flag_sets: Mapping[str, FlagSet] = {}


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
        return [level for level in wanted if "-" not in level or _flag_set(level) in self.flag_sets]

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

    def preprocess_argv(self, command: Command, level: str, *, expand: bool = False) -> list[str]:
        """Preprocess to standard output, with line markers; `expand` all macros even for gcc."""
        mode = ("-E",) if expand else _PREPROCESS[self.family]
        return [*self.direct_argv(command, level), *mode, command.input.replace("{root}", str(command.root))]

    def compile_argv(self, command: Command, level: str, text: str, output: str) -> list[str]:
        """Compile a preprocessed text to assembly; runs anywhere."""
        flags = self.arguments(command, level)
        return [*self.command, *flags, *_PREPROCESSED[self.family], "-S", "-o", output, text]

    def assemble_argvs(self, command: Command, assembly: str, output: str) -> list[list[str]]:
        """Ways to assemble to an object, the next for a text that the one before does not understand."""
        machine = [flag for flag in self._accepted(command) if flag.startswith("-m")]
        own = [*self.command, *self.target, *machine, "-w", "-c", "-o", output, assembly]
        return [[*self.assembler, "-o", output, assembly], own] if self.assembler else [own]

    def _level_flags(self, level: str) -> tuple[str, ...]:
        base = level.partition("-")[0]
        return (f"-{base}", *self.flag_sets.get(_flag_set(level), ()))

    def _accepted(self, command: Command) -> tuple[str, ...]:
        rejected = _rejected(self.command, self.target, command.flags)
        return tuple(flag for flag in command.flags if flag not in rejected)

    def environment(self, temporary: Path) -> dict[str, str]:
        """The whole environment of a call: no CPATH, no locale, a fixed date, scratch space of its own."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "SOURCE_DATE_EPOCH": "0",
            "TMPDIR": str(temporary),
            "ZIG_GLOBAL_CACHE_DIR": str(temporary / "zig-cache"),
            "ZIG_LOCAL_CACHE_DIR": str(temporary / "zig-cache"),
        }


def _flag_set(level: str) -> str:
    return level.partition("-")[2]


@lru_cache(1024)
def _rejected(command: tuple[str, ...], target: tuple[str, ...], flags: tuple[str, ...]) -> frozenset[str]:
    """The flags that this compiler does not know: a build was captured with another one's."""
    probed = tuple(dict.fromkeys(flag for flag in flags if not flag.startswith(_NOT_PROBED)))
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as folder:

        def accepts(some: Sequence[str]) -> bool:
            argv = [*command, *target, "-w", *some, "-x", "c", "-S", "-o", "/dev/null", "/dev/null"]
            try:
                return run(argv, cwd=Path(folder), limits=_PROBE_LIMITS).ok
            except FileNotFoundError:
                return True  # whoever compiles says that the compiler is gone

        if not probed or accepts(probed):
            return frozenset()
        return frozenset(flag for flag in probed if not accepts([flag]))


def load_toolchains(file: Path) -> ToolchainFile:
    """Read a toolchain file.

    Raises:
        ConfigError: it cannot be read, or holds mistakes.
    """
    return load_config(ToolchainFile, file)


def resolve(names: Sequence[str], file: Path) -> tuple[list[Toolchain], list[str]]:
    """The toolchains that a config asks for, as far as they are installed, and notes on what differs.

    `aarch64.gcc12` must be there. `aarch64.gcc` is the first gcc for aarch64 in the file that works; where
    none does, it is left out, and `aarch64.clang` falls back to zig, a clang under another name and with its
    own defaults, labelled as zig in every variant.

    Raises:
        ConfigError: the file cannot be read, or holds mistakes.
        ToolchainError: a name the file does not know, an exact toolchain is missing, or nothing is installed.
    """
    loaded = load_toolchains(file)
    entries = loaded.toolchains
    found: dict[str, Toolchain] = {}
    notes: list[str] = []
    remedies: list[str] = []
    for name in names:
        candidates = _candidates(name, entries, file)
        toolchain, problems = _first_working(candidates)
        packages = candidates[0][0].packages(candidates[0][1] if _is_exact(name) else None)
        remedy = f"apt-get install {packages}" if packages else "pip install ziglang"
        reason = "; ".join(problems) or "no command of it is installed"
        if toolchain is None and _is_exact(name):
            raise ToolchainError(f"toolchain {name} cannot be used: {reason}", remedy=remedy)
        if toolchain is None:
            notes.append(f"{name} is left out: {reason} ({remedy})")
            remedies.append(remedy)
            continue
        if toolchain.family != candidates[0][0].family:
            notes.append(f"{name} falls back to {toolchain.id}: {reason} ({remedy})")
        found.setdefault(toolchain.id, _with_flag_sets(toolchain, loaded.flag_sets))
    if not found:
        message = f"no toolchain of {', '.join(names)} can be used: " + "; ".join(notes)
        raise ToolchainError(message, remedy=" or ".join(dict.fromkeys(remedies)))
    return list(found.values()), notes


def check_levels(levels: Sequence[str], toolchains: Sequence[Toolchain], file: Path) -> None:
    """Refuse a level that no toolchain has; raises ConfigError."""
    for level in levels:
        if not any(toolchain.levels([level]) for toolchain in toolchains):
            known = sorted({name for toolchain in toolchains for name in toolchain.flag_sets})
            raise ConfigError(
                f"level {level}: no toolchain has a flag set {_flag_set(level)!r}",
                remedy=f"add it to {file}, or use one of: {', '.join(known) or 'none is there'}",
            )


def _with_flag_sets(toolchain: Toolchain, flag_sets: Mapping[str, FlagSet]) -> Toolchain:
    own = {name: item.flags for name, item in flag_sets.items() if toolchain.isa in item.isas}
    return replace(toolchain, flag_sets=own)


Candidate = tuple[ToolchainEntry, int | None]


def _is_exact(name: str) -> bool:
    return name[-1:].isdigit()


def _candidates(name: str, entries: Sequence[ToolchainEntry], file: Path) -> list[Candidate]:
    """Entries with a version each that may serve a name, preferred first."""
    match = re.fullmatch(r"(\w+)\.([a-z]+?)(\d*)", name)
    isa, family, version = match.groups() if match else ("", "", "")
    fitting = [entry for entry in entries if (entry.isa, entry.family) == (isa, family)]
    if version:
        exact = int(version)
        chosen: list[Candidate] = [
            (entry, exact) for entry in fitting if exact in entry.versions or not entry.versions
        ]
    else:
        fallback = (
            [e for e in entries if family == "clang" and (e.isa, e.family) == (isa, "zig")] if fitting else []
        )
        chosen = [(entry, v) for entry in (*fitting, *fallback) for v in (entry.versions or (None,))]
    if not chosen:
        known = sorted(
            {f"{entry.isa}.{entry.family}{v}" for entry in entries for v in entry.versions or ("",)}
        )
        raise ToolchainError(
            f"{file} has no toolchain {name!r}", remedy=f"add it there, or use one of: {', '.join(known)}"
        )
    return chosen


def _first_working(candidates: Sequence[Candidate]) -> tuple[Toolchain | None, list[str]]:
    """The first candidate whose compiler works, and what is wrong with installed ones before it."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as folder:
        for entry, version in candidates:
            for command in _installed_commands(entry, version):
                probed = _probe(entry, version, command, Path(folder))
                if isinstance(probed, Toolchain):
                    return probed, problems
                if probed:
                    problems.append(probed)
    return None, problems


def _installed_commands(entry: ToolchainEntry, version: int | None) -> Iterator[tuple[str, ...]]:
    for template in entry.commands:
        program, *arguments = template.replace("{version}", str(version or "")).split()
        if program == "ziglang":
            spec = importlib.util.find_spec("ziglang")
            program = str(Path(spec.origin).parent / "zig") if spec and spec.origin else program
        if shutil.which(program):
            yield (program, *arguments)


def _probe(
    entry: ToolchainEntry, version: int | None, command: tuple[str, ...], folder: Path
) -> Toolchain | str:
    """A working toolchain, or what is wrong with it; nothing for a command of another version or target."""
    said = _output(command, "--version", folder)
    first_line = said.partition("\n")[0].strip()
    number = re.search(r"version (\d+)\.|(?:^|\s)(\d+)\.\d+\.\d+", _without_parentheses(first_line))
    major = int(number.group(1) or number.group(2)) if number else None
    if major is None:
        return f"{Path(command[0]).name} --version tells no version"
    if version not in (None, major) or not _is_for_target(entry, command, folder):
        return ""
    toolchain = Toolchain(
        isa=entry.isa,
        family=entry.family,
        compiler=f"{entry.family}{major}",
        command=command,
        target=_target_flags(entry),
        flags=(*entry.flags, *_COMMON_FLAGS, *_FAMILY_FLAGS[entry.family]),
        version=first_line,
        triple=entry.triple,
        emulator=tuple(entry.emulator.split()),
    )
    problem = _does_not_compile(toolchain, folder)
    if problem:
        return f"{Path(command[0]).name} does not compile for {entry.isa}: {problem}"
    assembler = tuple(entry.assembler.split())
    return replace(toolchain, assembler=assembler) if _assembles(assembler, folder) else toolchain


def _without_parentheses(line: str) -> str:
    """gcc says `gcc-12 (Debian 12.2.0-14) 12.2.0`: the distribution's own number comes first."""
    return re.sub(r"\([^)]*\)", "", line)


def _output(command: tuple[str, ...], argument: str, folder: Path) -> str:
    completed = run([*command, argument], cwd=folder, limits=_PROBE_LIMITS)
    return completed.stdout.decode(errors="replace")


def _is_for_target(entry: ToolchainEntry, command: tuple[str, ...], folder: Path) -> bool:
    """A gcc is built for one target: plain `gcc` is for this machine's. clang and zig are told."""
    return entry.family != "gcc" or _output(command, "-dumpmachine", folder).startswith(f"{entry.isa}-")


def _target_flags(entry: ToolchainEntry) -> tuple[str, ...]:
    if entry.family == "gcc":
        return ()
    return (f"--target={entry.triple}",) if entry.family == "clang" else ("-target", entry.triple)


def _does_not_compile(toolchain: Toolchain, folder: Path) -> str:
    """What the compiler says of a file with a system header; empty if it compiles."""
    (folder / "probe.c").write_text(_PROBE_SOURCE)
    argv = [
        *toolchain.direct_argv(Command(folder, ".", "probe.c", ()), "O2"),
        "-S",
        "-o",
        "probe.s",
        "probe.c",
    ]
    completed = run(argv, cwd=folder, limits=_PROBE_LIMITS, env=toolchain.environment(folder))
    if completed.ok:
        return ""
    lines = completed.stderr.decode(errors="replace").split("\n")
    return next((line for line in lines if "error" in line), completed.cause)


def _assembles(assembler: tuple[str, ...], folder: Path) -> bool:
    """Whether an assembler is installed and understands what the compiler has just made of the probe."""
    if not assembler or shutil.which(assembler[0]) is None:
        return False
    argv = [*assembler, "-o", str(folder / "probe.o"), str(folder / "probe.s")]
    return run(argv, cwd=folder, limits=_PROBE_LIMITS).ok


def _machine() -> str:
    machine = platform.machine().lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)
