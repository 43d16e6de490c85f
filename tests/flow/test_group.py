"""What Group and Inbox promise."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import headrace as hr
from headrace.testing import run as run_virtual


async def after(seconds: float, value: Any = None) -> Any:
    """Give `value` after a time; raise it if it is an exception."""
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def test_unlike_calls_run_together() -> None:
    """All calls run at once; their values are there after the block, and by awaiting them in it."""

    async def main() -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with hr.Group() as group:
            user = group.start(after, 3, "user")
            orders = group.start(after, 2, ["orders"])
            early = await orders
        return (user.value, orders.value, early), loop.time() - began

    values, took = run_virtual(main)
    assert values == ("user", ["orders"], ["orders"])
    assert took == pytest.approx(3)


def test_the_first_failure_stops_the_group() -> None:
    """on_failure="stop": the others are cancelled, the block too, and the failures are raised with their calls."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(hr.ItemsFailed) as raised:  # noqa: PT012 - the block is what is tested
            async with hr.Group() as group:
                slow = group.start(after, 100)
                group.start(after, 1, ValueError("one"))
                await asyncio.sleep(50)
        assert [str(error) for error in raised.value.exceptions] == ["one"]
        assert "after" in raised.value.exceptions[0].__notes__[0]
        assert isinstance(slow.outcome, hr.Returned)
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        return loop.time() - began

    assert run_virtual(main) == pytest.approx(1)


def test_recorded_failures_do_not_raise() -> None:
    """on_failure="record": the others go on, and `failed` has what failed."""

    async def main() -> tuple[Any, list[str]]:
        async with hr.Group(on_failure="record") as group:
            good = group.start(after, 2, "good")
            bad = group.start(after, 1, ValueError("bad"))
        with pytest.raises(ValueError, match="bad"):
            _ = bad.value
        return good.value, [str(failure.error) for failure in group.failed]

    assert run_virtual(main) == ("good", ["bad"])


def test_a_group_is_bounded_in_order() -> None:
    """At most `concurrency` calls run, and they start in the order in which they were asked for."""
    started: list[int] = []
    most = running = 0

    async def call(number: int) -> None:
        nonlocal running, most
        started.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    async def main() -> None:
        async with hr.Group(concurrency=3) as group:
            for number in range(10):
                group.start(call, number)

    run_virtual(main)
    assert most == 3
    assert started == list(range(10))


def test_timeout_of_a_call() -> None:
    """timeout= ends one call as TimedOut; a TimeoutError of its own stays its own."""

    async def main() -> list[type]:
        async with hr.Group(on_failure="record", timeout=2) as group:
            group.start(after, 5)
            group.start(after, 1, TimeoutError("own"))
        return [type(failure.error) for failure in group.failed]

    assert sorted(t.__name__ for t in run_virtual(main)) == ["TimedOut", "TimeoutError"]


def test_an_exception_in_the_block_cancels_the_calls() -> None:
    """The block's own exception comes out as it is, after all calls have ended."""
    ended: list[str] = []

    async def call() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append("ended")

    async def main() -> None:
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with hr.Group() as group:
                group.start(call)
                await asyncio.sleep(1)
                raise KeyError("mine")

    run_virtual(main)
    assert ended == ["ended"]


def test_cancelling_whoever_holds_the_group() -> None:
    """A cancelled block cancels its calls, waits for them, and is cancelled itself."""
    ended: list[str] = []

    async def call() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            ended.append("ended")
            raise

    async def holder() -> None:
        async with hr.Group() as group:
            group.start(call)

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(holder())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main)
    assert ended == ["ended"]


def test_plain_functions_run_in_threads(run: Callable[..., Any]) -> None:
    """A blocking function does not block the loop, and runs in no thread of the default executor."""

    async def main() -> list[str]:
        async with hr.Group() as group:
            calls = [
                group.start(lambda: (time.sleep(0.01), threading.current_thread().name)[1]) for _ in range(3)
            ]
        return [call.value for call in calls]

    assert all(name.startswith("headrace-group") for name in run(main))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda group: group.start(after(1)),
        lambda group: group.start(7),
    ],
)
def test_misuse_of_a_group_is_told(misuse: Callable[[Any], Any]) -> None:
    """A coroutine or something that is no function is refused with the right form."""

    async def main() -> None:
        async with hr.Group() as group:
            with pytest.raises(hr.PlanError):
                misuse(group)

    run_virtual(main)
    with pytest.raises(hr.PlanError):
        hr.Group(concurrency=0)


def test_an_inbox_feeds_a_running_flow() -> None:
    """What is put while the flow runs is taken; close ends it; put waits for room, and refuses after close."""

    async def main() -> list[int]:
        inbox: hr.Inbox[int] = hr.Inbox(capacity=2)
        seen: list[int] = []

        async def handler() -> None:
            for number in range(10):
                ticket = await inbox.put(number)
                assert ticket.position == number
                await asyncio.sleep(1)
            inbox.close()

        async with hr.Group() as group:
            group.start(handler)
            async with hr.Flow(inbox).map(after, concurrency=3, uses=None).stream(window=4) as outcomes:
                async for outcome in outcomes:
                    seen.append(outcome.item)
        with pytest.raises(hr.PlanError, match="closed"):
            await inbox.put(99)
        return seen

    assert sorted(run_virtual(main)) == list(range(10))


def test_a_full_inbox_makes_put_wait() -> None:
    """put_nowait says no when there is no room; a cancelled put has put nothing; unread items can be had back."""

    async def main() -> list[int]:
        inbox: hr.Inbox[int] = hr.Inbox(capacity=2)
        assert inbox.put_nowait(0)
        assert inbox.put_nowait(1)
        assert inbox.put_nowait(2) is None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await inbox.put(3)
        return inbox.unread()

    assert run_virtual(main) == [0, 1]
