"""One Ray cluster for all tests that do not test how Ray is started."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two CPUs, in a process group of its own that ends with the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("ray") / "log"
    ray = Path(sys.executable).with_name("ray")
    options = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    options += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    with open(log, "wb") as stream:
        cluster = subprocess.Popen(
            [ray, "start", *options], stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        _wait_until_up(cluster, log)
        yield f"127.0.0.1:{port}"
    finally:
        # Its children end with it: that is what --block is for.
        os.killpg(cluster.pid, signal.SIGTERM)
        cluster.wait(30)


def _wait_until_up(cluster: "subprocess.Popen[bytes]", log: Path) -> None:
    import time

    for _ in range(600):
        if b"Ray runtime started" in log.read_bytes():
            return
        if cluster.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"Ray did not start:\n{log.read_text(errors='replace')}")
