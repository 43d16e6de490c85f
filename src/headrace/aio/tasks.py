"""Tasks that have an owner.

Rules:
1. This is the only place that calls `create_task`: a task that nobody holds may be collected while it waits.
2. Whoever starts a task ends it: `TaskOwner.cancel` waits, for a bounded time, and counts what would not end.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

__all__ = ["TaskOwner", "leave_stuck", "uninterrupted"]

T = TypeVar("T")
#: Those that would not end when their owner cancelled them.
_stuck: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


class TaskOwner:
    """A set of tasks with one life. `on_error` is told of the first exception of any of them that nobody awaits."""

    __slots__ = ("_on_error", "_tasks")

    def __init__(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_error = on_error

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(tuple(self._tasks))

    def start(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task and keep it until it ends."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None and self._on_error is not None:
                self._on_error(error)

    async def cancel(self, grace: float) -> int:
        """Cancel all, wait up to `grace` seconds, and give the number of those that did not end."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if not tasks:
            return 0
        _, pending = await asyncio.wait(tasks, timeout=grace)
        _stuck.update(pending)
        return len(pending)


def leave_stuck(loop: asyncio.AbstractEventLoop) -> None:
    """Let `loop` be closed without the tasks that would not end: a Runner would wait for them, for as long as it takes."""
    for task in tuple(_stuck):
        if task.get_loop() is loop and not task.done():
            asyncio._unregister_task(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # the report has told of it


async def uninterrupted(task: asyncio.Future[T], on_cancel: Callable[[], None] | None = None) -> T:
    """Wait for `task` to its end, through any number of cancellations, then pass the first of them on.

    `on_cancel` is called at each cancellation, so that the work can be told to hurry. `asyncio.shield` alone is not
    enough: a second cancellation would leave the work alone.
    """
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
            if on_cancel is not None:
                on_cancel()
    if cancelled:
        if not task.cancelled():
            task.exception()  # it is the canceller's no more; asyncio shall not call it never retrieved
        raise asyncio.CancelledError
    return task.result()
