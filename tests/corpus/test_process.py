"""Limits and the sandbox, shown on real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corpus_builder.process import MIB, Jail, Limits, run
from corpus_builder.watch import size_bytes

ROOMY = Limits(time_s=20.0, memory_mib=2048, output_mib=8)


def shell(script: str, folder: Path, *, limits: Limits = ROOMY, **options: object):  # type: ignore[no-untyped-def]
    return run(["sh", "-c", script], cwd=folder, limits=limits, **options)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def dies_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_both_outputs_and_stdin_pass_through(tmp_path: Path) -> None:
    done = shell("cat; pwd; echo warned >&2", tmp_path, stdin=b"given\n")
    assert (done.exit, done.ok, done.cause) == (0, True, "")
    assert done.stdout.decode() == f"given\n{tmp_path}\n"
    assert done.stderr == b"warned\n"


def test_without_stdin_the_command_reads_nothing(tmp_path: Path) -> None:
    assert shell("wc -c", tmp_path).stdout.strip() == b"0"


def test_a_given_environment_is_the_whole_environment(tmp_path: Path) -> None:
    done = run(["env"], cwd=tmp_path, limits=ROOMY, env={"PATH": os.environ["PATH"], "ONLY": "this"})
    assert {line.partition(b"=")[0] for line in done.stdout.splitlines()} <= {b"PATH", b"ONLY", b"LC_CTYPE"}


def test_a_missing_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-compiler is not installed"):
        run(["no-such-compiler"], cwd=tmp_path, limits=ROOMY)


@pytest.mark.parametrize(
    ("script", "status", "cause"),
    [
        ("exit 3", 3, "error"),
        ("echo 'x.c:1: error' >&2; exit 1", 1, "error"),
        ("kill -SEGV $$", -signal.SIGSEGV, "crash"),
        ("sh -c 'kill -ABRT $$'; exit $?", 128 + signal.SIGABRT, "crash"),
        ("kill -KILL $$", -signal.SIGKILL, "memory"),  # not by us: the kernel's out-of-memory killer
    ],
)
def test_failures_are_told_apart(tmp_path: Path, script: str, status: int, cause: str) -> None:
    done = shell(script, tmp_path)
    assert (done.exit, done.cause, done.ok) == (status, cause, False)


def test_a_quoted_source_line_does_not_make_an_error_a_memory_failure(tmp_path: Path) -> None:
    quoted = """printf '%s\\n' 'x.c:7: error: oops' '    7 | puts("out of memory");' >&2; exit 1"""
    assert shell(quoted, tmp_path).cause == "error"


def test_a_hang_is_ended_with_its_whole_group(tmp_path: Path) -> None:
    limits = Limits(time_s=0.5, memory_mib=2048, output_mib=8)
    started = time.monotonic()
    done = shell("sleep 60 & echo $! > child; sh -c 'trap \"\" TERM; sleep 60'", tmp_path, limits=limits)
    assert done.cause == "timeout"
    assert time.monotonic() - started < 10
    assert dies_within(int((tmp_path / "child").read_text()), 5)


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    done = shell("sleep 60 & echo $!", tmp_path)
    assert done.ok
    assert time.monotonic() - started < 10, "waited for a process that held the output open"
    assert dies_within(int(done.stdout), 5)


EAT_MEMORY = [sys.executable, "-c", "block = bytearray(1 << 30); print(len(block))"]


def test_memory_is_limited(tmp_path: Path) -> None:
    tight = Limits(time_s=20.0, memory_mib=512, output_mib=8)
    assert run(EAT_MEMORY, cwd=tmp_path, limits=tight).cause == "memory"
    assert run(EAT_MEMORY, cwd=tmp_path, limits=ROOMY).ok


def test_limits_hold_where_prlimit_is_not_installed(tmp_path: Path) -> None:
    tight = Limits(time_s=20.0, memory_mib=512, output_mib=8)
    bare = {"PATH": str(tmp_path)}
    assert run(EAT_MEMORY, cwd=tmp_path, limits=tight, env=bare).cause == "memory"


@pytest.mark.parametrize("script", ["yes", "yes >&2", "yes > file"])
def test_endless_output_ends_at_the_limit(tmp_path: Path, script: str) -> None:
    done = shell(script, tmp_path, limits=Limits(time_s=20.0, memory_mib=2048, output_mib=1))
    assert done.cause == "output"
    sizes = [len(done.stdout), len(done.stderr)]
    sizes += [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) == MIB


def test_endless_output_of_a_program_that_ignores_the_signal(tmp_path: Path) -> None:
    # Python ignores SIGXFSZ and sees a failing write instead.
    program = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    limits = Limits(time_s=20.0, memory_mib=2048, output_mib=1)
    assert run([sys.executable, "-c", program], cwd=tmp_path, limits=limits).cause == "output"


def sandboxed(script: str, folder: Path, *, limits: Limits = ROOMY):  # type: ignore[no-untyped-def]
    return shell(script, folder, limits=limits, sandbox="bwrap")


@pytest.fixture
def _bwrap() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed")
    trial = subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True)
    if trial.returncode:
        pytest.skip(f"bwrap does not work here: {trial.stderr.decode().strip()}")


def processes_with(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.mark.usefixtures("_bwrap")
class TestSandbox:
    def test_only_the_working_folder_can_be_written(self, tmp_path: Path) -> None:
        done = sandboxed("echo in > here; ! touch /usr/x; ! touch /etc/x; ! touch /x.c/y; cat here", tmp_path)
        assert (done.ok, done.stdout) == (True, b"in\n")
        assert (tmp_path / "here").read_text() == "in\n"

    def test_other_files_cannot_be_seen(self, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        inside.mkdir()
        (tmp_path / "secret").write_text("s")
        done = sandboxed(f"test ! -e {tmp_path}/secret && test ! -e {Path.home()}", inside)
        assert done.ok, done.stderr

    def test_there_is_no_network_but_an_own_loopback(self, tmp_path: Path) -> None:
        done = sandboxed("tail -n +3 /proc/net/dev | cut -d: -f1", tmp_path)
        assert done.stdout.split() == [b"lo"]

    def test_other_processes_cannot_be_seen(self, tmp_path: Path) -> None:
        done = sandboxed(f"test ! -e /proc/{os.getpid()} && echo /proc/[0-9]*", tmp_path)
        assert done.ok
        assert len(done.stdout.split()) <= 3

    def test_a_process_that_left_the_group_is_ended_too(self, tmp_path: Path) -> None:
        marker = f"asmtrain-test-{os.getpid()}"
        script = f"setsid sh -c 'while :; do sleep 0.1; : {marker}; done' & sleep 60"
        limits = Limits(time_s=0.7, memory_mib=2048, output_mib=8)
        assert sandboxed(script, tmp_path, limits=limits).cause == "timeout"
        deadline = time.monotonic() + 5
        while (left := processes_with(marker)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []

    def test_limits_hold_inside(self, tmp_path: Path) -> None:
        limits = Limits(time_s=20.0, memory_mib=2048, output_mib=1)
        assert sandboxed("yes", tmp_path, limits=limits).cause == "output"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root has powers to lose")
    def test_root_cannot_make_the_system_writable_again(self, tmp_path: Path) -> None:
        script = "mount -o remount,rw,bind /usr; ! touch /usr/x && grep CapEff /proc/self/status"
        assert sandboxed(script, tmp_path).stdout.split() == [b"CapEff:", b"0" * 16]

    def test_nothing_outside_the_given_folders_takes_bytes(self, tmp_path: Path) -> None:
        script = "for place in / /dev /home /proc/sys/kernel; do touch $place/x && echo $place; done; true"
        assert sandboxed(script, tmp_path).stdout == b""

    def test_all_is_over_when_run_returns(self, tmp_path: Path) -> None:
        marker = f"asmtrain-test-{os.getpid()}-over"
        script = f"for i in 1 2 3 4 5; do setsid sh -c 'while :; do : {marker}; done' & done; sleep 0.3"
        assert sandboxed(script, tmp_path).ok
        assert processes_with(marker) == []

    def test_a_jail_shows_folders_at_fixed_places(self, tmp_path: Path) -> None:
        given, work, scratch = (tmp_path / name for name in ("given", "work", "scratch"))
        for folder in (given, work, scratch):
            folder.mkdir()
        (given / "tool").write_text("read me")
        jail = Jail("/build/x", {"/tmp": scratch}, {"/tools": given})
        script = "pwd; cat /tools/tool; echo in > here; echo in > /tmp/there; ! touch /tools/new"
        done = shell(script, work, sandbox="bwrap", jail=jail)
        assert (done.ok, done.stdout) == (True, b"/build/x\nread me")
        assert (work / "here").read_text() == (scratch / "there").read_text() == "in\n"


FORK_BOMB = "bomb() { bomb | bomb & }; bomb; sleep 60"


@pytest.mark.parametrize("sandbox", ["bwrap", "none"])
@pytest.mark.usefixtures("_bwrap")
class TestWatched:
    def test_a_fork_bomb_ends_at_the_limit(self, tmp_path: Path, sandbox: str) -> None:
        started = time.monotonic()
        limits = Limits(time_s=30.0, memory_mib=2048, output_mib=8)
        script = f"cd {tmp_path}; {FORK_BOMB}"
        done = shell(script, tmp_path, limits=limits, sandbox=sandbox, jail=Jail(processes=100))
        assert done.cause == "processes"
        assert time.monotonic() - started < 15
        assert processes_with(str(tmp_path)) == []

    def test_a_crowd_within_the_limit_is_left_alone(self, tmp_path: Path, sandbox: str) -> None:
        script = "for i in 1 2 3 4 5 6 7 8; do sleep 0.4 & done; wait; echo done"
        done = shell(script, tmp_path, sandbox=sandbox, jail=Jail(processes=20))
        assert (done.cause, done.stdout) == ("", b"done\n")

    def test_disk_is_limited_over_all_files(self, tmp_path: Path, sandbox: str) -> None:
        work, scratch = tmp_path / "work", tmp_path / "scratch"
        work.mkdir()
        scratch.mkdir()
        place = "/tmp" if sandbox == "bwrap" else scratch
        script = f"i=0; while :; do i=$((i+1)); head -c 1000000 /dev/zero > {place}/$i; sleep 0.01; done"
        jail = Jail(writable={"/tmp": scratch}, disk_mib=16)
        done = shell(script, work, sandbox=sandbox, jail=jail)
        assert done.cause == "disk"
        assert 16 * MIB < size_bytes([scratch]) < 2000 * MIB


def test_sizes_count_links_and_holes_for_what_they_take(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "loop").symlink_to(tmp_path)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    assert 100_000 <= size_bytes([tmp_path, tmp_path / "absent"]) < 300_000
