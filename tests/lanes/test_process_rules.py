"""The process lane keeps all rules of the engine, opens what its children need, and refuses what cannot be."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import calls, children_of, is_alive, marked

import headrace as hr
from headrace.errors import WorkerDied
from headrace.testing import run as run_virtually

word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="none")


# ---------------------------------------------------------------------------------------------------- the engine's rules


def test_retries_and_their_accounts(run: Callable[..., Any], tmp_path: Path) -> None:
    """`retry=` repeats what fails, a death too, as the effect allows, and counts the attempts."""
    place = tmp_path / "calls"

    def flaky(number: int) -> int:
        if number % 10 == 0 and place.read_text().split().count(str(number)) < 3:
            if number % 20 == 0:
                os._exit(1)
            raise ConnectionError("of the moment")
        return number

    got = run(
        lambda: hr.map(
            marked(place, flaky),
            range(60),
            lane="process",
            concurrency=2,
            retry=hr.Retry(attempts=4, base=0.01),
        )
    )
    assert got.values == list(range(60))
    assert calls(place) == {n: 3 if n % 10 == 0 else 1 for n in range(60)}
    assert {done.position: done.attempts for done in got.done} == dict(calls(place))


def test_a_once_call_that_dies_is_in_doubt(run: Callable[..., Any], tmp_path: Path) -> None:
    """It is never repeated, and the item fails as InDoubt: the call may have taken effect."""
    place = tmp_path / "calls"
    got = run(
        lambda: hr.map(
            marked(place, lambda n: os._exit(1) if n == 5 else {"n": n}),
            range(20),
            lane="process",
            concurrency=2,
            effect="once",
            retry=hr.Retry(attempts=4, base=0.01),
            out=tmp_path / "out.db",
            name="pay",
        )
    )
    assert [(failed.position, type(failed.error)) for failed in got.failed] == [(5, hr.InDoubt)]
    assert "exit code 1" in str(got.failed[0].error)
    assert len(got.done) == 19
    assert calls(place) == dict.fromkeys(range(20), 1)


def test_order_fan_out_and_filter(run: Callable[..., Any]) -> None:
    """`ordered`, `flat_map` and `filter` hold on processes, with deaths among them."""

    def spread(number: int) -> Iterator[int]:
        if number == 13:
            os._exit(1)
        yield from range(number % 4)

    def even(number: int) -> bool:
        return number % 2 == 0

    async def main() -> Any:
        flow = (
            hr.Flow(range(200))
            .filter(even, lane="process", concurrency=1)
            .map(lambda n: n // 2, lane="process", concurrency=2, ordered=True, name="half")
            .flat_map(spread, lane="process", concurrency=1)
            .map(lambda n: n + 1, lane="process", concurrency=1, ordered=True, name="plus")
        )
        items, values = [], []
        async with flow.stream() as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, hr.Done):
                    items.append(outcome.item)
                    values.append(outcome.value)
                elif isinstance(outcome, hr.Failed):
                    assert isinstance(outcome.error, WorkerDied)
        return items, values, outcomes.report

    items, values, report = run(main)
    assert sorted(items) == sorted(n for n in range(0, 200, 2) for _ in range((n // 2) % 4) if n != 26)
    assert sorted(values) == sorted(k + 1 for n in range(100) if n != 13 for k in range(n % 4))
    assert (report.done, report.failed, report.skipped) == (99, 1, 100)


def test_order_is_kept(run: Callable[..., Any]) -> None:
    """What leaves an ordered stage leaves in the order in which it came, over two children and a death."""

    def vary(number: int) -> int:
        if number == 300:
            os._exit(1)
        time.sleep(0.0005 * (number % 5))
        return number

    async def main() -> list[int]:
        found = []
        async with (
            hr.Flow(range(600)).map(vary, lane="process", concurrency=2, ordered=True).stream() as outcomes
        ):
            async for outcome in outcomes:
                found.append(outcome.item)
        return found

    assert run(main) == list(range(600))


def test_limits_hold(run: Callable[..., Any], tmp_path: Path) -> None:
    """A limit of one call by key is kept across children, and its permits come back after a death."""
    limit = hr.Limit(concurrency=1, by=lambda n: n % 3)
    place = tmp_path / "spans"

    def call(number: int) -> int:
        began = time.monotonic()
        time.sleep(0.003)
        if number == 7:
            os._exit(1)
        with place.open("a") as file:
            file.write(f"{number % 3} {began} {time.monotonic()}\n")
        return number

    got = run(lambda: hr.map(call, range(45), lane="process", concurrency=3, limits=[limit]))
    assert [failed.position for failed in got.failed] == [7]
    spans = sorted(tuple(map(float, line.split())) for line in place.read_text().splitlines())
    overlaps = [(a, b) for a, b in itertools.pairwise(spans) if a[0] == b[0] and b[1] < a[2]]
    assert overlaps == []
    assert limit.statistics().running == 0


@pytest.mark.slow
def test_lanes_mix(run: Callable[..., Any]) -> None:
    """Async, thread, process and async again, over 50 000 items: each is accounted for."""

    async def first(number: int) -> int:
        if number % 100 == 0:
            await asyncio.sleep(0)
        return number

    def second(number: int) -> int:
        return number + 1

    def third(number: int) -> int:
        if number % 10_000 == 5000:
            os._exit(1)
        return number * 2

    async def last(number: int) -> int:
        if number == 4000:
            raise ValueError(number)
        return number

    async def main() -> Any:
        flow = (
            hr.Flow(range(50_000))
            .map(first, concurrency=50)
            .map(second, concurrency=4)
            .map(third, lane="process", concurrency=2)
            .map(last, concurrency=50)
        )
        total = 0
        async with flow.stream() as outcomes:
            async for outcome in outcomes:
                if outcome.ok:
                    total += outcome.value
        return total, outcomes.report

    total, report = run(main)
    assert (report.taken, report.done, report.failed, report.returned) == (50_000, 49_994, 6, 0)
    assert total == 50_000 * 50_001 - 4000 - 2 * sum(range(5000, 50_000, 10_000))


def test_pause_and_resume(run: Callable[..., Any], tmp_path: Path) -> None:
    """While a job is paused nothing new is called, not even what a child had already; then it goes on."""
    place = tmp_path / "calls"

    def call(number: int) -> int:
        if number >= 300:
            time.sleep(0.01)
        return number

    async def main() -> Any:
        async with hr.Flow(range(400)).map(marked(place, call), lane="process", concurrency=2).start() as job:
            while len(calls(place)) < 310:
                await asyncio.sleep(0.005)
            job.pause()
            await asyncio.sleep(0.1)
            before = len(calls(place))
            await asyncio.sleep(0.2)
            assert len(calls(place)) == before < 400
            job.resume()
        return job.report

    assert run(main).done == 400
    assert calls(place) == dict.fromkeys(range(400), 1)


def test_calls_that_are_recalled_again_and_again(run: Callable[..., Any], tmp_path: Path) -> None:
    """Paused and resumed at any moment of short chunks, a job calls each item once, with its own answer."""
    place = tmp_path / "calls"

    async def main() -> Any:
        found = {}
        fn = marked(place, lambda n: -n)
        async with hr.Flow(range(20_000)).map(fn, lane="process", concurrency=2).stream() as outcomes:

            async def disturb() -> None:
                while True:
                    outcomes.job.pause()
                    await asyncio.sleep(0)
                    outcomes.job.resume()
                    await asyncio.sleep(0.0005)

            task = asyncio.get_running_loop().create_task(disturb())
            async for outcome in outcomes:
                found[outcome.item] = outcome.value
            task.cancel()
            await asyncio.wait((task,))
        return found

    assert run(main) == {n: -n for n in range(20_000)}
    assert calls(place) == dict.fromkeys(range(20_000), 1)


def test_stop_lets_the_running_call_finish(run: Callable[..., Any], tmp_path: Path) -> None:
    """A stop returns what has not begun, however long its chunk; what runs is finished and counts."""
    place = tmp_path / "calls"

    def call(number: int) -> int:
        if number >= 300:
            time.sleep(0.3)
        return number

    async def main() -> Any:
        async with (
            hr.Flow(range(1000)).map(marked(place, call), lane="process", concurrency=1).start() as job
        ):
            while len(calls(place)) < 301:
                await asyncio.sleep(0.005)
            began = time.monotonic()
            job.stop()
        return job.report, time.monotonic() - began

    report, seconds = run(main)
    assert seconds < 2
    assert report.done == len(calls(place)) <= 303
    assert report.returned + report.done == report.taken


def test_cancel_ends_a_running_call(run: Callable[..., Any], tmp_path: Path) -> None:
    """A cancel kills the child; the item is returned, what it had answered counts."""
    place = tmp_path / "calls"

    async def main() -> Any:
        fn = marked(place, lambda n: time.sleep(60) if n == 40 else n)
        async with hr.Flow(range(100)).map(fn, lane="process", concurrency=1).start() as job:
            while 40 not in calls(place):
                await asyncio.sleep(0.005)
            began = time.monotonic()
            job.cancel()
        return job.report, time.monotonic() - began

    report, seconds = run(main)
    assert seconds < 2
    assert (report.done, report.failed) == (40, 0)


def test_a_cancelled_waiter_leaves_no_process(run: Callable[..., Any]) -> None:
    """Whoever waits for the map and is cancelled gets the cancellation when the children are gone."""
    before = children_of(os.getpid())

    async def main() -> set[int]:
        try:
            async with asyncio.timeout(0.5):
                await hr.map(lambda n: time.sleep(60), range(4), lane="process", concurrency=2)
        except TimeoutError:
            pass
        return children_of(os.getpid()) - before

    assert not {pid for pid in run(main) if is_alive(pid)}


def test_a_loop_that_is_torn_down_leaves_no_process() -> None:
    """A program that leaves its loop without waiting for its job goes on without the job's children."""
    before = children_of(os.getpid())

    async def main() -> set[int]:
        inbox: hr.Inbox[int] = hr.Inbox()
        job = hr.Flow(inbox).map(abs, lane="process", concurrency=1).start()
        await job.__aenter__()
        await inbox.put(1)
        while job.statistics().done < 1:
            await asyncio.sleep(0.005)
        return children_of(os.getpid()) - before

    pids = asyncio.run(main())
    assert pids
    until = time.monotonic() + 2
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(is_alive, pids))


