"""Compiler calls of a build in, compile commands of C units out. Pure, but for reading compile_commands.json.

A call is what the wrapper noted, or an entry of compile_commands.json. Invariant: of a call's arguments only
those are kept that can change what a C file compiles to (`_KEPT`); what names outputs, links, writes further
files, or makes the compiler run another program (-fplugin, -wrapper, -B, -specs) is dropped, so that commands
of a stranger's build can be replayed outside of its sandbox. No kept argument is an -O level.
One file compiled in several ways gives several commands, except where the calls differ only in what libtool
and CMake change to compile a file twice (-fPIC, -DPIC, -Dname_EXPORTS), or in warnings: of these one stays.
"""

import json
import posixpath
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from corpus_builder.ccwrapper import expanded
from corpus_builder.errors import SourceError
from corpus_builder.record import Command

Skipped = Literal["assembler", "c++", "other", "probe", "outside", "host", "failed", "gone"]


@dataclass(frozen=True)
class Call:
    """One call of a compiler."""

    name: str
    """What it was called as, without folders: `aarch64-linux-gnu-gcc`."""
    cwd: str
    argv: tuple[str, ...]
    """Without the program, response files read."""
    exit: int = 0


@dataclass(frozen=True)
class Compile:
    """A call read: what it compiles, and how."""

    inputs: tuple[tuple[str, str], ...]
    """Files with their languages, as gcc names them: `c`, `c++`, `assembler`, ... or `` for linker input."""
    flags: tuple[str, ...]
    """What is kept; separate arguments joined (`-I dir` is `-Idir`)."""
    compiles: bool
    """Whether it makes code, and does not only preprocess, check, or tell a version."""


@dataclass(frozen=True)
class Commands:
    """The C units of a build."""

    units: tuple[tuple[str, Command], ...]
    """File, relative to the project's folder, and command; sorted, as a build has no fixed order."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Inputs that are no C units of the project, counted by kind (`Skipped`)."""
    failed: Mapping[str, Call] = field(default_factory=dict)
    """Files that the project's own build did not compile, with the last call that tried."""


# Arguments that take the next word where nothing is joined to them.
_TAKE_NEXT_WORDS = (
    "-o -x -D -U -I -include -imacros -isystem -iquote -idirafter -iprefix -iwithprefix -iwithprefixbefore "
    "-isysroot -imultilib -L -l -T -e -u -z -A -B -F -MF -MT -MQ -MJ -aux-info -dumpbase -dumpbase-ext "
    "-dumpdir --param -Xlinker -Xassembler -Xpreprocessor -Xclang -Xarch_host -mllvm -wrapper -arch -target "
    "--target -framework --sysroot -specs --specs -ivfsoverlay -include-pch -G -h -Tbss -Tdata -Ttext "
    "--define-macro --undefine-macro --include-directory --include -install_name -soname -rpath"
)
_TAKE_NEXT = frozenset(_TAKE_NEXT_WORDS.split())
_JOINED_TOO = sorted(
    (word for word in _TAKE_NEXT if re.fullmatch(r"-[a-zA-Z]|-i\w+|-M[FTQJ]", word)), key=len, reverse=True
)

_KEPT = re.compile(
    r"-[DU].|-I.|-(include|imacros|isystem|iquote|idirafter|iprefix|iwithprefix|iwithprefixbefore)[^-]"
    r"|--?std=|-ansi$|-f|-m|-W|-w$|-pedantic|-pthread$|-nostdinc$|-undef$|-trigraphs$|-traditional-cpp$|--param=|-x"
)
_DROPPED = re.compile(
    r"-fplugin|-fpass-plugin|-fdump|-fopt-info|-fsave-optimization-record|-fstack-usage|-fcallgraph-info"
    r"|-fprofile|-fno-profile|-fbranch-probabilities|-fauto-profile|-ftest-coverage|-fcoverage|-fcs-profile"
    r"|-flto|-fno-lto|-ffat-lto|-fno-fat-lto|-fuse-linker-plugin|-fno-use-linker-plugin|-fuse-ld|-fwhole-program"
    r"|-fsyntax-only|-fpch|-ftime-|-fmem-report|-fdiagnostics|-fno-diagnostics|-fcolor|-fno-color|-fmessage-length"
    r"|-fdebug-|-fcrash-diagnostics|-fno-crash|-fworking-directory|-frecord-(gcc|command)|-fuse-cxa|-fpreprocessed"
    r"|-fdirectives-only|-fmodules|-fmodule-|-femit|-fembed|-foffload|-fintegrated|-fno-integrated|-fverbose-asm"
    r"|-m(arch|tune|cpu)=native$|-mllvm|-Werror|-Wfatal-errors|-W[apl],|-Winvalid-pch"
)

