"""The lane that is chosen by what the first calls cost: what moves, what stays, and that no call is made twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest

import headrace as hr
from headrace.events import Event, LaneChosen

DATA = os.urandom(1 << 20)


def parses(n: int) -> tuple[int, int]:
    total = 0
    for number in range(30_000):
        total += number ^ n
    return n, os.getpid()


def backtracks(n: int) -> tuple[int, int]:
    assert re.match(r"(a+)+b", "a" * 16) is None
    return n, os.getpid()


def hashes(n: int) -> tuple[int, int]:
    hashlib.sha256(DATA).digest()
    hashlib.sha256(DATA).digest()
    return n, os.getpid()


def compresses(n: int) -> tuple[int, int]:
    zlib.compress(DATA, 1)
    return n, os.getpid()


def sleeps(n: int) -> tuple[int, int]:
    time.sleep(0.01)
    return n, os.getpid()


def waits_for_a_socket(n: int) -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.01)
        with pytest.raises(TimeoutError):
            ours.recv(1)
    return n, os.getpid()


def sorts(n: int) -> tuple[int, int]:
    numpy.sort(numpy.arange(200_000, dtype=float)[::-1] % 1013.0)
    return n, os.getpid()


def adds(n: int) -> tuple[int, int]:
    return n, os.getpid()


def run_auto(
    fn: Callable[[int], Any], count: int, **options: Any
) -> tuple[hr.Outcomes[Any], list[LaneChosen]]:
    """Run a map on the lane that is chosen, and give what was chosen."""
    events: list[Event] = []

    def listen(batch: Any) -> None:
        events.extend(batch)

    got = hr.map_sync(fn, range(count), lane="auto", progress=listen, **options)
    return got, [event for event in events if isinstance(event, LaneChosen)]


@pytest.mark.parametrize(
    ("fn", "count", "lane"),
    [
        (parses, 400, "process"),
        (backtracks, 400, "process"),
        (hashes, 200, "thread"),
        (compresses, 100, "thread"),
        (sleeps, 200, "thread"),
        (waits_for_a_socket, 200, "thread"),
        (sorts, 100, "thread"),
        (adds, 30_000, "thread"),
    ],
)
def test_what_computes_and_holds_the_gil_is_moved(fn: Callable[[int], Any], count: int, lane: str) -> None:
    """The choice is an event with its figures, stands in the report, and is what the calls after it did."""
    got, chosen = run_auto(fn, count)
    assert [value[0] for value in got.values] == list(range(count))
    assert [(event.stage, event.lane) for event in chosen] == [(fn.__name__, lane)], chosen
    assert got.report.stages[0].lane == lane
    assert chosen[0].reason in str(got.report)
    places = {pid for _, pid in got.values}
    if lane == "process":
        assert os.getpid() in places  # the first ones
        assert len(places) > 1
    else:
        assert places == {os.getpid()}


def test_each_item_is_called_once(tmp_path: Path) -> None:
    """What runs while the stage moves ends where it is; nothing is called again in the new place."""
    path = str(tmp_path / "called")

    def notes(n: int) -> int:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, b"%d\n" % n)
        os.close(file)
        for number in range(20_000):
            n ^= number & 1
        return n

    got, chosen = run_auto(notes, 500)
    assert chosen[0].lane == "process"
    assert got.report.done == 500
    calls = Counter(int(line) for line in Path(path).read_text().split())
    assert calls == Counter(range(500))


def test_order_is_kept_over_the_move() -> None:
    """What leaves an ordered stage leaves it in the order in which it came, from threads and from processes."""

    async def all_of() -> list[int]:
        flow = hr.Flow(range(400)).map(parses, lane="auto", ordered=True)
        async with flow.stream() as outcomes:
            return [outcome.position async for outcome in outcomes]

    assert asyncio.run(all_of()) == list(range(400))


CACHE: dict[int, int] = {}


def caches(n: int) -> int:
    CACHE[n] = n
    return sum(range(40_000))


class Parser:
    def parse(self, n: int) -> int:
        return sum(range(40_000))


def test_what_may_keep_a_state_stays() -> None:
    """Functions of a mutable global, bound methods, closures and stages with resources stay in threads, and it says why."""
    seen: list[int] = []

    def remembers(n: int) -> int:
        seen.append(n)
        return sum(range(40_000))

    def uses_it(n: int, it: Any) -> int:
        return sum(range(40_000))

    def gives_a_lambda(n: int) -> Any:
        sum(range(40_000))
        return lambda: n

    for fn, options, what in (
        (caches, {}, "CACHE"),
        (Parser().parse, {}, "method of a Parser"),
        (remembers, {}, "closes over 'seen', a list"),
        (uses_it, {"uses": {"it": object}}, "uses="),
        (gives_a_lambda, {}, "cannot go to a process"),
    ):
        got, chosen = run_auto(fn, 200, **options)
        assert got.report.done == 200
        assert chosen[0].lane == "thread"
        assert what in chosen[0].reason
    assert sorted(seen) == list(range(200))


def test_there_is_nothing_to_choose_for_an_async_function() -> None:
    """It runs on the loop; so do short runs end before anything is chosen."""

    async def waits(n: int) -> int:
        await asyncio.sleep(0)
        return n

    got, chosen = run_auto(waits, 10)
    assert (got.values, chosen) == (list(range(10)), [])
    assert got.report.stages[0].lane == "loop"
    got, chosen = run_auto(adds, 3)
    assert len(got.values) == 3
    assert got.report.stages[0].lane == "thread"


def test_failures_and_retries_go_on_in_the_new_place() -> None:
    """An item that fails before, while or after the stage moves fails as it would anywhere."""

    def fails_often(n: int) -> int:
        sum(range(40_000))
        if n % 3 == 0:
            raise OSError(f"{n} is unwell")
        return n

    got, chosen = run_auto(fails_often, 300, retry=hr.Retry(attempts=2, base=0.001, cap=0.002))
    assert chosen[0].lane == "process"
    assert [failed.position for failed in got.failed] == list(range(0, 300, 3))
    assert {failed.attempts for failed in got.failed} == {2}
    assert len(got.done) == 200


def test_no_more_calls_run_at_once_than_concurrency_allows() -> None:
    """With concurrency=1 there is never a second call, not even to see whether two would be faster."""
    running: list[int] = []
    most = 0

    def alone(n: int) -> int:
        nonlocal most
        running.append(n)
        most = max(most, len(running))
        total = sum(range(40_000))
        running.remove(n)
        return total

    def computes(n: int) -> int:
        return sum(range(40_000))

    got, _ = run_auto(alone, 200, concurrency=1)
    assert got.report.done == 200
    assert most == 1
    got, chosen = run_auto(computes, 200, concurrency=1)
    assert chosen[0].lane == "thread"
    assert "concurrency=1" in chosen[0].reason


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_calls_that_all_fail_are_judged_as_well(lane: str) -> None:
    """A service that is down is no reason to stay with one thread: what fails costs time as what succeeds does."""

    def fails(n: int) -> None:
        if lane == "process":
            sum(range(40_000))
        else:
            time.sleep(0.01)
        raise OSError(f"{n} is unwell")

    got, chosen = run_auto(fails, 300)
    assert len(got.failed) == 300
    assert len(chosen) == 1
    assert chosen[0].kind == ("blocks" if lane == "thread" else "computes, holding the GIL")


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_run_that_is_stopped_while_it_chooses_is_accounted_for(after: float, tmp_path: Path) -> None:
    """Stopped before, in and after the move, a job resumes and has each row once; nothing is left behind."""
    place = tmp_path / "out.db"

    def row(n: int) -> dict[str, int]:
        sum(range(40_000))
        return {"n": n}

    flow = hr.Flow(range(600)).map(row, lane="auto").into(hr.sqlite.table(place))

    async def stopped() -> hr.Report:
        async with flow.start() as job:
            await asyncio.sleep(after)
            job.stop()
            return await job.wait()

    report = asyncio.run(stopped())
    assert report.balanced
    assert flow.run_sync().exit_code == 0
    with closing(sqlite3.connect(place)) as connection:
        rows = [n for (n,) in connection.execute("SELECT n FROM results ORDER BY n")]
    assert rows == list(range(600))


def test_cancelled_while_it_chooses_nothing_is_left(run: Callable[[Any], Any]) -> None:
    """On both kinds of loop a cancelled map leaves no thread and no process, whenever it was cancelled."""

    async def main() -> None:
        for after in (0.0, 0.03, 0.08, 0.15):
            task = asyncio.create_task(hr.map(parses, range(2000), lane="auto"))
            await asyncio.sleep(after)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_explain_says_what_may_happen() -> None:
    """The plan tells that the lane is chosen, before anything moves."""
    assert "auto" in hr.Flow(range(3)).map(adds, lane="auto").explain()


def test_a_report_advises_where_threads_computed() -> None:
    """Without lane= nothing is moved; the report says that threads computed, one at a time."""
    got = hr.map_sync(parses, range(1500))
    stage = got.report.stages[0]
    assert stage.lane == "thread"
    assert stage.chosen is None
    assert stage.advice is not None
    assert 'lane="auto"' in str(got.report)
    assert hr.map_sync(sleeps, range(100)).report.stages[0].advice is None
