"""A thread that writes while training goes on.

In: one job after another. Out: its error, raised in the caller's thread. Invariant: never two jobs at once.
"""

import threading
from collections.abc import Callable
from types import TracebackType

_LAST_S = 10.0
"""How long a run that ends by an error waits for the job under way."""


class Writer:
    """Runs one job at a time; as a context it ends with its last job done, unless the block failed."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run a job once the one before is done; raises what that one met."""
        self.wait()
        # A daemon: it may wait for another rank's file in vain, and must not keep the process then.
        self._thread = threading.Thread(target=self._run, args=(job,), name="writer", daemon=True)
        self._thread.start()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise what a job met."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Until the job under way is done; raises what it met."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join(_LAST_S)
