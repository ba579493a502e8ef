"""A database in a folder: SQL and arrays in, tables larger than memory, arrays and rows out.

DuckDB does the work. Invariant: its memory stays within a limit that does not grow with the tables, but where
a step fails for want of memory, with the size of that step. Costs 30 MB of code, loaded when one is opened.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from corpus_builder.errors import OutputError

_MEMORY_MIB = 128
_MOST_MEMORY_MIB = 8192
# One thread needs the least memory, and the steps are too short to be waited for.
_THREADS = 1
_FETCH_ROWS = 4096


class Database:
    """DuckDB within a limit on its memory, which is doubled where a step cannot do with it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._memory_mib = _MEMORY_MIB
        self._limit_memory()

    def run(self, script: str) -> None:
        """Execute statements, each by itself."""
        import duckdb

        for statement in script.split(";"):
            while True:
                try:
                    self._connection.execute(statement)
                    break
                except duckdb.OutOfMemoryException:
                    if self._memory_mib >= _MOST_MEMORY_MIB:
                        raise
                    self._memory_mib *= 2
                    self._limit_memory()

    def append(self, table: str, columns: Mapping[str, NDArray[Any]]) -> None:
        """Add rows; the columns need no order."""
        self._connection.register("appended", columns)
        self.run(f"insert into {table} by name select * from appended")
        self._connection.unregister("appended")

    def size(self, table: str) -> int:
        """Number of rows."""
        number: int = self._connection.execute(f"select count(*) from {table}").fetchone()[0]
        return number

    def arrays(self, query: str, *parameters: int) -> dict[str, NDArray[Any]]:
        """The columns of a small result."""
        columns: dict[str, NDArray[Any]] = self._connection.execute(query, parameters).fetchnumpy()
        return columns

    def rows(self, query: str) -> Iterator[Any]:
        """The rows of a result of any size."""
        cursor = self._connection.cursor().execute(query)
        while rows := cursor.fetchmany(_FETCH_ROWS):
            yield from rows

    def _limit_memory(self) -> None:
        self._connection.execute(f"set memory_limit = '{self._memory_mib}MiB'")


@contextmanager
def opened(folder: Path) -> Iterator[Database]:
    """A new database in an empty folder, which is the caller's to delete.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    import duckdb

    settings: dict[str, Any] = {"threads": _THREADS, "temp_directory": str(folder / "spilled")}
    try:
        with duckdb.connect(str(folder / "tables.duckdb"), config=settings) as connection:
            yield Database(connection)
    except (duckdb.IOException, duckdb.OutOfMemoryException, OSError) as error:
        raise OutputError(
            f"cannot work in {folder}: {' '.join(str(error).split())}",
            remedy="free some space, or check the folder's permissions; the same command goes on from there",
        ) from error
