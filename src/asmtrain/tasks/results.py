"""How an evaluation's result is kept: one JSON object, its lists an item a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corpus_builder.shards import atomic_output


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write it so that thousands of rows stay readable, and differ line by line.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    parts = []
    for name, value in result.items():
        lines = ",\n".join(json.dumps(item) for item in value) if isinstance(value, list) else ""
        parts.append(f'"{name}": ' + (f"[\n{lines}\n]" if lines else json.dumps(value)))
    with atomic_output(path) as stream:
        stream.write(("{\n" + ",\n".join(parts) + "\n}\n").encode())
