"""Measures what calls of a function cost: alone, in two threads, and on the way to another process.

Rules:
1. Calls are counted before they are made: there are never more of them than was said.
2. The time for each part is bounded; a slow function is called less often.
3. A call that raises counts as a call. If none returns, the first error is raised.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

from headrace.advisor.steps import Steps, stepped
from headrace.lanes.gil import GilProbe, interruptions, way
from headrace.plan import cores, is_async
from headrace.policies.lane_verdict import SMALL, WAITING, CallCosts

__all__ = ["Measurement", "measure"]

#: How long the calls of one part may take in all, in seconds.
BUDGET: Final = 3.0
#: How long the calls that are made alone should take together, where fewer than a fifth of all would take less.
ENOUGH: Final = 0.1


class Measurement:
    """What was found: the costs, how many calls were made for it, and how fast calls went on each lane (calls/s)."""

    def __init__(self, most_calls: int) -> None:
        self.most_calls = most_calls
        self.calls = 0
        self.errors = 0
        self.first_error: Exception | None = None
        self.speeds: dict[str, float] = {}
        self.unpicklable: str | None = None
        self.gil_free: float | None = None
        self.sizes: tuple[int, int] | None = None  # bytes of a pickled value and of a pickled result
        self.costs: CallCosts

    def may_call(self) -> bool:
        """Count one more call, if there may be one."""
        if self.calls >= self.most_calls:
            return False
        self.calls += 1
        return True

    def failed(self, error: Exception) -> None:
        """Note a call that raised."""
        self.errors += 1
        if self.first_error is None:
            self.first_error = error


class _Sample:
    __slots__ = ("cpu", "interrupted", "result", "steps", "ticks", "value", "wall")

    def __init__(self, value: Any, wall: float, cpu: float, result: Any, steps: Steps | None = None) -> None:
        self.value, self.wall, self.cpu, self.result, self.steps = value, wall, cpu, result, steps
        self.interrupted = False
        self.ticks = 0


def measure(fn: Callable[..., Any], samples: Sequence[Any], most_calls: int) -> Measurement:
    """Measure `fn` with values from `samples`, in turn, in at most `most_calls` calls.

    An async function is run in a loop of its own, in this thread. Raises the function's first error if no call returned.
    """
    found = Measurement(most_calls)
    asynchronous = is_async(fn)
    alone = max(1, most_calls * 2 // 5)
    values = itertools.cycle(samples)
    taken = (
        asyncio.run(_alone_async(fn, values, alone, found))
        if asynchronous
        else _alone(fn, values, alone, found)
    )
    if not taken:
        assert found.first_error is not None
        raise found.first_error
    # No medians: on a busy machine most of the calls may have been interrupted.
    wall = sorted(one.wall for one in taken)[len(taken) // 4]
    whole = [one for one in taken if not one.interrupted] or taken
    share = sorted(one.cpu / max(one.wall, 1e-9) for one in whole)[3 * len(whole) // 4]
    costs: dict[str, Any] = {
        "wall": wall,
        "cpu": wall * min(1.0, share),
        "cores": cores(),
        "is_async": asynchronous,
        "free_threaded": not getattr(sys, "_is_gil_enabled", lambda: True)(),
    }
    if asynchronous:
        costs["held"] = statistics.median(one.steps.longest for one in taken if one.steps)
        costs["held_in_all"] = statistics.median(one.steps.in_all for one in taken if one.steps)
        _concurrently(fn, samples, found, costs["held_in_all"])
    else:
        found.speeds["loop"] = 1.0 / max(wall, 1e-9)
        if wall >= SMALL and share >= WAITING:
            costs["speedup"] = _speedup(fn, [one.value for one in taken], taken, found)
            costs["gil_free"] = found.gil_free
            costs["transport"] = _transport(taken, found)
            if costs["transport"] is not None:
                found.speeds["process"] = cores() / (wall + costs["transport"])
        elif wall >= SMALL:
            _side_by_side(fn, samples, found)
    found.costs = CallCosts(**costs)
    return found


# ---------------------------------------------------------------------------------------------------- alone


def _alone(fn: Callable[..., Any], values: Iterator[Any], most: int, found: Measurement) -> list[_Sample]:
    taken: list[_Sample] = []
    probe = GilProbe()
    probe.start()
    try:
        asked, since = probe.cpu, time.perf_counter()
        for value in itertools.islice(values, most):
            budget = BUDGET if found.calls < found.most_calls // 5 else ENOUGH
            if (taken and time.perf_counter() > since + budget) or not found.may_call():
                break
            ticks, interrupted = probe.ticks, interruptions()
            began, computed = time.perf_counter(), time.process_time()
            try:
                result = fn(value)
            except Exception as error:  # noqa: BLE001 - it is counted, and raised if nothing else comes
                found.failed(error)
                continue
            wall, cpu = time.perf_counter() - began, time.process_time() - computed
            taken.append(_Sample(value, wall, cpu, result))
            taken[-1].ticks = probe.ticks - ticks
            taken[-1].interrupted = interruptions() > interrupted
        took = time.perf_counter() - since
        found.gil_free = probe.free((one.wall, one.cpu, one.ticks) for one in taken)
        asking = (probe.cpu - asked) / max(took, 1e-9)
    finally:
        probe.end()
        probe.join()
    for one in taken:
        one.cpu = max(0.0, one.cpu - asking * one.wall)
    return taken[1:] if len(taken) > 2 else taken  # the first one warms up


async def _alone_async(
    fn: Callable[..., Any], values: Iterator[Any], most: int, found: Measurement
) -> list[_Sample]:
    taken: list[_Sample] = []
    until = time.perf_counter() + BUDGET
    for value in itertools.islice(values, most):
        if (taken and time.perf_counter() > until) or not found.may_call():
            break
        steps = Steps()
        began = time.perf_counter()
        try:
            result = await stepped(_coroutine(fn, value), steps)
        except Exception as error:  # noqa: BLE001 - as above
            found.failed(error)
            continue
        taken.append(_Sample(value, time.perf_counter() - began, steps.cpu, result, steps))
    return taken[1:] if len(taken) > 2 else taken


async def _coroutine(fn: Callable[..., Any], value: Any) -> Any:
    got = fn(value)
    if inspect.isasyncgen(got):
        return [one async for one in got]
    return await got


# ---------------------------------------------------------------------------------------------------- together


def _together(
    fn: Callable[..., Any], shares: Sequence[Sequence[Any]], found: Measurement
) -> tuple[float, int]:
    """Call `fn` in a thread for each share, all beginning at once: the seconds until the last one ended, and the calls."""
    gate = threading.Barrier(len(shares) + 1)
    until = time.perf_counter() + BUDGET
    counted: list[int] = []
    lock = threading.Lock()

    def work(share: Sequence[Any]) -> None:
        done = 0
        gate.wait()
        for value in share:
            with lock:
                if time.perf_counter() > until or not found.may_call():
                    break
            try:
                fn(value)
            except Exception as error:  # noqa: BLE001 - as above
                found.failed(error)
            done += 1
        counted.append(done)

    threads = [threading.Thread(target=work, args=(share,), daemon=True) for share in shares]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, sum(counted)


def _speedup(
    fn: Callable[..., Any], values: Sequence[Any], taken: Sequence[_Sample], found: Measurement
) -> float:
    """Say how many times as fast as one two threads are with the same values."""
    once = sum(one.wall for one in taken)
    took, calls = _together(fn, [values, values], found)
    speedup = once / len(taken) * calls / max(took, 1e-9)
    found.speeds["thread"] = calls / max(took, 1e-9)
    return speedup


def _side_by_side(fn: Callable[..., Any], samples: Sequence[Any], found: Measurement) -> None:
    """See how fast calls that wait go in as many threads as there are calls left for it, 32 at the most."""
    threads = min(32, max(2, (found.most_calls - found.calls) // 2))
    values = itertools.cycle(samples)
    shares = [list(itertools.islice(values, 1)) for _ in range(threads)]
    took, calls = _together(fn, shares, found)
    found.speeds["thread"] = calls / max(took, 1e-9)


def _concurrently(fn: Callable[..., Any], samples: Sequence[Any], found: Measurement, held: float) -> None:
    """See how fast calls go on the loop, as many at once as there are calls left, and time for what each holds it."""
    most = max(2, min(100, int(BUDGET / max(held, 1e-9))))

    async def one(value: Any) -> None:
        try:
            await _coroutine(fn, value)
        except Exception as error:  # noqa: BLE001 - as above
            found.failed(error)

    async def all_of() -> float:
        values = itertools.cycle(samples)
        calls: list[Coroutine[Any, Any, None]] = []
        while len(calls) < most and found.may_call():
            calls.append(one(next(values)))
        began = time.perf_counter()
        await asyncio.gather(*calls)
        return len(calls) / max(time.perf_counter() - began, 1e-9)

    if found.calls < found.most_calls:
        found.speeds["loop"] = asyncio.run(all_of())


# ---------------------------------------------------------------------------------------------------- to a process


def _transport(taken: Sequence[_Sample], found: Measurement) -> float | None:
    """Say what the way to a child and back costs a call; None where a value or a result cannot go."""
    costs: list[float] = []
    for one in taken:
        try:
            seconds, there, back = way(one.value, one.result)
        except Exception as error:  # noqa: BLE001 - whatever a class of the user's raises, it cannot go
            found.unpicklable = f"{type(error).__name__}: {error}"
            return None
        found.sizes = (there, back)
        costs.append(seconds)
    return statistics.median(costs)
