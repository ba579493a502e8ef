"""Build systems: from the files of a project to the shell lines that build it for one instruction set.

In: a source tree, the config's `build`, a target. Out: a `BuildPlan`: lines that configure, lines that build,
and files to write first. Invariant: nothing is run or written here, and equal inputs give equal plans.
The lines count on the environment of `environment`: compilers by name, and variables that many projects read.
Every build goes on after an error (-k), so that one program that does not build costs itself alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from corpus_builder.config import Build
from corpus_builder.errors import ConfigError

TRIPLES = {"aarch64": "aarch64-linux-gnu", "x86_64": "x86_64-linux-gnu", "riscv64": "riscv64-linux-gnu"}
"""ISA to the name under which builds ask for its tools."""
OUT_OF_TREE = "build-asmtrain"
_KBUILD_ARCH = {"aarch64": "arm64", "x86_64": "x86_64", "riscv64": "riscv"}
_CONFIG_SCRIPTS = ("/usr/share/misc", "/usr/share/libtool/build-aux", "/usr/share/automake-1.16")


@dataclass(frozen=True)
class Target:
    """What to build for, and by which names its tools are called."""

    isa: str
    build_triple: str
    """Triple of this machine."""
    cross: bool
    """Whether to tell the build of the target; else it builds as it would for a user of this machine."""
    has_cxx: bool
    """Whether a C++ compiler for the target is installed."""
    jobs: int
    files: str
    """Folder, as the build sees it, that holds the plan's files."""

    @property
    def triple(self) -> str:
        """Such as `aarch64-linux-gnu`."""
        return TRIPLES[self.isa]


@dataclass(frozen=True)
class BuildPlan:
    """How to build."""

    system: str
    folder: Path
    """Where to, inside the tree."""
    configure: tuple[str, ...]
    """Shell lines; compiler calls of these are probes, not units."""
    make: tuple[str, ...]
    """Shell lines; compiler calls of these are units."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that the lines name as $ASMTRAIN_FILES/<name>, to their texts."""


def plan_build(tree: Path, build: Build, target: Target) -> BuildPlan | str:
    """The lines for one project and one target; a text says why there are none.

    Raises:
        ConfigError: `build.folder` does not match one folder, or `commands` are asked for and not given.
    """
    folder = _folder(tree, build)
    system = detect(folder, build)
    if system not in _PLANS:
        return (
            f"no configure, configure.ac, meson.build, CMakeLists.txt or Makefile in {build.folder!r}: "
            "give build.folder, or build.commands"
        )
    return _PLANS[system](folder, build, target)


def detect(folder: Path, build: Build) -> str:
    """The build system of a folder: what the config says, else what its files say; empty for none."""
    if build.commands:
        return "commands"
    if build.system != "auto":
        return build.system
    if _has(folder, "configure", "configure.ac", "configure.in", "autogen.sh"):
        return "autotools"
    if _has(folder, "meson.build"):
        return "meson"
    if _has(folder, "CMakeLists.txt"):
        return "cmake"
    if _has(folder, "Makefile", "makefile", "GNUmakefile"):
        return "kbuild" if _has(folder, "Kconfig", "Config.in") else "make"
    return ""


def environment(target: Target) -> dict[str, str]:
    """Variables for the build: the target's tools, and this machine's for programs that run in the build."""
    prefix = f"{target.triple}-"
    host = dict.fromkeys(("CC_FOR_BUILD", "BUILD_CC", "HOSTCC", "CC_BUILD"), "gcc")
    tools = {name: prefix + name.lower() for name in ("AR", "RANLIB", "NM", "LD", "STRIP", "OBJCOPY")}
    cross = {
        # Packages for this machine's own libraries must not be found for another.
        "PKG_CONFIG_LIBDIR": f"/usr/lib/{target.triple}/pkgconfig:/usr/share/pkgconfig",
        "HOST": target.triple,
        "CHOST": target.triple,
        "CROSS_COMPILE": prefix,
        **tools,
    }
    return {
        **host,
        **(
            cross
            if target.cross
            else {"HOST": target.triple, "CROSS_COMPILE": "", "AR": "ar", "RANLIB": "ranlib"}
        ),
        "CC": f"{prefix}gcc",
        "BUILD": target.build_triple,
        "JOBS": str(target.jobs),
        "ASMTRAIN_FILES": target.files,
    }