# ---------------------------------------------------------------------------------------------------- resources


def test_resources_are_opened_once_a_child(run: Callable[..., Any], tmp_path: Path) -> None:
    """`uses=` opens in each child once, and closes with it."""
    place = tmp_path / "log"

    class Resource:
        def __init__(self) -> None:
            self.note("open")

        def note(self, what: str) -> None:
            with place.open("a") as file:
                file.write(f"{what} {os.getpid()}\n")

        def close(self) -> None:
            self.note("close")

    def call(number: int, own: Any) -> int:
        time.sleep(0.002)
        return os.getpid() if isinstance(own, Resource) else 0

    got = run(lambda: hr.map(call, range(60), lane="process", concurrency=2, uses={"own": Resource}))
    pids = set(got.values)
    lines = place.read_text().splitlines()
    assert sorted(lines) == sorted(f"{what} {pid}" for what in ("open", "close") for pid in pids)


def test_a_factory_that_raises_fails_the_run(run: Callable[..., Any]) -> None:
    """With LaneError and the child's traceback, at once, and no call made."""

    def broken() -> Any:
        raise RuntimeError("no licence")

    async def main() -> Any:
        try:
            await hr.map(lambda n, it: n, range(100), lane="process", concurrency=2, uses={"it": broken})
        except hr.LaneError as error:
            return error
        return None

    error = run(main)
    assert "cannot start: RuntimeError: no licence" in str(error)
    assert "in broken" in str(error)
    assert (error.report.done, error.report.failed) == (0, 0)


