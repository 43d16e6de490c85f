"""Group: unlike calls, together. A structured home for what is otherwise `gather` or a forgotten `create_task`.

Rules:
1. Every call that is started has an owner and ends inside the block; none is collected by the GC, none is lost.
2. `on_failure="stop"`: the first failure cancels the others, and the block raises. `"record"`: failures stay with their
   calls, and the others go on.
3. At most `concurrency` calls run; the others wait their turn, in the order in which they were started.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from headrace.aio.tasks import TaskOwner
from headrace.errors import CallError, ItemsFailed, PlanError, TimedOut
from headrace.item import Done, Failed, Outcome, Returned
from headrace.lanes.thread import ThreadLane
from headrace.plan import function_name, is_async

__all__ = ["Group", "Started"]

P = ParamSpec("P")
R = TypeVar("R")


class Started(Generic[R]):
    """One call of a group. Await it for its value; after the block, `value` and `outcome` are there."""

    def __init__(self, name: str, call: Callable[[], Coroutine[Any, Any, R]]) -> None:
        self.name = name
        self.outcome: Outcome[R] | None = None
        self._call = call
        self._over = asyncio.get_running_loop().create_future()
        self._began = 0.0

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return self.outcome is not None

    @property
    def value(self) -> R:
        """The value. Raises the call's error if it failed, CallError if it was cancelled or is not over yet."""
        if isinstance(self.outcome, Done):
            value: R = self.outcome.value
            return value
        if isinstance(self.outcome, Failed):
            raise self.outcome.error
        raise CallError(f"{self.name}: {'was cancelled' if self.done else 'is not over yet: await it'}")

    def __await__(self) -> Generator[Any, None, R]:
        while not self._over.done():
            waiter = asyncio.get_running_loop().create_future()
            self._over.add_done_callback(functools.partial(_wake, waiter))
            yield from waiter
        return self.value

    def _end(self, outcome: Outcome[R]) -> None:
        self.outcome = outcome
        if not self._over.done():
            self._over.set_result(None)

    def __repr__(self) -> str:
        return f"<Started {self.name} {self.outcome!r}>"


