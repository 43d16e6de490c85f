"""Parking among everything else: whatever waits, fails, fans out or is stopped, every item is there once."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from parking_kit import START, Calendar, dead, parked, positions, virtual_jobs

import headrace as hr
from headrace.events import Event
from headrace.testing import cancel_everywhere, run

WAIT = 60.0
#: What a call may do: come out well, ask for a short or a long wait, for itself or its key, fail, be skipped.
ACTIONS = {
    "good": None,
    "short": lambda: hr.RetryAfter(2.0),
    "long": lambda: hr.RetryAfter(500.0),
    "busy": lambda: hr.RetryAfter(20.0, hold=True),
    "away": lambda: hr.RetryAfter(700.0, hold=True),
    "bad": lambda: ValueError("bad"),
    "skip": lambda: hr.Skip("not wanted"),
}
SCRIPTS = st.dictionaries(
    st.integers(0, 39), st.lists(st.sampled_from(sorted(ACTIONS)), min_size=1, max_size=3), max_size=25
)


@pytest.fixture
def calendar() -> Iterator[Calendar]:
    """Let jobs take no time."""
    with pytest.MonkeyPatch.context() as patch:
        yield virtual_jobs(patch)


class World:
    """What calls do, by item, and how often each was called."""

    def __init__(self, scripts: dict[int, list[str]]) -> None:
        self.scripts = {number: list(script) for number, script in scripts.items()}
        self.calls = Counter[int]()
        self.sent = Counter[int]()

    async def act(self, number: int) -> None:
        """Do what is next for an item."""
        self.calls[number] += 1
        await asyncio.sleep(0.01 * (number % 4))
        script = self.scripts.get(number)
        make = ACTIONS[script.pop(0)] if script else None
        if make is not None:
            raise make()


def flow_of(world: World, place: Path, shape: str, *, ordered: bool, once: bool, keyed: bool) -> hr.Flow[Any]:
    """Make a job of one of the shapes."""
    limits = [hr.Limit(by=lambda value: number_of(value) % 3, concurrency=2)] if keyed else []
    options: dict[str, Any] = {"limits": limits, "ordered": ordered and shape != "spread", "concurrency": 4}

    async def first(number: int) -> int:
        await world.act(number)
        return number

    async def pay(number: int) -> int:
        world.sent[number] += 1
        return number

    async def later(value: Any) -> Any:
        await world.act(number_of(value))
        return value

    flow: hr.Flow[Any] = hr.Flow(range(40)).map(first, **options)
    if once:
        flow = flow.map(pay, effect="once")
    if shape == "spread":
        flow = flow.flat_map(lambda number: [number, number + 1000], lane="loop", fanout=2).map(
            later, **options
        )
    elif shape == "batch":
        flow = flow.batch(3).map(later, **options)
    elif shape == "two":
        flow = flow.map(later, **options)
    return flow.into(hr.sqlite.table(place, columns=["value"]))


def number_of(value: Any) -> int:
    """Give the item's number of what a stage gets."""
    return number_of(value[0]) if isinstance(value, list) else int(value) % 1000


async def run_watched(flow: hr.Flow[Any], window: int, stop: tuple[float, str] | None) -> hr.Report:
    """Run a flow, look at its account all the time, and perhaps stop it on the way."""
    async with flow.start(window=window, wait=WAIT, grace=5.0, progress=_nobody) as running:
        watcher = asyncio.create_task(watch(running))
        if stop is not None:
            await asyncio.wait({running._task}, timeout=stop[0])  # type: ignore[arg-type]
            running.cancel() if stop[1] == "cancel" else running.stop()
        report = await running.wait()
        watcher.cancel()
        await asyncio.wait({watcher})
        if not watcher.cancelled():
            watcher.result()
    assert report.balanced
    return report


def _nobody(events: list[Event]) -> None:
    pass


async def watch(running: hr.Job) -> None:
    """Check the account at any moment."""
    await running.opened()
    made = running._run
    assert made is not None
    while True:
        s = running.statistics()
        assert s.taken == s.done + s.failed + s.skipped + s.parked + s.returned + made.roots.open, s
        assert min(s.taken, s.parked, s.job_parked) >= 0
        await asyncio.sleep(0.7)


