"""The watchdog: sees what holds the event loop, while it does.

    on the loop: a beat every `BEAT` seconds          in a thread of its own: is the beat late? then sample the stack

Rules:
1. A beat costs the loop three readings of clocks. What the samples mean is decided on the loop, when it is free again.
2. A run that is over before `WATCH_AFTER` has no thread; a loop that is held from the start is watched from its second
   call on, and the first is put down to the function that was called.
3. The thread keeps no frame and no object of the program: what it let go last would be destroyed in it.
4. The thread ends with the run or its loop, is never waited for by the interpreter, and nothing that goes wrong in it
   hurts the run.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from headrace.policies.holds import Frame, Gap, Hold, Place, Sample, blame, judge

__all__ = ["Watchdog"]

#: Seconds between two beats of the loop.
BEAT = 0.02
#: Runs that are shorter than this (seconds) are not watched by a thread.
WATCH_AFTER = 0.05
#: How often the thread looks, in seconds: while all is well, and while the beat is late.
LOOK = 0.025
LOOK_CLOSER = 0.01
#: A long hold is looked at less and less often: after so many looks the time between them has doubled.
LOOKS = 20
#: How late a beat (seconds) makes the thread look closer.
LATE = 0.005
#: How long the end of the thread is waited for, in seconds.
GRACE = 1.0

_RUSAGE: int | None = getattr(resource, "RUSAGE_THREAD", None)  # Linux has it
_LIBRARIES = (os.path.dirname(os.__file__) + os.sep,)
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Watchdog:
    """Watches the running loop from `start` to `close`, and tells `on_held` of each hold, on the loop.

    `whose` says where the function of the stage begins that a task calls. It is asked in the watchdog's thread.
    """

    def __init__(
        self, whose: Callable[[asyncio.Task[Any] | None], Place], on_held: Callable[[Hold], None]
    ) -> None:
        self.starts_at = float("inf")  # when the thread is to be started at the latest, in the loop's time
        self._whose = whose
        self._on_held = on_held
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        self._due_after = BEAT
        self._beat_at = self._cpu = self._cpu_of_all = 0.0
        self._preempted = 0
        self._depth = 0  # of the stack that the loop itself stands on
        self._samples: list[Sample] = []
        self._looked_at = 0.0
        self._away = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._thread_over: asyncio.Future[None] = self._loop.create_future()

    # ------------------------------------------------------------------ on the loop

    def start(self) -> None:
        """Begin. In virtual time there is nothing to watch: a call takes no time there."""
        if hasattr(self._loop, "outside"):
            return
        self.starts_at = self._loop.time() + WATCH_AFTER
        self._next_beat(WATCH_AFTER)

    def start_late(self, whose: Place) -> None:
        """Start the thread now: the loop was held since the start, and a call of `whose` function has just ended."""
        frame: FrameType | None = sys._getframe()
        stack: list[FrameType] = []
        while frame is not None:
            stack.append(frame)
            frame = frame.f_back
        tasks = [n for n, one in enumerate(stack) if one.f_code.co_flags & inspect.CO_COROUTINE]
        self._depth = len(stack) - tasks[-1] - 1 if tasks else 0
        del stack, frame
        now = time.monotonic()
        self._samples = [Sample(now, whose if whose.file else None)]
        self._judge(now)
        self._start_thread()
        self._next_beat(BEAT)

    def _start_thread(self) -> None:
        self.starts_at = float("inf")
        self._looked_at = time.monotonic()
        thread = threading.Thread(target=self._watch, name="headrace-watchdog", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more of them: the run goes on unwatched
            return
        self._thread = thread

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at > self._due_after + LATE:
            self._judge(now)
        if self._thread is None:
            if self.starts_at == float("inf"):
                return
            self._depth = _depth(sys._getframe().f_back)
            self._start_thread()
        self._next_beat(BEAT)

    def _next_beat(self, after: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._samples = []
        self._away = 0.0
        self._due_after = after
        (self._cpu, self._preempted), self._cpu_of_all = _thread_usage(), time.process_time()
        self._beat_at = time.monotonic()
        self._timer = self._loop.call_later(after, self._beat)

    def _judge(self, now: float) -> None:
        (cpu, preempted), cpu_of_all = _thread_usage(), time.process_time() - self._cpu_of_all
        gap = Gap(
            self._beat_at,
            now,
            self._due_after,
            cpu - self._cpu,
            cpu_of_all,
            self._away,
            preempted - self._preempted,
        )
        for hold in judge(gap, self._samples):
            self._on_held(hold)

    async def close(self) -> None:
        """End the thread, and wait for that."""
        self.starts_at = float("inf")
        if self._timer is None:
            return
        self._timer.cancel()
        self._judge(time.monotonic())
        if self._thread is not None:
            self._stop.set()
            await asyncio.wait((self._thread_over,), timeout=GRACE)

    # ------------------------------------------------------------------ in the thread

    def _watch(self) -> None:
        pause = LOOK
        while not self._stop.wait(pause) and not self._loop.is_closed():
            now = time.monotonic()
            self._away = max(self._away, now - self._looked_at - pause)
            self._looked_at = now
            late = now - self._beat_at - self._due_after
            if late < LATE:
                pause = LOOK
                continue
            pause = max(LOOK_CLOSER, late / LOOKS)
            try:
                self._samples.append(self._sample(now))
            except Exception:  # noqa: BLE001 - a stack that cannot be read is one sample less
                continue
        try:
            self._loop.call_soon_threadsafe(self._over)
        except RuntimeError:
            return  # the loop is closed: nobody waits

    def _over(self) -> None:
        if not self._thread_over.done():
            self._thread_over.set_result(None)

    def _sample(self, now: float) -> Sample:
        task = asyncio.current_task(self._loop)
        whose, caller = self._whose(task), id(task)
        del task
        frame = sys._current_frames().get(self._ident)
        frames: list[Frame] = []
        point = 0 if frame is None else frame.f_lasti
        while frame is not None:
            code = frame.f_code
            frames.append(Frame(code.co_name, code.co_filename, frame.f_lineno or code.co_firstlineno))
            frame = frame.f_back
        depth = len(frames) - self._depth
        return Sample(now, blame(frames[: max(0, depth)], whose, _LIBRARIES, _OWN), caller, (depth, point))


def _thread_usage() -> tuple[float, int]:
    """Give the seconds that this thread has computed, and how often it was preempted (0 where the system does not tell)."""
    if _RUSAGE is None:
        return time.thread_time(), 0
    usage = resource.getrusage(_RUSAGE)
    return usage.ru_utime + usage.ru_stime, usage.ru_nivcsw


def _depth(frame: FrameType | None) -> int:
    depth = 0
    while frame is not None:
        depth += 1
        frame = frame.f_back
    return depth
