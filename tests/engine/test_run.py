"""What a run promises: every item accounted for, failures with their items, limits in time, ends on request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import headrace as hr
from headrace.testing import run


async def same(value: Any) -> Any:
    """Give back what came."""
    return value


def collect(flow: hr.Flow[Any], **options: Any) -> tuple[list[Any], hr.Report]:
    """Stream a flow in virtual time; give its outcomes and its report."""

    async def main() -> tuple[list[Any], hr.Report]:
        found = []
        async with flow.stream(**options) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
        assert outcomes.report is not None
        return found, outcomes.report

    return run(main)


def test_every_item_is_accounted_for() -> None:
    """taken = done + failed + skipped + returned, each failure with its item and stage."""

    async def fate(number: int) -> int:
        if number % 5 == 0:
            raise ValueError(f"bad {number}")
        if number % 7 == 0:
            raise hr.Skip("sevens")
        return number

    got = run(lambda: hr.map(fate, range(100)))
    report = got.report
    assert (report.taken, report.done, report.failed, report.skipped) == (100, 68, 20, 12)
    assert report.balanced
    assert report.exit_code == 1
    assert [failure.item for failure in got.failed] == list(range(0, 100, 5))
    assert {failure.stage for failure in got.failed} == {"fate"}
    with pytest.raises(hr.ItemsFailed) as raised:
        _ = got.values
    assert len(raised.value.exceptions) == 20
    assert "item 5: 5" in raised.value.exceptions[1].__notes__[0]


def test_values_are_aligned_with_the_input() -> None:
    """However the calls end, values come in the order of the items."""

    async def slow(number: int) -> int:
        await asyncio.sleep(random.Random(number).random())
        return number * 2

    assert run(lambda: hr.map(slow, range(500))).values == [number * 2 for number in range(500)]


def test_retry_waits_hold_no_place() -> None:
    """With one worker, an item that waits for its second attempt lets the others go by."""
    calls: list[int] = []

    async def flaky(number: int) -> int:
        calls.append(number)
        if calls.count(number) == 1 and number == 0:
            raise ConnectionResetError("once")
        return number

    got = run(lambda: hr.map(flaky, range(5), concurrency=1, retry=hr.Retry(attempts=2, base=10, cap=10)))
    assert calls[-1] == 0
    assert got.report.done == 5
    assert got[0].attempts == 2


def test_a_function_steers_its_fate() -> None:
    """RetryAfter repeats after its time, GiveUp fails whatever the policy, Skip settles as skipped."""
    seen: dict[str, int] = {}

    async def steer(word: str) -> str:
        seen[word] = seen.get(word, 0) + 1
        if word == "later" and seen[word] < 3:
            raise hr.RetryAfter(30)
        if word == "never":
            raise hr.GiveUp("no use")
        if word == "skip":
            raise hr.Skip("not ours")
        return word

    async def main() -> tuple[Any, float]:
        began = asyncio.get_running_loop().time()
        got = await hr.map(steer, ["later", "never", "skip"], retry=hr.Retry(on=Exception))
        return got, asyncio.get_running_loop().time() - began

    got, took = run(main)
    assert seen == {"later": 3, "never": 1, "skip": 1}
    assert 60 <= took <= 67
    assert isinstance(got.failed[0].error, hr.GiveUp)
    assert got.skipped[0].reason == "not ours"


def test_what_is_refused_for_load_does_not_use_up_the_attempts() -> None:
    """Of four attempts none is used up by twelve refusals for load; the thirteenth is final. The outcome counts all."""
    asked: dict[int, int] = {}

    async def call(refusals: int) -> int:
        asked[refusals] = asked.get(refusals, 0) + 1
        if asked[refusals] <= refusals:
            raise hr.RetryAfter(1.0, hold=True)
        if asked[refusals] <= refusals + 3:
            raise ConnectionResetError
        return refusals

    got = run(lambda: hr.map(call, [0, 5, 12, 13], retry=hr.Retry(attempts=4)))
    assert [outcome.attempts for outcome in got] == [4, 9, 16, 13]
    assert [outcome.item for outcome in got.failed] == [13]
    again = run(lambda: hr.map(call, [13], retry=hr.Retry(attempts=1)))
    assert [outcome.attempts for outcome in again.done or again.failed] == [1]


def test_each_stage_counts_its_refusals_for_itself() -> None:
    """An item that was refused in one stage has the whole allowance in the next."""
    asked: dict[str, int] = {}

    def stage(name: str) -> Any:
        async def call(item: int) -> int:
            asked[name] = asked.get(name, 0) + 1
            if asked[name] <= 4:
                raise hr.RetryAfter(1.0, hold=True)
            return item

        return call

    retry = hr.Retry(attempts=2)
    flow = hr.Flow([1]).map(stage("a"), name="a", retry=retry).map(stage("b"), name="b", retry=retry)
    report = run(lambda: flow.run())
    assert (report.done, asked) == (1, {"a": 5, "b": 5})


def test_timeouts_of_attempts() -> None:
    """A call past its timeout fails as TimedOut, the others are not touched, and the worker goes on."""

    async def slow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    got = run(lambda: hr.map(slow, [1, 9, 2, 8, 3], concurrency=2, timeout=5))
    assert [done.value for done in got.done] == [1, 2, 3]
    assert [type(failure.error) for failure in got.failed] == [hr.TimedOut, hr.TimedOut]


def test_a_swallowed_timeout_is_one_all_the_same() -> None:
    """A function that catches its cancellation and returns is timed out, not done."""

    async def stubborn(number: int) -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return "swallowed"
        return "slept"

    got = run(lambda: hr.map(stubborn, range(3), timeout=1))
    assert got.report.failed == 3
    assert all(isinstance(failure.error, hr.TimedOut) for failure in got.failed)


def test_a_call_that_will_not_end_loses_its_worker() -> None:
    """A function that never ends its cancellation costs one item; the run ends and counts it."""
    release = []

    async def main() -> Any:
        event = asyncio.Event()
        release.append(event)

        async def hang(number: int) -> int:
            if number != 1:
                return number
            while not event.is_set():
                try:
                    await event.wait()
                except asyncio.CancelledError:
                    continue
            return number

        got = await hr.map(hang, range(4), concurrency=1, timeout=1)
        event.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return got

    got = run(main)
    assert [done.value for done in got.done] == [0, 2, 3]
    assert isinstance(got.failed[0].error, hr.TimedOut)
    assert got.report.abandoned == 1


def test_cancelled_error_of_the_functions_own_is_a_failure() -> None:
    """A CancelledError that nobody asked for fails its item and nothing else."""

    async def raising(number: int) -> int:
        if number == 1:
            raise asyncio.CancelledError
        return number

    got = run(lambda: hr.map(raising, range(3)))
    assert got.report.done == 2
    assert isinstance(got.failed[0].error, hr.CallError)


def test_within_ends_the_waiting() -> None:
    """`within=` of a stage fails an item whose retries would go past it, and one that waits too long."""

    async def never(number: int) -> int:
        raise ConnectionResetError

    async def main() -> tuple[Any, float]:
        began = asyncio.get_running_loop().time()
        got = await hr.map(never, range(3), within=20, retry=hr.Retry(attempts=100, base=4, cap=4))
        return got, asyncio.get_running_loop().time() - began

    got, took = run(main)
    assert got.report.failed == 3
    assert took <= 20.1


def test_run_within_returns_the_rest() -> None:
    """`run(within=)` drains when the time is over: what is left is returned, and the run is unfinished."""

    async def slow(number: int) -> int:
        await asyncio.sleep(1)
        return number

    report = run(lambda: hr.Flow(range(100)).map(slow, concurrency=10).run(within=2.5))
    assert report.done == 30
    assert report.balanced
    assert report.exit_code == 3


def test_first_failure_stops_if_asked() -> None:
    """on_failure="stop" cancels the others: they are returned, not failed."""

    async def fails(number: int) -> int:
        await asyncio.sleep(number)
        if number == 3:
            raise ValueError("three")
        return number

    got = run(lambda: hr.map(fails, range(10), on_failure="stop"))
    assert got.report.done == 3
    assert got.report.failed == 1
    assert got.report.returned == 6


def test_max_failures_stops_the_run() -> None:
    """More failures than allowed drain the run; within the allowance the exit code is 0."""

    async def odd(number: int) -> int:
        await asyncio.sleep(0.1)
        if number % 2:
            raise ValueError
        return number

    stopped = run(lambda: hr.Flow(range(1000)).map(odd, concurrency=4).run(max_failures=10))
    assert 10 < stopped.failed < 16
    assert stopped.exit_code == 3
    allowed = run(lambda: hr.Flow(range(10)).map(odd).run(max_failures="50%"))
    assert allowed.failed == 5
    assert allowed.exit_code == 0


def test_filter_skips_and_batch_gathers() -> None:
    """What a filter leaves out is Skipped; batches take the rest, the last one short."""
    found, report = collect(hr.Flow(range(10)).filter(lambda n: n % 2 == 0).batch(2))
    assert [outcome.value for outcome in found if outcome.ok] == [[0, 2], [4, 6], [8]]
    assert (report.done, report.skipped, report.taken) == (5, 5, 10)


def test_a_batch_goes_on_after_its_linger() -> None:
    """A short batch waits `linger` seconds for more, and then goes on alone."""

    async def slowly() -> AsyncIterator[int]:
        for number in range(3):
            yield number
            await asyncio.sleep(10)

    async def main() -> list[tuple[float, list[int]]]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        seen = []
        async with hr.Flow(slowly()).batch(2, linger=3).stream() as outcomes:
            async for outcome in outcomes:
                seen.append((round(loop.time() - began), outcome.value))
        return seen

    assert run(main) == [(3, [0]), (13, [1]), (23, [2])]


def test_batches_larger_than_what_can_come_go_on() -> None:
    """A batch that the full window can never fill goes on instead of waiting for ever."""

    async def add(values: list[int]) -> int:
        return sum(values)

    found, report = collect(hr.Flow(range(1000)).map(same, concurrency=3).batch(30).map(add), window=120)
    assert sum(outcome.value for outcome in found) == sum(range(1000))
    assert report.done == 1000


def test_a_failed_batch_fails_its_members() -> None:
    """Each member of a batch whose call fails is a failure of its own."""

    async def bulk(values: list[int]) -> list[int]:
        if 4 in values:
            raise ValueError("four")
        return values

    found, report = collect(hr.Flow(range(9)).batch(3).map(bulk))
    assert sorted(outcome.item for outcome in found if not outcome.ok) == [3, 4, 5]
    assert (report.done, report.failed) == (6, 3)


def test_children_settle_their_root_once() -> None:
    """A fan-out's children leave one by one; the root counts once, and one failed child fails it."""

    async def check(value: str) -> str:
        if value == "c2":
            raise ValueError(value)
        return value

    flow = (
        hr.Flow(["a", "b", "c"])
        .flat_map(lambda letter: [f"{letter}{n}" for n in range(4)], lane="loop")
        .map(check)
    )
    found, report = collect(flow)
    assert [outcome.value for outcome in found if outcome.ok] == [f"{c}{n}" for c in "ab" for n in range(4)]
    assert [outcome.item for outcome in found if not outcome.ok] == ["c"]
    assert (report.taken, report.done, report.failed) == (3, 2, 1)


