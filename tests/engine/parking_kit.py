"""What the tests of parking share: jobs in virtual time, with dates that pass as that does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

import headrace as hr
from headrace.engine import parking
from headrace.sqlite.writer import Writer

__all__ = ["START", "Calendar", "dead", "parked", "positions", "virtual_jobs"]

T = TypeVar("T")
#: When it all begins, in seconds since the epoch: so far ahead that no date of a test is past.
START = 4_000_000_000.0


class Calendar:
    """Dates that pass with the loop's time, and `epoch` to let years go by between runs."""

    def __init__(self) -> None:
        self.epoch = START

    def time(self) -> float:
        """Give the date."""
        return self.epoch + asyncio.get_running_loop().time()


async def _at_once(self: Writer, work: Callable[[], T], *, give_way: bool = False) -> T:
    await asyncio.sleep(0)
    return work()


async def _close(self: Writer, last: Callable[[], None]) -> None:
    last()


def virtual_jobs(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    """Let jobs in SQLite take no time, and give the calendar that they go by."""
    monkeypatch.setattr(Writer, "run", _at_once)
    monkeypatch.setattr(Writer, "close", _close)
    calendar = Calendar()
    monkeypatch.setattr(parking, "time", calendar)
    return calendar


def positions(place: Path, table: str = "results") -> list[int]:
    """Read the positions of the results."""
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone():
            return []
        return [n for (n,) in connection.execute(f"SELECT _position FROM {table} ORDER BY _position")]


def parked(place: Path) -> list[int]:
    """Read the positions of what is parked."""
    with closing(sqlite3.connect(place)) as connection:
        return [n for (n,) in connection.execute("SELECT position FROM headrace_parked ORDER BY position")]


def dead(place: Path) -> list[int]:
    """Read the positions of the dead letters."""
    return [letter.position for letter in hr.open(place).job().failures()]
