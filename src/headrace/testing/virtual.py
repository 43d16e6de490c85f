"""Virtual time: an event loop on which an hour of waiting takes no time, and `run` to use it.

Rules:
1. Time moves only when nothing can run: then it goes straight to the next timer.
2. Work that the loop cannot see (a thread, a process, a peer on a socket) takes real time. Registered with
   `outside()` it keeps time still until it is over; unregistered, but with a file descriptor or a new
   thread to show for it, it gets a short real grace before each move.
3. A program in which nothing will ever happen again is not waited for: `DeadlockError` says who waits, and
   where.

    def test_the_second_attempt_comes_after_a_minute():
        async def main():
            ...
            assert asyncio.get_running_loop().time() == 60.0

        headrace.testing.run(main)
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, Literal, TypeVar, TypeVarTuple

__all__ = ["DeadlockError", "VirtualLoop", "await_chain", "loop_factory", "run", "run_real"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

FRUITLESS = 20  # graces in a row that brought nothing, after which only every RARER-th jump gets one
RARER = 50


class DeadlockError(AssertionError):
    """Nothing can run, no timer is set, nothing outside will call back; the message lists the tasks."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector event loop whose `time()` starts at 0.0 and jumps over every wait.

    `grace` is the real time (seconds) given to open file descriptors and to threads started since, before
    each jump; `patience` how long (real seconds) the loop waits for outside work when there is no timer to
    jump to, or when `outside()` holds time still. After that it raises DeadlockError, out of
    `run_until_complete`.

    Not for uvloop. A test that waits for a signal from another process needs `outside()`.
    """

    def __init__(self, *, grace: float = 0.005, patience: float = 10.0) -> None:
        self._virtual = _JumpingSelector(self, grace, patience)
        super().__init__(self._virtual)
        self._virtual.begin()

    def time(self) -> float:
        """Give the virtual time, in seconds."""
        return self._virtual.now

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Keep time still in this block: real work is under way that the loop cannot see.

        May be entered in any thread, and many times at once. The jobs of `run_in_executor` do it by
        themselves.
        """
        self._virtual.enter()
        try:
            yield
        finally:
            self._virtual.leave()
            if not self.is_closed():
                self.call_soon_threadsafe(_wake)  # the loop may be waiting for exactly this

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Args], T], *args: *Args
    ) -> asyncio.Future[T]:
        """Run `func` in an executor, as asyncio does; time stands still until it ends."""
        future = super().run_in_executor(executor, func, *args)
        self._virtual.enter()
        future.add_done_callback(lambda _: self._virtual.leave())
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Shut the default executor down; its time limit counts no jump."""
        with self.outside():
            await super().shutdown_default_executor(*args)


def _wake() -> None:
    pass


class _JumpingSelector(selectors.BaseSelector):
    """Asks the real selector first; where that has nothing, moves `now` instead of waiting."""

    def __init__(self, loop: VirtualLoop, grace: float, patience: float) -> None:
        self.now = 0.0
        self._loop = loop
        self._grace = grace
        self._patience = patience
        self._real = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._outside = 0
        self._fruitless = 0
        self._own_descriptors = 0
        self._threads_before = set(threading.enumerate())

    def begin(self) -> None:
        """Take what is registered now as the loop's own."""
        self._own_descriptors = len(self._real.get_map())

    def enter(self) -> None:
        """Count one more piece of work outside."""
        with self._lock:
            self._outside += 1

    def leave(self) -> None:
        """Count one less."""
        with self._lock:
            self._outside -= 1

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Give what is ready; if that is nothing, jump `timeout` seconds ahead."""
        events = self._real.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self._outside:
            events = self._real.select(self._patience)
            if not events:
                raise DeadlockError(self._describe(f"{self._outside} pieces of work outside"))
            return events
        visible = len(self._real.get_map()) > self._own_descriptors or self._new_threads()
        if visible:
            events = self._real.select(self._patience if timeout is None else self._next_grace())
            if events:
                self._fruitless = 0
                return events
            self._fruitless += 1
        elif events := self._real.select(0):
            return events  # from a thread that ended between the first look and the second
        if timeout is None:
            raise DeadlockError(self._describe("file descriptors or threads" if visible else ""))
        self.now += timeout
        return []

    def _new_threads(self) -> bool:
        # Who they are, not how many: one that was there before may end while another one starts. Those of the default
        # executor report for themselves, and stay alive when they have nothing to do.
        return any(
            thread not in self._threads_before and not thread.name.startswith("asyncio_")
            for thread in threading.enumerate()
        )

    def _next_grace(self) -> float:
        # An idle listening socket or an idle thread must not cost the full grace at each of 100 000 timers.
        return self._grace if self._fruitless < FRUITLESS or self._fruitless % RARER == 0 else 0.0

    def _describe(self, waited_for: str) -> str:
        head = "nothing can run and no timer is set"
        if waited_for:
            head = f"nothing came back from {waited_for} in {self._patience:g} s of real time"
        tasks = sorted(asyncio.all_tasks(self._loop), key=lambda task: task.get_name())
        lines = [f"{head}; {len(tasks)} tasks wait, at virtual time {self.now:g} s:"]
        for task in tasks:
            lines.append(f"  {task.get_name()}")
            lines.extend(f"    {line}" for line in await_chain(task.get_coro()))
        return "\n".join(lines)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Pass on to the real selector."""
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Pass on to the real selector."""
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Pass on to the real selector."""
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Pass on to the real selector."""
        return self._real.get_map()

    def close(self) -> None:
        """Close the real selector."""
        self._real.close()


def await_chain(awaited: Any) -> list[str]:
    """List where a suspended coroutine stands, outermost first, and last what it waits for."""
    # Task.get_stack() shows only the outermost frame of a suspended task, which is hardly ever the telling
    # one.
    lines = []
    while awaited is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                code = frame.f_code
                lines.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
                inner = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
                awaited = getattr(awaited, inner, None)
                break
        else:
            if type(awaited).__name__ != "FutureIter":  # its repr says nothing
                lines.append(f"waits for {awaited!r}")
            break
    return lines


def run(
    main: Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]],
    *,
    seed: int | None = None,
    grace: float = 0.005,
    patience: float = 10.0,
) -> T:
    """Run a coroutine, or the coroutine that a function gives, to its end in virtual time.

    With `seed` the module `random` is seeded for the run, and left afterwards as it was found. Raises what
    `main` raises, and DeadlockError where nothing can happen any more; tasks left behind are cancelled, as
    in `asyncio.run`.
    """
    before = random.getstate()
    if seed is not None:
        random.seed(seed)
    try:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(grace=grace, patience=patience)) as runner:
            return runner.run(main() if callable(main) else main)
    finally:
        if seed is not None:
            random.setstate(before)


def run_real(
    main: Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]],
    *,
    kind: Literal["asyncio", "uvloop"] = "asyncio",
) -> T:
    """Run it to its end in real time, on asyncio's loop or on uvloop; ImportError if that is missing."""
    with asyncio.Runner(loop_factory=loop_factory(kind)) as runner:
        return runner.run(main() if callable(main) else main)


def loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Give what makes a loop of this kind (asyncio, uvloop, virtual). ValueError for any other word."""
    if kind == "virtual":
        return VirtualLoop
    if kind == "asyncio":
        return asyncio.SelectorEventLoop
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    raise ValueError(f"unknown kind of loop {kind!r}: asyncio, uvloop or virtual")
