"""SQLite as the place of a flow's results: `table` for rows, `keep` for values that `map(out=)` reads back.

Rules:
1. A sink is a description: making one opens nothing and checks only what can be seen without the file.
2. What cannot work is a PlanError here, before anything moves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from headrace.errors import PlanError
from headrace.ports import OUR_COLUMNS
from headrace.sqlite.ledger import KeepingLedger, SqliteLedger
from headrace.sqlite.result_table import folded
from headrace.sqlite.schema import quoted

__all__ = ["Kept", "Table", "keep", "table"]

_RESERVED = (b"headrace_", b"sqlite_")


class Table:
    """A transactional sink: rows in one table of an SQLite file, with the ledger beside them. Made by `table(...)`."""

    def __init__(self, path: str, table: str, columns: tuple[str, ...] | None) -> None:
        self.name = table
        self.place = path
        self._columns = columns

    def ledger(self) -> SqliteLedger:
        """Make the ledger of one run. Nothing is opened yet."""
        return SqliteLedger(self.place, self.name, self._columns)

    def columns(self) -> Sequence[str] | None:
        """Give the declared columns; None where they come from the first rows."""
        return self._columns

    def __repr__(self) -> str:
        return f"hr.sqlite.table({self.place!r}, {self.name!r})"


class Kept:
    """A transactional sink that keeps each value as JSON. Made by `keep(...)`."""

    def __init__(self, path: str, table: str) -> None:
        self.name = table
        self.place = path

    def ledger(self) -> KeepingLedger:
        """Make the ledger of one run, whose `values` reads everything back. Nothing is opened yet."""
        return KeepingLedger(self.place, self.name)

    def columns(self) -> Sequence[str] | None:
        """Give the one column."""
        return ("value",)

    def __repr__(self) -> str:
        return f"hr.sqlite.keep({self.place!r}, {self.name!r})"


def table(
    path: str | os.PathLike[str], name: str = "results", *, columns: Sequence[str] | None = None
) -> Table:
    """Put results into the table `name` of the SQLite file `path`, each exactly once, with the job's ledger beside them.

    A value becomes a row: an object with `as_row()`, a dict, dataclass, NamedTuple or msgspec.Struct has its own
    columns; anything else goes into a column `value`. After them come `_job` (the job's name), `_position` (where the
    item stood in its source, from 0) and `_child` (the number of the row among those of its item, from 0).

    Columns come from `columns`, and then rows may have no others; else from the rows, where later ones may add some.
    None, bool, int, float, str and bytes are stored as they are, dates as ISO text, other values as JSON text.

    The file is made where it is missing, for its owner only. In a file of yours only this table and tables named
    `headrace_*` are added. Give a path on a local disk: SQLite's locks do not work over a network.

    Raises PlanError for names that cannot be: empty, with a NUL, beginning with `headrace_`, used twice.
    """
    place = _place(path)
    _check_table(name)
    if columns is None:
        return Table(place, name, None)
    if isinstance(columns, str):
        raise PlanError(f"columns={columns!r} is a str; give a list of names, as columns=[{columns!r}]")
    declared = tuple(columns)
    problems = [_problem(column, declared[:index]) for index, column in enumerate(declared)]
    found = [problem for problem in problems if problem]
    if found:
        raise PlanError("; ".join(found))
    return Table(place, name, declared)


def keep(path: str | os.PathLike[str], name: str = "results") -> Kept:
    """Keep each value as JSON text in the table `name` of the SQLite file `path`; its ledger reads all of them back.

    Values are written by msgspec and come back as JSON has them: tuples as lists, bytes and dates as text. One that
    JSON cannot hold is refused with its position. For all else, see `table`.
    """
    place = _place(path)
    _check_table(name)
    return Kept(place, name)


def _place(path: str | os.PathLike[str]) -> str:
    place: str | bytes = os.fspath(path)
    if isinstance(place, bytes) or not place or "\0" in place:
        raise PlanError(f"{place!r} cannot be the path of an SQLite file; give a str such as 'out.db'")
    if place.startswith((":memory:", "file:")):
        raise PlanError(
            f"{place!r} is no path on a disk, and a job must outlive its process; give one such as 'out.db'"
        )
    return place


def _check_table(name: str) -> None:
    try:
        quoted(name)
    except ValueError as error:
        raise PlanError(f"the table cannot be made: {error}") from error
    if folded(name).startswith(_RESERVED):
        raise PlanError(f"{name!r} is a reserved name; give the table another one")


def _problem(column: object, before: Sequence[str]) -> str | None:
    if not isinstance(column, str):
        return f"the column {column!r} is not a str"
    try:
        quoted(column)
    except ValueError as error:
        return f"a column cannot be made: {error}"
    if folded(column) in {folded(name) for name in OUR_COLUMNS}:
        return f"the column {column!r} is one of headrace's own; rename it"
    if folded(column) in {folded(name) for name in before}:
        return f"the column {column!r} is there twice (SQLite ignores the case)"
    return None