def test_fan_outs_in_fan_outs_with_a_small_window() -> None:
    """Nested fan-outs in a window hardly larger than one of them never lock each other out."""
    tree = (
        hr.Flow(range(40))
        .flat_map(lambda n: [n] * 5, lane="loop", fanout=5)
        .flat_map(lambda n: [n] * 5, lane="loop", fanout=5)
        .map(same, concurrency=7)
    )
    found, report = collect(tree, window=150)
    assert len(found) == 40 * 25
    assert report.done == 40


def test_a_fan_out_has_a_cap() -> None:
    """More children than fanout= fail the item, with the number and what to do."""
    found, _ = collect(hr.Flow([3, 30]).flat_map(range, lane="loop", fanout=10))
    assert [outcome.value for outcome in found if outcome.ok] == [0, 1, 2]
    assert "fanout=10" in str(found[-1].error)


def test_order_is_kept_where_asked() -> None:
    """ordered=True lets outcomes leave in the order of the source, failures among them."""

    async def jitter(number: int) -> int:
        await asyncio.sleep(random.Random(number).random())
        if number % 10 == 3:
            raise ValueError(number)
        return number

    found, _ = collect(hr.Flow(range(200)).map(jitter, ordered=True, concurrency=20))
    assert [outcome.item for outcome in found] == list(range(200))


