"""What the thread lane promises: own threads, time limits, abandoned calls counted and replaced, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.lanes.thread import ThreadLane
from headrace.testing import run_real

word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="none")


def test_plain_functions_run_in_own_threads(run: Callable[..., Any]) -> None:
    """Sync functions go to threads of the lane, at most `concurrency` of them, and context variables travel."""

    def who(number: int) -> tuple[str, str]:
        time.sleep(0.001)
        return threading.current_thread().name, word.get()

    async def main() -> Any:
        word.set("here")
        return await hr.map(who, range(60), concurrency=4)

    values = run(main).values
    names = {name for name, _ in values}
    assert all(name.startswith("headrace-who") for name in names)
    assert {heard for _, heard in values} == {"here"}


def test_a_hanging_call_is_abandoned(run: Callable[..., Any]) -> None:
    """A blocking call past its timeout fails as timed out; its place is taken; the run ends without it and counts it."""
    release = threading.Event()

    def hang(number: int) -> int:
        if number == 0:
            release.wait(20)
        return number

    async def main() -> Any:
        began = time.monotonic()
        got = await hr.map(hang, range(10), concurrency=1, timeout=0.2)
        took = time.monotonic() - began
        release.set()
        await asyncio.sleep(0.05)
        return got, took

    got, took = run(main)
    assert [done.value for done in got.done] == list(range(1, 10))
    assert isinstance(got.failed[0].error, hr.TimedOut)
    assert got.report.abandoned == 1
    assert took < 5


def test_an_abandoned_call_keeps_its_permits(run: Callable[..., Any]) -> None:
    """A limit's permit of a call that still hangs is free only when the call has returned."""
    release = threading.Event()
    limit = hr.Limit(concurrency=1)
    starts: list[tuple[int, bool]] = []

    def hang(number: int) -> int:
        starts.append((number, release.is_set()))
        if number == 0:
            release.wait(20)
        return number

    async def main() -> Any:
        asyncio.get_running_loop().call_later(0.6, release.set)
        return await hr.map(hang, range(2), concurrency=2, timeout=0.2, limits=[limit])

    got = run(main)
    assert got.report.done == 1
    assert starts == [(0, False), (1, True)]


def test_too_many_abandoned_calls_fail_the_lane(run: Callable[..., Any]) -> None:
    """Beyond a cap of hanging calls the run stops with LaneError instead of filling the process with threads."""
    release = threading.Event()

    def hang(number: int) -> None:
        release.wait(20)

    async def main() -> Exception | None:
        try:
            await hr.Flow(range(100)).map(hang, concurrency=8, timeout=0.05).run()
        except hr.LaneError as error:
            return error
        finally:
            release.set()
            await asyncio.sleep(0.1)
        return None

    assert "still hang" in str(run(main))


def test_what_a_function_raises_is_its_items_failure(run: Callable[..., Any]) -> None:
    """StopIteration, SystemExit and a returned coroutine fail the item and nothing else."""

    async def coroutine() -> None:
        return None

    def odd(number: int) -> Any:
        if number == 1:
            raise StopIteration
        if number == 2:
            raise SystemExit(3)
        if number == 3:
            return coroutine()
        return number

    got = run(lambda: hr.map(odd, range(5)))
    assert [done.value for done in got.done] == [0, 4]
    assert [type(failure.error) for failure in got.failed] == [RuntimeError, hr.CallError, TypeError]


def test_resources_are_opened_once_a_thread_or_shared(run: Callable[..., Any]) -> None:
    """`uses=` opens once for each thread, hr.shared once a run; both are closed in the end."""
    opened: list[str] = []
    closed: list[str] = []

    class Resource:
        def __init__(self, kind: str) -> None:
            self.kind = kind
            opened.append(kind)

        def close(self) -> None:
            closed.append(self.kind)

    def call(number: int, own: Resource, ours: Resource) -> int:
        time.sleep(0.002)
        assert (own.kind, ours.kind) == ("own", "ours")
        return number

    uses = {"own": lambda: Resource("own"), "ours": hr.shared(lambda: Resource("ours"))}
    got = run(lambda: hr.map(call, range(40), concurrency=4, uses=uses))
    assert got.report.done == 40
    assert opened.count("ours") == 1
    assert 1 <= opened.count("own") <= 4
    assert sorted(opened) == sorted(closed)


def test_a_database_connection_is_committed_and_closed(run: Callable[..., Any], tmp_path: Path) -> None:
    """A sqlite3.Connection, whose `with` is a transaction only, is committed and closed: in a thread and shared."""
    place = tmp_path / "own.db"
    with contextlib.closing(sqlite3.connect(place)) as database:
        database.execute("CREATE TABLE numbers (number)")
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(place, check_same_thread=False))
        return opened[-1]

    def store(number: int, database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO numbers VALUES (?)", (number,))

    for factory in (connect, hr.shared(connect)):
        got = run(lambda: hr.map(store, range(5), concurrency=1, uses={"database": factory}))  # noqa: B023
        assert got.report.done == 5
    for database in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            database.execute("SELECT 1")
    with contextlib.closing(sqlite3.connect(place)) as database:
        assert database.execute("SELECT count(*) FROM numbers").fetchone() == (10,)


def test_the_interpreter_exits_in_spite_of_a_hanging_call() -> None:
    """A call that hangs for ever fails as timed out, the run ends on time, and the program ends after it."""
    program = (
        "import threading, headrace as hr\n"
        "got = hr.map_sync(lambda n: threading.Event().wait() if n == 0 else n,"
        " range(5), timeout=1)\n"
        "print(got.report.line(), type(got.failed[0].error).__name__, got.report.elapsed < 2, sep='|')\n"
    )
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    line, error, on_time = ended.stdout.strip().split("|")
    assert line.startswith("taken 5 = done 4 + failed 1")
    assert (error, on_time) == ("TimedOut", "True")
    assert time.monotonic() - began < 10


def test_a_call_that_comes_back_as_it_is_cancelled_is_not_counted_as_stuck():
    """Its result is there before its waiter has heard of the cancellation: nothing would ever give back what it holds."""

    async def main():
        lane = ThreadLane(2, "test", lambda error: None)
        gate = threading.Event()
        call = lane.bind(lambda value: gate.wait(), {}, {})
        task = asyncio.get_running_loop().create_task(call(1))
        await asyncio.sleep(0.05)
        gate.set()
        while not lane._notified:
            time.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lane.abandoned == 0
        assert await lane.close(1.0) == 0

    run_real(main)
