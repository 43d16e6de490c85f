"""What the fuse promises: a run that is wrong from the first item on stops early, and any other one is left alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.testing import run


class Refused(hr.CallError):
    """The token is wrong."""

    status = 401


async def refused(number: int) -> dict[str, int]:
    await asyncio.sleep(random.Random(number).random())
    raise Refused("401 Unauthorized")


def job(place: Path, fn: Any = refused, count: int = 5000, **options: Any) -> hr.Flow[Any]:
    return hr.Flow(range(count)).map(fn, **options).into(hr.sqlite.table(place))


def test_a_job_that_fails_alike_from_the_first_item_on_is_stopped(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    """Fifty are enough to see it; the rest is returned, the report says what happened and what to do."""
    calls: Counter[int] = Counter()
    right = False

    async def call(number: int) -> dict[str, int]:
        calls[number] += 1
        await asyncio.sleep(0.001)
        if not right:
            raise Refused("401 Unauthorized")
        return {"n": number}

    flow = job(tmp_path / "out.db", call, 3000, concurrency=10)
    report = run(lambda: flow.run())
    assert 50 <= report.failed < 200
    assert report.failed == sum(calls.values())
    assert report.done == 0
    assert report.exit_code == 3
    assert "the first 50 items all failed in the same way, call: Refused: 401 Unauthorized" in report.stopped
    assert "run the same again" in report.stopped
    assert "headrace retry" in report.stopped
    assert "\n" not in report.stopped
    right = True
    again = run(lambda: flow.run())  # as it says
    assert (again.job_done, again.failed, again.stopped) == (3000 - report.failed, 0, None)
    hr.open(tmp_path / "out.db").job().retry()
    assert run(lambda: flow.run()).job_done == 3000


def test_a_run_without_a_job_has_no_fuse_unless_it_asks_for_one() -> None:
    """And then it stops where it says."""
    free = run(lambda: hr.Flow(range(500)).map(refused).run())
    assert (free.failed, free.exit_code) == (500, 1)
    fused = run(lambda: hr.Flow(range(500)).map(refused, concurrency=5).run(fuse=7))
    assert 7 <= fused.failed <= 12
    assert fused.exit_code == 3
    assert "retry" not in fused.stopped
    got = run(lambda: hr.map(refused, range(500), concurrency=5, fuse=7))
    assert 7 <= len(got.failed) <= 12


def test_none_turns_the_fuse_of_a_job_off(tmp_path: Path) -> None:
    """Then a job goes on to its end, whatever fails."""
    report = run(lambda: job(tmp_path / "out.db", count=300).run(fuse=None))
    assert (report.failed, report.exit_code) == (300, 1)


def test_a_run_of_fewer_items_ends_as_without_a_fuse(tmp_path: Path) -> None:
    """Forty-nine failures are forty-nine failures."""
    report = run(lambda: job(tmp_path / "out.db", count=49).run())
    assert (report.failed, report.exit_code, report.stopped) == (49, 1, None)


@pytest.mark.parametrize("well", ["done", "skipped", "other"])
def test_one_different_outcome_disarms_it(tmp_path: Path, well: str) -> None:
    """One item among the first that is done, skipped, or fails otherwise: all others are called."""

    async def call(number: int) -> dict[str, int]:
        await asyncio.sleep(1 + number / 1000)
        if number == 3 and well == "done":
            return {"n": number}
        if number == 3:
            raise hr.Skip("not wanted") if well == "skipped" else ValueError("another")
        raise Refused("401 Unauthorized")

    report = run(lambda: job(tmp_path / "out.db", call, 200).run(fuse=20))
    assert report.settled == 200


@pytest.mark.parametrize("error", [ConnectionError("lost"), hr.TimedOut("late")])
def test_failures_of_the_moment_never_blow_it(tmp_path: Path, error: Exception) -> None:
    """A network that is down is no mistake of the run's."""

    async def call(number: int) -> None:
        raise error

    report = run(lambda: job(tmp_path / "out.db", call, 300).run())
    assert (report.failed, report.stopped) == (300, None)


def test_what_went_well_in_an_earlier_run_disarms_it(tmp_path: Path) -> None:
    """A job that has results is known to work."""
    good = True

    async def call(number: int) -> dict[str, int]:
        if not good:
            raise Refused("401 Unauthorized")
        return {"n": number}

    flow = job(tmp_path / "out.db", call, 300)
    run(lambda: hr.Flow(range(300)).take(10).map(call).into(hr.sqlite.table(tmp_path / "out.db")).run())
    good = False
    report = run(lambda: flow.run())
    assert (report.failed, report.stopped) == (290, None)


def test_failures_of_an_earlier_run_leave_it_armed(tmp_path: Path) -> None:
    """Run again without mending anything, it blows again."""
    flow = job(tmp_path / "out.db", concurrency=5)
    first, second = run(lambda: flow.run()), run(lambda: flow.run())
    assert first.exit_code == second.exit_code == 3
    assert "the first 50 items" in second.stopped


def test_running_calls_finish_when_the_fuse_blows() -> None:
    """It drains: a call under way may still be done, and more failures do not cancel it."""

    async def call(number: int) -> int:
        if number == 4:
            await asyncio.sleep(5)
            return number
        await asyncio.sleep(1 + number / 100)
        raise Refused("401 Unauthorized")

    report = run(lambda: hr.Flow(range(500)).map(call, concurrency=20).run(fuse=10, max_failures=12))
    assert report.done == 1
    assert report.failed == report.stages[0].attempts - 1 <= 10 + 19
    assert report.stopped is not None
    assert "the first 10 items" in report.stopped


def test_failures_beyond_max_failures_do_not_cancel_what_runs() -> None:
    """The first one too many drains; those that follow change nothing."""

    async def call(number: int) -> int:
        if number == 4:
            await asyncio.sleep(5)
            return number
        await asyncio.sleep(1 + number / 100)
        raise Refused("401 Unauthorized")

    report = run(lambda: hr.Flow(range(500)).map(call, concurrency=20).run(max_failures=3))
    assert (report.done, report.failed) == (1, report.stages[0].attempts - 1)
    assert report.failed <= 4 + 19


@pytest.mark.parametrize("fuse", [0, -1, 1.5, True, "50", float("inf")])
def test_a_fuse_that_makes_no_sense_is_refused_with_all_else(fuse: Any) -> None:
    """One PlanError, nothing called."""
    with pytest.raises(hr.PlanError) as raised:
        run(lambda: hr.Flow(range(3)).map(refused).run(fuse=fuse, within=-1))
    assert f"fuse={fuse!r}: give a whole number of items" in str(raised.value)
    assert "within=-1" in str(raised.value)


def test_explain_names_the_fuse_of_a_job(tmp_path: Path) -> None:
    """And none where there is none."""
    assert "fuse     where the first 50 items" in job(tmp_path / "out.db").explain()
    assert "fuse  " not in hr.Flow(range(3)).map(refused).explain()
