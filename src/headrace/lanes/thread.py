"""The thread lane: plain functions run in daemon threads of this lane's own.

    call ─► jobs ─► a thread: fn(value, **resources) ─► returned ─► one wake-up of the loop for all that is there

Rules:
1. The default executor is never used: it is shared with everyone's DNS look-ups, and interpreter exit waits for it.
2. A thread cannot be stopped. A call that is given up is abandoned: counted, its place taken by a new thread, its late
   result dropped. Too many of them fail the lane.
3. Results come back in batches: a busy lane wakes the loop once for many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import queue
import threading
import types
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from headrace.errors import CallError, LaneError
from headrace.lanes.resources import open_all
from headrace.ports import current_call

__all__ = ["ThreadLane"]

#: How long an idle thread may take to end and to close its resources, in seconds.
IDLE_GRACE = 5.0
_lane_numbers = itertools.count(1)


class _Job:
    """One call on its way through a thread."""

    __slots__ = ("call", "context", "error", "future", "given_up", "on_return", "result", "thread", "value")

    def __init__(self, call: Callable[..., Any], value: Any, future: asyncio.Future[Any]) -> None:
        self.call = call
        self.value = value
        self.future = future
        self.context = contextvars.copy_context()
        self.thread: threading.Thread | None = None  # the one that runs it
        self.given_up = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.on_return: Callable[[], None] | None = None


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
        self._stuck: set[threading.Thread] = set()  # those whose calls were given up and still run
        self._label = f"headrace-{name}-{next(_lane_numbers)}"
        self._size = threads
        self._max_abandoned = max(16, threads) if max_abandoned is None else max_abandoned
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._returned: deque[_Job] = deque()
        self._notified = False
        self._threads: set[threading.Thread] = set()
        self._working = 0  # calls handed over and not yet back; threads are started to match
        self._thread_over = asyncio.Event()
        self._factories: Mapping[str, Callable[[], Any]] = {}

    @property
    def abandoned(self) -> int:
        """The calls that were given up and still run."""
        return len(self._stuck)

    def bind(
        self,
        fn: Callable[..., Any],
        shared: Mapping[str, Any],
        factories: Mapping[str, Callable[[], Any]],
    ) -> Callable[[Any], Awaitable[Any]]:
        """Make the callable: each call of it runs `fn` in a thread, with the caller's context variables."""
        self._factories = factories

        def in_thread(value: Any, own: Mapping[str, Any]) -> Any:
            return fn(value, **shared, **own)

        async def call(value: Any) -> Any:
            return await self._run(in_thread, value)

        return call

    async def _run(self, call: Callable[..., Any], value: Any) -> Any:
        job = _Job(call, value, self._loop.create_future())
        self._working += 1
        if (
            self._working > len(self._threads) - self.abandoned
            and len(self._threads) < self._size + self.abandoned
        ):
            self._start_thread()
        self._jobs.put(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._give_up(job)
            raise
        finally:
            del job  # its error's traceback holds this frame: they would keep each other, and the item, alive

    def _give_up(self, job: _Job) -> None:
        """Leave the call to itself. Its thread ends when the call returns, and another one takes its place now."""
        if job.future.done() and not job.future.cancelled():
            return  # it came back in the same turn of the loop
        job.given_up = True
        self._working -= 1
        if job.thread is None or job in self._returned:
            return
        self._stuck.add(job.thread)
        call = current_call.get(None)
        if call is not None:
            call.stuck = job
        if self.abandoned > self._max_abandoned:
            self._on_trouble(
                LaneError(
                    f"{self.abandoned} calls of {self._label} were given up and still hang in their threads. Give the "
                    f"blocking library a time limit of its own, or lower concurrency="
                )
            )

    # ------------------------------------------------------------------ in the threads

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._label}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        with contextlib.ExitStack() as stack:
            own: dict[str, Any] | None = None
            while True:
                job = self._jobs.get()
                if job is None:
                    break
                if job.given_up:
                    continue
                job.thread = threading.current_thread()
                try:
                    if own is None:
                        own = open_all(stack, self._factories)
                    job.result = job.context.run(job.call, job.value, own)
                except BaseException as error:  # noqa: BLE001 - it is handed to the item that raised it
                    job.error = error
                job.context = job.call = None  # type: ignore[assignment]  # let go of them before the result waits
                self._returned.append(job)
                self._notify()
                if job.given_up:
                    break
        self._post(self._thread_ended, threading.current_thread())

    def _notify(self) -> None:
        if not self._notified:
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
        returned = self._returned
        while returned:
            job = returned.popleft()
            if job.given_up:
                if job.on_return is not None:
                    job.on_return()
                continue
            self._working -= 1
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(_presentable(job.error))
            elif type(job.result) is types.CoroutineType:
                job.result.close()
                job.future.set_exception(
                    TypeError(
                        "the function gave a coroutine: pass the async function itself, or use lane='loop'"
                    )
                )
            else:
                job.future.set_result(job.result)

    def _thread_ended(self, thread: threading.Thread) -> None:
        self._threads.discard(thread)
        self._stuck.discard(thread)
        self._thread_over.set()

    async def close(self, grace: float) -> int:
        """End the threads; give the number of those whose calls still hang after `grace` seconds."""
        for _ in self._threads - self._stuck:
            self._jobs.put(None)
        # A loop in virtual time must not jump over the moment that an idle thread needs to end.
        standstill = getattr(self._loop, "outside", contextlib.nullcontext)
        with standstill():
            await self._wait_until(lambda: self._threads <= self._stuck, IDLE_GRACE)
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
