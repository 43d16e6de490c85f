"""The writing thread: its work gets on beside a loop that computes all the time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import LedgerError
from headrace.sqlite.writer import Writer

TURNS = 4000


@pytest.mark.parametrize("turn", [0.0005, 0.002])
def test_work_is_not_starved_by_a_loop_that_computes(turn: float, run: Callable[[Any], Any]) -> None:
    """Ten pieces of work that want the interpreter five times each are done while a computing loop turns 4 000 times.

    Without being given way, each of these wants may last for thousands of turns.
    """

    async def main() -> int:
        writer = Writer("w")

        def work() -> None:
            for _ in range(5):
                os.stat(".")

        async def write() -> None:
            for _ in range(10):
                await writer.run(work, give_way=True)
            await writer.close(lambda: None)

        writing = asyncio.create_task(write())
        turns = 0
        while not writing.done() and turns < TURNS:
            until = time.perf_counter() + turn
            while time.perf_counter() < until:
                pass
            turns += 1
            await asyncio.sleep(0)
        await writing
        return turns

    assert run(main) < TURNS


def test_the_loop_stands_still_no_longer_than_agreed(run: Callable[[Any], Any]) -> None:
    """Work that lasts does not hold the loop: it turns many times meanwhile, and work that fails lets it go on as well."""

    async def main() -> int:
        writer = Writer("w")
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        def fail() -> None:
            raise LedgerError("no")

        counting = asyncio.create_task(count())
        await writer.run(lambda: time.sleep(0.2), give_way=True)
        seen = turns
        with pytest.raises(LedgerError, match="no"):
            await writer.run(fail, give_way=True)
        counting.cancel()
        await writer.close(lambda: None)
        return seen

    assert run(main) > 20