def test_ordered_fan_outs_keep_the_order_of_their_parents() -> None:
    """An ordered fan-out lets the children of its first parent in first, however long that took."""

    async def spread(number: int) -> list[int]:
        await asyncio.sleep(10 - number)
        return [number * 10 + index for index in range(3)]

    found, _ = collect(hr.Flow(range(10)).flat_map(spread, ordered=True).map(same, ordered=True))
    assert [outcome.value for outcome in found] == [n * 10 + i for n in range(10) for i in range(3)]


def test_take_and_until_stop_the_source() -> None:
    """take(n) first takes exactly n; until(pred) stops at the first hit; what is open finishes; nothing is unfinished."""
    found, report = collect(hr.Flow(range(1000)).take(7).map(same))
    assert [outcome.value for outcome in found] == list(range(7))
    assert report.exit_code == 0
    seen: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10**9):
            seen.append(number)
            yield number

    found, report = collect(hr.Flow(source()).map(same, concurrency=2).until(lambda n: n >= 50), window=10)
    assert len(found) == report.taken < 80
    assert len(seen) < 80


def test_uses_opens_once_and_closes() -> None:
    """A resource is opened once a run, passed by keyword, and closed in the end, also on failure."""
    log: list[str] = []

    class Api:
        async def __aenter__(self) -> Api:
            log.append("open")
            return self

        async def __aexit__(self, *error: object) -> None:
            log.append("close")

    async def call(number: int, api: Api) -> int:
        assert isinstance(api, Api)
        raise ValueError

    run(lambda: hr.map(call, range(5), uses={"api": Api}))
    assert log == ["open", "close"]


