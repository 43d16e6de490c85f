"""Failures are data: each with its item, none lost, none that stops the rest, whatever a user's code raises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers_kit import Spy, collect, same, same_blocking

import headrace as hr
from headrace.testing import run


class TwoArguments(Exception):
    """An exception that cannot be made from one text."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Panic(BaseException):
    """What extensions written in Rust raise: no Exception."""


class Unspeakable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Odd(Exception):
    """An exception that is false, is not to be compared, and raises where an attribute is looked for."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # or no traceback of it could be printed
        raise ZeroDivisionError(name)


@pytest.mark.parametrize("lane", ["loop", "thread"])
def test_every_failure_keeps_its_item_and_its_exception(lane: str) -> None:
    """Which element failed, and with what: the very exception object's class, arguments and attributes."""

    def refuse(number: int) -> int:
        if number % 10 == 3:
            raise TwoArguments(number, "three")
        return number

    async def refuse_async(number: int) -> int:
        return refuse(number)

    got = run(lambda: hr.map(refuse if lane == "thread" else refuse_async, range(100)))
    assert [(failure.item, failure.error.code) for failure in got.failed] == [  # type: ignore[attr-defined]
        (number, number) for number in range(3, 100, 10)
    ]
    assert {type(failure.error) for failure in got.failed} == {TwoArguments}
    assert [done.value for done in got.done] == [number for number in range(100) if number % 10 != 3]
    with pytest.raises(hr.ItemsFailed, match="10 of 100 items failed"):
        _ = got.values


def test_one_failure_among_many_leaves_all_other_results() -> None:
    """99 of 100 results are delivered."""

    async def one_bad(number: int) -> int:
        if number == 50:
            raise RuntimeError("the one")
        return number

    found, report = collect(hr.Flow(range(100)).map(one_bad))
    assert (report.done, report.failed) == (99, 1)
    assert [outcome.item for outcome in found if not outcome.ok] == [50]


@pytest.mark.parametrize("ordered", [False, True])
def test_thousands_of_failures_in_a_row_neither_recurse_nor_stop(ordered: bool) -> None:
    """Twenty thousand failures, then one success."""

    async def mostly_bad(number: int) -> int:
        if number < 20_000:
            raise ValueError(number)
        return number

    found, report = collect(hr.Flow(range(20_001)).map(mostly_bad, ordered=ordered))
    assert (report.failed, report.done) == (20_000, 1)
    assert found[-1].value == 20_000


def test_thousands_of_items_without_children_in_a_row() -> None:
    """flat_map that gives nothing, ten thousand times: done, without an outcome each."""

    async def nothing(number: int) -> list[int]:
        return [] if number < 10_000 else [number]

    found, report = collect(hr.Flow(range(10_001)).flat_map(nothing, fanout=4))
    assert [outcome.value for outcome in found] == [10_000]
    assert report.done == 10_001


def _raising(error: BaseException) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    async def on_loop(number: int) -> int:
        if number % 2:
            raise error
        return number

    def in_thread(number: int) -> int:
        if number % 2:
            raise error
        return number

    return on_loop, in_thread


