"""What the tests of parking share: jobs in virtual time, with dates that pass as that does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

import headrace as hr
from headrace.engine import parking
from headrace.sqlite.writer import Writer

__all__ = [
    "START", "Calendar", "Service", "by_tens", "dead", "job", "now", "parked", "positions", "virtual_jobs",
]  # fmt: skip

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


def now() -> float:
    """Give the loop's time."""
    return asyncio.get_running_loop().time()


def by_tens(number: int) -> int:
    """Give the key of a number."""
    return number % 10


class Service:
    """A function that asks to wait, for some numbers, and remembers when it was called."""

    def __init__(self, waits: dict[int, list[float]], *, hold: bool = False) -> None:
        self.waits = {number: list(seconds) for number, seconds in waits.items()}
        self.hold = hold
        self.calls: list[tuple[int, float]] = []
        self.__name__ = "service"

    async def call(self, number: int) -> dict[str, int]:
        """Give a row."""
        self.calls.append((number, now()))
        await asyncio.sleep(0.01)
        if self.waits.get(number):
            raise hr.RetryAfter(self.waits[number].pop(0), hold=self.hold)
        return {"n": number}

    def numbers(self) -> list[int]:
        """Give what was called, in order."""
        return [number for number, _ in self.calls]


def job(place: Path, service: Service, count: int = 20, **options: Any) -> hr.Flow[Any]:
    """Make a job."""
    options.setdefault("concurrency", 4)
    return hr.Flow(range(count)).map(service.call, **options).into(hr.sqlite.table(place))
