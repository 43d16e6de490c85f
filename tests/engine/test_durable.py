"""What a job promises: each item exactly once in results or dead letters, whatever ends the run and whenever."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from parking_kit import virtual_jobs

import headrace as hr
from headrace.testing import cancel_everywhere, run_real
from headrace.testing import run as run_virtual


async def row(number: int) -> dict[str, int]:
    """Make a row of a number; those that end in 7 fail."""
    await asyncio.sleep(0)
    if number % 10 == 7:
        raise ValueError(f"bad {number}")
    return {"n": number}


def results(place: Path, table: str = "results") -> list[int]:
    """Read the column n of a result table."""
    with closing(sqlite3.connect(place)) as connection:
        return [n for (n,) in connection.execute(f'SELECT n FROM "{table}" ORDER BY n')]


def flow(place: Path, count: int = 40) -> hr.Flow[Any]:
    """Make a small job."""
    return hr.Flow(range(count)).map(row, concurrency=4).into(hr.sqlite.table(place))


def expected(count: int) -> tuple[list[int], list[int]]:
    """What is done and what is dead of so many items."""
    return [n for n in range(count) if n % 10 != 7], [n for n in range(count) if n % 10 == 7]


def check_exact(place: Path, count: int) -> None:
    """Every item is in the results or the dead letters, once."""
    done, dead = expected(count)
    assert results(place) == done
    assert [letter.position for letter in hr.open(place).job().failures()] == dead
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_job_runs_once(tmp_path: Path, run: Callable[..., Any]) -> None:
    """Run again, a finished job calls nothing, and says when it was finished."""
    place = tmp_path / "out.db"
    first = run(lambda: flow(place).run())
    assert (first.done, first.failed, first.exit_code) == (36, 4, 1)
    check_exact(place, 40)
    again = run(lambda: flow(place).run())
    assert (again.taken, again.job_done, again.job_failed, again.exit_code) == (0, 36, 4, 1)
    assert again.finished_at is not None


def test_an_input_that_grew_goes_on(tmp_path: Path, run: Callable[..., Any]) -> None:
    """New items at the end are taken; a changed beginning is refused, in words."""
    place = tmp_path / "out.db"
    run(lambda: flow(place, 40).run())
    assert run(lambda: flow(place, 60).run()).taken == 20
    check_exact(place, 60)

    async def changed() -> hr.Report:
        other = hr.Flow([5, 4, 3]).map(row).into(hr.sqlite.table(place))
        return await other.run()

    with pytest.raises(hr.errors.IdentityChanged, match="had 60 items"):
        run(changed)


def test_changed_stages_are_refused(tmp_path: Path, run: Callable[..., Any]) -> None:
    """Another stage in the same place is another job; accept_changes goes on, fresh starts over."""
    place = tmp_path / "out.db"
    run(lambda: flow(place).run())

    async def other_row(number: int) -> dict[str, int]:
        return {"n": number}

    def other() -> hr.Flow[Any]:
        return hr.Flow(range(40)).map(other_row).into(hr.sqlite.table(place))

    with pytest.raises(hr.errors.IdentityChanged, match="stages"):
        run(lambda: other().run())
    assert run(lambda: other().run(accept_changes=True)).taken == 0
    fresh = run(lambda: other().run(fresh=True))
    assert (fresh.done, fresh.exit_code) == (40, 0)
    assert results(place) == list(range(40))


def test_dead_letters_are_retried(tmp_path: Path, run: Callable[..., Any]) -> None:
    """`retry` opens dead letters again; the next run calls just these."""
    place = tmp_path / "out.db"
    run(lambda: flow(place).run())
    assert hr.open(place).job().retry(positions=[7, 17]) == 2
    again = run(lambda: flow(place).run())
    assert (again.taken, again.failed) == (2, 2)
    check_exact(place, 40)


def test_take_leaves_the_rest_for_a_later_run(tmp_path: Path, run: Callable[..., Any]) -> None:
    """take(n) ends a run early without failing it; the next one goes on."""
    place = tmp_path / "out.db"

    def part(n: int) -> hr.Flow[Any]:
        return hr.Flow(range(40)).take(n).map(row).into(hr.sqlite.table(place))

    assert run(lambda: part(15).run()).taken == 15
    assert hr.open(place).job().status().state == "unfinished"
    assert run(lambda: part(100).run()).taken == 25
    check_exact(place, 40)


def test_map_with_out_gives_the_values_of_all_runs(tmp_path: Path, run: Callable[..., Any]) -> None:
    """A kept map returns what JSON makes of its values, in the first run too, and never calls a done item again."""
    place = tmp_path / "out.db"
    calls: list[int] = []

    async def pair(number: int) -> tuple[int, str]:
        calls.append(number)
        if number == 3 and calls.count(3) == 1:
            raise ValueError("three")
        return number, "x"

    first = run(lambda: hr.map(pair, range(5), out=place))
    assert [done.value for done in first.done] == [[n, "x"] for n in (0, 1, 2, 4)]
    assert isinstance(first.failed[0].error, ValueError)
    second = run(lambda: hr.map(pair, range(5), out=place))
    assert second.failed[0].item == 3
    assert "three" in str(second.failed[0].error)
    hr.open(place).job().retry()
    third = run(lambda: hr.map(pair, range(5), out=place))
    assert third.values == [[n, "x"] for n in range(5)]
    assert sorted(calls) == [0, 1, 2, 3, 3, 4]


def test_a_busy_place_is_refused(tmp_path: Path, run: Callable[..., Any]) -> None:
    """Two runs of one output: the second one is told the pid of the first."""
    place = tmp_path / "out.db"

    async def main() -> None:
        async with flow(place).start() as job:
            job.pause()
            while job.statistics().state == "opening":
                await asyncio.sleep(0.001)
            with pytest.raises(hr.errors.LedgerBusy) as raised:
                await flow(place).run()
            assert raised.value.pid == os.getpid()
            job.resume()

    run(main)
    check_exact(place, 40)


def test_a_poisonous_row_fails_its_item(tmp_path: Path, run: Callable[..., Any]) -> None:
    """A value that the sink cannot take is a dead letter; the rest of its batch is written."""
    place = tmp_path / "out.db"

    async def poison(number: int) -> dict[str, Any]:
        return {"n": number, "bad": object() if number == 5 else None}

    report = run(lambda: hr.Flow(range(20)).map(poison).into(hr.sqlite.table(place)).run())
    assert (report.done, report.failed) == (19, 1)
    assert results(place) == [n for n in range(20) if n != 5]


def test_children_commit_with_their_root(tmp_path: Path, run: Callable[..., Any]) -> None:
    """A root's rows are all there or none; a failed child makes a dead letter of the root."""
    place = tmp_path / "out.db"

    async def check(number: int) -> dict[str, int]:
        if number == 21:
            raise ValueError
        return {"n": number}

    job = hr.Flow(range(5)).flat_map(lambda n: [n * 10 + i for i in range(3)], lane="loop").map(check)
    report = run(lambda: job.into(hr.sqlite.table(place)).run())
    assert (report.done, report.failed) == (4, 1)
    assert results(place) == [n * 10 + i for n in (0, 1, 3, 4) for i in range(3)]