@given(
    scripts=SCRIPTS,
    shape=st.sampled_from(["one", "two", "spread", "batch"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    window=st.sampled_from([12, 24, 100]),
    stops=st.lists(st.tuples(st.floats(0.0, 90.0), st.sampled_from(["stop", "cancel"])), max_size=2),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
def test_every_item_is_there_once(
    calendar: Calendar,
    scripts: dict[int, list[str]],
    shape: str,
    flags: tuple[bool, bool, bool],
    window: int,
    stops: list[tuple[float, str]],
) -> None:
    """Run again and again, each time when the next item is due: the job ends, and each item is done or dead, once."""
    ordered, once, keyed = flags
    world = World(scripts)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "out.db"
        left = list(stops)
        for _ in range(60):
            # made anew, as a later process does: holds are forgotten, only dates are not
            flow = flow_of(world, place, shape, ordered=ordered, once=once, keyed=keyed)
            report = run(run_watched(flow, window, left.pop(0) if left else None))
            assert report.job_parked == len(parked(place))
            assert (report.exit_code == 3) == bool(report.job_parked or report.returned or report.untaken)
            if report.exit_code != 3:
                break
            if report.next_due is not None:
                calendar.epoch = max(calendar.epoch, report.next_due + 1)
        else:
            pytest.fail("the job does not come to its end")
        check(place, world, once=once)


def check(place: Path, world: World, *, once: bool) -> None:
    """Each item is done, dead or skipped; no *once* call was made twice."""
    done, failed = set(positions(place)), dead(place)
    with closing(sqlite3.connect(place)) as connection:
        counts = connection.execute("SELECT total(done), total(skipped) FROM headrace_progress").fetchone()
        rows = Counter(connection.execute("SELECT _position, _child FROM results").fetchall())
    assert all(count == 1 for count in rows.values())
    assert not done & set(failed)
    assert sum(counts) + len(failed) == 40
    assert parked(place) == []
    if once:
        assert max(world.sent.values(), default=0) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_cancelled_at_every_await_point(tmp_path: Path, calendar: Calendar, times: int) -> None:
    """Cancelled anywhere, once or twice, a job with parked items, old and new ones, loses and doubles nothing."""
    scripts = {1: ["long"], 2: ["away"], 4: ["busy"], 5: ["short"]}
    before, place, number = tmp_path / "before.db", tmp_path / "0.db", 0

    def flow(world: World, into: Path) -> hr.Flow[Any]:
        limits = [hr.Limit(by=lambda n: n % 3, concurrency=2)]

        async def call(n: int) -> dict[str, int]:
            await world.act(n)
            return {"n": n}

        return hr.Flow(range(7)).map(call, concurrency=4, limits=limits).into(hr.sqlite.table(into))

    assert run(lambda: flow(World(scripts), before).run(window=4, wait=WAIT)).parked == 3
    calendar.epoch += 712  # 1 is due, and 2 and what came after it are, or will be while the run waits

    async def job() -> None:
        nonlocal number, place
        number += 1
        place = tmp_path / f"{number}.db"
        shutil.copy(before, place)
        await flow(World({2: ["away"], 6: ["long"]}), place).run(window=4, wait=WAIT, grace=1)

    def look(_: object) -> None:
        report = run(lambda: flow(World({}), place).run(wait="2h"))
        assert report.exit_code == 0
        assert positions(place) == list(range(7))

    assert cancel_everywhere(job, look, times=times) > 15  # how many depends on the jitter of the holds


def test_no_wait_is_longer_than_wait(tmp_path: Path, calendar: Calendar) -> None:
    """However long others ask to wait, a run is over when all that can be done within `wait` is."""
    world = World({number: ["away", "long", "away"][: 1 + number % 3] for number in range(0, 40, 2)})
    flow = flow_of(world, tmp_path / "out.db", "two", ordered=False, once=False, keyed=True)

    async def main() -> hr.Report:
        report = await run_watched(flow, 12, None)
        assert asyncio.get_running_loop().time() < 10
        return report

    report = run(main)
    assert report.exit_code == 3
    assert report.next_due is not None
    assert report.next_due >= START + 500
