"""The watch over the ranks: do they still get on, and are they all still there?

In: beats (`beat`) from wherever work is done, and one TCP connection from every rank to rank 0. Out: nothing
while all is well; else one line, the Python stacks of each rank in RUN/hangs/rank-NNNNN.txt, and the end of
the process, even while its main thread sits in a collective. Invariants: the work of any rank counts for all,
as the others may have to wait for it; a rank that died is noticed by its closed connection at once, a node
that is lost when TCP gets no answer for 30 s; a rank that ends by a user's mistake takes the others along.
Cost: one thread a rank, and at most a byte a second and rank in each direction.
"""

import faulthandler
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asmtrain import dist
from asmtrain.dist import World
from asmtrain.errors import LaunchError, UserFacingError

LOST = 1
"""Exit code of a rank that ends because the ranks hang or one of them is gone."""

_BEAT, _HANG, _DEAD, _MISTAKE = b"b", b"h", b"d", b"m"
_DONE = b"q"
"""Never sent: a run that ends well ends on all ranks."""
_POLL_S = 0.5
_LAST_WORD_S = 0.5
"""Left to other threads and ranks to say their last word before a process is ended."""
_MISTAKE_S = 5.0
"""Left to the rank that met a mistake to tell of it: launchers end all ranks when the first one ends."""
_HEARD_S = 2.0
"""How long a rank that leaves with a word waits for the others to have heard it."""
_BLAME_S = 3.0
"""How long a failed collective waits to hear whether another rank's death was the cause."""
_TELLING_S = 20.0
"""How long a rank waits for rank 0 to tell of a mistake and to leave."""
_SILENCE_MS = 30_000
"""Unanswered TCP that means a lost node."""
_AFTER_MAIN_S = 5.0
"""A rank other than 0 waits so much longer, so that rank 0 tells of a hang, once, if it still can."""

_beats = 0


def beat() -> None:
    """Say that this process got on with its work; cheap enough for every micro-step.

    From any thread: of two beats at once one may not count, which is none the worse.
    """
    global _beats
    _beats += 1


@contextmanager
def watched(run: Path, world: World, limit_minutes: float | None) -> Iterator[None]:
    """Watch the ranks while the block runs; all of them enter it together.

    Raises:
        LaunchError: a rank cannot reach rank 0.
    """
    watch = _Watch(run / "hangs", world, None if limit_minutes is None else 60 * limit_minutes)
    watch.start()
    farewell = b""
    try:
        yield
        farewell = _DONE
    except (UserFacingError, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, SystemExit) and not world.is_main:
            # Rank 0 is about to tell of its mistake. Its word ends this rank too; an earlier one of this rank
            # would end rank 0 before it has spoken.
            time.sleep(_TELLING_S)
        farewell = _MISTAKE
        raise
    except RuntimeError:
        # Perhaps a collective that failed because a rank died: then the watch has the clearer word.
        time.sleep(_BLAME_S if world.size > 1 else 0)
        raise
    finally:
        watch.stop(farewell)


