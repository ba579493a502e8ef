"""Several calls of one program as forks of one process: a shell script that loads the program once.

In: calls. Out: the text of a script that runs them in order. Loading clang's libraries takes 6 ms, a third of
what a small unit takes at -O0; a fork of the loaded program takes less than one. `forkserver.c`, preloaded,
takes the place of the program's main() (as AFL's fork server does).
Invariant: a call's output is that of the plain call. Where a program cannot be forked so, being linked
statically or made for another C library, or where no C compiler is to be had, the script runs plain calls.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_PROBE_S = 60


@dataclass(frozen=True)
class Call:
    """One call, and where what it says goes; nowhere, if no file is named."""

    argv: Sequence[str]
    cwd: Path
    done: Path
    """Created when the call has succeeded."""
    output: Path | None = None
    errors: Path | None = None


def script(calls: Iterable[Call], folder: Path) -> list[str]:
    """Lines for a shell, one for each row of calls of the same program, up to the first of them that fails.

    Files of the script's own go into `folder`.
    """
    lines = []
    for number, (program, row) in enumerate(groupby(calls, key=lambda call: call.argv[0])):
        same = list(row)
        library = _library() if len(same) > 1 and _can_be_forked(program) else None
        if library:
            file = folder / f"calls-{number}"
            file.write_bytes(b"".join(map(_packed, same)))
            lines.append(
                f"LD_PRELOAD={library} ASMTRAIN_CALLS={shlex.quote(str(file))} {shlex.quote(program)}"
            )
        else:
            lines.append(" && ".join(map(_plain, same)))
    return lines


def _packed(call: Call) -> bytes:
    places = [call.done, call.output or "", call.errors or "", call.cwd]
    words = [*map(str, places), str(len(call.argv)), *call.argv]
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _plain(call: Call) -> str:
    output, errors, done, cwd = (
        shlex.quote(str(place or os.devnull)) for place in (call.output, call.errors, call.done, call.cwd)
    )
    return f"cd {cwd} && {shlex.join(call.argv)} > {output} 2> {errors} && : > {done}"


@lru_cache(1)
def _library() -> str | None:
    """The shared object of `forkserver.c`, made once on each machine; nothing where that cannot be done."""
    source = _SOURCE.read_bytes()
    name = f"forkserver-{hashlib.sha256(source).hexdigest()[:16]}.so"
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "asmtrain"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    try:
        if not (cache / name).exists():
            if not compiler:
                return None
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                made = Path(folder, name)
                argv = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(made), str(_SOURCE), "-ldl"]
                subprocess.run(argv, check=True, capture_output=True, timeout=_PROBE_S)
                made.replace(cache / name)
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None
    return shlex.quote(str(cache / name))


@lru_cache(64)
def _can_be_forked(program: str) -> bool:
    """Whether two forks of the program both say what it says when it is called."""
    library = _library()
    if not library:
        return False
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        folder = Path(name)
        outputs = [folder / "1", folder / "2"]
        calls = [Call([program, "--version"], folder, folder / f"{file.name}.done", file) for file in outputs]
        (folder / "calls").write_bytes(b"".join(map(_packed, calls)))
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        forked = env | {"LD_PRELOAD": shlex.split(library)[0], "ASMTRAIN_CALLS": str(folder / "calls")}
        try:
            subprocess.run(
                [program], env=forked, cwd=folder, capture_output=True, timeout=_PROBE_S, check=True
            )
            plain = subprocess.run([program, "--version"], env=env, capture_output=True, timeout=_PROBE_S)
            return all(file.read_bytes() == plain.stdout for file in outputs)
        except (OSError, subprocess.SubprocessError):
            return False
