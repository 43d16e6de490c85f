"""What a lazy, bounded stream promises: order where asked for, nothing read ahead of the window, sources of every kind."""

from __future__ import annotations

import asyncio
import queue
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from peers_kit import Counted, Spy, collect, same, same_blocking, values

import headrace as hr
from headrace.testing import run


@pytest.mark.parametrize("window", [1, 7, None])
@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_ordered_results_leave_in_the_order_of_the_source(concurrency: int, window: int | None) -> None:
    """Whatever each call takes, and however small the window, ordered=True keeps the order."""
    rng = random.Random(7)

    async def slow(number: int) -> int:
        await asyncio.sleep(rng.random())
        return number

    flow = hr.Flow(range(200)).map(slow, ordered=True, concurrency=concurrency)
    assert values(flow, window=window) == list(range(200))


def test_order_holds_through_several_ordered_stages_on_both_lanes() -> None:
    """Loop, thread, loop, each ordered: the order of the source comes out."""
    rng = random.Random(3)

    async def slow(number: int) -> int:
        await asyncio.sleep(rng.random())
        return number

    flow = (
        hr.Flow(range(120))
        .map(slow, ordered=True, concurrency=9)
        .map(same_blocking, ordered=True, concurrency=4)
        .map(slow, ordered=True, concurrency=5)
    )
    assert values(flow, window=30) == list(range(120))


def test_a_slow_head_does_not_stall_the_workers_behind_it() -> None:
    """Item 0 takes a second, 999 others 10 ms each, ten at a time: ordered ends when unordered does."""

    async def uneven(number: int) -> int:
        await asyncio.sleep(1.0 if number == 0 else 0.01)
        return number

    def took(ordered: bool) -> float:
        async def main() -> float:
            await hr.Flow(range(1000)).map(uneven, ordered=ordered, concurrency=10).run()
            return asyncio.get_running_loop().time()

        return run(main)

    assert took(True) == pytest.approx(took(False))
    assert took(True) < 1.2


def test_unordered_results_leave_as_they_end() -> None:
    """The quick one comes first, at the time it ended."""

    async def main() -> list[tuple[float, float]]:
        loop, seen = asyncio.get_running_loop(), []
        async with hr.Flow([3.0, 1.0, 2.0]).map(_sleep).stream() as outcomes:
            async for outcome in outcomes:
                seen.append((outcome.value, loop.time()))
        return seen

    assert run(main) == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


async def _sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def test_failures_and_skips_keep_their_place_in_the_order() -> None:
    """Thirty thousand in a row that fail, are skipped or pass: outcomes come by position, and nothing recurses."""

    async def fate(number: int) -> int:
        if number % 3 == 0:
            raise ValueError(number)
        if number % 3 == 1:
            raise hr.Skip("not wanted")
        return number

    found, report = collect(hr.Flow(range(30_000)).map(fate, ordered=True))
    assert [outcome.position for outcome in found] == list(range(30_000))
    assert (report.done, report.failed, report.skipped) == (10_000, 10_000, 10_000)


def test_fan_outs_keep_the_order_of_items_and_of_children() -> None:
    """flat_map(ordered=True): the children of an item come together, in their order, after those of the item before."""
    rng = random.Random(5)

    async def some(number: int) -> list[tuple[int, int]]:
        await asyncio.sleep(rng.random())
        return [(number, child) for child in range(number % 4)]

    flow = hr.Flow(range(60)).flat_map(some, ordered=True, fanout=4, concurrency=8)
    assert values(flow) == [(number, child) for number in range(60) for child in range(number % 4)]


# ---------------------------------------------------------------------------------------------------- backpressure


@pytest.mark.parametrize("lane", ["loop", "thread"])
@pytest.mark.parametrize("window", [1, 16, 100])
def test_the_source_waits_for_the_consumer(window: int, lane: Any) -> None:
    """When the consumer has taken 10 outcomes, at most 10 and a window of items have been read."""
    source = Counted(100_000)
    fn = same if lane == "loop" else same_blocking

    async def main() -> int:
        taken = 0
        async with hr.Flow(source).map(fn, concurrency=8).stream(window=window) as outcomes:
            async for _ in outcomes:
                taken += 1
                await asyncio.sleep(1)
                if taken == 10:
                    return source.read
        raise AssertionError("the outcomes ended early")

    assert run(main) <= 10 + window


def test_a_chain_of_stages_shares_one_window() -> None:
    """Quick stages before a slow last one run ahead of it by the window, not by a buffer for each stage."""
    source = Counted(10_000)
    furthest = 0

    async def first(number: int) -> int:
        nonlocal furthest
        furthest = max(furthest, number)
        return number

    last = Spy(1.0)

    async def main() -> int:
        flow = hr.Flow(source).map(first).map(same).map(last, concurrency=1)
        async with flow.start(window=20) as job:
            await asyncio.sleep(5.5)
            ahead = furthest - last.ended
            job.cancel()
        return ahead

    assert run(main) <= 20


def test_building_a_flow_reads_and_calls_nothing() -> None:
    """A flow is a description: the source is touched when it runs."""
    source, called = Counted(10), []
    flow = hr.Flow(source).map(called.append).filter(called.append).batch(3).take(2)
    flow.explain()
    repr(flow)
    assert (source.read, called) == (0, [])


def test_take_in_front_reads_exactly_that_many() -> None:
    """take(5) before anything else leaves item 6 in the source."""
    source = Counted(100)
    report = run(lambda: hr.Flow(source).take(5).map(same).run())
    assert (source.read, report.done, report.exit_code) == (5, 5, 0)


