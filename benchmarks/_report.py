"""Tables in documents, between the marks `<!-- begin NAME -->` and `<!-- end NAME -->`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers stand at the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in row] for row in rows]
    marks = ["---"] + ["--:"] * (len(columns) - 1)
    lines = [columns, marks, *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def report(document: Path, parts: Mapping[str, str]) -> None:
    """Put new parts between their marks.

    Raises:
        ValueError: the document lacks the marks of one of them.
    """
    text = document.read_text(encoding="utf-8")
    for name, part in parts.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text, count = re.subn(pattern, lambda match, part=part: match[1] + part + match[2], text, flags=re.S)
        if not count:
            raise ValueError(f"{document} has no marks of {name!r}")
    document.write_text(text, encoding="utf-8")
