"""One daemon thread that does all the writing of one ledger, in turn.

Rules:
1. Work that was handed over is done to its end: cancelling the one who waits neither stops nor halves it.
2. Whoever waited and was cancelled learns so after the work has ended, never before.
3. The thread ends with `close`; the default executor is never used.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from headrace.errors import LedgerError

__all__ = ["Writer"]

T = TypeVar("T")

_Work = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Writer:
    """A thread that takes one piece of work at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._works: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._killed = False

    async def run(self, work: Callable[[], T]) -> T:
        """Do `work` in the thread and give its result or raise its exception.

        A cancellation waits until the work has ended, and then is raised; if the work failed, its exception is the
        cause. LedgerError if the thread was ended from within (by an exception that is no Exception).
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        if self._killed:
            raise _killed(self._name)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()
        self._works.put((work, loop, ended))
        cancelled: asyncio.CancelledError | None = None
        while not ended.done():
            try:
                # `wait` neither cancels what it waits for nor raises for it, so a second and a third
                # cancellation find the work untouched as well.
                await asyncio.wait((ended,))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled from ended.exception()
        return ended.result()

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
            self._works.put(None)
            while (
                thread.is_alive()
            ):  # it has nothing left to do; a join at once could block the loop meanwhile
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as error:
                    cancelled = error
            thread.join()
            if cancelled is not None:
                raise cancelled

    def _serve(self) -> None:
        while (task := self._works.get()) is not None:
            work, loop, ended = task
            result: Any = None
            failure: Exception | None = None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for this work
                failure = error
            except BaseException:
                self._killed = True
                _post(loop, ended, None, _killed(self._name))
                raise
            _post(loop, ended, result, failure)
            del task, work, loop, ended, result, failure


def _killed(name: str) -> LedgerError:
    return LedgerError(f"the thread «{name}» was ended from within; run the same again")


def _post(
    loop: asyncio.AbstractEventLoop, ended: asyncio.Future[Any], result: Any, failure: Exception | None
) -> None:
    try:
        loop.call_soon_threadsafe(_hand_back, ended, result, failure)
    except RuntimeError:
        pass  # the loop was closed over our heads: nobody waits any more


def _hand_back(ended: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if ended.cancelled():
        return
    if failure is not None:
        ended.set_exception(failure)
    else:
        ended.set_result(result)