def test_a_resource_that_cannot_be_opened_moves_nothing() -> None:
    """A factory that raises is the run's trouble, named, before any item is taken."""

    def broken() -> None:
        raise OSError("no route")

    with pytest.raises(hr.LaneError, match=r"api.*no route"):
        run(lambda: hr.map(same, range(5), uses={"api": broken}))


def test_pause_resume_stop() -> None:
    """A paused run starts nothing; resumed it goes on; stopped it drains and returns the rest."""

    async def slow(number: int) -> int:
        await asyncio.sleep(1)
        return number

    async def main() -> tuple[int, int, hr.Report]:
        async with hr.Flow(range(1000)).map(slow, concurrency=10).start() as job:
            await asyncio.sleep(2.5)
            job.pause()
            await asyncio.sleep(5)
            paused_at = job.statistics().done
            await asyncio.sleep(5)
            still = job.statistics().done
            job.resume()
            await asyncio.sleep(2.5)
            job.stop()
            report = await job.wait()
        return paused_at, still, report

    paused_at, still, report = run(main)
    assert paused_at == still == 30
    assert report.done == 60
    assert report.balanced
    assert report.exit_code == 3


def test_a_stop_event_drains() -> None:
    """`stop=event` ends the run as stop() does."""

    async def slow(number: int) -> int:
        await asyncio.sleep(1)
        return number

    async def main() -> hr.Report:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(3.5, event.set)
        return await hr.Flow(range(1000)).map(slow, concurrency=5).run(stop=event)

    assert run(main).done == 20


def test_a_source_that_raises_ends_the_run_with_what_was_taken() -> None:
    """What was taken finishes; then the run raises SourceError, with the report and the cause."""

    def source() -> Iterator[int]:
        yield from range(5)
        raise KeyError("gone")

    done: list[int] = []

    async def note(number: int) -> None:
        done.append(number)

    with pytest.raises(hr.SourceError) as raised:
        run(lambda: hr.Flow(source()).map(note).run())
    assert sorted(done) in ([0, 1, 2, 3, 4], [])
    assert raised.value.report.balanced  # type: ignore[attr-defined]
    assert isinstance(raised.value.__cause__, KeyError)


def test_leaving_a_stream_cancels_and_returns() -> None:
    """After `break` the running calls are cancelled, and what was not consumed is returned."""
    cancelled: list[int] = []

    async def slow(number: int) -> int:
        try:
            await asyncio.sleep(number)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def main() -> hr.Report:
        async with hr.Flow(range(100)).map(slow, concurrency=10).stream(window=20) as outcomes:
            async for outcome in outcomes:
                if outcome.item == 2:
                    break
        assert outcomes.report is not None
        return outcomes.report

    report = run(main)
    assert report.done == 3
    assert report.returned == report.taken - 3
    assert sorted(cancelled) == list(range(3, 12))


def test_the_source_waits_for_the_consumer() -> None:
    """A consumer that took ten items has made the source give no more than the window."""
    read: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10**6):
            read.append(number)
            yield number

    async def main() -> None:
        async with hr.Flow(source()).map(same, concurrency=5).stream(window=25) as outcomes:
            count = 0
            async for _ in outcomes:
                count += 1
                if count == 10:
                    await asyncio.sleep(5)
                    break

    run(main)
    assert len(read) <= 10 + 25


def test_never_more_than_the_window_is_open() -> None:
    """10⁵ items whose first attempt fails, backoff 60 s: open items never exceed the window."""
    tried: set[int] = set()
    most = 0

    async def main() -> hr.Report:
        nonlocal most

        async def second_time(number: int) -> int:
            if number not in tried:
                tried.add(number)
                raise ConnectionResetError
            return number

        retry = hr.Retry(attempts=2, base=60, cap=60)
        async with hr.Flow(range(100_000)).map(second_time, retry=retry).start(window=1024) as job:

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, job.statistics().open)
                    await asyncio.sleep(1)

            watching = asyncio.get_running_loop().create_task(watch())
            report = await job.wait()
            watching.cancel()
        return report

    report = run(main)
    assert report.done == 100_000
    assert 1000 < most <= 1024


