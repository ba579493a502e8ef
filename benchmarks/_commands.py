"""The project's own commands, as a benchmark runs them."""

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
"""Where `asmtrain` lies."""


def call(*command: object) -> None:
    """Run a command, its output on stderr."""
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