_LANGUAGES = {".c": "c", ".i": "cpp-output", ".S": "assembler", ".sx": "assembler", ".s": "assembler"}
_CXX = {".cc", ".cp", ".cxx", ".cpp", ".CPP", ".c++", ".C", ".ii"}
_OTHER = {".m", ".mm", ".mi", ".f", ".for", ".f90", ".f95", ".F", ".F90", ".go", ".d", ".adb", ".ads", ".h"}

_PROBE = re.compile(
    r"(^|/)(conftest[^/]*|_configtest[^/]*|sanitycheckc?\.c|testfile\.c)$"
    r"|(^|/)(CMakeFiles/(CMakeTmp|CMakeScratch|CMakeTryCompile|ShowIncludes|_CMakeLTOTest-C|[0-9.]+/CompilerIdC)"
    r"|meson-private|\.tmp_[^/]*)(/|$)"
)


def parse(argv: Sequence[str]) -> Compile:
    """Read a compiler's arguments."""
    inputs: list[tuple[str, str]] = []
    flags: list[str] = []
    language, compiles = "", True
    for option, value in _options(argv):
        if not option:
            inputs.append((value, language or _language(value)))
        elif option == "-x":
            language = "" if value == "none" else value
        elif option in (
            "-E",
            "-M",
            "-MM",
            "-fsyntax-only",
            "-###",
            "--version",
            "-dumpversion",
            "-dumpmachine",
        ):
            compiles = False
        else:
            flags += _kept(option, value)
    return Compile(tuple(inputs), tuple(flags), compiles)