@pytest.mark.parametrize("times", [1, 2])
def test_cancelled_at_every_await_point(tmp_path: Path, times: int) -> None:
    """Cancelled anywhere, once or twice, a job loses and doubles nothing, leaves no task, and resumes."""
    number = 0
    places: list[Path] = []

    async def job() -> None:
        nonlocal number
        number += 1
        places.append(tmp_path / f"{number}.db")
        await flow(places[-1], 12).run(window=8, grace=1)

    def check(_: object) -> None:
        place = places[-1]
        run_real(lambda: flow(place, 12).run(), kind="asyncio")
        check_exact(place, 12)

    points = cancel_everywhere(job, check, times=times, runner=run_real)
    assert points > 20


def test_once_calls_are_never_repeated(tmp_path: Path, run: Callable[..., Any]) -> None:
    """A *once* call whose end is unknown is in doubt: not repeated by retry=, resume or retry, but by retry in doubt."""
    place = tmp_path / "out.db"
    calls: list[int] = []

    async def pay(number: int) -> dict[str, int]:
        calls.append(number)
        if number == 2 and calls.count(2) == 1:
            raise ConnectionResetError("lost")
        return {"n": number}

    def job() -> hr.Flow[Any]:
        return (
            hr.Flow(range(4)).map(pay, effect="once", retry=hr.Retry(attempts=5)).into(hr.sqlite.table(place))
        )

    report = run(lambda: job().run())
    assert (report.done, report.failed) == (3, 1)
    held = hr.open(place).job()
    (letter,) = held.failures(in_doubt=True)
    assert (letter.position, letter.error) == (2, "InDoubt")
    assert run(lambda: job().run()).taken == 0
    assert held.retry() == 0
    assert held.retry(in_doubt=True) == 1
    assert run(lambda: job().run()).done == 1
    assert sorted(calls) == [0, 1, 2, 2, 3]


def test_a_cancelled_once_call_is_in_doubt(tmp_path: Path, run: Callable[..., Any]) -> None:
    """Cancelled while a *once* call is out, its item is settled as in doubt; those not called are returned."""
    place = tmp_path / "out.db"

    async def pay(number: int) -> dict[str, int]:
        await asyncio.sleep(60)
        return {"n": number}

    async def main() -> hr.Report:
        job_flow = hr.Flow(range(10)).map(pay, effect="once", concurrency=2).into(hr.sqlite.table(place))
        async with job_flow.start() as job:
            while job.statistics().stages == () or job.statistics().stages[0].running < 2:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.2)
            job.cancel()
            return await job.wait()

    report = run(main)
    assert (report.failed, report.returned) == (2, 8)
    assert len(list(hr.open(place).job().failures(in_doubt=True))) == 2


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_once_calls_are_in_doubt_where_their_children_had_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Cancelled while what a *once* call gave fans out and waits for room, its item is in doubt, and is not called again."""
    virtual_jobs(monkeypatch)
    place, calls = tmp_path / "out.db", Counter[int]()

    async def pay(number: int) -> int:
        calls[number] += 1
        return number

    async def slow(number: int) -> dict[str, int]:
        await asyncio.sleep(0.5)
        return {"n": number}

    def make() -> hr.Flow[Any]:
        paid = hr.Flow(range(20)).map(pay, effect="once")
        spread = paid.flat_map(lambda number: [number, number], lane="loop", fanout=2)
        return spread.map(slow, concurrency=1).into(hr.sqlite.table(place))

    async def main() -> hr.Report:
        async with make().start(window=12, grace=0.1) as job:
            await job.opened()
            await asyncio.sleep(0.2)
            job.cancel() if how == "cancel" else job.stop()
            return await job.wait()

    report = run_virtual(main)
    assert report.balanced
    assert report.failed > 0
    run_virtual(lambda: make().run(window=12))
    assert max(calls.values()) == 1
