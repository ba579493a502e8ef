"""Which compilers are installed: names such as `aarch64.gcc` in, `Toolchain` values out.

A toolchain file (configs/toolchains.yaml, which explains its keys) says where to look. Every compiler that
is returned has been run on a file with a system header, so that a missing compiler, or one without the
target's C headers, shows before a build and not as thousands of failures.
Cost: a probe runs the compiler two or three times, 0.1 s.
"""

import importlib.util
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from corpus_builder.config import ConfigModel, Isa, load_config
from corpus_builder.errors import ConfigError, ToolchainError
from corpus_builder.process import run
from corpus_builder.record import Command
from corpus_builder.toolchain import PROBE_LIMITS, Family, Toolchain, flag_set

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
                f"level {level}: no toolchain has a flag set {flag_set(level)!r}",
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
    completed = run([*command, argument], cwd=folder, limits=PROBE_LIMITS)
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
    completed = run(argv, cwd=folder, limits=PROBE_LIMITS, env=toolchain.environment(folder))
    if completed.ok:
        return ""
    lines = completed.stderr.decode(errors="replace").split("\n")
    return next((line for line in lines if "error" in line), completed.cause)


def _assembles(assembler: tuple[str, ...], folder: Path) -> bool:
    """Whether an assembler is installed and understands what the compiler has just made of the probe."""
    if not assembler or shutil.which(assembler[0]) is None:
        return False
    argv = [*assembler, "-o", str(folder / "probe.o"), str(folder / "probe.s")]
    return run(argv, cwd=folder, limits=PROBE_LIMITS).ok


def _machine() -> str:
    machine = platform.machine().lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)