def test_children_that_die_at_start_fail_the_lane(run: Callable[..., Any]) -> None:
    """A few tries, then LaneError with how they died and what they said; no endless respawning."""

    def fatal() -> Any:
        os.write(2, b"no such device\n")
        os._exit(13)

    async def main() -> Any:
        try:
            await hr.map(lambda n, it: n, range(100), lane="process", concurrency=1, uses={"it": fatal})
        except hr.LaneError as error:
            return str(error)
        return None

    told = run(main)
    assert "3 child processes" in told
    assert "exit code 13" in told
    assert "no such device" in told


def test_children_are_replaced_after_so_many_calls(run: Callable[..., Any], tmp_path: Path) -> None:
    """`recycle_items` and `recycle_memory` end a child in good time, without a failure."""
    got = run(
        lambda: hr.map(
            marked(tmp_path / "calls", lambda n: os.getpid()),
            range(400),
            lane=hr.Processes(recycle_items=100),
            concurrency=1,
            name="pid",
        )
    )
    assert len(set(got.values)) == 4
    got = run(
        lambda: hr.map(
            lambda n: os.getpid(), range(3), lane=hr.Processes(recycle_memory=1), concurrency=1, effect="once"
        )
    )
    assert len(set(got.values)) == 3
    assert calls(tmp_path / "calls") == dict.fromkeys(range(400), 1)


