"""What takes long to start and serves many tests: a Ray cluster, and an S3 server."""

import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from object_store import environment, forget_connections, serving


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Address of a cluster of two CPUs, in a process group of its own that ends with the tests.

    It has a token of its own: left alone, Ray takes one for `ray start` if the user's home holds any, but not
    for a driver that names the address.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets lie in it
    ray = Path(sys.executable).with_name("ray")
    options = ["--head", "--block", f"--port={port}", "--num-cpus=2", f"--temp-dir={folder}"]
    options += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(__file__).parent))  # for functions of the tests themselves
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with open(folder / "start.log", "wb") as log:
            cluster = subprocess.Popen(
                [ray, "start", *options], stdout=log, stderr=log, start_new_session=True
            )
        try:
            _wait_until_up(cluster, folder / "start.log")
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(cluster.pid, signal.SIGKILL)
            cluster.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(cluster: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and cluster.poll() is None:
        if b"Ray runtime started" in log.read_bytes():
            return
        time.sleep(0.1)
    pytest.fail(f"Ray did not start:\n{log.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty bucket, with the environment that a user would set."""
    for name, value in environment(s3_server, tmp_path).items():
        monkeypatch.setenv(name, value)
    forget_connections()
    bucket = f"corpora-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"
