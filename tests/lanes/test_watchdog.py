"""What the watchdog promises: it names what holds the loop while it does, and costs a healthy run nothing."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import headrace as hr
from headrace import testing
from headrace.events import Event, LoopHeld
from headrace.testing import no_leaks, run_real


def burn(seconds: float) -> bool:
    """Compute, in one line, for so many seconds of the thread's own time."""
    until = time.thread_time() + seconds
    return any(time.thread_time() >= until for _ in iter(int, 1))


def block(seconds: float) -> None:
    """Wait without computing."""
    time.sleep(seconds)


def line_in(function: Callable[..., Any], text: str) -> int:
    """Give the number of the line of a function that holds this text."""
    lines, first = inspect.getsourcelines(function)
    return next(first + n for n, line in enumerate(lines) if text in line)


async def burning(item: int) -> int:
    """Compute between awaits."""
    await asyncio.sleep(0.1)
    burn(0.2)
    await asyncio.sleep(0.001)
    return item


async def blocking(item: int) -> int:
    """Block between awaits."""
    await asyncio.sleep(0.1)
    block(0.2)
    return item


async def burning_at_once(item: int) -> int:
    """Compute, and never await."""
    burn(0.1)
    return item


def mapped(
    kind: str, fn: Callable[[int], Any], count: int, **options: Any
) -> tuple[hr.Report, list[LoopHeld]]:
    """Map on this kind of loop, and give the report and the events of the watchdog."""
    told: list[LoopHeld] = []

    def listen(events: Sequence[Event]) -> None:
        told.extend(event for event in events if isinstance(event, LoopHeld))

    async def main() -> hr.Report:
        with no_leaks():
            return await hr.Flow(range(count)).map(fn, **options).run(progress=listen)

    return run_real(main, kind=kind), told  # type: ignore[arg-type]


def test_a_function_that_computes_between_awaits_is_named(loop_kind: str) -> None:
    """200 ms of computing on the loop: the stage, the function, its file and line, the time, and processes as the cure."""
    report, told = mapped(loop_kind, burning, 1)
    (event,) = told
    assert (event.stage, event.function, event.file) == ("burning", "burn", __file__)
    assert event.line == line_in(burn, "any(")
    assert (event.cause, event.cure) == ("computes", "process")
    assert event.seconds >= 0.18
    (place,) = report.held
    assert (place.stage, place.function, place.line, place.times) == ("burning", "burn", event.line, 1)
    assert re.search(
        rf"burning \(loop\) held the loop once, \d\.\d s in all, at .*test_watchdog\.py:{event.line} in burn: "
        r"it computes: use lane='process'",
        str(report),
    )


def test_a_function_that_blocks_is_told_from_one_that_computes(loop_kind: str) -> None:
    """`time.sleep` on the loop is named where it is called, and threads are the cure."""
    report, told = mapped(loop_kind, blocking, 1)
    assert [(event.function, event.line, event.cause, event.cure) for event in told] == [
        ("block", line_in(block, "time.sleep"), "blocks", "thread")
    ]
    assert 0.18 <= told[0].seconds < 2.0
    assert "use lane='thread'" in str(report)


def test_many_holds_are_summed(loop_kind: str) -> None:
    """Each is an event; the report has one line for a place, with how often and how long in all."""
    report, told = mapped(loop_kind, burning, 4, concurrency=1)
    assert len(told) == 4
    (place,) = report.held
    assert place.times == 4
    assert place.seconds == pytest.approx(sum(event.seconds for event in told))
    assert place.longest == max(event.seconds for event in told)


def test_a_loop_that_is_never_let_go_is_watched(loop_kind: str) -> None:
    """Functions that never await hold the loop from the first item on: all but the first are seen in the act."""
    report, told = mapped(loop_kind, burning_at_once, 6)
    assert sum(event.seconds for event in told) >= 0.4
    assert {event.stage for event in told} == {"burning_at_once"}
    assert told[-1].function == "burn"
    assert report.held[0].cure == "process"


