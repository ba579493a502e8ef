"""A compiler that keeps a diary: runs the real one, and appends each call to a log.

As a module: `install` makes a folder of such compilers, to be put first on PATH. As a script: in, the
arguments of a compiler; out, exactly what the real one does: output, exit status, signal; and one line of
JSON in the log: {"name", "cwd", "argv", "exit"}, argv without the program, with response files read and with
the folders of CPATH and C_INCLUDE_PATH behind it.
Invariant: a caller sees no difference. A log that cannot be written changes nothing; each line is one write
at the end of the file, so that parallel calls do not mix. Only the standard library is imported.
Cost: 13 ms a call, most of it the start of Python, which is why it is started with -I and -S.
"""

import os
import signal
import sys

SCRIPT = "wrapper.py"
_FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_MOST_NESTED = 8


def install(folder: str, compilers: dict[str, str], *, python: str, seen_at: str, log: str) -> None:
    """Make the compilers named, each leading to the real one given by its path.

    `seen_at` is where the calls find the folder, and `log` where they find the log: in a sandbox these differ
    from where they lie. `python` is the interpreter there.
    """
    with open(__file__, encoding="utf-8") as own:
        body = own.read()
    settings = f"main({compilers!r}, {log!r})\n"
    os.makedirs(folder, exist_ok=True)
    script = os.path.join(folder, SCRIPT)
    with open(script, "w", encoding="utf-8") as file:
        file.write(f"#!{python} -IS\n{body}\n\n{settings}")
    os.chmod(script, 0o755)
    for name in compilers:
        os.symlink(os.path.join(seen_at, SCRIPT), os.path.join(folder, name))


def main(compilers: dict[str, str], log: str) -> None:
    """Run the compiler that this process is named as, note the call, and end as the compiler did."""
    name = os.path.basename(sys.argv[0])
    environment = _original_environment()
    status = _run(compilers[name], environment)
    _note(log, name, os.waitstatus_to_exitcode(status))
    if os.WIFSIGNALED(status):
        _die_of(os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _original_environment() -> dict[bytes, bytes]:
    """In a C locale Python sets LC_CTYPE for itself; with it, the compiler would quote in UTF-8."""
    environment = dict(os.environb)
    if environment.get(b"LC_CTYPE") == b"C.UTF-8":
        with open("/proc/self/environ", "rb") as file:
            given = file.read().split(b"\0")
        if not any(entry.startswith(b"LC_CTYPE=") for entry in given):
            del environment[b"LC_CTYPE"]
    return environment


def _run(compiler: str, environment: dict[bytes, bytes]) -> int:
    """Start the compiler, with the signals that Python ignores reset, and wait; returns the wait status."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    argv = [compiler, *sys.argv[1:]]
    ignored_by_python = [signal.SIGPIPE, signal.SIGXFSZ]
    pid = os.posix_spawn(compiler, argv, environment, setsigdef=ignored_by_python, setsigmask=held)
    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, frame: os.kill(pid, received))
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return os.waitpid(pid, 0)[1]


def _note(log: str, name: str, exit: int) -> None:
    import json  # 2 ms; not at the top, so that the compiler starts before

    try:
        argv = expanded(sys.argv[1:]) + searched(dict(os.environ))
        entry = {"name": name, "cwd": os.getcwd(), "argv": argv, "exit": exit}
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.write(file, json.dumps(entry).encode() + b"\n")
    except OSError:  # also where the working folder is gone
        pass


def _die_of(number: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def searched(environment: dict[str, str]) -> list[str]:
    """As arguments, the folders that a build names in the environment: searched behind those of -I."""
    options = {"CPATH": "-I", "C_INCLUDE_PATH": "-isystem"}
    return [
        option + (folder or ".")
        for name, option in options.items()
        if environment.get(name)
        for folder in environment[name].split(os.pathsep)
    ]


def expanded(argv: list[str], folder: str = "", depth: int = 0) -> list[str]:
    """The arguments with those of response files in the place of each `@file`, as gcc reads them."""
    words: list[str] = []
    for word in argv:
        if word.startswith("@") and depth < _MOST_NESTED:
            try:
                with open(os.path.join(folder, word[1:]), encoding="utf-8", errors="surrogateescape") as file:
                    words += expanded(split_words(file.read()), folder, depth + 1)
                continue
            except OSError:
                pass  # gcc takes it for the name of a file
        words.append(word)
    return words


def split_words(text: str) -> list[str]:
    """The words of a response file: separated by white space, quoted by ' or ", escaped by a backslash."""
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            word = [*(word or ()), next(characters, "")]
        elif quote and character == quote:
            quote = ""
        elif quote or not (character.isspace() or character in "'\""):
            word = [*(word or ()), character]
        elif not character.isspace():
            quote, word = character, word or []
        elif word is not None:
            words.append("".join(word))
            word = None
    return words if word is None else [*words, "".join(word)]
