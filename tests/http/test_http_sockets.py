"""Watching libcurl's sockets: by an epoll of our own, and by the loop where there is none."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Any

import pycurl
import pytest

import headrace as hr
from headrace.demo.origin import Origin
from headrace.http import transfer
from headrace.http.sockets import EpollSockets, LoopSockets

KINDS = [
    pytest.param(EpollSockets, marks=pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll")),
    LoopSockets,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_is_told_of_when_it_is_ready_for_what_was_asked(
    kind: Any, run: Callable[[Any], Any]
) -> None:
    """Readable, writable, both, and no more: each is told as it was asked for last, and closing forgets all."""

    async def main() -> None:
        told: list[tuple[int, int]] = []
        sockets = kind(asyncio.get_running_loop(), lambda fd, mask: told.append((fd, mask)))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = ours.fileno()
            sockets.watch(fd, pycurl.POLL_IN)
            await asyncio.sleep(0.01)
            assert told == []
            theirs.send(b"x")
            await asyncio.sleep(0.01)
            assert set(told) == {(fd, pycurl.CSELECT_IN)}
            sockets.watch(fd, pycurl.POLL_OUT)
            told.clear()
            await asyncio.sleep(0.01)
            assert set(told) == {(fd, pycurl.CSELECT_OUT)}
            sockets.watch(fd, pycurl.POLL_INOUT)
            told.clear()
            await asyncio.sleep(0.01)
            assert {mask for _, mask in told} <= {1, 2, 3}
            assert sum({mask for _, mask in told}) >= 3
            sockets.watch(fd, 0)
            told.clear()
            await asyncio.sleep(0.01)
            assert told == []
            assert sockets.watched == {}
            sockets.watch(fd, pycurl.POLL_OUT)
            sockets.close()
            sockets.close()
            told.clear()
            await asyncio.sleep(0.01)
            assert told == []

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_used_again_is_a_new_socket(kind: Any, run: Callable[[Any], Any]) -> None:
    """A socket that was let go of and closed leaves nothing that the next one of its number could meet."""

    async def main() -> None:
        told: list[int] = []
        sockets = kind(asyncio.get_running_loop(), lambda fd, mask: told.append(fd))
        for _ in range(5):
            ours, theirs = socket.socketpair()
            fd = ours.fileno()
            sockets.watch(fd, pycurl.POLL_IN)
            theirs.send(b"x")
            await asyncio.sleep(0.005)
            assert set(told) == {fd}
            sockets.watch(fd, 0)
            ours.close()
            theirs.close()
            told.clear()
            await asyncio.sleep(0.005)
            assert told == []
        sockets.close()

    run(main)


def test_requests_go_through_a_loop_that_watches_each_socket(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, loop_kind: str, run: Callable[[Any], Any]
) -> None:
    """Where there is no epoll, answers, faults and cancellations are the same."""
    monkeypatch.setattr(transfer, "watch_sockets", LoopSockets)

    async def main() -> None:
        async with hr.http.Client() as client:
            urls = [origin.url(f"/n/{number}") for number in range(200)]
            got = await hr.map(client.get, urls, concurrency=20)
            assert [response.status for response in got.values] == [200] * 200
            with pytest.raises(hr.CallError):
                await client.get(origin.url(f"/f/reset/sockets-{loop_kind}"))
            task = asyncio.create_task(client.get(origin.url(f"/f/stall/sockets-{loop_kind}")))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)
