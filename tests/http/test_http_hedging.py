"""Hedged requests over real sockets: the first answer counts, and the other request's connection is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from server import Request, answer, serve

import headrace as hr
from headrace.http import Client, fetch

Run = Callable[[Callable[[], Any]], Any]


@pytest.mark.parametrize("slower", [1, 2], ids=["call", "copy"])
def test_the_losers_connection_is_closed(run: Run, slower: int) -> None:
    """While the client stays open: the server sees the end of the one connection, and nothing more is asked of it."""

    async def main() -> None:
        asked = 0
        closed = asyncio.Event()
        both = asyncio.Event()

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            if request.target == "/slow":
                asked += 1
                number = asked
                if number == 2:
                    both.set()
                await both.wait()
                if number == slower:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                    # Writing to a connection that the other side has closed ends it here, too.
                    while not writer.transport.is_closing():
                        writer.write(b".")
                        await asyncio.sleep(0.001)
                    closed.set()
                    return
            writer.write(answer(request.target.encode()))

        async with serve(handler) as server, Client() as client:
            request = fetch(client=client, select=lambda response: response.text)
            urls = [server.url(f"/{number}") for number in range(40)] + [server.url("/slow")]
            async with asyncio.timeout(5):
                got = await hr.map(request, urls, hedge=0.05)
                await closed.wait()
            assert got.values[-1] == "/slow"
            assert got.report.stages[0].copies_won == (1 if slower == 1 else 0)
            assert client.statistics().in_flight == 0
            assert server.open == server.connections - 1
            assert (await client.get(server.url("/after"))).text == "/after"

    run(main)


def test_a_hedged_fetch_asks_a_real_origin_no_more_than_its_share(run: Run, origin: Any) -> None:
    """The origin counts what it was asked: the calls, and the copies that the report tells of."""

    async def main() -> Any:
        urls = [origin.url(f"/n/{number}") for number in range(400)]
        return await hr.map(fetch(), urls, concurrency=20, hedge=0.05)

    before = origin.counts()["requests"]
    got = run(main)
    assert got.report.done == 400
    stage = got.report.stages[0]
    assert stage.copies <= 20
    assert stage.attempts == 400 + stage.copies
    asked = origin.counts()["requests"] - before
    assert 400 <= asked <= 400 + stage.copies + 2  # asking for the counts is a request, too
