"""Cancel a job at every point where it can be cancelled, one after the other.

Rules:
1. The await points are counted, not guessed: every suspension of every task on the loop is one.
2. At each point there are two moments: while the task waits, and when what it waited for is there but the
   task has not gone on yet. The second is where cancellations get lost.
3. A cancellation that was delivered comes out as CancelledError; a job that returns all the same swallowed
   it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from headrace.testing.virtual import await_chain, run

__all__ = ["Ending", "Traced", "cancel_everywhere", "count_await_points"]

Moment = Literal["waiting", "ready"]
Job = Callable[[], Coroutine[Any, Any, Any]]


@dataclasses.dataclass(slots=True)
class Ending:
    """How one run of the job ended. `point` is the number of the await point, from 1; 0 stands for no cancel.

    `delivered` counts the cancellations that reached the job before it ended by itself; `left` describes the
    tasks that were still there when it had.
    """

    point: int
    moment: Moment
    delivered: int = 0
    value: Any = None
    error: BaseException | None = None
    left: Sequence[str] = ()

    @property
    def cancelled(self) -> bool:
        """Whether the job ended with CancelledError."""
        return isinstance(self.error, asyncio.CancelledError)


class Traced(Coroutine[Any, Any, Any]):
    """A coroutine around another one that tells `suspended` of each value that it suspends with."""

    def __init__(self, coro: Any, suspended: Callable[[Any], None]) -> None:
        self._coro = coro
        self._suspended = suspended
        self.__name__ = getattr(coro, "__name__", type(coro).__name__)
        self.__qualname__ = getattr(coro, "__qualname__", self.__name__)

    @property
    def cr_frame(self) -> Any:
        """The frame of the coroutine inside, for whoever prints stacks."""
        return getattr(self._coro, "cr_frame", None)

    @property
    def cr_await(self) -> Any:
        """What the coroutine inside awaits."""
        return getattr(self._coro, "cr_await", None)

    def send(self, value: Any) -> Any:
        """Go on with the coroutine."""
        waited_for = self._coro.send(value)
        self._suspended(waited_for)
        return waited_for

    def throw(self, *error: Any) -> Any:
        """Raise `error` where the coroutine stands."""
        waited_for = self._coro.throw(*error)
        self._suspended(waited_for)
        return waited_for

    def close(self) -> None:
        """Close the coroutine."""
        self._coro.close()

    def __iter__(self) -> Traced:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def __await__(self) -> Any:
        return self  # `await` passes send and throw on to what has them


class _Trace:
    """One run of the job, with every task on its loop traced, and a cancel at one point."""

    def __init__(self, job: Job, point: int, moment: Moment, times: int) -> None:
        self._job = job
        self._times = times
        self._task: asyncio.Task[Any] | None = None
        self.points = 0
        self.ending = Ending(point, moment)

    async def run(self) -> None:
        """Run the job; what it raises is in `ending`, not raised."""
        loop = asyncio.get_running_loop()
        outer = asyncio.all_tasks()
        loop.set_task_factory(self._make_task)
        task = self._task = asyncio.Task(Traced(self._job(), self._suspended), loop=loop, name="job")
        try:
            await asyncio.wait({task})
        finally:
            loop.set_task_factory(None)
        if task.cancelled():
            self.ending.error = asyncio.CancelledError()
        elif task.exception() is not None:
            self.ending.error = task.exception()
        else:
            self.ending.value = task.result()
        left = [task for task in asyncio.all_tasks() - outer if not task.done()]
        self.ending.left = [f"{task.get_name()}: {' > '.join(await_chain(task.get_coro()))}" for task in left]

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Traced(coro, self._suspended), loop=loop, **options)

    def _suspended(self, waited_for: Any) -> None:
        self.points += 1
        if self.points == self.ending.point:
            if self.ending.moment == "ready" and asyncio.isfuture(waited_for):
                # Called before the task's own callback, which is added only when this suspension is over.
                waited_for.add_done_callback(lambda _: self._cancel())
            else:
                self._cancel()
        elif 0 < self.ending.delivered < self._times and asyncio.current_task() is self._task:
            self._cancel()  # again, while the job cleans up after the first

    def _cancel(self) -> None:
        if self._task is not None and self._task.cancel():
            self.ending.delivered += 1


def count_await_points(job: Job, *, runner: Callable[..., Any] = run) -> int:
    """Run the job once and count its await points; raises what the job raises."""
    trace = _Trace(job, 0, "waiting", 0)
    runner(trace.run)
    if trace.ending.error is not None:
        raise trace.ending.error
    return trace.points


def cancel_everywhere(
    job: Job,
    check: Callable[[Ending], None] | None = None,
    *,
    times: int = 1,
    moments: Sequence[Moment] = ("waiting", "ready"),
    must_end_cancelled: bool = True,
    runner: Callable[..., Any] = run,
) -> int:
    """Run `job()` uncancelled, then once for each await point and moment, cancelled there; count the points.

    With `times=2` a second cancel comes at the job's next suspension, while it cleans up. Each run has its
    own loop, made by `runner` (virtual time unless given; any function that runs an async function to its
    end). After each run `check(ending)` is called outside the loop; what it raises comes out, with a note
    that names the point.

    Raises AssertionError where a task was left behind or a delivered cancel did not come out as
    CancelledError (unless `must_end_cancelled=False`), and what the job raises in the run without a cancel.
    Where the number of points differs from run to run, points beyond the end are runs without a cancel.
    """
    first = _Trace(job, 0, "waiting", 0)
    _try(first, runner, check, must_end_cancelled)
    if first.ending.error is not None:
        raise first.ending.error
    delivered = 0
    for point in range(1, first.points + 1):
        for moment in moments:
            trace = _Trace(job, point, moment, times)
            _try(trace, runner, check, must_end_cancelled)
            delivered += trace.ending.delivered
    if first.points and not delivered:
        raise AssertionError(f"none of the {first.points} await points could be cancelled")
    return first.points


def _try(
    trace: _Trace,
    runner: Callable[..., Any],
    check: Callable[[Ending], None] | None,
    must_end_cancelled: bool,
) -> None:
    ending = trace.ending
    try:
        runner(trace.run)
        if ending.left:
            raise AssertionError(f"{len(ending.left)} tasks left behind:\n  " + "\n  ".join(ending.left))
        if must_end_cancelled and ending.delivered and not ending.cancelled:
            how = f"raised {ending.error!r}" if ending.error is not None else f"returned {ending.value!r}"
            raise AssertionError(f"the job was cancelled, but {how}") from ending.error
        if check is not None:
            check(ending)
    except Exception as error:
        point = f"await point {ending.point} ({ending.moment})"
        error.add_note(f"the job was cancelled {ending.delivered} times, from {point} on")
        raise