class _Watch:
    """The thread, and the connections: of rank 0 to each other rank, of those to rank 0."""

    def __init__(self, folder: Path, world: World, limit_s: float | None) -> None:
        self._folder, self._world = folder, world
        self._limit_s = limit_s if limit_s is None or world.is_main else limit_s + _AFTER_MAIN_S
        self._selector = selectors.DefaultSelector()
        self._token = ""
        self._bell, ear = socket.socketpair()
        self._selector.register(ear, selectors.EVENT_READ, "bell")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._seen_beats = _beats
        self._has_news = False
        self._told = self._heard = time.monotonic()

    def start(self) -> None:
        """Connect and begin."""
        if self._world.size > 1:
            port, self._token = dist.on_main(self._listen)
            if not self._world.is_main:
                self._call(os.environ["MASTER_ADDR"], port)
        self._thread.start()

    def stop(self, farewell: bytes) -> None:
        """Leave with a word to the others; without one they take this rank for dead."""
        self._stopping.set()
        self._bell.send(b".")
        self._thread.join()
        if farewell == _DONE:
            dist.barrier()  # nobody listens any more when the first connection closes
        elif farewell:
            self._send(farewell)
            self._wait_until_heard()
        self._bell.close()
        for key in list(self._selector.get_map().values()):
            _socket(key).close()
        self._selector.close()

    # Connections

    def _listen(self) -> tuple[int, str]:
        self._token = secrets.token_hex(16)
        server = socket.create_server(("", 0), backlog=self._world.size)
        self._selector.register(server, selectors.EVENT_READ, "server")
        return int(server.getsockname()[1]), self._token

    def _call(self, host: str, port: int) -> None:
        try:
            connection = socket.create_connection((host, port), timeout=30)
            connection.sendall(f"{self._token} rank {self._world.rank} on {socket.gethostname()}\n".encode())
        except OSError as error:
            raise LaunchError(
                f"rank {self._world.rank} on {socket.gethostname()} cannot reach rank 0 at {host}:{port}: "
                f"{error}",
                remedy="let the nodes of a job reach each other on all TCP ports, as gloo and NCCL need too",
            ) from None
        self._keep(connection, "rank 0")

    def _accept(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.settimeout(5)
        with suppress(OSError, ValueError):
            # Unbuffered: a word that already follows the line is for `_hear`.
            line = connection.makefile("rb", buffering=0).readline(512)
            token, name = line.decode().strip().split(" ", 1)
            if secrets.compare_digest(token, self._token):
                return self._keep(connection, name)
        connection.close()

    def _keep(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_USER_TIMEOUT", _SILENCE_MS)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._selector.register(connection, selectors.EVENT_READ, name)

    # The thread

    def _watch(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(_POLL_S):
                if key.data == "server":
                    self._accept(_socket(key))
                elif key.data != "bell":
                    self._hear(_socket(key), key.data)
            self._pass_on()
            waited_s = time.monotonic() - self._heard
            if self._limit_s is not None and waited_s > self._limit_s:
                self._end(_HANG, _hang_word(waited_s, self._folder))

    def _hear(self, connection: socket.socket, name: str) -> None:
        try:
            said = connection.recv(4096)
        except OSError:
            said = b""
        if not said:
            # If rank 0 is gone, one of the others tells.
            told_here = self._world.is_main or self._world.rank == 1
            self._end(_DEAD, _dead_word(name, self._folder) if told_here else "")
        for word in (_HANG, _DEAD, _MISTAKE):
            if word in said:
                self._end(word, "")
        if _BEAT in said:
            self._heard, self._has_news = time.monotonic(), self._world.is_main

    def _pass_on(self) -> None:
        """Tell the others, at most once a second, that this rank, or one that told rank 0, got on."""
        if self._seen_beats != _beats:
            self._seen_beats, self._heard, self._has_news = _beats, time.monotonic(), True
        if self._has_news and time.monotonic() - self._told > 1:
            self._has_news, self._told = False, time.monotonic()
            self._send(_BEAT)

    def _send(self, word: bytes) -> None:
        for connection in self._ranks():
            with suppress(OSError):  # it may be stopped, or gone
                connection.send(word)

    def _wait_until_heard(self) -> None:
        """Wait for the others' last word: closed over unread beats, a connection is reset, ours with it."""
        self._say_no_more()
        deadline = time.monotonic() + _HEARD_S
        for connection in self._ranks():
            with suppress(OSError):  # gone, or too slow
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                while connection.recv(4096):
                    pass

    def _say_no_more(self) -> None:
        for connection in self._ranks():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    def _ranks(self) -> list[socket.socket]:
        keys = self._selector.get_map().values()
        return [_socket(key) for key in keys if key.data not in ("server", "bell")]

    def _end(self, word: bytes, message: str) -> None:
        """Say it, write the stacks, tell the others, and leave."""
        if message:
            print(message, file=sys.stderr, flush=True)
        self._send(word)
        self._say_no_more()
        if word != _MISTAKE:
            self._write_stacks()
        time.sleep(_MISTAKE_S if word == _MISTAKE else _LAST_WORD_S)
        os._exit(2 if word == _MISTAKE else LOST)

    def _write_stacks(self) -> None:
        rank = self._world.rank
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / f"rank-{rank:05d}.txt", "w", encoding="utf-8") as stream:
                when = time.strftime("%Y-%m-%d %H:%M:%S")
                print(f"rank {rank}, process {os.getpid()} on {socket.gethostname()}, {when}", file=stream)
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)


def _socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def _hang_word(waited_s: float, folder: Path) -> str:
    return (
        f"error: no rank got on for {waited_s / 60:.1f} minutes; "
        f"the Python stacks of all ranks are in {folder}\n"
        "  remedy: see there where each rank waits, and which one does something else. The same command goes "
        "on from the last save; raise guard.hang_minutes if a step takes so long"
    )


def _dead_word(name: str, folder: Path) -> str:
    return (
        f"error: {name} is gone, and the run ends with it; the Python stacks of the others are in {folder}\n"
        "  remedy: look for that rank's last lines, and in the kernel's log (dmesg) for a process killed for "
        "memory. The same command goes on from the last save"
    )
