"""The thread lane: plain functions run in daemon threads of this lane's own.

    call ─► jobs ─► a thread: fn(value, **resources) ─► returned ─► one wake-up of the loop for all that is there

Rules:
1. The default executor is never used: it is shared with everyone's DNS look-ups, and interpreter exit waits for it.
2. A thread cannot be stopped. A call that is given up is abandoned: counted, its place taken by a new thread, its late
   result dropped. Too many of them fail the lane.
3. A job belongs to whoever took it out of `jobs`: a thread, which runs it, or the loop, which gives it up unstarted.
4. One thread is woken at a time, and wakes the next when it finds more to do. Where calls take microseconds, one thread
   does many in turn, and their results go back together; one that blocks there holds the others up for `LOOK_AFTER`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import threading
import types
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, copy_context
from time import monotonic, thread_time
from typing import Any

from headrace.errors import CallError, LaneError
from headrace.lanes.resources import open_all
from headrace.ports import Call, current_call

__all__ = ["ThreadLane"]

#: How long an idle thread may take to end and to close its resources, in seconds.
IDLE_GRACE = 5.0
#: Calls that take less than this (seconds) are worth having at hand before a thread is free for them.
QUICK = 0.005
#: Those that take less than this are not worth waking another thread for.
TINY = 0.00005
#: So many of them for each thread: one to go on with, and one while the loop is busy.
AHEAD = 2
#: So many calls must have come back before the lane goes by what they took.
ENOUGH = 64
#: How often it is looked whether a call that blocks holds up those that were thought to be tiny, in seconds.
LOOK_AFTER = 0.002
_lane_numbers = itertools.count(1)


class _Job:
    """One call on its way through a thread."""

    given_up = False
    result: Any = None
    error: BaseException | None = None
    on_return: Callable[[], None] | None = None
    began: float  # this one and the next are set by the thread
    took: float

    def __init__(self, call: Callable[..., Any], value: Any, future: asyncio.Future[Any]) -> None:
        self.call = call
        self.value = value
        self.future = future
        self.context = copy_context()
        self.handed = monotonic()

    def is_for(self, call: Call) -> bool:
        """Whether this is the job of an attempt; no more when its function has returned."""
        context: Context | None = self.context
        return context is not None and context.get(current_call) is call


class _Thread(threading.Thread):
    """A thread of a lane, with what it runs, or ran last, and the lock that it waits for while it is idle."""

    def __init__(self, work: Callable[[_Thread], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.job: _Job | None = None
        self.computed = 0.0  # seconds of CPU, when it is over
        self.wake = threading.Lock()
        self.wake.acquire()

    def run(self) -> None:
        """Work until the lane is closed, or the call is given up."""
        self._work(self)


class ThreadLane:
    """Up to `threads` threads, started as calls ask for them."""

    def __init__(
        self,
        threads: int,
        name: str,
        on_trouble: Callable[[LaneError], None],
        max_abandoned: int | None = None,
    ) -> None:
        self.name = "thread"
        self.busy = 0.0  # seconds that calls took, from where a thread began them
        self.computed = 0.0  # seconds of CPU that the threads took which are over
        self.on_quick: Callable[[int], None] | None = None
        self._label = f"headrace-{name}-{next(_lane_numbers)}"
        self._size = threads
        self._max_abandoned = max(16, threads) if max_abandoned is None else max_abandoned
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._factories: Mapping[str, Callable[[], Any]] = {}
        # calls
        self._jobs: deque[_Job] = deque()
        self._returned: deque[_Job] = deque()
        self._notified = False  # the loop is to collect what has returned
        self._stuck: set[_Job] = set()  # those that were given up and still run, each in a thread of its own
        # threads
        self._threads: set[_Thread] = set()
        self._idle: list[_Thread] = []
        self._rousing = threading.Lock()  # held by whoever wakes or starts a thread, or goes idle
        self._searching = False  # a thread was woken, and has not looked for a job yet
        self._closed = False
        self._thread_over = asyncio.Event()
        # what calls take, the latest ones counting most
        self._mean = QUICK
        self._measured = 0
        self._tiny = False
        self._look_timer: asyncio.TimerHandle | None = None
        self._measured_then = 0

    @property
    def abandoned(self) -> int:
        """The calls that were given up and still run."""
        return len(self._stuck)

    @property
    def _at_work(self) -> int:
        return len(self._threads) - len(self._stuck) - len(self._idle)

    @property
    def queued(self) -> int:
        """The calls that were handed over and that no thread has begun."""
        return len(self._jobs)

    def withdraw(self, call: Call) -> bool:
        """Take an attempt back that no thread has begun; False where one has. Its waiter is to be cancelled."""
        for job in tuple(self._jobs):
            if job.is_for(call):
                with contextlib.suppress(ValueError):
                    self._jobs.remove(job)
                    job.given_up = True
                    return True
        return False

    def waited(self, call: Call) -> float:
        """Give the seconds that an attempt waited for its thread; infinite while it does, or where its result is there."""
        for thread in tuple(self._threads):
            job = thread.job
            if job is not None and job.is_for(call):
                return max(0.0, job.began - job.handed)
        return math.inf

    def bind(
        self,
        fn: Callable[..., Any],
        shared: Mapping[str, Any],
        factories: Mapping[str, Callable[[], Any]],
    ) -> Callable[[Any], Awaitable[Any]]:
        """Make the callable: each call of it runs `fn` in a thread, with the caller's context variables."""
        self._factories = factories
        in_thread = functools.partial(fn, **shared) if shared else fn
        jobs, find_hands, make_future = self._jobs, self._find_hands, self._loop.create_future

        async def call(value: Any) -> Any:
            job = _Job(in_thread, value, make_future())
            jobs.append(job)
            find_hands()
            try:
                return await job.future
            except asyncio.CancelledError:
                self._give_up(job)
                raise
            finally:
                del (
                    job
                )  # its error's traceback holds this frame: they would keep each other, and the item, alive

        return call

    # ------------------------------------------------------------------ handing over, on the loop

    def _find_hands(self) -> None:
        """See to it that a thread takes what was put into `jobs`."""
        at_work = len(self._threads) - len(self._stuck) - len(self._idle)
        if self._tiny and at_work > 0:
            if self._look_timer is None:
                self._look_timer = self._loop.call_later(LOOK_AFTER, self._look)
            return  # it takes this one too
        if at_work < self._size and not self._searching:
            self._rouse()

    def _rouse(self) -> None:
        """Wake an idle thread, or start one where there may be more. Called on the loop and in threads."""
        with self._rousing:
            if self._closed:
                return
            if self._idle:
                self._searching = True
                self._idle.pop().wake.release()
                return
            if len(self._threads) - len(self._stuck) >= self._size:
                return
            self._searching = True
            thread = _Thread(self._work, self._label)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more of them
            self._searching = False
            self._threads.discard(thread)
            if len(self._threads) <= len(self._stuck):
                raised = LaneError(f"no thread can be started for {self._label}: {error}. Lower concurrency=")
                raised.__cause__ = error
                self._on_trouble(raised)

    def _give_up(self, job: _Job) -> None:
        """Leave the call to itself. Its thread ends when the call returns, and another one takes its place now."""
        if job.given_up or (job.future.done() and not job.future.cancelled()):
            return  # it was withdrawn, or came back in the same turn of the loop
        job.given_up = True
        with contextlib.suppress(ValueError):
            self._jobs.remove(job)
            return  # no thread had taken it
        if job in self._returned:
            return
        self._stuck.add(job)
        self.busy += monotonic() - job.handed
        call = current_call.get(None)
        if call is not None:
            call.stuck = job
        if self._jobs:
            self._rouse()
        if self.abandoned > self._max_abandoned:
            self._on_trouble(
                LaneError(
                    f"{self.abandoned} calls of {self._label} were given up and still hang in their threads. Give the "
                    f"blocking library a time limit of its own, or lower concurrency="
                )
            )

    # ------------------------------------------------------------------ in the threads

    def _work(self, me: _Thread) -> None:
        jobs, returned, clock = self._jobs, self._returned, monotonic
        with contextlib.ExitStack() as stack:
            own: dict[str, Any] | None = None if self._factories else {}
            woken = True
            now = clock()
            while True:
                try:
                    job = jobs.popleft()
                except IndexError:
                    if not self._wait(me):
                        break
                    woken = True
                    now = clock()
                    continue
                job.began = now
                me.job = job
                if woken:
                    woken = False
                    self._searching = False
                    if jobs and not self._tiny:
                        self._rouse()
                try:
                    if own is None:
                        own = open_all(stack, self._factories)
                    run, value = job.context.run, job.value
                    job.result = run(job.call, value, **own) if own else run(job.call, value)
                except BaseException as error:  # noqa: BLE001 - it is handed to the item that raised it
                    job.error = error
                job.context = job.call = None  # type: ignore[assignment]  # let go of them before the result waits
                now = clock()
                job.took = now - job.began
                returned.append(job)
                if not self._notified and not (self._tiny and jobs):
                    self._notify()
                if job.given_up:
                    break
            me.job = job = None  # type: ignore[assignment]
        me.computed = thread_time()
        self._post(self._thread_ended, me)

    def _wait(self, me: _Thread) -> bool:
        """Be idle until there is something to do; say whether to go on."""
        me.job = None
        if self._returned and not self._notified:
            self._notify()
        with self._rousing:
            self._searching = False
            if self._closed:
                return False
            self._idle.append(me)  # before the last look at the jobs: who adds one looks here after that
            if self._jobs:
                self._idle.remove(me)
                return True
        me.wake.acquire()
        return True

    def _notify(self) -> None:
        self._notified = True
        self._post(self._collect)

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return  # the loop is closed: an abandoned call came back after the run was over

    # ------------------------------------------------------------------ back on the loop

    def _collect(self) -> None:
        self._notified = False
        returned, count, took = self._returned, 0, 0.0
        while returned:
            job = returned.popleft()
            if job.given_up:
                self._stuck.discard(job)
                if job.on_return is not None:
                    job.on_return()
                continue
            count += 1
            took += job.took
            future = job.future
            if future.done():
                job.given_up = True  # its waiter was cancelled in this turn of the loop: it has come back, and is not stuck
                continue
            if job.error is not None:
                future.set_exception(_presentable(job.error))
            elif type(job.result) is types.CoroutineType:
                job.result.close()
                future.set_exception(
                    TypeError(
                        "the function gave a coroutine: pass the async function itself, or use lane='loop'"
                    )
                )
            else:
                future.set_result(job.result)
        if count:
            self._measure(count, took)

    def _measure(self, count: int, took: float) -> None:
        """Learn from `count` calls what a call takes."""
        self.busy += took
        self._mean += (took / count - self._mean) * min(1.0, count / ENOUGH)
        before, self._measured = self._measured, self._measured + count
        if self._measured < ENOUGH:
            return
        if before < ENOUGH and self._mean < QUICK and self.on_quick is not None:
            self.on_quick(self._size * AHEAD)
        self._tiny = self._mean < TINY
        if self._tiny and self._at_work and self._look_timer is None:
            self._look_timer = self._loop.call_later(LOOK_AFTER, self._look)

    def _look(self) -> None:
        """Collect what tiny calls gave. If that is nothing, one of them blocks: no more waiting for each other."""
        self._look_timer = None
        self._collect()
        if self._measured == self._measured_then:
            self._tiny = False
            self._mean = max(self._mean, LOOK_AFTER)
            if self._jobs:
                self._rouse()
        elif self._at_work:
            self._look_timer = self._loop.call_later(LOOK_AFTER, self._look)
        self._measured_then = self._measured

    # ------------------------------------------------------------------ the end

    def _thread_ended(self, thread: _Thread) -> None:
        self.computed += thread.computed
        self._threads.discard(thread)
        self._thread_over.set()
        if self._jobs:
            self._rouse()

    async def close(self, grace: float) -> int:
        """End the threads; give the number of those whose calls still hang after `grace` seconds."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        with self._rousing:
            self._closed = True
            while self._idle:
                self._idle.pop().wake.release()
        # A loop in virtual time must not jump over the moment that an idle thread needs to end.
        standstill = getattr(self._loop, "outside", contextlib.nullcontext)
        with standstill():
            await self._wait_until(lambda: len(self._threads) <= len(self._stuck), IDLE_GRACE)
        await self._wait_until(lambda: not self._threads, grace)
        return len(self._threads)

    async def _wait_until(self, reached: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not reached():
                    self._thread_over.clear()
                    await self._thread_over.wait()
        except TimeoutError:
            pass


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an error that cannot be said is an error all the same
        return type(error).__name__


def _presentable(error: BaseException) -> Exception:
    """Make what a function raised into something that a future can carry and an item can keep."""
    if isinstance(error, StopIteration):
        wrapped: Exception = RuntimeError("the function raised StopIteration")
    elif isinstance(error, Exception):
        return error
    else:
        wrapped = CallError(f"the function ended with {_said(error)}")
    wrapped.__cause__ = error
    return wrapped