@pytest.mark.parametrize("lane", ["loop", "thread"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        StopIteration(1),
        StopAsyncIteration(1),
        asyncio.CancelledError(),
        TimeoutError(),
        ExceptionGroup("several", [ValueError(1), OSError(2)]),
        Panic("unreachable code"),
        Unspeakable(),
        Odd("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_function_raises_fails_its_item_and_nothing_else(error: BaseException, lane: str) -> None:
    """StopIteration ends no iteration, CancelledError cancels nobody, a panic kills no worker: 5 failed, 5 done."""
    on_loop, in_thread = _raising(error)
    got = run(lambda: hr.map(on_loop if lane == "loop" else in_thread, range(10), concurrency=2))
    assert [failure.item for failure in got.failed] == [1, 3, 5, 7, 9]
    assert [done.value for done in got.done] == [0, 2, 4, 6, 8]
    assert got.report.balanced
    assert str(got.report)


@pytest.mark.parametrize("where", ["repr", "eq", "bool", "len"])
def test_items_that_cannot_be_looked_at_pass_all_the_same(where: str) -> None:
    """An item whose dunder methods raise is carried, fails and is reported like any other."""

    def refuse(self: Any, *_: Any) -> Any:
        raise ZeroDivisionError(where)

    Hostile = type("Hostile", (), {f"__{where}__": refuse, "__hash__": None})

    async def bad(item: Any) -> Any:
        raise ValueError("bad")

    items = [Hostile() for _ in range(3)]
    assert run(lambda: hr.map(same, items)).report.done == 3
    got = run(lambda: hr.map(bad, items))
    assert got.report.failed == 3
    with pytest.raises(hr.ItemsFailed):
        _ = got.values


@pytest.mark.parametrize("value", [None, False, 0, "", [], ValueError("as a value"), ..., float("nan")])
def test_every_return_value_is_a_value(value: Any) -> None:
    """None, false things and exceptions that are returned, not raised, are results."""

    async def give(_: int) -> Any:
        return value

    assert run(lambda: hr.map(give, range(3))).values == [value] * 3


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("window", [2, 50])
def test_an_error_in_any_stage_leaves_no_stage_stuck(stage: int, window: int) -> None:
    """Three stages on both lanes, every third item failing in one of them: the others come through."""

    def fails_at(number: int) -> Callable[[int], int]:
        def work(item: int) -> int:
            if number == stage and item % 3 == 0:
                raise ValueError(item)
            return item

        return work

    flow = (
        hr.Flow(range(60))
        .map(fails_at(0), concurrency=2)
        .map(fails_at(1), lane="loop", concurrency=2)
        .map(fails_at(2), concurrency=2)
    )
    _, report = collect(flow, window=window)
    assert (report.done, report.failed) == (40, 20)


# ---------------------------------------------------------------------------------------------------- time limits


def test_a_time_limit_fails_the_item_and_drops_nothing() -> None:
    """Of ten calls one is too slow: nine are done, one is Failed(TimedOut) with its item."""

    async def slow_at_3(number: int) -> int:
        await asyncio.sleep(60 if number == 3 else 0.1)
        return number

    got = run(lambda: hr.map(slow_at_3, range(10), timeout=1))
    assert len(got.done) == 9
    assert [(failure.item, type(failure.error)) for failure in got.failed] == [(3, hr.TimedOut)]


def test_a_time_limit_holds_for_blocking_code() -> None:
    """A call that hangs in its thread is Failed(TimedOut) on time; the rest of the items finds a thread."""
    release = threading.Event()

    def hangs_at_3(number: int) -> int:
        if number == 3:
            release.wait()
        return number

    async def main() -> tuple[Any, float]:
        try:
            return await hr.map(
                hangs_at_3, range(10), timeout=2, concurrency=1
            ), asyncio.get_running_loop().time()
        finally:
            release.set()

    got, at = run(main)
    assert [(failure.item, type(failure.error)) for failure in got.failed] == [(3, hr.TimedOut)]
    assert len(got.done) == 9
    assert at < 5


def test_a_call_that_will_not_be_cancelled_holds_nobody_up() -> None:
    """It swallows its cancellation: the item fails, a new worker takes the place, all others are done."""

    async def stubborn_at_3(number: int) -> int:
        for _ in range(6 if number == 3 else 0):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue
        return number

    got = run(lambda: hr.map(stubborn_at_3, range(10), timeout=1, concurrency=1))
    assert [(failure.item, type(failure.error)) for failure in got.failed] == [(3, hr.TimedOut)]
    assert len(got.done) == 9


# ---------------------------------------------------------------------------------------------------- sources that fail


def _fails_after(count: int, error: BaseException) -> Iterator[int]:
    yield from range(count)
    raise error


async def _fails_after_async(count: int, error: BaseException) -> AsyncIterator[int]:
    for number in range(count):
        yield number
    raise error


@pytest.mark.parametrize("count", [0, 1, 300])
@pytest.mark.parametrize("make", [_fails_after, _fails_after_async])
@pytest.mark.parametrize(
    "error", [OSError("the disk is gone"), asyncio.CancelledError()], ids=["os", "cancel"]
)
def test_a_source_that_raises_ends_the_run_and_loses_nothing(
    count: int, make: Any, error: BaseException
) -> None:
    """What it gave before is finished and accounted for; then SourceError says what happened."""
    spy = Spy(1.0)
    with pytest.raises(hr.SourceError) as raised:
        run(lambda: hr.Flow(make(count, error)).map(spy).run())
    report = raised.value.report  # type: ignore[attr-defined]
    assert (report.taken, report.done) == (spy.ended, spy.ended)
    assert (
        spy.ended == count or make is _fails_after
    )  # a generator that is read in chunks may take some with it
    assert raised.value.__cause__ is error


def test_a_throttled_source_that_raises_does_not_hang() -> None:
    """A slow async source, a slow stage, and an error in the middle of both."""

    async def slow() -> AsyncIterator[int]:
        for number in range(20):
            await asyncio.sleep(0.5)
            if number == 10:
                raise OSError("mid-way")
            yield number

    with pytest.raises(hr.SourceError):
        run(lambda: hr.Flow(slow()).map(Spy(3.0), concurrency=2).map(same_blocking).run(window=4))


# ----------------------------------------------------------------------------------------------- values that cannot be kept


def test_a_value_that_cannot_be_stored_fails_its_item_only(tmp_path: Path) -> None:
    """An object that is no JSON does not turn the whole result into an empty list."""

    async def odd_at_2(number: int) -> Any:
        return object() if number == 2 else number

    async def main() -> Any:
        return await hr.map(odd_at_2, range(5), out=tmp_path / "kept.db")

    got = asyncio.run(main())
    assert [failure.item for failure in got.failed] == [2]
    assert [done.value for done in got.done] == [0, 1, 3, 4]


# ---------------------------------------------------------------------------------------------------- hints


def test_a_lambda_that_gives_a_coroutine_is_told_what_to_do() -> None:
    """`lambda x: fetch(x)` is a plain function that hands out coroutines: the failure says which form works."""
    got = run(lambda: hr.map(lambda number: same(number), range(2)))
    assert len(got.failed) == 2
    assert "pass the async function itself" in str(got.failed[0].error)


def test_a_call_in_place_of_a_function_is_refused_with_the_form() -> None:
    """`map(fetch(x))` is a PlanError before anything moves, and leaves no coroutine behind."""
    with pytest.raises(hr.PlanError, match=r"instead:    \.map\(same\)"):
        run(lambda: hr.map(same(3), range(2)))


def test_calls_started_in_a_loop_keep_their_own_arguments() -> None:
    """A Group takes function and arguments, so that no closure sees only the last value of the loop."""

    async def main() -> list[int]:
        async with hr.Group() as group:
            started = [group.start(same, number) for number in range(5)]
        return [one.value for one in started]

    assert run(main) == [0, 1, 2, 3, 4]
