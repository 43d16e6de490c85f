"""Lines of logs in a table of an SQLite file: appended, and gone on with where the last run ended.

Rules:
1. Each batch is one transaction, in a thread of its own. What was appended is on the disk.
2. A line is (url, offset, text, read_at); the last one of a log says where its next run begins.
3. One process at a time appends to a file, as with the results of jobs.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Final

from headrace.errors import LedgerError
from headrace.logs.lines import Line
from headrace.sqlite.lock import PlaceLock
from headrace.sqlite.schema import connect_writer, quoted, translated
from headrace.sqlite.writer import Writer

__all__ = ["LogTable"]

_COLUMNS: Final = ["url", "offset", "text", "read_at"]


class LogTable:
    """The table `name` of the file `path`, for one program. Use it with `async with`."""

    def __init__(self, path: str, name: str = "lines") -> None:
        self._path = path
        self._name = name
        table = quoted(name)
        self._create = (
            f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, url TEXT NOT NULL, offset INTEGER NOT NULL, "
            "text TEXT NOT NULL, read_at REAL NOT NULL)"
        )
        self._describe = f"PRAGMA table_info({table})"
        self._last = f"SELECT url, offset FROM {table} WHERE id IN (SELECT max(id) FROM {table} GROUP BY url)"  # noqa: S608
        self._insert = f"INSERT INTO {table} (url, offset, text, read_at) VALUES (?, ?, ?, ?)"  # noqa: S608
        self._writer = Writer("headrace-log-table")
        self._lock = PlaceLock(path)
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> LogTable:
        """Open the file, and make it and the table where they are missing. Raises LedgerError (LedgerBusy where held)."""
        try:
            await self._writer.run(self._open)
        except LedgerError:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file. Repeatable."""
        await self._writer.close(self._shut)

    async def places(self) -> dict[str, int]:
        """Give the offset of the last line of each log that is there."""
        return await self._writer.run(self._places)

    async def append(self, lines: Sequence[Line]) -> None:
        """Append lines, all or none; they are on the disk then. A cancellation waits for that. Raises LedgerError."""
        await self._writer.run(lambda: self._append(lines))

    # ------------------------------------------------------------------ in the thread

    def _open(self) -> None:
        self._lock.take()
        self._connection = connect_writer(self._path)
        with self._translating("making the table") as connection:
            connection.execute(self._create)
            connection.commit()
            found = [row[1] for row in connection.execute(self._describe)]
        if not set(_COLUMNS) <= set(found):
            raise LedgerError(
                f"{self._path}: its table {self._name!r} has the columns {', '.join(found)}, and is no table of lines; "
                "give another file"
            )

    def _translating(self, doing: str) -> _Translating:
        assert self._connection is not None
        return _Translating(self._connection, self._path, doing)

    def _places(self) -> dict[str, int]:
        with self._translating("looking for where to go on") as connection:
            return dict(connection.execute(self._last))

    def _append(self, lines: Sequence[Line]) -> None:
        now = time.time()
        with self._translating("appending lines") as connection:
            connection.executemany(self._insert, [(line.url, line.offset, line.text, now) for line in lines])
            connection.commit()

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._lock.release()


class _Translating:
    """Translate what SQLite raises, once; what was begun is undone."""

    def __init__(self, connection: sqlite3.Connection, path: str, doing: str) -> None:
        self._connection = connection
        self._path = path
        self._doing = doing

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.rollback()
            raise translated(error, self._path, self._doing) from error
