"""A driver of its own process: `ray_driver.py FUNCTION ADDRESS FOLDER` prints a JSON line for each result.

The tasks are the files of the folder, which the driver's node alone has. A process of its own because Ray
reads a cluster's token once in a process, and tests of other clusters run in the one of pytest.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from corpus_builder.executor import run_units


def read(task: str) -> dict[str, Any]:
    return {"data": Path(task).read_bytes(), "node": os.environ["NODE"]}


def hash_prepared(task: str, prepared: dict[str, Any]) -> dict[str, Any]:
    """Needs none of the driver's files; its result is too large to travel inside of a message."""
    time.sleep(0.1)
    return {
        "sha256": hashlib.sha256(prepared["data"]).hexdigest(),
        "prepared_on": prepared["node"],
        "run_on": os.environ["NODE"],
        "sees_file": Path(task).exists(),
        "echo": prepared["data"],
    }


def hash_file(task: str) -> dict[str, Any]:
    """Reads the file where it runs."""
    time.sleep(0.1)
    return hash_prepared(task, read(task))


def hash_at_home(task: str) -> dict[str, Any]:
    """Both steps where the files are."""
    return hash_prepared(task, read(task)) | {"at_home": True}


def is_even(result: dict[str, Any]) -> bool:
    """Which results of elsewhere will do."""
    return int(result["sha256"], 16) % 2 == 0


def main() -> None:
    function, address, folder = sys.argv[1:]
    tasks = sorted(str(path) for path in Path(folder).iterdir())
    again: dict[str, Any] = {}
    if function == "hash_again":
        function, again = "hash_prepared", {"whole": hash_at_home, "is_whole": is_even}
    prepare = read if function == "hash_prepared" else None
    results = run_units(
        tasks,
        globals()[function],
        size=lambda task: Path(task).stat().st_size,
        prepare=prepare,
        address=address,
        **again,
    )
    for task, result in results:
        row: dict[str, Any] = {"task": Path(task).name}
        if isinstance(result, dict):
            echo = result.pop("echo")
            row |= {**result, "echoed": echo == Path(task).read_bytes()}
        else:
            row |= {"crash": result.reason}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