def test_context_variables_stay_behind(run: Callable[..., Any]) -> None:
    """A child sees the defaults: context variables do not cross processes."""

    async def main() -> Any:
        word.set("here")
        var = word
        return await hr.map(lambda n: var.get(), [0], lane="process")

    with pytest.raises(hr.PlanError, match="ContextVar"):
        run(main)


# ---------------------------------------------------------------------------------------------------- plans


async def asynchronous(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fn": asynchronous, "lane": "process"}, "needs a plain function"),
        ({"fn": abs, "lane": "process", "uses": {"it": hr.shared(dict)}}, "processes share nothing"),
        ({"fn": abs, "lane": "auto"}, 'it is "loop", "thread" or "process"'),
        ({"fn": abs, "lane": hr.Processes(memory=0)}, "memory=0"),
        ({"fn": abs, "lane": hr.Processes(nice=-1)}, "nice=-1"),
    ],
)
def test_what_cannot_be_is_a_plan_error(options: dict[str, Any], words: str) -> None:
    """Refused before anything moves."""
    options = dict(options)
    with pytest.raises(hr.PlanError, match=words):
        hr.map_sync(options.pop("fn"), [1, 2], **options)


def test_explain_tells_of_the_children() -> None:
    """The lane, the number of children (the cores, unless given) and how they live."""
    cores = len(os.sched_getaffinity(0))
    text = hr.Flow([1]).map(abs, lane=hr.Processes(memory=2**30, recycle_items=1000)).explain()
    assert f"abs on the process lane, {cores} at a time" in text
    assert "one that dies costs the call that it ran" in text
    assert "1073741824 bytes" in text
    assert "ends after 1000 calls" in text


def test_virtual_time_stands_still(tmp_path: Path) -> None:
    """A loop in virtual time does not jump over what a child does."""

    async def main() -> Any:
        got = await hr.map(
            lambda n: time.sleep(0.02) or n, range(10), lane="process", concurrency=1, timeout=0.5
        )
        return got.values, asyncio.get_running_loop().time()

    values, now = run_virtually(main)
    assert values == list(range(10))
    assert now < 0.1
