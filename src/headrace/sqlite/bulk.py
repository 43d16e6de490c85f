"""Many rows into a table in one step of SQLite.

Rules:
1. One step for up to 1024 rows. `sqlite3` gives up the interpreter at every step, so `executemany` over rows waits for
   it at every row, which can make it many times slower beside a busy event loop.
2. Statements come in few sizes, eight from each power of two to the next, each prepared once; what is missing is padded
   with rows at position -1, which the statement itself leaves out.
3. Rows go in in their order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from headrace.sqlite.schema import quoted

__all__ = ["Insert"]

_MOST_ROWS = 1024
#: A step binds at most about this many bytes of text and blobs: SQLite copies them and keeps the copies until the next use.
_STEP_BYTES = 4 << 20
_KEPT_BYTES = 256 << 10
_LONG = frozenset({str, bytes})


class Insert:
    """Inserts rows of `columns` into one table. The column `position` must be one of them: an integer, 0 or more.

    `constants` are columns that have the same value in all rows.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        table: str,
        columns: Sequence[str],
        position: str,
        constants: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self._connection = connection
        self._constants = [value for _, value in constants]
        self._width = len(columns)
        index = columns.index(position)
        self._blank: list[Any] = [0] * self._width
        self._blank[index] = -1
        names = [quoted(name) for name in columns] + [quoted(name) for name, _ in constants]
        chosen = [f"column{number + 1}" for number in range(self._width)]
        chosen += [f"?{number + 1}" for number in range(len(constants))]
        self._head = (
            f"INSERT INTO {quoted(table)} ({', '.join(names)}) SELECT {', '.join(chosen)} FROM (VALUES "  # noqa: S608
        )
        self._tail = f") WHERE column{index + 1} >= 0"
        allowed = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) - len(constants)
        rows = max(1, min(_MOST_ROWS, allowed // self._width))
        self._most = 1 << (rows.bit_length() - 1)
        self._statements: dict[int, str] = {}

    def insert(self, flat: list[Any], weight: int | None = None) -> None:
        """Insert rows whose values stand one after the other in `flat`. Raises what sqlite3 raises, then some may be in.

        `weight` is the length of all text and blobs among them, where the caller knows it.
        """
        total = len(flat) // self._width
        if weight is None:
            weight = sum(len(value) for value in flat if type(value) in _LONG)
        most = self._most
        while most > 1 and weight > _STEP_BYTES and most * weight > _STEP_BYTES * total:
            most >>= 1
        done = 0
        sizes: set[int] = set()
        while done < total:
            rows = min(most, total - done)
            part = flat if rows == total else flat[done * self._width : (done + rows) * self._width]
            sizes.add(self._step(rows, part))
            done += rows
        if weight > _KEPT_BYTES:
            for size in sizes:
                self._step(size, self._blank * size)  # gives back the copies that the statements keep

    def _step(self, rows: int, part: list[Any]) -> int:
        size = _size_for(rows)
        statement = self._statements.get(size)
        if statement is None:
            row = "(" + ",".join("?" * self._width) + ")"
            statement = self._statements[size] = self._head + ",".join([row] * size) + self._tail
        # `executemany` with one set of parameters: unlike `execute` it does not ask for the last row id, for which
        # sqlite3 would give up the interpreter once more
        self._connection.executemany(statement, [self._constants + part + self._blank * (size - rows)])
        return size


def _size_for(rows: int) -> int:
    """Give the least size of a statement that takes so many rows: at most an eighth of it is padding."""
    grain = max(1, 1 << (rows - 1).bit_length() >> 4)
    return -(-rows // grain) * grain
