"""What a run left behind: tasks, threads, child processes, file descriptors.

Rules:
1. Compared is what was there before with what is there after; what was there before is nobody's leak.
2. Nothing is collected or closed to make a check pass: a socket that only the garbage collector would close
   is a leak.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from headrace.testing.virtual import await_chain

__all__ = ["no_leaks", "open_descriptors"]

# asyncio's own helpers, which live as long as the loop and are joined by it.
LOOP_THREADS = ("asyncio_", "waitpid-")


def open_descriptors() -> dict[int, str]:
    """List the open file descriptors of this process, each with what it points to where the system tells."""
    place = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(place):
        try:
            target = os.readlink(f"{place}/{name}")
        except OSError:
            target = ""
        try:
            os.fstat(int(name))  # the one that listed the directory is gone by now
        except OSError:
            continue
        found[int(name)] = target
    return found


@contextlib.contextmanager
def no_leaks(*, grace: float = 1.0, threads: int = 0) -> Iterator[None]:
    """Raise AssertionError if the block leaves a task, thread, child process or descriptor behind.

    Tasks are looked at only inside a running loop, and get no grace. Threads get `grace` real seconds to end,
    and `threads` of them may stay (calls that were abandoned on purpose). If the block raises, nothing is
    checked.
    """
    before = _Census()
    yield
    after = _Census()
    problems = [
        f"task {task.get_name()}: {' > '.join(await_chain(task.get_coro()))}"
        for task in after.tasks - before.tasks
        if not task.done()
    ]
    deadline = time.monotonic() + grace
    for thread in after.threads - before.threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = sorted(thread.name for thread in after.threads - before.threads if thread.is_alive())
    if len(left) > threads:
        problems += [f"thread {name}" for name in left]
    now = _Census()  # a thread that ended meanwhile may have closed what it held
    problems += [f"child process {pid}" for pid in sorted(now.children - before.children)]
    problems += [
        f"descriptor {number} -> {target}"
        for number, target in sorted(now.descriptors.items())
        if before.descriptors.get(number) != target
    ]
    if problems:
        raise AssertionError(f"{len(problems)} left behind:\n  " + "\n  ".join(problems))


class _Census:
    """What there is at this moment."""

    def __init__(self) -> None:
        try:
            self.tasks = asyncio.all_tasks()
        except RuntimeError:  # no loop runs here
            self.tasks = set()
        self.threads = {t for t in threading.enumerate() if not t.name.startswith(LOOP_THREADS)}
        self.descriptors = open_descriptors()
        self.children = _children()


def _children() -> set[int]:
    """List the child processes, zombies included; empty where the system does not tell."""
    pids: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids.update(map(int, file.read_text().split()))
    return pids
