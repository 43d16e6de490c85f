"""How things end: early leaving cancels, nothing stays behind, nothing that ended is kept alive."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from peers_kit import Spy, collect, same

import headrace as hr
from headrace.testing import no_leaks, run


def test_leaving_the_stream_cancels_what_runs() -> None:
    """`break` after the first outcome: no call goes on, no new one starts, the rest is returned."""

    class FirstQuick(Spy):
        async def __call__(self, value: Any) -> Any:
            self.seconds = 0.1 if value == 0 else 60.0
            return await super().__call__(value)

    spy = FirstQuick()

    async def main() -> tuple[float, hr.Report]:
        with no_leaks():
            async with hr.Flow(range(1000)).map(spy, concurrency=20).stream() as outcomes:
                async for _ in outcomes:
                    break
        assert outcomes.report is not None
        return asyncio.get_running_loop().time(), outcomes.report

    at, report = run(main)
    assert at == pytest.approx(0.1)
    assert (spy.ended, spy.running) == (1, 0)
    assert spy.cancelled == len(spy.starts) - 1 <= 20
    assert (report.done, report.returned) == (1, report.taken - 1)


def test_the_first_result_is_there_when_it_is_there() -> None:
    """The quickest of several: 0.05 s, not the 1.5 s of the slowest."""

    async def main() -> tuple[float, float]:
        async def sleep(seconds: float) -> float:
            await asyncio.sleep(seconds)
            return seconds

        async with hr.Flow([1.5, 0.05, 0.7]).map(sleep).stream() as outcomes:
            async for outcome in outcomes:
                first = outcome.value
                break
        return first, asyncio.get_running_loop().time()

    assert run(main) == (0.05, pytest.approx(0.05))


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_leaving_the_stream_closes_the_source(kind: str) -> None:
    """The generator's `finally` has run when the block is left."""
    closed = []

    def plain() -> Iterator[int]:
        try:
            yield from range(100_000)
        finally:
            closed.append(kind)

    async def asynchronous() -> AsyncIterator[int]:
        try:
            for number in range(100_000):
                yield number
        finally:
            await asyncio.sleep(0.1)
            closed.append(kind)

    async def main() -> list[str]:
        source = plain() if kind == "generator" else asynchronous()
        async with hr.Flow(source).map(same).stream() as outcomes:
            async for _ in outcomes:
                break
        return closed

    assert run(main) == [kind]


def test_an_error_of_the_consumer_is_the_error_that_comes_out() -> None:
    """It cancels the run and is not wrapped, and nothing is left behind."""
    spy = Spy(60.0)

    async def main() -> None:
        with no_leaks():
            async with hr.Flow([0, 1, 2]).map(same).map(spy).stream():
                await asyncio.sleep(1)
                raise KeyError("the consumer's own")

    with pytest.raises(KeyError, match="the consumer's own"):
        run(main)
    assert (spy.cancelled, spy.ended) == (3, 0)


@pytest.mark.parametrize("times", [1, 2])
def test_cancelling_a_map_ends_its_calls_and_is_passed_on(times: int) -> None:
    """CancelledError comes out after the calls have ended; twice changes nothing about that."""
    spy = Spy(60.0)

    async def main() -> None:
        with no_leaks():
            task = asyncio.current_task()
            assert task is not None
            for number in range(times):
                asyncio.get_running_loop().call_later(1 + number * 0.001, task.cancel)
            try:
                await hr.map(spy, range(1000), concurrency=10)
            except asyncio.CancelledError:
                assert (spy.cancelled, spy.running) == (10, 0)
                raise

    with pytest.raises(asyncio.CancelledError):
        run(main)


def test_a_run_that_waits_for_its_source_can_be_stopped() -> None:
    """A source that gives one item and then nothing for ever: stop() ends it at once and closes it."""
    closed = []

    async def silent() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def main() -> tuple[hr.Report, float]:
        async with hr.Flow(silent()).map(same).start() as job:
            await asyncio.sleep(1)
            job.stop()
        assert job.report is not None
        return job.report, asyncio.get_running_loop().time()

    report, at = run(main)
    assert (report.taken, report.done, report.exit_code, closed) == (1, 1, 3, [True])
    assert at == pytest.approx(1.0)


def test_resources_are_opened_once_and_closed_whatever_happens() -> None:
    """On the loop lane one a run; in threads one a thread; each closed, also where calls failed."""
    opened, closed = [], []

    class Resource:
        def __init__(self) -> None:
            opened.append(threading.get_ident())

        def close(self) -> None:
            closed.append(threading.get_ident())

    async def on_loop(number: int, resource: Resource) -> int:
        raise ValueError(number)

    run(lambda: hr.map(on_loop, range(50), uses={"resource": Resource}))
    assert (len(opened), len(closed)) == (1, 1)
    opened.clear()
    closed.clear()

    def in_thread(number: int, resource: Resource) -> int:
        raise ValueError(number)

    run(lambda: hr.map(in_thread, range(50), concurrency=4, uses={"resource": Resource}))
    assert sorted(opened) == sorted(closed)
    assert 1 <= len(opened) == len(set(opened)) <= 4


