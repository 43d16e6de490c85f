"""The lane that is chosen by what the first calls cost: they run in threads, and what computes may be moved to processes.

    one thread: how much of a call is computing? ─► two threads: are they faster than one? ─► threads or processes

Rules:
1. It watches live items, each called once. One thread first, since threads that want the interpreter at once cannot be told
   from threads that wait; it stops being careful as soon as the first calls are seen to wait.
2. What computes, holds the interpreter's lock and is worth the way is moved; all else stays. So does what may keep a state
   (`why_not_movable`), whatever it costs.
3. The choice is made once, and told with its figures.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from headrace.errors import PlanError
from headrace.lanes.gil import GilProbe, interruptions, way
from headrace.lanes.process import ProcessLane
from headrace.lanes.thread import ThreadLane
from headrace.policies.lane_verdict import COMPUTING, WAITING, CallCosts, LaneVerdict, judge
from headrace.policies.movable import why_not_movable
from headrace.ports import LaneChoice

__all__ = ["AutoLane"]

#: How many calls are enough to judge by; fewer, if they took so long together (seconds).
ENOUGH_CALLS: Final = 5
ENOUGH_SECONDS: Final = 0.06
#: A call that runs for so long and has not computed waits (seconds).
LONG: Final = 0.03
#: How many values and results are pickled to learn what their way would cost.
WEIGHED: Final = 3


class _Call(NamedTuple):
    wall: float
    cpu: float
    interrupted: bool
    phase: int
    ended: float
    ticks: int


class AutoLane:
    """A thread lane that may be followed by a process lane. The engine sees it as `ports.ChoosingLane`."""

    def __init__(
        self,
        threads: ThreadLane,
        make_processes: Callable[[], ProcessLane],
        *,
        places: int,
        most_threads: int,
        cores: int,
    ) -> None:
        self.name = "thread"
        self._threads = threads
        self._make_processes = make_processes
        self._processes: ProcessLane | None = None
        self._places = places
        self._most_threads = most_threads
        self._cores = cores
        self._fn: Callable[..., Any] | None = None
        self._stays: str | None = None
        self._is_watching = True
        self._phase = 1
        self._calls: deque[_Call] = deque(maxlen=1000)
        self._under_way: tuple[int, float] | None = (
            None  # the thread of the call that runs alone, and since when
        )
        self._transports: list[float] = []
        self._unpicklable: str | None = None
        self._probe: GilProbe | None = None
        self._alone: CallCosts | None = None  # of a call in one thread

    @property
    def abandoned(self) -> int:
        """The calls that were given up and still run."""
        return self._threads.abandoned

    def bind(
        self,
        fn: Callable[..., Any],
        shared: Mapping[str, Any],
        factories: Mapping[str, Callable[[], Any]],
    ) -> Callable[[Any], Awaitable[Any]]:
        """Make the callable: each call runs in a thread, and is watched until the choice is made."""
        self._fn = fn
        self._stays = (
            "it has resources of uses=, opened for threads" if shared or factories else why_not_movable(fn)
        )
        return self._threads.bind(self._watched(fn), shared, factories)

    def _watched(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def watched(value: Any, **resources: Any) -> Any:
            if not self._is_watching:
                return fn(value, **resources)
            phase, probe = self._phase, self._probe
            if probe is None:
                probe = self._probe = GilProbe()
                probe.start()
            ticks, interrupted = probe.ticks, interruptions()
            began, computed = time.perf_counter(), time.thread_time()
            self._under_way = (threading.get_ident(), began)
            try:
                result = fn(value, **resources)
            finally:
                wall, cpu = time.perf_counter() - began, time.thread_time() - computed
                self._under_way = None
                whole = interruptions() == interrupted
                self._calls.append(_Call(wall, cpu, not whole, phase, began + wall, probe.ticks - ticks))
            if len(self._transports) < WEIGHED and self._unpicklable is None and self._stays is None:
                self._weigh(value, result)
            return result

        return watched

    def _weigh(self, value: Any, result: Any) -> None:
        try:
            self._transports.append(way(value, result).seconds)
        except Exception as error:  # noqa: BLE001 - whatever a class of the user's raises, it cannot go
            self._unpicklable = f"{type(error).__name__}: {error}"

    # ------------------------------------------------------------------ the choice, on the loop

    @property
    def allows(self) -> int:
        """How many calls may run at once now, as far as the watching goes."""
        return self._most_threads if not self._is_watching else self._phase

    def look(self) -> LaneChoice | None:
        """Say what was chosen, as soon as it can be told; None until then."""
        calls = [call for call in self._calls if call.phase == self._phase]
        if self._phase == 1:
            return self._look_at_one_thread(calls)
        return self._look_at_two_threads(calls)

    def _look_at_one_thread(self, calls: Sequence[_Call]) -> LaneChoice | None:
        if not calls and self._waits_now():
            return self._choose(
                CallCosts(LONG, 0.0, self._cores), 0, "its first call waits: threads wait side by side"
            )
        if not _are_enough(calls):
            return None
        assert self._probe is not None
        wall, share = _typical(calls)
        free = self._probe.free((call.wall, call.cpu, call.ticks) for call in calls)
        self._alone = costs = CallCosts(wall, wall * share, self._cores, gil_free=free)
        if share < WAITING:
            return self._choose(costs, len(calls))
        if self._stays is not None:
            return self._choose(costs, len(calls), f"it computes ({share:.0%} CPU), but stays: {self._stays}")
        if self._unpicklable is not None:
            why = f"it computes ({share:.0%} CPU), but cannot go to a process: {self._unpicklable}"
            return self._choose(costs, len(calls), why)
        if self._cores < 2:
            return self._choose(costs, len(calls), "there is one core only")
        if self._most_threads < 2:
            return self._choose(
                costs, len(calls), "concurrency=1 lets one call run at a time, wherever that is"
            )
        self._phase = 2
        return None

    def _look_at_two_threads(self, calls: Sequence[_Call]) -> LaneChoice | None:
        if not _are_enough(calls, 2):
            return None
        assert self._alone is not None
        # Threads that wait for each other compute no more together than one does alone.
        elapsed = max(call.ended for call in calls) - min(call.ended - call.wall for call in calls)
        together = sum(call.cpu for call in calls) / max(elapsed, 1e-9)
        speedup = together / max(self._alone.cpu_share, 1e-9)
        transport = sorted(self._transports)[len(self._transports) // 2] if self._transports else None
        costs = dataclasses.replace(self._alone, speedup=min(2.0, speedup), transport=transport)
        return self._choose(costs, len(calls))

    def _waits_now(self) -> bool:
        """Whether the call under way has run for long without computing, as far as the system can say."""
        under_way = self._under_way
        if under_way is None or not hasattr(time, "pthread_getcpuclockid"):
            return False
        thread, began = under_way
        took = time.perf_counter() - began
        if took < LONG:
            return False
        try:
            before = time.clock_gettime(time.pthread_getcpuclockid(thread))
        except OSError:
            return False  # the thread has ended meanwhile
        # All that the thread has computed so far is more than what this call has.
        return before < WAITING * took

    def _choose(self, costs: CallCosts, calls: int, reason: str | None = None) -> LaneChoice:
        verdict: LaneVerdict = judge(costs)
        self._is_watching = False
        if self._probe is not None:
            self._probe.end()
        is_moved = reason is None and verdict.lane == "process"
        if is_moved:
            assert self._fn is not None
            processes = self._make_processes()
            try:
                processes.load(self._fn, {})
            except PlanError as error:
                is_moved, reason = False, str(error)
            else:
                self._processes = processes
                self.name = "process"
        kind = verdict.kind if reason is None or costs.cpu_share < COMPUTING else "computes"
        return LaneChoice(
            "process" if is_moved else "thread",
            self._places if is_moved else self._most_threads,
            kind,
            reason or verdict.reason,
            costs.wall,
            costs.cpu_share,
            costs.speedup,
            costs.transport,
            calls,
        )

    def moved_to(self) -> ProcessLane:
        """Give the processes that it was moved to."""
        assert self._processes is not None
        return self._processes

    async def close(self, grace: float) -> int:
        """End the threads and the processes; give the number of calls that could not be ended."""
        self._is_watching = False
        if self._probe is not None:
            self._probe.end()
        left = await self._threads.close(grace)
        while self._probe is not None and self._probe.is_alive:  # noqa: ASYNC110 - a fraction of a millisecond
            await asyncio.sleep(0)
        return left + (await self._processes.close(grace) if self._processes is not None else 0)


def _are_enough(calls: Sequence[_Call], times: int = 1) -> bool:
    seconds = sum(call.wall for call in calls)
    return len(calls) >= times * ENOUGH_CALLS or (len(calls) >= times and seconds >= times * ENOUGH_SECONDS)


def _typical(calls: Sequence[_Call]) -> tuple[float, float]:
    """Give the seconds of a call and the CPU's share of it. Calls that other programs interrupted say little."""
    whole = [call for call in calls if not call.interrupted] or calls
    wall = sorted(call.wall for call in calls)[len(calls) // 4]
    shares = sorted(min(1.0, call.cpu / max(call.wall, 1e-9)) for call in whole)
    return wall, shares[len(shares) // 2]