def _wake(waiter: asyncio.Future[None], _: object) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Group:
    """A block for unlike calls: `async with hr.Group() as group: user = group.start(get_user, 7)`.

    Leaving the block waits for all calls. With `on_failure="stop"` the first failure cancels the rest and the block raises
    ItemsFailed, an ExceptionGroup with every failure, each noted with its call. With `"record"` it raises nothing:
    `group.failed` has them. `timeout` is the limit of one call in seconds. Async functions run on the loop, plain ones in
    threads of the group's own. An exception in the block, or a cancellation, cancels all calls and waits for them, up to
    `grace` seconds.
    """

    def __init__(
        self,
        *,
        concurrency: int = 100,
        on_failure: Literal["stop", "record"] = "stop",
        timeout: float | None = None,
        grace: float = 8.0,
    ) -> None:
        if not isinstance(concurrency, int) or concurrency < 1:
            raise PlanError(f"Group(concurrency={concurrency!r}): give a whole number, 1 or more")
        if on_failure not in ("stop", "record"):
            raise PlanError(f'Group(on_failure={on_failure!r}): it is "stop" or "record"')
        if timeout is not None and not timeout > 0:
            raise PlanError(f"Group(timeout={timeout!r}): give seconds above 0")
        self.started: list[Started[Any]] = []
        self._concurrency = concurrency
        self._on_failure = on_failure
        self._timeout = timeout
        self._grace = grace
        self._waiting: deque[Started[Any]] = deque()
        self._tasks = TaskOwner()
        self._running: dict[asyncio.Task[None], Started[Any]] = {}
        self._parent: asyncio.Task[Any] | None = None
        self._interrupting = False
        self._stopping = False
        self._threads: ThreadLane | None = None
        self._idle: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ starting calls

    @overload
    def start(
        self, fn: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Started[R]: ...
    @overload
    def start(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Started[R]: ...
    def start(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Started[Any]:
        """Start `fn(*args, **kwargs)` now, or as soon as there is room. Never waits."""
        if self._parent is None:
            raise PlanError(
                "Group.start() outside its block: «async with hr.Group() as group: group.start(…)»"
            )
        if asyncio.iscoroutine(fn):
            name = fn.__name__
            fn.close()
            raise PlanError(
                f"Group.start() takes the function and its arguments: group.start({name}, …), not {name}(…)"
            )
        if not callable(fn):
            raise PlanError(f"Group.start({fn!r}): give a function")
        name = function_name(fn)
        call = functools.partial(fn, *args, **kwargs) if is_async(fn) else self._in_thread(fn, args, kwargs)
        started: Started[Any] = Started(name, call)
        self.started.append(started)
        if self._stopping:
            started._end(Returned(name))
        else:
            self._waiting.append(started)
            self._fill()
        return started

    def _in_thread(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Coroutine[Any, Any, Any]]:
        if self._threads is None:
            self._threads = ThreadLane(min(32, self._concurrency), "group", self._lane_failed)
        run = self._threads.bind(lambda call: call(), {}, {})
        bound = functools.partial(fn, *args, **kwargs)

        async def call() -> Any:
            return await run(bound)

        return call

    def _lane_failed(self, error: Exception) -> None:
        self.cancel()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._concurrency:
            started = self._waiting.popleft()
            task = self._tasks.start(self._run(started), f"headrace group {started.name}")
            self._running[task] = started
            task.add_done_callback(self._ended)

    async def _run(self, started: Started[Any]) -> None:
        started._began = time.monotonic()
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self._timeout) as limit:
                value = await started._call()
            if limit.expired():
                raise TimeoutError
        except TimeoutError as error:
            ours = self._timeout is not None and limit.expired()
            self._failed(
                started, TimedOut(f"no result within timeout={self._timeout:g} s") if ours else error
            )
        except Exception as error:  # noqa: BLE001 - it becomes the call's outcome
            self._failed(started, error)
        except asyncio.CancelledError as error:
            if task is not None and task.cancelling():
                raise
            raised = CallError("the function raised CancelledError, though nobody cancelled it")
            raised.__cause__ = error
            self._failed(started, raised)
        else:
            started._end(Done(started.name, value, elapsed=time.monotonic() - started._began))

    def _failed(self, started: Started[Any], error: Exception) -> None:
        error.add_note(f"raised by {started.name} in a Group")
        started._end(Failed(started.name, error, elapsed=time.monotonic() - started._began))
        if self._on_failure == "stop":
            self.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        started = self._running.pop(task)
        if not started.done:
            started._end(Returned(started.name))
        if not self._stopping:
            self._fill()
        if not self._running and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    # ------------------------------------------------------------------ ending

    @property
    def failed(self) -> list[Failed[Any]]:
        """The outcomes of the calls that failed so far."""
        return [s.outcome for s in self.started if isinstance(s.outcome, Failed)]

    def cancel(self) -> None:
        """Cancel the calls that run, and start none of those that wait."""
        if self._stopping:
            return
        self._stopping = True
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting._end(Returned(waiting.name))
        for task in tuple(self._running):
            task.cancel()
        # The block itself may wait for one of them, or for something else: it ends too, as in a TaskGroup.
        if self._parent is not None and self._idle is None and self._on_failure == "stop" and self.failed:
            self._interrupting = True
            self._parent.cancel()

    async def __aenter__(self) -> Group:
        if self._parent is not None:
            raise PlanError("a Group is entered once: make a new one")
        self._parent = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._parent is not None
        ours = False
        if self._interrupting and self._parent.uncancel() == 0 and kind is asyncio.CancelledError:
            ours = True
        if kind is not None and not ours:
            self.cancel()
        cancelled = await self._wait()
        if self._threads is not None:
            await self._threads.close(0.0)
        failures = self.failed
        if cancelled:
            raise asyncio.CancelledError
        if (kind is None or ours) and failures and self._on_failure == "stop":
            raise ItemsFailed(
                f"{len(failures)} of {len(self.started)} calls failed", [f.error for f in failures], failures
            )
        if kind is not None and issubclass(kind, Exception) and failures and self._on_failure == "stop":
            assert isinstance(error, Exception)
            if not any(error is f.error for f in failures):
                raise ItemsFailed(
                    "the block and its calls failed", [error, *(f.error for f in failures)], failures
                )
        return ours or None

    async def _wait(self) -> bool:
        """Wait until nothing runs, through cancellations; say whether there was one."""
        cancelled = False
        loop = asyncio.get_running_loop()
        until: float | None = None
        while self._running:
            self._idle = loop.create_future()
            if self._stopping and until is None:
                until = loop.time() + self._grace
            try:
                async with asyncio.timeout_at(until):
                    await self._idle
            except TimeoutError:
                for task, started in tuple(self._running.items()):
                    self._running.pop(task)
                    started._end(Returned(started.name))
                    task.remove_done_callback(self._ended)
            except asyncio.CancelledError:
                cancelled = True
                self.cancel()
        return cancelled
