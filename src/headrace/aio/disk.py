"""Calls that wait for a disk, in a few threads of their owner, so that the loop does not.

Rules:
1. A thread is started when a call finds none idle, up to `most`; more calls wait in line.
2. A cancelled caller leaves its call to end by itself: a disk cannot be stopped. What it gives is dropped.
3. Closing lets calls under way end, and starts no more; the threads are daemons and delay no exit.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["Disk"]

T = TypeVar("T")
MOST: Final = 4

Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Disk:
    """Threads for blocking calls of one loop: `await disk.call(os.fsync, descriptor)`."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        self._closed = False

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread; give or raise what it does. RuntimeError once closed."""
        return await self.start(function, *args)

    def start(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call a function in a thread; give the future of what it does. RuntimeError once closed."""
        if self._closed:
            raise RuntimeError("the disk threads are closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._under_way += 1
        future.add_done_callback(self._ended)
        if self._under_way > len(self._threads) < self._most:
            thread = threading.Thread(target=_serve, args=(self._jobs,), name="headrace-disk", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((loop, future, function, args))
        return future

    def _ended(self, _: object) -> None:
        self._under_way -= 1

    def close(self) -> None:
        """Let the threads end after what they were given. Repeatable."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()


def _serve(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        loop, future, function, args = job
        try:
            result, error = function(*args), None
        except Exception as raised:  # noqa: BLE001 - it is the caller's, in another thread
            result, error = None, raised
        try:
            loop.call_soon_threadsafe(_settle, future, result, error)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits
        del job, future, result, error


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