def test_events_tell_the_story() -> None:
    """A subscriber sees start, failures, settlements and the end; one that raises is dropped, and the report says so."""
    seen: list[str] = []

    def listen(events: Any) -> None:
        seen.extend(type(event).__name__ for event in events)

    def broken(events: Any) -> None:
        raise RuntimeError("screen on fire")

    async def odd(number: int) -> int:
        if number % 2:
            raise ValueError
        return number

    run(lambda: hr.Flow(range(4)).map(odd).run(progress=listen))
    assert seen[0] == "RunStarted"
    assert seen.count("ItemSettled") == 4
    assert seen.count("AttemptFailed") == 2
    assert seen[-1] == "RunFinished"
    report = run(lambda: hr.Flow(range(4)).map(odd).run(progress=broken))
    assert "screen on fire" in report.warnings[0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: hr.Flow("urls.txt"), "hr.files.lines"),
        (lambda: hr.Flow({"a": 1}), "list(d)"),
        (lambda: hr.Flow(7), "cannot be iterated"),  # type: ignore[arg-type]
        (lambda: hr.Flow([1]).map(7), "needs a function"),  # type: ignore[call-overload]
        (
            lambda: (
                hr.Flow([1]).map(same, concurrency=0).explain()
                and run(hr.Flow([1]).map(same, concurrency=0).run)
            ),
            "concurrency=0",
        ),
        (lambda: run(lambda: hr.map(same, [1], timeout=-1)), "timeout=-1"),
        (lambda: run(lambda: hr.map([1], same)), "function comes first"),  # type: ignore[call-overload]
        (lambda: run(hr.Flow(iter([1])).map(same).into(_sink()).run), "cannot be read again"),
        (lambda: run(lambda: hr.Flow([1]).map(same).run(job="x")), "needs a place"),
        (lambda: hr.Flow([1]).map(same, timout=3), "did you mean timeout=?"),  # type: ignore[call-overload]
        (lambda: run(lambda: hr.map(same, [1], concurency=3)), "did you mean concurrency=?"),  # type: ignore[call-overload]
        (lambda: hr.Flow([1]).map(same, uses={"a": 5}), "factory"),  # type: ignore[call-overload]
        (lambda: run(hr.Flow(hr.Inbox()).map(same).into(_sink()).run), "Inbox cannot be read again"),
    ],
)
def test_bad_plans_are_refused_before_anything_moves(build: Any, words: str) -> None:
    """What cannot be run raises PlanError, with the value and the form that works."""
    with pytest.raises(hr.PlanError) as raised:
        build()
    assert words in str(raised.value)


def _sink() -> Any:
    return hr.sqlite.table("never-made.db")


def test_all_problems_are_reported_at_once() -> None:
    """Several mistakes come in one error."""
    with pytest.raises(hr.PlanError, match="3 things are wrong"):
        run(lambda: hr.map(same, [1], concurrency=-1, timeout=0, window=0))


def test_an_ordered_item_that_is_late_in_the_queue_ends_in_its_turn() -> None:
    """`within=` that passes while an item queues again, behind one that takes long: it fails once, and in order."""

    async def call(number: int) -> None:
        if number == 0:
            await asyncio.sleep(50)
        await asyncio.sleep(1)
        raise ConnectionError

    retry = hr.Retry(attempts=9, base=2, cap=2)

    async def main() -> None:
        flow = hr.Flow(range(6)).map(call, concurrency=3, within=6, ordered=True, retry=retry)
        async with flow.stream() as outcomes:
            assert [outcome.item async for outcome in outcomes] == list(range(6))

    run(main)


def test_a_function_that_raises_sink_error_stops_the_run_and_fails_no_item() -> None:
    """What a function writes to can take no more: the run stops with the world's code, and the item is returned."""

    async def main() -> None:
        async def write(number: int) -> int:
            if number == 5:
                raise hr.SinkError("the disk is full")
            return number

        with pytest.raises(hr.SinkError, match="the disk is full") as caught:
            await hr.Flow(range(100)).map(write, concurrency=1).run()
        report = caught.value.report  # type: ignore[attr-defined]
        assert (report.failed, report.done, report.returned, report.exit_code) == (0, 5, report.taken - 5, 4)

    run(main)
