"""The table that holds the results of jobs: the columns of the values, then `_job`, `_position` and `_child`.

Rules:
1. Value columns have no declared type, so that SQLite keeps what it is given. They come from the declared columns or the
   first rows; later rows with new keys add columns, missing keys are NULL. Declared columns are all there is.
2. Rows are only ever appended, but for what `max_age` and `fresh` replace.
3. Every change happens inside the caller's transaction. After a rollback, call `load`: what was thought may be undone.
4. A row that cannot be stored raises SinkError with its position.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from headrace.errors import PlanError, SinkError
from headrace.ports import OUR_COLUMNS, AnyRow, SingleRows
from headrace.sqlite.bulk import Insert
from headrace.sqlite.cells import RowMaker, cell, json_text, row_maker
from headrace.sqlite.schema import quoted

__all__ = ["MOST_CARE", "ROW_TROUBLE", "ResultTable", "folded"]


def folded(name: str) -> bytes:
    """Give the form in which SQLite compares column names: it ignores the case of ASCII letters only."""
    return name.encode(errors="surrogatepass").lower()


_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_LONG = frozenset({str, bytes})
_OUR_FOLDED = frozenset(folded(name) for name in OUR_COLUMNS)
_ABSENT = object()
_MOST_SHAPES = 4096

#: What sqlite3 raises when it is the rows, not the disk, that are to blame.
ROW_TROUBLE = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, OverflowError, ValueError)
MOST_CARE = 2

_Keys = tuple[str, ...]


class ResultTable:
    """One result table, as the writing connection sees it."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        name: str,
        job: str,
        declared: Sequence[str] | None,
        *,
        as_json: bool,
    ) -> None:
        self.name = name
        self._connection = connection
        self._job = job
        self._declared = declared
        self._as_json = as_json
        self._makers: dict[type, RowMaker] = {}
        self._most_columns = connection.getlimit(sqlite3.SQLITE_LIMIT_COLUMN) - len(OUR_COLUMNS)
        self.load()

    def load(self) -> None:
        """Look at the table as it is now. PlanError where something of this name exists that headrace did not make."""
        kind = self._connection.execute(
            "SELECT type, sql FROM sqlite_schema WHERE name = ? COLLATE NOCASE", (self.name,)
        ).fetchone()
        self.exists = kind is not None
        self._set_columns(())
        if kind is None:
            return
        found = [
            row[1]
            for row in self._connection.execute(f"PRAGMA table_xinfo({quoted(self.name)})")
            if row[6] == 0
        ]
        if kind[0] != "table" or not set(OUR_COLUMNS) <= set(found):
            raise PlanError(
                f"the output has a {kind[0]} named {self.name!r} that headrace did not make "
                f"(it lacks the columns {', '.join(OUR_COLUMNS)}); give another name for the results"
            )
        self._set_columns([name for name in found if name not in OUR_COLUMNS])

    def make(self) -> None:
        """Make the table with its declared columns, or add those that it lacks; without declared columns, nothing."""
        if self._declared is not None:
            self._add([name for name in self._declared if folded(name) not in self._known])

    def store(self, rows: Sequence[AnyRow], care: int = 0) -> None:
        """Insert rows. SinkError names the row that cannot be stored; then roll back.

        Raises what sqlite3 raises where the rows as a whole were not taken; roll back and do it again with more `care`:
        with 1 every field is looked at first, with 2 (`MOST_CARE`) rows go in one by one.
        """
        if not rows:
            return
        if not care and self.exists and not self._as_json and self._store_alike(rows):
            return
        flat = self._flatten(rows)
        if care:
            self._convert(rows, flat, all_of_them=True)
        if care < MOST_CARE:
            self._insert.insert(flat)
            return
        width = len(self.columns) + 2
        for number, row in enumerate(rows):
            try:
                self._insert.insert(flat[number * width : (number + 1) * width])
            except ROW_TROUBLE as error:
                raise _refused(row, f"SQLite does not take it: {error}") from error

    def remove(self, positions: Sequence[int]) -> None:
        """Delete the job's rows of these positions."""
        if self.exists and positions:
            self._connection.execute(
                f"DELETE FROM {quoted(self.name)} WHERE _job = ? AND _position IN (SELECT value FROM json_each(?))",  # noqa: S608
                (self._job, json_text(list(positions))),
            )

    def index(self) -> None:
        """Make the index that finds rows by position, which only replacing needs."""
        if self.exists:
            self._connection.execute(
                f"CREATE INDEX IF NOT EXISTS {quoted(f'headrace_positions_{self.name}')} "
                f"ON {quoted(self.name)} (_job, _position)"
            )

    def clear(self) -> None:
        """Delete all rows of the job."""
        if self.exists:
            self._connection.execute(f"DELETE FROM {quoted(self.name)} WHERE _job = ?", (self._job,))  # noqa: S608

    def take_over(self, other: ResultTable) -> None:
        """Move all rows of `other` here, and drop it."""
        if not other.exists:
            self.make()
            return
        self._add([name for name in other.columns if folded(name) not in self._known])
        names = ", ".join(quoted(name) for name in (*other.columns, *OUR_COLUMNS))
        self._connection.execute(
            f"INSERT INTO {quoted(self.name)} ({names}) SELECT {names} FROM {quoted(other.name)} ORDER BY rowid"  # noqa: S608
        )
        self._connection.execute(f"DROP TABLE {quoted(other.name)}")

    # ------------------------------------------------------------------------------------------------ columns

    def _set_columns(self, names: Iterable[str]) -> None:
        self.columns: _Keys = tuple(names)
        self._known = {folded(name): name for name in self.columns}
        self._picks: dict[_Keys, list[Any]] = {}
        self._insert = Insert(
            self._connection,
            self.name,
            (*self.columns, "_position", "_child"),
            "_position",
            [("_job", self._job)],
        )
        self._insert_single = Insert(
            self._connection,
            self.name,
            (*self.columns, "_position"),
            "_position",
            [("_job", self._job), ("_child", 0)],
        )

    def _add(self, names: Sequence[str]) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")  # implicit beginnings are for INSERT and its kin only
        if not self.exists:
            ours = "_job TEXT NOT NULL, _position INTEGER NOT NULL, _child INTEGER NOT NULL"
            columns = "".join(f"{quoted(name)}, " for name in names)
            self._connection.execute(f"CREATE TABLE {quoted(self.name)} ({columns}{ours})")
            self.exists = True
            self._set_columns(names)
        elif names:
            for name in names:
                self._connection.execute(f"ALTER TABLE {quoted(self.name)} ADD COLUMN {quoted(name)}")
            self._set_columns((*self.columns, *names))

    # ------------------------------------------------------------------------------------------------ rows

    def _store_alike(self, rows: Sequence[AnyRow]) -> bool:
        """Store dicts with just the table's columns, or plain values, column by column; False where some are others.

        That is what nearly all batches are, and it costs a third of looking at each row by itself.
        """
        children: Sequence[int] = ()
        if type(rows) is SingleRows:
            positions, values = rows.positions, rows.values
        else:
            positions, children, values = zip(*rows, strict=True)
        columns, kinds = self.columns, set(map(type, values))
        if kinds <= _PLAIN and columns == ("value",):
            cells: list[Sequence[Any]] = [values]
        elif kinds == {dict} and set(map(len, values)) == {len(columns)}:
            try:
                cells = [list(map(itemgetter(column), values)) for column in columns]
            except KeyError:
                return False
        else:
            return False
        weight = 0
        for column in cells:
            kinds = set(map(type, column))
            if not kinds <= _PLAIN or (float in kinds and any(v != v for v in column)):
                return False
            if kinds <= _LONG:
                weight += sum(map(len, column))
            elif kinds & _LONG:
                weight += sum(len(value) for value in column if type(value) in _LONG)
        if children:
            self._insert.insert(
                list(chain.from_iterable(zip(*cells, positions, children, strict=True))), weight
            )
        else:
            self._insert_single.insert(list(chain.from_iterable(zip(*cells, positions, strict=True))), weight)
        return True

    def _flatten(self, rows: Sequence[AnyRow]) -> list[Any]:
        if self._as_json:
            mappings = [{"value": self._encoded(row)} for row in rows]
        else:
            mappings = [row[2] if type(row[2]) is dict else self._mapping(row) for row in rows]
        shapes = list(map(tuple, mappings))
        if not self.exists or shapes.count(self.columns) != len(shapes):
            self._learn(rows, mappings, shapes)
        flat: list[Any] = []
        extend = flat.extend
        columns, picks = self.columns, self._picks
        for (position, child, _), mapping, keys in zip(rows, mappings, shapes, strict=True):
            if keys == columns:
                extend(mapping.values())
            else:
                extend([mapping.get(key) for key in picks[keys]])
            extend((position, child))
        kinds = set(map(type, flat))
        if not kinds <= _PLAIN or (float in kinds and any(v != v for v in flat if type(v) is float)):
            self._convert(rows, flat)
        return flat

    def _encoded(self, row: AnyRow) -> str:
        try:
            return json_text(row[2])
        except (ValueError, TypeError) as error:
            raise _refused(
                row, f"its value ({type(row[2]).__name__}) cannot be kept as JSON: {error}"
            ) from error

    def _mapping(self, row: AnyRow) -> Any:
        kind = type(row[2])
        maker = self._makers.get(kind)
        if maker is None:
            maker = self._makers[kind] = row_maker(kind)
        try:
            return maker(row[2])
        except (
            Exception,
            SystemExit,
        ) as error:  # the user's own code runs here: whatever it does, one row fails
            raise _refused(row, f"no row can be made of its value ({kind.__name__}): {error}") from error

    def _learn(self, rows: Sequence[AnyRow], mappings: list[Any], shapes: list[_Keys]) -> None:
        """Find out which key goes to which column, adding the columns that are new.

        A dict whose keys are not all text is a value, not a row: it is put into one column.
        """
        odd = {
            keys for keys in set(shapes) - self._picks.keys() if not all(isinstance(key, str) for key in keys)
        }
        for index, keys in enumerate(shapes if odd else ()):
            if keys in odd:
                mappings[index] = {"value": mappings[index]}
                shapes[index] = ("value",)
        distinct = list(dict.fromkeys(shapes))
        if len(self._picks) + len(distinct) > _MOST_SHAPES:
            self._picks.clear()
        for keys in distinct:
            if keys not in self._picks:
                problem = self._problem(keys)
                if problem:
                    raise _refused(rows[shapes.index(keys)], problem)
                if self._declared is None:
                    self._add([key for key in keys if folded(key) not in self._known])
                elif not self.exists:
                    self.make()
        for keys in distinct:
            if keys not in self._picks:
                by_column = {folded(key): key for key in keys}
                self._picks[keys] = [by_column.get(folded(column), _ABSENT) for column in self.columns]

    def _problem(self, keys: _Keys) -> str | None:
        by_column = {folded(key): key for key in keys}
        if len(by_column) != len(keys):
            return (
                f"two of its columns differ only in case, which SQLite ignores: {', '.join(map(repr, keys))}"
            )
        for key in keys:
            try:
                quoted(key)
            except ValueError as error:
                return f"its column cannot be made: {error}"
            if folded(key) in _OUR_FOLDED:
                return f"its column {key!r} is one of headrace's own; rename it"
        if self._declared is not None:
            declared = {folded(name) for name in self._declared}
            extra = [repr(key) for name, key in by_column.items() if name not in declared]
            if extra:
                return f"it has columns that were not declared: {', '.join(extra)}; declare them or leave them out"
        if len(self._known.keys() | by_column.keys()) > self._most_columns:
            return f"it would make more than {self._most_columns} columns; keep such data in one column, as a dict"
        return None

    def _convert(self, rows: Sequence[AnyRow], flat: list[Any], *, all_of_them: bool = False) -> None:
        width = len(self.columns) + 2
        for index, value in enumerate(flat):
            if type(value) in _PLAIN and value == value and not all_of_them:
                continue
            try:
                flat[index] = cell(value)
            except (Exception, SystemExit) as error:  # `tolist` and `__fspath__` are users' code
                row, column = rows[index // width], self.columns[index % width]
                raise _refused(
                    row, f"its column {column!r} ({type(value).__name__}) cannot be stored: {error}"
                ) from error


def _refused(row: AnyRow, why: str) -> SinkError:
    which = f"item at position {row[0]}" + (f", its row {row[1]}" if row[1] else "")
    return SinkError(f"{which}: {why}", position=row[0])
