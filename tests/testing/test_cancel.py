"""The driver that cancels everywhere counts rightly, finds the classic mistakes, lets correct code pass."""

from __future__ import annotations

import asyncio
import sys

import pytest

from headrace.testing import DeadlockError, cancel_everywhere, count_await_points, run_real


async def child(seconds=1.0):
    await asyncio.sleep(seconds)
    return "child"


def start(coroutine):
    return asyncio.get_running_loop().create_task(coroutine)


async def careful():
    """Own a task, and wait for its end whatever happens."""
    task = start(child())
    try:
        return await task
    finally:
        task.cancel()
        await asyncio.wait({task})


def test_await_points_of_all_tasks_are_counted():
    """Every suspension counts, those of the job's tasks too; an await that does not suspend does not."""

    async def straight():
        await asyncio.sleep(0)
        await asyncio.sleep(1)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        await done  # does not suspend

    assert count_await_points(straight) == 2
    assert count_await_points(careful) == 3  # the job twice: for its child, and in `wait`; the child once


def test_correct_code_passes_at_every_point():
    """A job that owns its tasks and lets CancelledError out passes, cancelled once and twice."""

    async def owned():
        async with asyncio.timeout(60):
            await asyncio.sleep(1)
        await asyncio.sleep(0)

    assert cancel_everywhere(careful) == 3
    assert cancel_everywhere(owned, times=2) == 2


def test_the_check_sees_every_ending():
    """`check` gets the run without a cancel first, then one ending for each point and moment."""
    endings = []
    points = cancel_everywhere(careful, endings.append)
    assert [(e.point, e.moment) for e in endings[:3]] == [(0, "waiting"), (1, "waiting"), (1, "ready")]
    assert len(endings) == 1 + 2 * points
    assert endings[0].value == "child"
    assert not endings[0].cancelled
    assert all(e.cancelled for e in endings[1:] if e.delivered)


def test_a_swallowed_cancellation_is_found():
    """A job that returns though it was cancelled fails the check, with the point named."""

    async def swallow():
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            return "as if nothing had happened"

    with pytest.raises(AssertionError, match="returned 'as if nothing had happened'") as caught:
        cancel_everywhere(swallow)
    assert "await point 1 (waiting)" in caught.value.__notes__[0]


def test_a_task_left_behind_is_found():
    """`asyncio.shield` leaves its task running when the job is cancelled; the message says where."""

    async def shield():
        await asyncio.shield(start(child()))

    with pytest.raises(AssertionError, match=r"(?s)1 tasks left behind.*in child"):
        cancel_everywhere(shield)


def test_the_second_cancel_comes_during_clean_up():
    """Clean-up that one cancel does not disturb is cut short by the second, and that is seen."""
    cleaned = []

    async def fragile():
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    def check(ending):
        if ending.point == 1:
            assert cleaned, "not cleaned up"
        cleaned.clear()

    cancel_everywhere(fragile, check)
    with pytest.raises(AssertionError, match="not cleaned up"):
        cancel_everywhere(fragile, check, times=2)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="mended in Python 3.12")
def test_the_moment_ready_finds_the_race_that_wait_for_loses():
    """`asyncio.wait_for` of 3.11 drops a cancel that comes with the result; only «ready» finds it."""

    async def wait_for():
        await asyncio.wait_for(child(), 5)  # noqa: TID251 - it is what is tested

    cancel_everywhere(wait_for, moments=["waiting"])
    with pytest.raises(AssertionError, match="the job was cancelled, but returned"):
        cancel_everywhere(wait_for, moments=["ready"])


def test_it_works_on_real_loops(loop_kind):
    """The driver does not depend on virtual time."""

    async def quick():
        task = start(child(0.001))
        try:
            await task
        finally:
            task.cancel()
            await asyncio.wait({task})

    assert cancel_everywhere(quick, runner=lambda main: run_real(main, kind=loop_kind)) == 3


def test_what_the_job_raises_by_itself_comes_out():
    """A job that fails without any cancel is not tried further."""

    async def broken():
        await asyncio.sleep(0)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        cancel_everywhere(broken)


def test_a_job_that_hangs_when_it_is_cancelled_is_found():
    """A job whose clean-up waits for what will not come is a deadlock, and the point is named."""

    async def hang():
        gate = asyncio.get_running_loop().create_future()
        try:
            await asyncio.sleep(1)
            gate.set_result(None)
        finally:
            await gate

    with pytest.raises(DeadlockError, match=r"in .*hang") as caught:
        cancel_everywhere(hang)
    assert "await point 1 (waiting)" in caught.value.__notes__[0]
