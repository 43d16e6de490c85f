"""Running from a script: the loop is chosen here, and signals are handled; all is put back afterwards.

Rules:
1. Only this file chooses a loop, installs signal handlers or touches the garbage collector's settings.
2. The first signal drains, the second cancels, the third exits at once.
3. With own handlers no KeyboardInterrupt is raised in loop code, where it would tear things apart.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from headrace.aio.tasks import leave_stuck
from headrace.errors import PlanError
from headrace.flow.job import Job
from headrace.report import Report

__all__ = ["Stoppable", "new_loop", "run_sync", "run_to_end", "signals_to"]

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def new_loop() -> asyncio.AbstractEventLoop:
    """Make the fastest loop there is: uvloop's where it is installed, else asyncio's. HEADRACE_LOOP=asyncio chooses."""
    if os.environ.get("HEADRACE_LOOP", "uvloop") == "uvloop":
        try:
            import uvloop
        except ImportError:
            pass
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()


def run_sync(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end on a new loop. Raises PlanError inside a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise PlanError(
            "a loop is running here already (a notebook, or async code): use «await flow.run()» or «await hr.map(…)» "
            "instead of the _sync form"
        )
    with _calm_collector(), asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            return runner.run(main())
        finally:
            leave_stuck(runner.get_loop())


#: A window of items is many young objects that soon die by themselves. With Python's 700 the collector looks at all of
#: them again and again, which can cost more than the engine does.
YOUNG_OBJECTS = 10_000


@contextmanager
def _calm_collector() -> Iterator[None]:
    """Let the garbage collector look less often while the block lasts; what is set higher, or off, stays."""
    before = gc.get_threshold()
    if 0 < before[0] < YOUNG_OBJECTS:
        gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def run_to_end(make_job: Callable[[], Job]) -> Report:
    """Run a job to its end, with signals."""
    return run_sync(lambda: _run_job(make_job()))


async def _run_job(job: Job) -> Report:
    with signals_to(job):
        async with job:
            return await job.wait()


class Stoppable(Protocol):
    """What a signal stops: a job, or what a command does in its place."""

    def stop(self, reason: str, *, signal: int | None = None) -> None:
        """Begin nothing new, and come to an end."""
        ...

    def cancel(self, reason: str) -> None:
        """End now."""
        ...


@contextmanager
def signals_to(job: Stoppable) -> Iterator[None]:
    """Let SIGINT and SIGTERM drain, then cancel, then exit, while the block lasts. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    seen = 0

    def on_signal(number: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            job.stop(f"{signal.Signals(number).name}", signal=number)
        elif seen == 2:
            job.cancel(f"{signal.Signals(number).name}, the second time")
        else:
            sys.stderr.write("headrace: third signal, exiting now; the job can be resumed\n")
            sys.stderr.flush()
            os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            if before[number] is not None:
                signal.signal(number, before[number])
