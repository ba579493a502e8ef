"""Some thousands of damaged files with fixed seeds; benchmarks/fuzz_reader.py reads a million."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_files_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    if shutil.which("x86_64-linux-gnu-gcc") is None:
        pytest.skip("needs x86_64-linux-gnu-gcc")
    script = Path(__file__).parents[2] / "benchmarks" / "fuzz_reader.py"
    command = [sys.executable, script, "--inputs", "2000", "--seed", str(seed), "--keep", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, figures
    assert figures["read"] + figures["refused"] == figures["inputs"] == 2000
    assert min(figures["read"], figures["refused"]) > 400
