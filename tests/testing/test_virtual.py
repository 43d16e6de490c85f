"""The virtual loop: time that jumps, work outside that holds it, and a deadlock that says who waits."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from headrace.testing import DeadlockError, VirtualLoop, loop_factory, run, run_real


def virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_waits_cost_no_time_and_timers_fire_in_order():
    """An hour of sleeping ends at once, at exactly its virtual second, and the shorter sleep ends first."""
    ended = []

    async def sleep(seconds):
        await asyncio.sleep(seconds)
        ended.append((seconds, asyncio.get_running_loop().time()))

    async def main():
        await asyncio.gather(*(sleep(seconds) for seconds in (3600, 0.1, 60)))

    began = time.perf_counter()
    run(main)
    assert ended == [(0.1, 0.1), (60, 60.0), (3600, 3600.0)]
    assert time.perf_counter() - began < 5


def test_a_timeout_fires_in_virtual_time():
    """`asyncio.timeout(60)` around an endless wait ends it at second 60."""

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main) == 60.0


def test_a_busy_program_never_jumps():
    """While anything can run, time stands still, whatever timers there are."""

    async def main():
        asyncio.get_running_loop().call_later(1.0, lambda: None)
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run(main) == 0.0


def test_jobs_of_the_executor_hold_time_still():
    """A real job in a thread does not trip a virtual time limit, however long it takes."""
    go = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        threading.Timer(0.05, go.set).start()
        async with asyncio.timeout(0.001):
            assert await loop.run_in_executor(None, go.wait, 10)
        return loop.time()

    assert run(main) == 0.0


def test_a_thread_that_says_it_is_outside_holds_time_still():
    """A thread of one's own inside `outside()` is waited for, and time goes on after it."""

    async def main():
        loop = virtual_loop()
        entered = threading.Event()
        result = loop.create_future()

        def work():
            with loop.outside():
                entered.set()
                done.wait(0.05)
                loop.call_soon_threadsafe(result.set_result, "answer")

        done = threading.Event()
        thread = threading.Thread(target=work)
        thread.start()
        entered.wait()
        async with asyncio.timeout(0.001):
            assert await result == "answer"
        thread.join()
        await asyncio.sleep(7)
        return loop.time()

    assert run(main) == 7.0


def test_leaving_outside_lets_a_waiting_loop_go_on():
    """A loop that waits for work outside jumps on as soon as that ends, though nothing was called back."""

    async def main():
        loop = virtual_loop()
        entered, leave = threading.Event(), threading.Event()

        def work():
            with loop.outside():
                entered.set()
                leave.wait(10)

        thread = threading.Thread(target=work)
        thread.start()
        entered.wait()
        threading.Timer(0.02, leave.set).start()
        await asyncio.sleep(5)
        thread.join()
        return loop.time()

    began = time.perf_counter()
    assert run(main) == 5.0
    assert time.perf_counter() - began < 5


def test_sockets_on_loopback_work():
    """A server and a client on one virtual loop talk within a virtual time limit of a millisecond."""

    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with asyncio.timeout(0.001):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return answer

    assert run(main) == b"hello\n"


def test_idle_sockets_and_threads_do_not_slow_a_long_program():
    """An idle listening socket costs a short grace, not the full one at each of thousands of timers."""

    async def main():
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        for _ in range(3000):
            await asyncio.sleep(1)
        server.close()
        await server.wait_closed()

    began = time.perf_counter()
    run(main)
    assert time.perf_counter() - began < 5  # the full grace would be 15 s


def test_a_deadlock_is_an_error_that_names_tasks_and_places():
    """Where nothing can happen any more, the error lists every task, down to the place that it waits at."""

    async def wait_for_ever():
        await asyncio.Event().wait()

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_for_ever(), name="the one that waits")

    with pytest.raises(DeadlockError) as caught:
        run(main)
    text = str(caught.value)
    assert "2 tasks wait" in text
    assert "the one that waits" in text
    assert "in test_a_deadlock_is_an_error_that_names_tasks_and_places.<locals>.wait_for_ever" in text
    assert "in Event.wait" in text


def test_outside_work_that_never_ends_is_a_deadlock_too():
    """`patience` bounds the real wait for work outside."""

    async def main():
        with virtual_loop().outside():
            await asyncio.sleep(1)

    with pytest.raises(DeadlockError, match=r"1 pieces of work outside in 0\.01 s"):
        run(main, patience=0.01)


def test_the_same_seed_gives_the_same_draws_and_leaves_no_trace():
    """With `seed`, `random` repeats itself in the run and is afterwards as it was before."""

    async def draw():
        return [random.random() for _ in range(3)]

    before = random.getstate()
    assert run(draw, seed=5) == run(draw, seed=5) != run(draw, seed=6)
    assert random.getstate() == before


def test_errors_come_out_and_coroutines_are_taken_as_well():
    """`run` takes a coroutine or a function, and raises what it raises."""

    async def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(fail())
    with pytest.raises(KeyError, match="mine"):
        run_real(fail)


def test_ten_thousand_tasks_are_cheap():
    """100 000 timers in 10 000 tasks take seconds, not hours."""

    async def wait_often():
        for _ in range(10):
            await asyncio.sleep(random.random())

    async def main():
        async with asyncio.TaskGroup() as group:
            for _ in range(10_000):
                group.create_task(wait_often())
        return asyncio.get_running_loop().time()

    assert 5 < run(main, seed=1) < 10


def test_real_loops_are_what_they_say(loop_kind):
    """`run_real` runs on asyncio's own loop or on uvloop, as asked."""

    async def main():
        return type(asyncio.get_running_loop()).__module__

    assert run_real(main, kind=loop_kind).startswith(loop_kind)
    with pytest.raises(ValueError, match="unknown kind of loop 'trio'"):
        loop_factory("trio")
