"""What commands say on a terminal: a console of the right width, and a bar for what takes long."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_WIDTH_OF_A_FILE = 110


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for tables where a file or pipe takes the text."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    return Console(file=stream, width=width, highlight=False)


def plain(text: str) -> Text:
    """A text from a file that nobody vouches for: no markup, and nothing that a terminal would obey."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the block runs, on a terminal alone; yields what to tell it."""
    screen = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)
