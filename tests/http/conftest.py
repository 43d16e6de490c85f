"""The fixture `run` for tests that listen: a listening uvloop keeps one spare descriptor for as long as it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from headrace.testing import no_leaks, run_real


async def _listen_once() -> None:
    """Make the loop open what it keeps for all listeners, so that it is not taken for a leak."""
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    listener.close()
    await asyncio.sleep(0)


@pytest.fixture
def run(loop_kind: str) -> Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]:
    """Give a function that runs an async function in real time, and then looks for what it left behind."""

    def run_checked(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async def checked() -> Any:
            await _listen_once()
            with no_leaks():
                return await main()

        with blockbuster_ctx("headrace", excluded_modules=["headrace.testing", "headrace.demo"]) as watch:
            # Thread.start waits for the new thread's first step: microseconds, and once for each thread.
            watch.functions["threading.Lock.acquire"].can_block_in("threading.py", "start")
            return run_real(checked, kind=loop_kind)

    return run_checked
