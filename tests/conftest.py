"""What all tests share. Rules:

1. A test that needs no real loop runs in virtual time: `from headrace.testing import run`.
2. The fixture `run` is for promises about real loops: the test runs on asyncio and on uvloop, nothing of
   headrace may block the loop, and no task, thread, socket or file may be left behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from headrace.demo.origin import Origin
from headrace.testing import no_leaks, run_real

# How long an example takes is the machine's business, and no test is about it.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Run the test once on each kind of loop."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.fixture
def run(loop_kind: str) -> Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]:
    """Give a function that runs an async function in real time, and then looks for what it left behind."""

    def run_checked(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async def checked() -> Any:
            with no_leaks():
                return await main()

        with blockbuster_ctx("headrace", excluded_modules=["headrace.testing", "headrace.demo"]) as watch:
            # The loop gives way to its writing thread on purpose, for a millisecond at the most.
            watch.functions["threading.Lock.acquire"].can_block_in("headrace/sqlite/writer.py", "give_way")
            watch.functions["threading.Lock.acquire"].can_block_in("headrace/sqlite/writer.py", "close")
            return run_real(checked, kind=loop_kind)

    return run_checked


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """Serve small documents at /n/0 …, and faults by name (`origin.url("/f/cut/mine")`); one a session.

    Its counts belong to all tests: ask under paths of your own. For seeded faults start your own with
    `Origin.start`.
    """
    with Origin.start(fast=10_000) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread running."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(2.0)
    names = sorted(thread.name for thread in left if thread.is_alive())
    assert not names, f"threads left behind: {names}"
