"""Nodes of a Ray cluster on one machine, which share neither files nor, where it can be, an address.

A node that is not the head is a bubblewrap of its own: it has its own processes, so that killing it leaves
nothing of it running; its own /dev/shm; and in the place of the folder that holds the driver's files, one of
its own. As root each is a host of its own too: a network namespace at a bridge.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

RAY = Path(sys.executable).with_name("ray")


@dataclass
class Network:
    """A bridge, and a network namespace at it for each node."""

    bridge: str = field(default_factory=lambda: f"ray{os.getpid()}")
    number: int = field(default_factory=lambda: os.getpid() % 250)
    namespaces: list[str] = field(default_factory=list)

    @property
    def head_ip(self) -> str:
        return f"10.213.{self.number}.1"

    def open(self) -> bool:
        """False where this user may not."""
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
        except (OSError, subprocess.CalledProcessError):
            return False
        _ip("addr", "add", f"{self.head_ip}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        return True

    def add(self) -> tuple[str, str]:
        """Name and address of a new host."""
        number = len(self.namespaces) + 2
        name, link = f"{self.bridge}-{number}", f"v{os.getpid()}-{number}"
        address = f"10.213.{self.number}.{number}"
        _ip("netns", "add", name)
        self.namespaces.append(name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", self.bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        return name, address

    def close(self) -> None:
        for name in self.namespaces:
            _ip("netns", "del", name)
        _ip("link", "del", self.bridge)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class RayCluster:
    """The head, whose machine is the driver's, and any number of other nodes."""

    def __init__(self, *, head_cpus: int) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets lie in it
        self.files = self.base / "files"
        """The driver's own: on the other nodes there is no such folder."""
        self.files.mkdir()
        network = Network()
        self._network = network if network.open() else None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folders = [self.base]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "TMPDIR": str(self.base),
        }
        ip = self._network.head_ip if self._network else "127.0.0.1"
        self.address = f"{ip}:{_free_port(ip)}"
        options = ["--head", f"--port={self.address.rpartition(':')[2]}", f"--node-ip-address={ip}"]
        options += [f"--temp-dir={self.base / 'ray'}", "--include-dashboard=false"]
        self._start("head", [], options, cpus=head_cpus)

    def add(self, name: str) -> None:
        """Start a node of one CPU; what runs there finds the name in $NODE."""
        folder = Path(tempfile.mkdtemp(prefix="ray"))
        self._folders.append(folder)
        prefix = [
            "bwrap",
            "--dev-bind",
            "/",
            "/",
            "--tmpfs",
            "/dev/shm",
            "--bind",
            str(folder),
            str(self.base),
        ]
        prefix += ["--unshare-pid", "--proc", "/proc", "--die-with-parent"]
        options = [f"--address={self.address}"]
        if self._network:
            namespace, ip = self._network.add()
            prefix = ["ip", "netns", "exec", namespace, *prefix]
            options += [f"--node-ip-address={ip}"]
        self._start(name, prefix, options, cpus=1)

    def kill(self, name: str) -> None:
        """Take a node away at once, with everything that runs on it."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def workers(self) -> list[psutil.Process]:
        """Ray's worker processes on all nodes, those at work first; a raylet does not outlive its agents."""
        found: list[tuple[bool, psutil.Process]] = []
        for node in list(self._processes.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(node.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        title = " ".join(process.cmdline())
                        if title.startswith("ray::") and "Agent" not in title:
                            found.append((title.startswith("ray::IDLE"), process))
        return [process for _, process in sorted(found, key=lambda item: item[0])]

    def kill_agent(self, name: str) -> None:
        """Take away a node's agent: its raylet, which connects it to the cluster, ends itself then."""
        processes = psutil.Process(self._processes[name].pid).children(recursive=True)
        (agent,) = [process for process in processes if "ray::DashboardAgent" in process.cmdline()[:1]]
        agent.kill()

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)
        if self._network:
            self._network.close()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, name: str, prefix: list[str], options: list[str], *, cpus: int) -> None:
        command = [*prefix, str(RAY), "start", "--block", *options, f"--num-cpus={cpus}"]
        command += ["--disable-usage-stats", "--object-store-memory=100000000"]
        path = self.base / f"{name}.log"
        with open(path, "wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**self.environment, "NODE": name},
            )
        self._processes[name] = process
        _wait_until_up(process, path)


def _free_port(ip: str) -> int:
    with socket.socket() as free:
        free.bind((ip, 0))
        port: int = free.getsockname()[1]
        return port


def _wait_until_up(process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if b"Ray runtime started" in log.read_bytes():
            return
        time.sleep(0.1)
    pytest.fail(f"a Ray node did not start:\n{log.read_text(errors='replace')}")