def _options(argv: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Options with their values, joined or not; an input file is a value without an option."""
    words = iter(argv)
    for word in words:
        joined = next((option for option in _JOINED_TOO if word.startswith(option) and word != option), "")
        if word == "--":
            yield from (("", file) for file in words)
        elif not word.startswith("-") or word == "-":
            yield "", word
        elif word in _TAKE_NEXT:
            yield word, next(words, "")
        elif joined and not word.startswith(("-include-pch", "-install_name")):
            yield joined, word[len(joined) :]
        else:
            yield word, ""


_LONG = {
    "--define-macro": "-D",
    "--undefine-macro": "-U",
    "--include-directory": "-I",
    "--include": "-include",
}


def _kept(option: str, value: str) -> list[str]:
    option = _LONG.get(option, option)
    if option.startswith("-Wp,"):
        return [
            flag
            for o, v in _options(option[4:].split(","))
            for flag in _kept(o, v)
            if flag[:2] in ("-D", "-U")
        ]
    if option == "-Xpreprocessor":
        return [value] if value[:2] in ("-D", "-U") else []
    if option == "-pedantic-errors":
        return ["-pedantic"]
    flag = f"{option}={value}" if option == "--param" else option + value
    return [flag] if _KEPT.match(flag) and not _DROPPED.match(flag) else []


def _language(file: str) -> str:
    suffix = posixpath.splitext(file)[1]
    if suffix in _CXX:
        return "c++"
    return "other" if suffix in _OTHER else _LANGUAGES.get(suffix, "")


def commands_of(
    calls: Iterable[Call], *, mount: str, root: Path, host: frozenset[str] = frozenset()
) -> Commands:
    """The C units that calls compile.

    `mount` is the project's folder as the calls saw it, `root` where it is now; `host` are names of compilers
    whose calls are left out, as what they make runs during the build alone.
    """
    ways: dict[tuple[object, ...], tuple[str, Command]] = {}
    skipped: Counter[str] = Counter()
    failed: dict[str, Call] = {}
    for call in calls:
        parsed = parse(call.argv)
        for name, language in parsed.inputs if parsed.compiles else ():
            file = _relative(posixpath.join(call.cwd, name), mount)
            kind = _kind(name, file, language)
            if kind == "c" and (call.name in host or call.exit):
                kind = "host" if call.name in host else "failed"
            if kind == "failed":
                assert file is not None
                failed[file] = call
            if kind == "c":
                assert file is not None
                found = (file, _command(call, parsed.flags, name, language, mount=mount, root=root))
                key = (file, found[1].cwd, _significant(found[1].flags))
                ways[key] = min(ways.get(key, found), found, key=_preference)
            elif kind:
                skipped[kind] += 1
    units = tuple(sorted(ways.values(), key=_order))
    compiled = {file for file, _ in units}
    lost = {file: call for file, call in sorted(failed.items()) if file not in compiled}
    return Commands(units, dict(sorted(skipped.items())), lost)


def _kind(name: str, file: str | None, language: str) -> str:
    """`c` for a unit, empty for linker input, else why it is skipped."""
    if not language:
        return ""
    if name == "-" or name.startswith("/dev/") or _PROBE.search(file or name):
        return "probe"
    if language in ("assembler", "assembler-with-cpp"):
        return "assembler"
    if language.startswith("c++"):
        return "c++"
    if language != "c":
        return "other"
    return "outside" if file is None else "c"


def _relative(path: str, mount: str) -> str | None:
    path = posixpath.normpath(path)
    return path[len(mount) + 1 :] if path.startswith(f"{mount}/") else None


def _command(
    call: Call, flags: Sequence[str], name: str, language: str, *, mount: str, root: Path
) -> Command:
    cwd = posixpath.relpath(call.cwd, mount)
    absolute = posixpath.join(call.cwd, name)
    # An absolute name would bring the folder's place into __FILE__.
    written = name if not posixpath.isabs(name) else posixpath.relpath(absolute, call.cwd)
    written = f"./{written}" if written.startswith("-") else written
    kept = tuple(portable(flag, mount) for flag in flags)
    return Command(root, cwd, written, kept if _language(name) == "c" else (*kept, f"-x{language}"))


def portable(flag: str, mount: str) -> str:
    """A flag with `{root}` for the project's folder in paths.

    A macro's text stays, as it may stand in the code, unless it names a header to include.
    """
    if flag.startswith("-D") and not re.search(r"=\\?[\"<].*\.(h|inc|def|c)\\?[\">]$", flag):
        return flag
    return re.sub(rf"{re.escape(mount)}(?=$|[/=\"\\:])", "{root}", flag)


# What alone tells the shared build of a file from its static one, or one CMake or Meson target from another:
# position independence, what is exported, and the folder of the target itself.
_TWICE = re.compile(
    r"-f(no-)?(pic|PIC|pie|PIE)$|-fvisibility=|-I\S+\.p$"
    r"|-D(PIC|\w+_EXPORTS?|(\w+_)?(DLL|DLL_EXPORT|SHARED|SHARED_LIB|STATIC|STATIC_LIB|STATIC_DEFINE))(=|$)"
)


def _significant(flags: Sequence[str]) -> tuple[str, ...]:
    return tuple(f for f in flags if not _TWICE.match(f) and not f.startswith(("-W", "-w", "-pedantic")))


def _preference(found: tuple[str, Command]) -> tuple[bool, tuple[str, ...]]:
    """Position-independent first: libtool compiles it first, and the choice must not hang on timing."""
    return (not any(_TWICE.match(flag) for flag in found[1].flags), found[1].flags)


def _order(found: tuple[str, Command]) -> tuple[object, ...]:
    file, command = found
    return (file, len(command.flags), command.cwd, command.flags, command.input)


def retargeted(command: Command) -> Command:
    """A command of one instruction set for others: without the flags that only its own compilers know."""
    kept = tuple(flag for flag in command.flags if not flag.startswith(("-m", "-fcf-protection")))
    return Command(command.root, command.cwd, command.input, kept)


def read_log(text: str) -> list[Call]:
    """The calls of a wrapper's log; a line that is not one, as a build may write any, is passed over."""
    calls = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            call = Call(entry["name"], entry["cwd"], tuple(entry["argv"]), entry["exit"])
        except (ValueError, KeyError, TypeError):
            continue
        if all(isinstance(word, str) and "\0" not in word for word in (call.name, call.cwd, *call.argv)):
            calls.append(call)
    return calls


def read_database(path: Path) -> list[Call]:
    """The calls of a compile_commands.json, as CMake, Meson and Bear write it.

    Raises:
        SourceError: it cannot be read, or is not one.
    """
    remedy = "make it again, with cmake -DCMAKE_EXPORT_COMPILE_COMMANDS=ON or with bear"
    try:
        entries = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if not isinstance(entries, list):
            raise TypeError("it holds no list")
        return [_database_call(entry) for entry in entries]
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", remedy=remedy) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} is not a compile_commands.json: {error}", remedy=remedy) from None


def _database_call(entry: Mapping[str, object]) -> Call:
    arguments = entry.get("arguments")
    words = (
        [str(word) for word in arguments]
        if isinstance(arguments, list)
        else shlex.split(str(entry["command"]))
    )
    return Call(
        posixpath.basename(words[0]),
        str(entry["directory"]),
        tuple(expanded(words[1:], str(entry["directory"]))),
    )