def test_a_source_that_blocks_is_named(loop_kind: str) -> None:
    """A generator that waits for something holds the loop too, and is called the source."""

    def slow() -> Iterator[int]:
        for number in range(48):
            yield number
            time.sleep(0.01)

    async def same(item: int) -> int:
        return item

    async def main() -> hr.Report:
        return await hr.Flow(slow()).map(same).run()

    report = run_real(main, kind=loop_kind)  # type: ignore[arg-type]
    assert {(place.stage, place.function, place.cause) for place in report.held} == {
        ("source", "slow", "blocks")
    }


def test_code_beside_the_run_is_named(loop_kind: str) -> None:
    """What another task of the program does to the loop is told as well, without a stage."""

    async def waiting(item: int) -> int:
        await asyncio.sleep(0.4)
        return item

    async def neighbour() -> None:
        await asyncio.sleep(0.15)
        block(0.15)

    async def main() -> hr.Report:
        task = asyncio.create_task(neighbour())
        report = await hr.Flow(range(1)).map(waiting).run()
        await task
        return report

    report = run_real(main, kind=loop_kind)  # type: ignore[arg-type]
    assert [(place.stage, place.function) for place in report.held] == [("", "block")]
    assert "code outside the stages held the loop once" in str(report)


def test_a_healthy_run_has_no_event(loop_kind: str) -> None:
    """Waiting calls, thousands of quick ones, and calls that block in threads hold nothing."""

    async def waiting(item: int) -> int:
        await asyncio.sleep(0.001)
        return item

    async def main() -> hr.Report:
        flow = hr.Flow(range(3000)).map(waiting, concurrency=20)
        return await flow.map(lambda item: time.sleep(0.001), concurrency=20).run()

    report = run_real(main, kind=loop_kind)  # type: ignore[arg-type]
    assert report.elapsed > 0.15
    assert report.held == []
    assert "held" not in str(report)


def watchdogs() -> list[threading.Thread]:
    """Give the watchdogs' threads that live now."""
    return [thread for thread in threading.enumerate() if thread.name == "headrace-watchdog"]


def test_the_thread_begins_late_and_ends_with_the_run(loop_kind: str) -> None:
    """A short run has no watchdog; a longer one has one thread, which is gone when it is over, failed or not."""

    async def look(item: int) -> int:
        await asyncio.sleep(0.1 * item)
        if item == 3:
            raise ValueError("the last one fails")
        return len(watchdogs())

    async def main() -> list[int]:
        with no_leaks():
            got = await hr.map(look, range(4))
        return [done.value for done in got.done]

    assert run_real(main, kind=loop_kind) == [0, 1, 1]  # type: ignore[arg-type]
    assert watchdogs() == []


def test_virtual_time_is_not_watched() -> None:
    """On the loop of headrace.testing a run is not watched: what blocks there takes no time that counts."""

    async def blocking(item: int) -> int:
        await asyncio.sleep(10)
        time.sleep(0.1)
        await asyncio.sleep(10)
        return len(watchdogs())

    got = testing.run(lambda: hr.map(blocking, range(2)))
    assert (got.values, got.report.held) == ([0, 0], [])


def test_a_run_that_is_left_behind_does_not_keep_the_interpreter() -> None:
    """The program ends though its loop was closed in the middle of a run that was watched."""
    program = (
        "import asyncio, os, headrace as hr\n"
        "async def main():\n"
        "    job = hr.Flow(range(5)).map(asyncio.sleep).start()\n"
        "    await job.__aenter__()\n"
        "    await asyncio.sleep(0.3)\n"
        "    print('left', flush=True)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert ended.stdout == "left\n"


def test_the_thread_ends_with_a_loop_that_is_left() -> None:
    """A program that leaves its loop without waiting for its job leaves no thread behind."""

    async def main() -> None:
        inbox: hr.Inbox[int] = hr.Inbox()
        job = hr.Flow(inbox).filter(bool).start()
        await job.__aenter__()
        await inbox.put(1)
        while "headrace-watchdog" not in {thread.name for thread in threading.enumerate()}:
            await asyncio.sleep(0.005)

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "headrace-watchdog":
            thread.join(5.0)
            assert not thread.is_alive()