def _folder(tree: Path, build: Build) -> Path:
    try:
        found = [tree] if build.folder == "." else sorted(p for p in tree.glob(build.folder) if p.is_dir())
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"build.folder {build.folder!r} is not a usable glob: {error}",
            remedy="write it relative to the source",
        ) from None
    if len(found) != 1:
        names = ", ".join(path.relative_to(tree).as_posix() for path in found) or "none"
        raise ConfigError(
            f"build.folder {build.folder!r} must match one folder of {tree}: {names}",
            remedy="give the folder's path inside the source, or a glob that matches only it",
        )
    return found[0]


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _words(arguments: tuple[str, ...]) -> str:
    """Arguments for the shell, in which $HOST and the like still stand for their values."""
    quoted = (word.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`") for word in arguments)
    return "".join(f' "{word}"' for word in quoted)


def _make(arguments: str) -> str:
    return f"make -k -j$JOBS{arguments}"


def _autotools(folder: Path, build: Build, target: Target) -> BuildPlan:
    lines = []
    if not _has(folder, "configure"):
        has_source = _has(folder, "configure.ac", "configure.in")
        lines.append("autoreconf -fi" if has_source else "NOCONFIGURE=1 sh ./autogen.sh")
    # Scripts of old releases know neither aarch64 nor riscv64; distributions replace them the same way.
    scripts = " ".join(f"{place}/$name" for place in _CONFIG_SCRIPTS)
    lines.append(
        'find . -name config.sub -o -name config.guess | while read -r old; do name=$(basename "$old"); '
        f'for new in {scripts}; do if [ -f "$new" ]; then cp -f "$new" "$old"; break; fi; done; done'
    )
    lines.append("chmod +x configure")
    lines.append(f"./configure{_configure_arguments(folder, target)}{_words(build.configure)}")
    return BuildPlan("autotools", folder, tuple(lines), (_make(_words(build.make)),))


def _configure_arguments(folder: Path, target: Target) -> str:
    """Arguments that name the target, for the kinds of configure there are; others read the environment."""
    script = folder / "configure"
    text = (
        script.read_text(encoding="utf-8", errors="replace")
        if script.is_file()
        else "Generated by GNU Autoconf"
    )
    if not target.cross:
        return ""
    if "Autoconf" in text[:10_000] or "--host=" in text:
        return " --host=$HOST --build=$BUILD"
    if "--cross-prefix=" in text and "--enable-cross-compile" in text:  # FFmpeg's
        return f" --enable-cross-compile --cross-prefix=$CROSS_COMPILE --arch={target.isa} --target-os=linux"
    if re.search(r"^\s*CC=\*\)", text, re.MULTILINE):  # takes variables as arguments alone, as that of ed
        return " CC=$CC"
    return " --cross-prefix=$CROSS_COMPILE" if "--cross-prefix=" in text else ""


def _cmake(folder: Path, build: Build, target: Target) -> BuildPlan:
    fixed = "-DCMAKE_TOOLCHAIN_FILE=$ASMTRAIN_FILES/toolchain.cmake -DCMAKE_BUILD_TYPE=None"
    configure = f'cmake -S . -B {OUT_OF_TREE} -G "Unix Makefiles" {fixed}{_words(build.configure)}'
    make = f"make -C {OUT_OF_TREE} -k -j$JOBS{_words(build.make)}"
    return BuildPlan("cmake", folder, (configure,), (make,), {"toolchain.cmake": _toolchain_file(target)})


def _toolchain_file(target: Target) -> str:
    lines = [f"set(CMAKE_C_COMPILER {target.triple}-gcc)"]
    if target.has_cxx:
        lines.append(f"set(CMAKE_CXX_COMPILER {target.triple}-g++)")
    else:
        # A project that names no language asks for C++ as well, mostly without a C++ file.
        lines += [
            f"set(CMAKE_CXX_COMPILER {target.triple}-gcc)",
            "set(CMAKE_CXX_COMPILER_FORCED TRUE)",
            "set(CMAKE_CXX_COMPILER_ID_RUN 1)",
            "set(CMAKE_CXX_COMPILER_ID GNU)",
            "set(CMAKE_CXX_COMPILER_VERSION 12.0)",
        ]
    if target.cross:
        lines += [
            "set(CMAKE_SYSTEM_NAME Linux)",
            f"set(CMAKE_SYSTEM_PROCESSOR {target.isa})",
            f"set(CMAKE_FIND_ROOT_PATH /usr/{target.triple})",
            "set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)",
            *(f"set(CMAKE_FIND_ROOT_PATH_MODE_{kind} ONLY)" for kind in ("LIBRARY", "INCLUDE", "PACKAGE")),
        ]
    return "\n".join(lines) + "\n"


def _meson(folder: Path, build: Build, target: Target) -> BuildPlan:
    cross = " --cross-file $ASMTRAIN_FILES/cross.ini" if target.cross else ""
    arguments = f"{cross} --wrap-mode=nodownload -Dwerror=false{_words(build.configure)}"
    make = f"ninja -C {OUT_OF_TREE} -k 0 -j $JOBS{_words(build.make)}"
    files = {"cross.ini": _cross_file(target)}
    return BuildPlan("meson", folder, (f"meson setup {OUT_OF_TREE}{arguments}",), (make,), files)


def _cross_file(target: Target) -> str:
    tools = {"c": "gcc", **({"cpp": "g++"} if target.has_cxx else {}), "ar": "ar", "strip": "strip"}
    binaries = "\n".join(f"{name} = '{target.triple}-{tool}'" for name, tool in tools.items())
    return (
        f"[binaries]\n{binaries}\npkg-config = 'pkg-config'\n"
        f"[properties]\nneeds_exe_wrapper = true\npkg_config_libdir = '/usr/lib/{target.triple}/pkgconfig'\n"
        f"[host_machine]\nsystem = 'linux'\nendian = 'little'\n"
        f"cpu_family = '{target.isa}'\ncpu = '{target.isa}'\n"
    )


def _kbuild(folder: Path, build: Build, target: Target) -> BuildPlan:
    variables = f" ARCH={_KBUILD_ARCH[target.isa]} CROSS_COMPILE={target.triple}- HOSTCC=gcc"
    configure = f"make{variables}{_words(build.configure or ('defconfig',))}"
    return BuildPlan("kbuild", folder, (configure,), (_make(variables + _words(build.make)),))


def _plain_make(folder: Path, build: Build, target: Target) -> BuildPlan:
    """Variables on the command line win over the Makefile's: for a cross-build only, they may hold flags."""
    if build.configure:
        raise ConfigError(
            f"build.configure {list(build.configure)} has no meaning for a plain Makefile",
            remedy="give variables and targets as build.make, other steps as build.commands",
        )
    prefix = "${CROSS_COMPILE}"
    variables = f" CC=$CC AR={prefix}ar RANLIB={prefix}ranlib CROSS_COMPILE={prefix} HOSTCC=gcc"
    arguments = (variables if target.cross else "") + _words(build.make)
    return BuildPlan("make", folder, (), (_make(arguments),))


def _commands(folder: Path, build: Build, target: Target) -> BuildPlan:
    if not build.commands:
        raise ConfigError(
            "build.system is `commands`, but build.commands is empty", remedy="give its shell lines"
        )
    return BuildPlan("commands", folder, (), build.commands)


_PLANS: Mapping[str, Callable[[Path, Build, Target], BuildPlan]] = {
    "autotools": _autotools,
    "cmake": _cmake,
    "meson": _meson,
    "kbuild": _kbuild,
    "make": _plain_make,
    "commands": _commands,
}
