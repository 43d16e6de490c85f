"""Disk threads: calls are made in other threads, give what they give, and are left alone where nobody waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from headrace.aio.disk import Disk
from headrace.testing import run_real


def test_calls_run_in_few_threads_and_give_what_they_do() -> None:
    """Results and errors come back to the caller; no more than `most` calls run at once."""

    async def main() -> None:
        disk = Disk(most=2)
        most = running = 0
        lock = threading.Lock()
        together = threading.Barrier(2, timeout=10)

        def work(number: int) -> int:
            nonlocal most, running
            with lock:
                running += 1
                most = max(most, running)
            together.wait()
            with lock:
                running -= 1
            return number * 2

        assert await asyncio.gather(*(disk.call(work, number) for number in range(6))) == [0, 2, 4, 6, 8, 10]
        assert most == 2
        with pytest.raises(ZeroDivisionError):
            await disk.call(divmod, 1, 0)
        disk.close()
        disk.close()
        with pytest.raises(RuntimeError, match="closed"):
            await disk.call(int)

    before = threading.active_count()
    run_real(main)
    for thread in threading.enumerate():
        if thread.name == "headrace-disk":
            thread.join(10)
    assert threading.active_count() == before


def test_cancelled_caller_leaves_its_call_to_end() -> None:
    """A caller may go; the call ends by itself, and the thread serves the next."""

    async def main() -> None:
        disk = Disk(most=1)
        release, ended = threading.Event(), threading.Event()

        def stuck() -> None:
            release.wait(10)
            ended.set()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await disk.call(stuck)
        release.set()
        assert await disk.call(ended.is_set)
        disk.close()

    run_real(main)
