"""Keeps a benchmark's figures with the machine, the commit and the date they were measured on."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def save(name: str, figures: Mapping[str, Any]) -> None:
    """Write `results/<name>.json`."""
    described = {
        **figures,
        "machine": machine(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(described, indent=1) + "\n")


def machine() -> str:
    """Processor, number of CPUs and memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{os.cpu_count()} CPUs ({model}), {pages * page_bytes / 2**30:.0f} GiB"


def commit() -> str:
    """The checked-out commit, short, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
