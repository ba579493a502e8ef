"""A Slurm cluster of two nodes on one machine: real daemons, a host name and a network for each node.

    head   10.213.0.1    slurmctld, munged; the bridge; where commands such as sbatch run
    n1     10.213.0.11   slurmd, sshd
    n2     10.213.0.12   slurmd, sshd

Each is a set of namespaces (network, host name, processes, mounts), those of the nodes inside the head's. All
share the file system but /run, /dev/shm, /etc/hosts and ssh's settings. As on a Debian host, a node's own
name is 127.0.1.1 on itself.

Invariant: nothing is left. The head's first process ends when its standard input does, be it by `close` or
because this process was killed, and with it the kernel ends every process, network and mount of the cluster;
files lie in one folder, which `close` removes. Needs root. Cost: half a second to start.

By hand, `python tests/cluster/slurm_nodes.py` starts a cluster with a shell on its head.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

COMMANDS = ("slurmctld", "slurmd", "srun", "munged", "sshd", "ssh-keygen", "pdsh", "ip", "nsenter", "unshare")
ADDRESSES = {"n1": "10.213.0.11", "n2": "10.213.0.12"}
_HEAD = "10.213.0.1"
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_OWN_SPACES = ["unshare", "-n", "-u", "-p", "-i", "-m", "--mount-proc", "--fork", "--kill-child"]

_SLURM_CONF = """\
ClusterName=two
SlurmctldHost=head({head})
SlurmUser=root
AuthType=auth/munge
# How long a requeued job waits, in seconds: by default 121.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
# A job has to notice by itself that a node is lost: clusters give nodes minutes.
SlurmdTimeout=120
KillWait=2
SchedulerParameters=sched_interval=1,sched_min_interval=100000
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
_CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
"""
_SSH_CONFIG = """\
IdentityFile {folder}/key
UserKnownHostsFile /dev/null
StrictHostKeyChecking no
LogLevel ERROR
"""
_SSHD_CONFIG = """\
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PidFile none
"""
_HEAD_SCRIPT = """\
set -e
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/munge /run/sshd
mount --bind "$FOLDER/hosts" /etc/hosts
mount --bind "$FOLDER/ssh_config" /etc/ssh/ssh_config
hostname head
ip link set lo up
ip link add bridge type bridge
ip addr add {head}/24 dev bridge
ip link set bridge up
munged --foreground --key-file="$FOLDER/munge.key" --seed-file="$FOLDER/munge.seed" </dev/null &
until [ -S /run/munge/munge.socket.2 ]; do sleep 0.05; done
slurmctld -D </dev/null &
touch "$FOLDER/up"
read -r || true
"""
_NODE_SCRIPT = """\
set -e
hostname "$NODE"
mount -t tmpfs tmpfs /dev/shm
mount --bind "$FOLDER/hosts-$NODE" /etc/hosts
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up
ip addr add "$ADDRESS/24" dev eth0
ip link set eth0 up
/usr/sbin/sshd -D -f "$FOLDER/sshd_config" &
slurmd -D -N "$NODE" &
wait
"""


class SlurmCluster:
    """A head and the nodes n1 and n2, of two CPUs each."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))
        """Configuration, keys, state and logs."""
        self._environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:{_SBIN}",
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "FOLDER": str(self.folder),
        }
        self._head: subprocess.Popen[bytes] | None = None
        self._head_pid = 0
        self._nodes: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            self._write_files()
            self._start_head()
            for name in ADDRESSES:
                self.start(name)
            self.wait_for_nodes()
        except BaseException as error:
            error.add_note(self.logs())
            self.close()
            raise

    def run(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head, to its end, whatever its exit code."""
        return subprocess.run(
            [*self._enter("--all"), *map(str, arguments)],
            env={**self._environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ask(self, *arguments: str | Path) -> str:
        """What a command on the head says; it has to succeed."""
        done = self.run(arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start(self, name: str) -> None:
        """Start a node, for the first time or after `kill`."""
        outside = self._start(
            [*self._enter("--all"), *_OWN_SPACES, "bash", "-c", _NODE_SCRIPT],
            name,
            environment={"NODE": name, "ADDRESS": ADDRESSES[name]},
        )
        first = self._first_process(outside)
        self._nodes[name] = outside, first
        self._ip(
            "link", "add", name, "master", "bridge", "type", "veth",
            "peer", "name", "eth0", "netns", str(first),
        )  # fmt: skip
        self._ip("link", "set", name, "up")

    def kill(self, name: str) -> None:
        """SIGKILL to slurmd and every other process of a node; its network goes with them."""
        outside, first = self._nodes.pop(name)
        os.kill(first, signal.SIGKILL)
        outside.communicate()

    def wait_for_nodes(self, timeout_s: float = 60) -> None:
        """Wait until both nodes take jobs."""
        wait_until(
            lambda: self.run(["sinfo", "-h", "-o", "%D %T"]).stdout.strip() == f"{len(ADDRESSES)} idle",
            "two idle nodes",
            timeout_s,
        )

    def logs(self) -> str:
        """The end of what the daemons said."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in files)

    def close(self) -> None:
        """End everything."""
        if self._head:
            try:
                self._head.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self._head.kill()  # takes the head's first process along
                self._head.communicate()
        for outside, _ in self._nodes.values():
            outside.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def shell(self) -> None:
        """A shell on the head, for whoever wants to look."""
        subprocess.run([*self._enter("--all"), "bash"], env=self._environment, check=False)

    def _write_files(self) -> None:
        (self.folder / "state").mkdir()
        nodes = "\n".join(f"NodeName={name} NodeAddr={ip} CPUs=2" for name, ip in ADDRESSES.items())
        hosts = {"head": _HEAD, **ADDRESSES}
        files = {
            "slurm.conf": _SLURM_CONF.format(folder=self.folder, head=_HEAD, nodes=nodes),
            "cgroup.conf": _CGROUP_CONF,
            "ssh_config": _SSH_CONFIG.format(folder=self.folder),
            "sshd_config": _SSHD_CONFIG.format(folder=self.folder),
            "hosts": _hosts(hosts),
            **{f"hosts-{name}": _hosts({**hosts, name: "127.0.1.1"}) for name in ADDRESSES},
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "key"], check=True)

    def _start_head(self) -> None:
        command = [*_OWN_SPACES, "bash", "-c", _HEAD_SCRIPT.format(head=_HEAD)]
        self._head = self._start(command, "head", environment={})
        self._head_pid = self._first_process(self._head)
        head = self._head
        wait_until(lambda: head.poll() is not None or (self.folder / "up").exists(), "the head", 30)
        assert head.poll() is None, "the head ended at once"

    def _start(
        self, command: Sequence[str], name: str, *, environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Start a command that reads from a pipe and writes to a log."""
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                command,
                env={**self._environment, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _enter(self, *spaces: str) -> list[str]:
        return ["nsenter", "--target", str(self._head_pid), *spaces]

    def _ip(self, *arguments: str) -> None:
        # Nothing but the head's network: a process that `netns` names is looked up by its number out here.
        subprocess.run([*self._enter("--net"), "ip", *arguments], check=True, env=self._environment)

    def _first_process(self, outside: "subprocess.Popen[bytes]") -> int:
        """Number out here of the first process in the namespaces that a command has made."""
        known = {_space(os.getpid()), _space(self._head_pid or os.getpid())}
        found: list[int] = []

        def look() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                family = psutil.Process(outside.pid).children(recursive=True)
                found.extend(process.pid for process in family if _space(process.pid) not in known)
            return bool(found) or outside.poll() is not None

        wait_until(look, "a namespace", 10)
        assert found, f"{outside.args} ended at once"
        return found[0]


def _space(process: int) -> str:
    return os.readlink(f"/proc/{process}/ns/pid")


def _hosts(addresses: Mapping[str, str]) -> str:
    return "127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items())


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Wait, and say what for if it does not come."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.02)


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [name for name in COMMANDS if not shutil.which(name, path=f"{os.environ['PATH']}:{_SBIN}")]
    if absent:
        return f"needs {', '.join(absent)} (CI=true launch/setup.sh installs them)"
    probe = subprocess.run([*_OWN_SPACES, "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"needs namespaces: {probe.stderr.strip()}"


@contextlib.contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A cluster for as long as the block runs."""
    cluster = SlurmCluster()
    try:
        yield cluster
    finally:
        cluster.close()


if __name__ == "__main__":
    with slurm_cluster() as by_hand:
        by_hand.shell()
