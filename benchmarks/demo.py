"""The figures of `make demo`: runs it, and keeps what it built and found with the time that it took.

Steps that are finished are reused, and the time is of the others alone; after `make clean-demo` it is of all.
Prints as its last line one JSON object; `--save` keeps it in results/demo.json.

    python benchmarks/demo.py [--save]
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from _commands import BIN, call
from _saved import save

HOME = Path("runs/demo")
FINISHED = {
    "corpus": HOME / "corpus" / "index.json",
    "train": HOME / "train" / "finished.json",
    "export": HOME / "export" / "embedding" / "provenance.json",
    "eval": HOME / "eval" / "retrieval.json",
    "index": HOME / "index" / "index.json",
}
"""Step to what appears last in it."""


def main() -> None:
    """Run, gather, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    reused = [step for step, path in FINISHED.items() if path.exists()]
    started = time.monotonic()
    call("launch/demo.sh")
    figures = {"reused": reused, "seconds": round(time.monotonic() - started)} | gathered()
    if options.save:
        save("demo", figures)
    print(json.dumps({key: figures[key] for key in ("reused", "seconds", "corpus", "failures")}))


def gathered() -> dict[str, Any]:
    """The corpus in figures and what the evaluation found."""
    command = [str(BIN / "corpus-builder"), "stats", str(HOME / "corpus"), "--json"]
    stats = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    found = json.loads((HOME / "eval" / "retrieval.json").read_bytes())
    rows = [row for row in found["rows"] if row["bucket"] == "all"]
    settings = {key: found[key] for key in ("settings", "models", "lanes")}
    return {"corpus": stats["totals"], "failures": stats["failures"]} | settings | {"retrieval": rows}


if __name__ == "__main__":
    main()
