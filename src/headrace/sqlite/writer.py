"""One daemon thread that does all the writing of one ledger, in turn.

Rules:
1. Work that was handed over is done to its end: cancelling the one who waits neither stops nor halves it.
2. Whoever waited and was cancelled learns so after the work has ended, never before.
3. The thread ends with `close`; the default executor is never used.
4. The loop gives way to work that asks for it: until the work is about to enter its long stretch outside the
   interpreter, and then for a moment every few milliseconds, as long as the loop computes. Such a loop gives up the
   interpreter between two turns for less time than a thread needs to wake, and each time the thread's wait begins anew:
   without this a commit may be held up for seconds.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from headrace.errors import LedgerError

__all__ = ["Writer"]

T = TypeVar("T")

#: The longest that the loop stands still for a piece of work to begin, and for one to end, in seconds.
BEGINNING = 0.001
ENDING = 0.0003
#: How often it looks whether it computes all the time, in seconds, and the share of CPU in that time that means so.
LOOK_EVERY = 0.002
BUSY = 0.4


class _Task:
    """A piece of work and how it ended: told by the thread, waited for on the loop, untouched by any cancellation."""

    __slots__ = ("_loop", "_mark", "_timer", "_waiter", "failure", "is_over", "result", "work")

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self._loop = loop
        self._mark = threading.Lock()  # free when the thread has passed a mark that the loop has not seen yet
        self._mark.acquire()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_over = False
        self.result: Any = None
        self.failure: Exception | None = None

    # ------------------------------------------------------------------ on the loop

    def give_way(self, seconds: float) -> None:
        """Stand still until the thread passes its next mark, so that it has the interpreter; that long at the most."""
        self._mark.acquire(timeout=seconds)

    def look_after(self) -> None:
        """Give way for a moment at each look of a loop that computes all the time, until it is over."""
        self._timer = self._loop.call_later(LOOK_EVERY, self._look, time.perf_counter(), time.thread_time())

    def _look(self, since: float, computed: float) -> None:
        if not self.is_over:
            if time.thread_time() - computed > BUSY * (time.perf_counter() - since):
                self.give_way(ENDING)
            self.look_after()

    def over(self) -> asyncio.Future[None]:
        """Give a future that is done when it is over; one waits at a time."""
        self._waiter = self._loop.create_future()
        return self._waiter

    def _arrived(self) -> None:
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------------ in the thread

    def pass_mark(self) -> None:
        """Let a loop that gives way go on."""
        if self._mark.locked():
            self._mark.release()

    def post(self, result: Any, failure: Exception | None) -> None:
        """Tell the loop that it is over."""
        self.result, self.failure = result, failure
        self.pass_mark()
        try:
            self._loop.call_soon_threadsafe(self._arrived)
        except RuntimeError:
            pass  # the loop was closed over our heads: nobody waits any more


class Writer:
    """A thread that takes one piece of work at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._killed = False
        self._task: _Task | None = None  # the one under way

    async def run(self, work: Callable[[], T], *, give_way: bool = False) -> T:
        """Do `work` in the thread and give its result or raise its exception.

        A cancellation waits until the work has ended, and then is raised; if the work failed, its exception is the
        cause. LedgerError if the thread was ended from within (by an exception that is no Exception).
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        if self._killed:
            raise _killed(self._name)
        task = _Task(work, asyncio.get_running_loop())
        self._tasks.put(task)
        if give_way:
            task.give_way(BEGINNING)
        task.look_after()
        cancelled: asyncio.CancelledError | None = None
        while not task.is_over:
            try:
                await task.over()
            except (
                asyncio.CancelledError
            ) as error:  # a second and a third one find the work untouched as well
                cancelled = error
        if cancelled is not None:
            raise cancelled from task.failure
        if task.failure is not None:
            raise task.failure
        result: T = task.result
        return result

    async def close(self, last: Callable[[], None]) -> None:
        """Do `last` in the thread, then end it. Repeatable; without a thread, nothing happens."""
        thread, cancelled = self._thread, None
        if thread is None:
            return
        try:
            if self._killed:
                last()
            else:
                await self.run(last)
        finally:
            self._thread = None
            self._tasks.put(None)
            while thread.is_alive():
                thread.join(ENDING)  # it has nothing left to do, but needs the interpreter to find that out
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as error:
                    cancelled = error
            if cancelled is not None:
                raise cancelled

    def let_loop_go_on(self) -> None:
        """Called in the midst of work: what follows needs the interpreter no more, but for its end."""
        if self._task is not None:
            self._task.pass_mark()

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._task = task
            result: Any = None
            failure: Exception | None = None
            try:
                result = task.work()
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for this work
                failure = error
            except BaseException:
                self._killed = True
                task.post(None, _killed(self._name))
                raise
            self._task = None
            task.post(result, failure)
            del task, result, failure


def _killed(name: str) -> LedgerError:
    return LedgerError(f"the thread «{name}» was ended from within; run the same again")
