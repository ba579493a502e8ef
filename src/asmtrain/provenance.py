"""Where an exported model came from, as `provenance.json` tells it.

In go the run and the stage that was exported; out comes a dictionary: corpora and their hashes, the stage
and its files' hashes, the run's whole config, the commit of this package's checkout, tool versions, and what
the export verified. It carries no time, so equal exports are equal. Cost: one pass over the stage's weights.
"""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

_TOOLS = ("asmtrain", "torch", "transformers", "peft", "deepspeed", "tokenizers", "safetensors")


def provenance(
    run: Path, stage: Path, *, result: Mapping[str, Any], verified: Mapping[str, float]
) -> dict[str, Any]:
    """What `provenance.json` holds; `result` is the stage's `result.json`."""
    config = run / "config.yaml"
    return {
        "corpora": result["corpora"],
        "stage": dict(result),
        "stage_files": {path.name: _sha256(path) for path in sorted(stage.glob("*.safetensors"))},
        "config": yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else None,
        "commit": git_commit(),
        "tools": {"python": platform.python_version(), **tool_versions()},
        "verified": dict(verified),
    }


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shape a model; those not installed are left out."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of this package's checkout, `-dirty` where files differ from it; None outside of git."""
    argv = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            argv, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
