"""The SQLite sinks keep every promise of the ports."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from headrace import sqlite
from headrace.testing.conformance import TRANSACTIONAL_CHECKS, check_transactional


@pytest.mark.parametrize("check", TRANSACTIONAL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("columns", [None, ("value",)], ids=["columns from rows", "columns declared"])
def test_a_table_keeps_the_promise(
    check: Callable[..., None], columns: tuple[str, ...] | None, tmp_path: Path
) -> None:
    """A table keeps each promise of a transactional sink."""
    numbers = itertools.count()

    def new_place() -> object:
        path = tmp_path / f"{next(numbers)}.db"
        return (lambda: sqlite.table(path, "pages", columns=columns)), (lambda: rows_of(path, "pages"))

    check(new_place)


def test_kept_values_keep_all_promises(tmp_path: Path) -> None:
    """A place of kept values keeps all promises of a transactional sink."""
    numbers = itertools.count()

    def new_place() -> object:
        path = tmp_path / f"{next(numbers)}.db"

        def rows() -> list[tuple[int, int, object]]:
            return [(p, c, msgspec.json.decode(value)["value"]) for p, c, value in rows_of(path, "results")]

        return (lambda: sqlite.keep(path)), rows

    check_transactional(new_place)


def rows_of(path: Path, table: str) -> list[tuple[int, int, object]]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute(f'SELECT _position, _child, value FROM "{table}"').fetchall()