# ---------------------------------------------------------------------------------------------------- memory


class Thing:
    """An item that can be watched."""


def _alive(things: list[weakref.ref[Thing]]) -> int:
    return sum(thing() is not None for thing in things)


async def _bad(thing: Thing) -> Thing:
    raise ValueError("bad")


def _bad_in_thread(thing: Thing) -> Thing:
    raise ValueError("bad")


async def _slow(thing: Thing) -> Thing:
    await asyncio.sleep(60)
    return thing


async def _twice(thing: Thing) -> list[Thing]:
    return [thing, thing]


FLOWS: dict[str, Any] = {
    "map": lambda flow: flow.map(same),
    "ordered": lambda flow: flow.map(same, ordered=True),
    "failing": lambda flow: flow.map(_bad),
    "failing in threads": lambda flow: flow.map(_bad_in_thread, concurrency=4),
    "repeated": lambda flow: flow.map(_bad, retry=hr.Retry(attempts=2, on=ValueError)),
    "timed out": lambda flow: flow.map(_slow, timeout=1),
    "fan-out": lambda flow: flow.flat_map(_twice, fanout=3),
    "fan-out that fails": lambda flow: flow.flat_map(_twice, fanout=3).map(_bad),
    "batches": lambda flow: flow.batch(5),
    "batches that fail": lambda flow: flow.batch(5).map(_bad),
    "limited": lambda flow: flow.map(same, limits=[hr.Limit(by=lambda thing: id(thing) % 5, concurrency=2)]),
}


@pytest.mark.parametrize("name", FLOWS)
def test_what_has_ended_is_let_go_of_without_the_garbage_collector(name: str) -> None:
    """No cycle of exceptions, frames or relations keeps an item: those alive are the open ones."""
    things: list[weakref.ref[Thing]] = []

    def source() -> Iterator[Thing]:
        for _ in range(1500):
            thing = Thing()
            things.append(weakref.ref(thing))
            yield thing

    async def main() -> int:
        most = seen = 0
        async with FLOWS[name](hr.Flow(source())).stream(window=60) as outcomes:
            async for outcome in outcomes:
                del outcome
                seen += 1
                if seen % 100 == 0:
                    most = max(most, _alive(things))
        return most

    gc.collect()
    gc.disable()
    try:
        # The window, a chunk that is being taken in, and what idle workers had last.
        assert run(main) <= 60 + 60 + 110
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------------- Ctrl-C

SCRIPT = """
import asyncio, os, sys, time
import headrace as hr

where, count = sys.argv[1], 100_000

def tell(word):
    os.write(1, word + b"\\n")

def states(events):
    for event in events:
        if type(event).__name__ == "RunStateChanged":
            tell(event.state.encode())

async def call(number):
    if where == "call":
        tell(b"ready")
        await asyncio.sleep(0.05)
    elif where == "stuck call":
        tell(b"ready")
        await asyncio.sleep(3600)
    return number

def blocking(number):
    tell(b"ready")
    time.sleep(0.05)
    return number

async def source():
    for number in range(count):
        if number == 5 and where == "source":
            tell(b"ready")
            await asyncio.Event().wait()
        yield number

fn = blocking if where == "thread" else call
got = hr.map_sync(fn, source() if where == "source" else range(count), concurrency=4, progress=states)
report = got.report
assert report.balanced, report
print("taken", report.taken, "done", report.done, "returned", report.returned, flush=True)
sys.exit(got.exit_code)
"""


@pytest.mark.parametrize("where", ["call", "thread", "source"])
def test_ctrl_c_ends_a_script_at_the_first_time(where: str) -> None:
    """Running calls finish, the rest is returned, the sum is right, the exit code is 130."""
    lines, code = _interrupt(where, ["ready"])
    assert code == 130
    assert lines[-1].startswith("taken")


def test_ctrl_c_twice_ends_calls_that_would_not() -> None:
    """The first drains, the second cancels: a script whose calls take an hour is over, and accounted for."""
    lines, code = _interrupt("stuck call", ["ready", "draining"])
    assert code == 130
    assert "done 0" in lines[-1]


def _interrupt(where: str, at: list[str]) -> tuple[list[str], int]:
    """Run the script, send it SIGINT when it says each of the words `at`; give what it says then and its exit code."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT, where], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            for word in at:
                while (line := child.stdout.readline()) and line != word + "\n":
                    pass
                assert line, f"it ended before it said {word}"
                child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=15)
        finally:
            child.kill()
        return out.splitlines(), child.returncode


def test_outcomes_of_a_stream_are_complete_when_it_ends_by_itself() -> None:
    """Read to the end, the stream has handed over every outcome, and the report says so."""
    found, report = collect(hr.Flow(range(500)).map(same), window=3)
    assert sorted(outcome.item for outcome in found) == list(range(500))
    assert (report.taken, report.returned) == (500, 0)
