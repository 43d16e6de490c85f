"""`no_leaks` finds what stays, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

from headrace.testing import no_leaks, run


def test_what_is_closed_is_no_leak():
    """Threads that ended, closed sockets and children that were waited for pass."""
    with no_leaks():
        thread = threading.Thread(target=lambda: None)
        thread.start()
        socket.socket().close()
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_a_thread_that_is_just_ending_gets_its_grace():
    """A thread that ends within the grace is no leak."""
    with no_leaks():
        threading.Timer(0.02, lambda: None).start()


def test_a_thread_left_behind_is_named():
    """A thread that stays is a leak, unless so many were allowed."""
    stop = threading.Event()
    threads = []

    def leave_one():
        threads.append(threading.Thread(target=stop.wait, name="left over"))
        threads[-1].start()

    try:
        with pytest.raises(AssertionError, match="thread left over"), no_leaks(grace=0.01):
            leave_one()
        with no_leaks(grace=0.01, threads=1):
            leave_one()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_an_open_socket_is_named():
    """A descriptor that stays open is a leak, with its number and what it is."""
    opened = []
    with pytest.raises(AssertionError, match=r"descriptor \d+ -> "), no_leaks():
        opened.append(socket.socket())
    opened[0].close()


def test_a_descriptor_number_used_again_is_seen():
    """A descriptor that replaces another of the same number is a leak as well."""
    first = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(AssertionError, match=f"descriptor {first} -> /dev/zero"), no_leaks():  # noqa: PT012
        os.close(first)
        assert os.open("/dev/zero", os.O_RDONLY) == first
    os.close(first)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="the system does not list children")
def test_a_child_process_is_named():
    """A child that was not waited for is a leak, even when it has ended."""
    children = []
    with pytest.raises(AssertionError) as caught, no_leaks():
        children.append(subprocess.Popen([sys.executable, "-c", ""]))
    children[0].wait()
    assert re.search(f"child process {children[0].pid}", str(caught.value))


def test_a_task_left_behind_is_named_with_its_place():
    """Inside a loop, a task that was started in the block and has not ended is a leak."""

    async def stay():
        await asyncio.sleep(60)

    async def main():
        earlier = asyncio.get_running_loop().create_task(stay())
        with no_leaks():
            await asyncio.get_running_loop().create_task(asyncio.sleep(1))
        with pytest.raises(AssertionError, match=r"task forgotten: .* in .*stay"), no_leaks():  # noqa: PT012
            later = asyncio.get_running_loop().create_task(stay(), name="forgotten")
            await asyncio.sleep(0)
        for task in (earlier, later):
            task.cancel()
        await asyncio.wait({earlier, later})

    run(main)


def test_an_error_in_the_block_comes_out_as_it_is():
    """What the block raises is not covered by what it left behind."""
    opened = []
    with pytest.raises(KeyError), no_leaks():  # noqa: PT012
        opened.append(socket.socket())
        raise KeyError
    opened[0].close()
