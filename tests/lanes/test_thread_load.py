"""What the thread lane promises under load: batches that hold nobody up, calls at hand that are not begun, no loss."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.demo.origin import Origin
from headrace.testing import run_real

#: So many calls make the lane sure of what calls take.
WARM = 300


def test_every_call_is_made_once_whatever_calls_take(run: Callable[..., Any]) -> None:
    """Tiny calls, short ones and such as block, mixed: each is made once, never more than `concurrency` at a time."""
    rng = random.Random(7)
    pauses = [rng.choice([0, 0, 0, 0, 0, 0, 0.0001, 0.001, 0.02]) for _ in range(3000)]
    calls: list[int] = []
    now: set[int] = set()
    most = 0

    def call(number: int) -> int:
        nonlocal most
        now.add(number)
        most = max(most, len(now))
        if pauses[number]:
            time.sleep(pauses[number])
        calls.append(number)
        now.discard(number)
        return number

    got = run(lambda: hr.map(call, range(3000), concurrency=8))
    assert got.values == list(range(3000))
    assert sorted(calls) == list(range(3000))
    assert most <= 8


@pytest.mark.parametrize("concurrency", [2, 32])
def test_a_call_that_blocks_holds_no_tiny_ones_up(run: Callable[..., Any], concurrency: int) -> None:
    """Among thousands of tiny calls some wait for the next one: it is begun by another thread."""
    met = [threading.Event() for _ in range(20)]

    def call(number: int) -> int:
        place, turn = divmod(number, 100)
        if turn == 50:
            assert met[place].wait(10)
        elif turn == 51:
            met[place].set()
        return number

    assert run(lambda: hr.map(call, range(2000), concurrency=concurrency)).values == list(range(2000))


def test_results_do_not_wait_for_a_call_that_blocks(run: Callable[..., Any]) -> None:
    """What tiny calls gave reaches the consumer while the call after them still blocks."""
    release = threading.Event()

    def call(number: int) -> int:
        if number == WARM:
            assert release.wait(10)
        return number

    async def main() -> list[int]:
        seen: list[int] = []
        async with hr.Flow(range(WARM + 1)).map(call, concurrency=4).stream() as outcomes:
            async for outcome in outcomes:
                seen.append(outcome.position)
                if len(seen) == WARM:
                    release.set()
        return seen

    assert sorted(run(main)) == list(range(WARM + 1))


def test_a_time_limit_counts_from_where_the_call_begins(run: Callable[..., Any]) -> None:
    """Short calls are at hand before a thread is free; one that hangs does not use up the time of those behind it."""

    def call(number: int) -> int:
        time.sleep(0.4 if number == WARM else 0.0002)
        return number

    got = run(lambda: hr.map(call, range(2 * WARM), concurrency=1, timeout=0.2))
    assert [failure.position for failure in got.failed] == [WARM]
    assert got.report.done == 2 * WARM - 1


def test_a_drain_gives_back_what_no_thread_has_begun(run: Callable[..., Any]) -> None:
    """A drain waits for the calls that run, and for none that is only at hand; those are returned, uncalled."""
    release, blocked = threading.Event(), threading.Semaphore(0)
    begun: list[int] = []

    def call(number: int) -> int:
        begun.append(number)
        if number >= WARM:
            blocked.release()
            assert release.wait(10)
        return number

    async def main() -> hr.Report:
        async with hr.Flow(range(10_000)).map(call, concurrency=4).start() as job:
            for _ in range(4):
                while not blocked.acquire(blocking=False):
                    await asyncio.sleep(0.001)
            for _ in range(3):  # for what is at hand to get there
                await asyncio.sleep(0.01)
            running = job.statistics().stages[0].running
            job.stop()
            await asyncio.sleep(0.05)
            release.set()
        assert job.report is not None
        assert running == 4
        return job.report

    report = run(main)
    assert report.balanced
    assert report.done == len(begun) == report.stages[0].attempts == WARM + 4
    assert report.returned == report.taken - report.done > 0


@pytest.mark.parametrize("options", [{"effect": "once"}, {"limits": [hr.Limit(concurrency=9)]}, {}])
def test_only_calls_that_may_wait_are_handed_over_early(
    run: Callable[..., Any], options: dict[str, Any]
) -> None:
    """A call that takes permits, or must not be repeated, begins where it is admitted: no thread has it at hand."""

    def call(number: int) -> int:
        time.sleep(0.0001)
        return number

    async def main() -> tuple[int, int]:
        most = 0
        async with hr.Flow(range(2000)).map(call, concurrency=2, **options).stream() as outcomes:
            async for outcome in outcomes:
                assert outcome.position >= 0
                run_under_way = outcomes.job._run
                assert run_under_way is not None
                most = max(most, len(run_under_way.callers[0].slots))
        assert outcomes.report is not None
        return outcomes.report.done, most

    assert run(main) == (2000, 2 if options else 6)


def test_a_late_result_is_dropped(run: Callable[..., Any]) -> None:
    """The value of a call that was given up is thrown away, though it comes while the next attempt runs."""
    late, tries = threading.Event(), []

    def call(number: int) -> str:
        tries.append(number)
        if len(tries) == 1:
            late.wait(10)
            return "late"
        late.set()
        time.sleep(0.1)
        return "in time"

    got = run(lambda: hr.map(call, [0], timeout=0.3, retry=hr.Retry(attempts=2, on=hr.TimedOut)))
    assert got.values == ["in time"]
    assert len(tries) == 2


def test_a_timed_out_call_is_repeated_only_where_that_is_safe(run: Callable[..., Any]) -> None:
    """A *once* call that was given up in its thread is in doubt, and not made again."""
    release, tries = threading.Event(), []

    def call(number: int) -> None:
        tries.append(number)
        release.wait(10)

    async def main() -> Any:
        got = await hr.map(call, [0], timeout=0.1, retry=hr.Retry(attempts=3, on=hr.TimedOut), effect="once")
        release.set()
        await asyncio.sleep(0.05)
        return got

    got = run(main)
    assert tries == [0]
    assert isinstance(got.failed[0].error, hr.InDoubt)


def test_the_place_of_a_call_that_hangs_passes_to_another_thread(run: Callable[..., Any]) -> None:
    """With all threads hanging, the calls that are at hand already are made by their replacements."""
    release = threading.Event()

    def call(number: int) -> int:
        if WARM <= number < WARM + 4:
            release.wait(10)
        return number

    async def main() -> Any:
        got = await hr.map(call, range(WARM + 500), concurrency=4, timeout=0.2)
        release.set()
        await asyncio.sleep(0.05)
        return got

    got = run(main)
    assert [failure.position for failure in got.failed] == list(range(WARM, WARM + 4))
    assert got.report.done == WARM + 496
    assert got.report.abandoned == 4


class Forbidden(ThreadPoolExecutor):
    """An executor that nothing may use."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise AssertionError(f"the default executor was used: {args}")


def test_nothing_runs_on_the_default_executor(loop_kind: Any, tmp_path: Path, origin: Origin) -> None:
    """Threads, a group, requests, a file and a database: none of them touches asyncio's own pool."""
    urls = tmp_path / "urls.txt"
    place = tmp_path / "pages.db"
    urls.write_text("".join(origin.url(f"/n/{n}") + "\n" for n in range(5)))

    def size(response: Any) -> int:
        return len(response.body)

    fetch_and_size = hr.Flow(hr.files.lines(urls)).map(hr.http.fetch()).map(size)
    flow = fetch_and_size.into(hr.sqlite.table(place, "pages"))

    async def main() -> Any:
        asyncio.get_running_loop().set_default_executor(Forbidden(1))
        report = await flow.run(job="pages")
        async with hr.Group() as group:
            started = group.start(size, type("Response", (), {"body": b"four"}))
        return report, started.value

    report, length = run_real(main, kind=loop_kind)
    assert (report.done, length) == (5, 4)