def test_until_stops_an_endless_source() -> None:
    """The source ends when the predicate says so; what is open finishes, and that is no failure."""

    def naturals() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    report = run(lambda: hr.Flow(naturals()).map(same).until(lambda number: number >= 10).run(window=50))
    assert report.done == report.taken <= 60
    assert report.exit_code == 0


# ---------------------------------------------------------------------------------------------------- batches


async def _every(seconds: float, count: int, pause: float = 0.0) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(seconds)
        yield number
    await asyncio.sleep(pause)


def _batches(flow: hr.Flow[Any]) -> list[tuple[float, list[int]]]:
    async def main() -> list[tuple[float, list[int]]]:
        loop, got = asyncio.get_running_loop(), []
        async with flow.stream() as outcomes:
            async for outcome in outcomes:
                got.append((round(loop.time(), 3), outcome.value))
        return got

    return run(main)


def test_a_full_batch_leaves_at_once() -> None:
    """Size decides where items come quickly; the rest leaves when the source ends."""
    assert _batches(hr.Flow(_every(0.1, 7)).batch(3, linger=60)) == [
        (0.3, [0, 1, 2]),
        (0.6, [3, 4, 5]),
        (0.7, [6]),
    ]


def test_a_batch_lingers_from_its_first_member() -> None:
    """Time decides where items come slowly: a second after the first member, not after the last batch."""
    assert _batches(hr.Flow(_every(0.3, 10, pause=100)).batch(5, linger=1)) == [
        (1.3, [0, 1, 2, 3]),
        (2.5, [4, 5, 6, 7]),
        (3.7, [8, 9]),
    ]


def test_batches_do_not_pull_ahead_of_a_slow_consumer() -> None:
    """A consumer that holds a batch holds the source: no more than the window has been read."""
    source = Counted(10_000)

    async def main() -> int:
        async with hr.Flow(source).batch(5, linger=0.1).stream(window=40) as outcomes:
            async for _ in outcomes:
                await asyncio.sleep(60)
                return source.read
        raise AssertionError("no batch came")

    assert run(main) <= 45


def test_a_batch_larger_than_what_is_left_does_not_wait_for_ever() -> None:
    """Seven items, batches of a hundred, no linger: one batch of seven."""
    assert values(hr.Flow(range(7)).batch(100)) == [[0, 1, 2, 3, 4, 5, 6]]


# ---------------------------------------------------------------------------------------------------- sources


class _Squares:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: Any) -> Any:
        return [number * number for number in range(5)][index]

    def __iter__(self) -> Iterator[int]:
        return iter([number * number for number in range(5)])


def _from_queue() -> Iterator[int]:
    waiting: queue.Queue[int | None] = queue.Queue()
    for number in (*range(5), None):
        waiting.put(number)
    return iter(waiting.get, None)  # type: ignore[arg-type]


async def _async_numbers() -> AsyncIterator[int]:
    for number in range(5):
        yield number


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (lambda: (number for number in range(5)), [0, 1, 2, 3, 4]),
        (lambda: iter(range(5)), [0, 1, 2, 3, 4]),
        (lambda: {3}, [3]),
        (lambda: map(int, "0123"), [0, 1, 2, 3]),
        (_Squares, [0, 1, 4, 9, 16]),
        (_from_queue, [0, 1, 2, 3, 4]),
        (_async_numbers, [0, 1, 2, 3, 4]),
        (list, []),
        (lambda: iter(()), []),
    ],
    ids=[
        "list",
        "generator",
        "iterator",
        "set",
        "map",
        "sequence",
        "queue",
        "async generator",
        "empty",
        "empty iterator",
    ],
)
def test_any_iterable_is_a_source(make: Any, expected: list[int]) -> None:
    """Generators and their like need no len(), and nothing has to be a list."""
    assert run(lambda: hr.map(same, make())).values == expected


def test_a_flow_over_a_sequence_runs_again() -> None:
    """A flow keeps no state of a run: each run calls the stages anew, and gives the same."""
    calls = []

    async def noted(number: int) -> int:
        calls.append(number)
        return number + 1

    flow = hr.Flow([1, 2, 3]).map(noted)
    assert [values(flow) for _ in range(3)] == [[2, 3, 4]] * 3
    assert calls == [1, 2, 3] * 3


def test_two_flows_of_one_trunk_do_not_disturb_each_other() -> None:
    """Each method gives a new flow; the one it was called on stays as it was."""
    trunk = hr.Flow(range(6)).filter(lambda number: number % 2 == 0)
    tens, hundreds = trunk.map(lambda n: n * 10), trunk.map(lambda n: n * 100)
    assert sorted(_done(tens)) == [0, 20, 40]
    assert sorted(_done(hundreds)) == [0, 200, 400]


def _done(flow: hr.Flow[Any]) -> list[Any]:
    return [outcome.value for outcome in collect(flow)[0] if isinstance(outcome, hr.Done)]


def test_a_flow_and_its_limits_serve_one_loop_after_another() -> None:
    """What a run bound to its event loop is gone with it: the same flow runs on a virtual and on a real loop."""
    limit = hr.Limit(concurrency=2, rate=10_000)
    flow = hr.Flow(range(20)).map(same, limits=[limit])
    assert run(flow.run).done == 20
    assert asyncio.run(flow.run()).done == 20
    assert run(flow.run).done == 20


def test_maps_may_be_nested() -> None:
    """A stage's function may run a map of its own."""

    async def inner_sum(number: int) -> int:
        return sum((await hr.map(same, range(number), concurrency=3)).values)

    got = run(lambda: hr.map(inner_sum, range(20), concurrency=5))
    assert got.values == [sum(range(number)) for number in range(20)]
