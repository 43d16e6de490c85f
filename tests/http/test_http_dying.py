"""A thousand kept connections that die, in both protocols: nothing is sent twice in an attempt, and all is accounted for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import headrace as hr
from headrace.errors import InDoubt
from headrace.http.client import Client
from headrace.testing.hostile import HostileServer

Run = Callable[..., Any]
CALLS = 1000
AT_ONCE = 50


async def emptied(server: HostileServer) -> None:
    """Wait until the server has noticed that nobody is there."""
    async with asyncio.timeout(30):
        while server.open:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


async def play(client: Client, urls: list[str], method: str) -> list[Any]:
    """Request all in a flow; before each request its connection has served another one."""
    fetch = hr.http.fetch(client=client, method=method)

    async def warmed(url: str) -> str:
        await client.get(
            url.partition(
                "/",
            )[0]
            + "//"
            + url.split("/")[2]
            + "/ok"
        )
        return url

    retry = hr.Retry(
        attempts=100, base=0.001, cap=0.05
    )  # a connection that dies takes many others along in HTTP/2
    flow = (
        hr.Flow(urls)
        .map(warmed, concurrency=AT_ONCE, retry=retry)
        .map(fetch, concurrency=AT_ONCE, retry=retry)
    )
    async with flow.stream() as outcomes:
        return [outcome async for outcome in outcomes]


def sent(server: HostileServer, method: str, fault: str) -> Counter[str]:
    """How often each URL of the fault was received."""
    return Counter({key: n for key, n in server.counts().items() if key.startswith(f"{method} {fault}?")})


@pytest.mark.parametrize("fault", ["/drop", "/reset", "/cut-in-head", "/partial"])
def test_gets_over_dying_connections_are_repeated_by_the_engine(run: Run, fault: str) -> None:
    """HTTP/1.1: each URL is received as often as its attempts say, and all are done."""

    async def main() -> None:
        with HostileServer() as server:
            urls = [server.url(f"{fault}?once=1&n={number}") for number in range(CALLS // 2)]
            async with Client() as client:
                outcomes = await play(client, urls, "GET")
            assert Counter(type(outcome).__name__ for outcome in outcomes) == {"Done": len(urls)}
            received = sent(server, "GET", fault)
            for outcome in outcomes:
                target = outcome.value.url.split("/", 3)[3]
                # A connection may have died before the request was written: then the server did not see that attempt.
                assert 2 <= received[f"GET /{target}"] <= outcome.value.attempts
            await emptied(server)

    run(main)


@pytest.mark.parametrize("fault", ["/drop", "/reset"])
def test_posts_over_dying_connections_are_sent_once_and_in_doubt(run: Run, fault: str) -> None:
    """HTTP/1.1: a thousand POSTs over connections that die under them; none is received twice, all are in doubt."""

    async def main() -> None:
        with HostileServer() as server:
            urls = [server.url(f"{fault}?once=1&n={number}") for number in range(CALLS)]
            async with Client() as client:
                outcomes = await play(client, urls, "POST")
            assert Counter(type(outcome).__name__ for outcome in outcomes) == {"Failed": CALLS}
            assert {type(outcome.error) for outcome in outcomes} == {InDoubt}
            received = sent(server, "POST", fault)
            assert len(received) == CALLS
            assert set(received.values()) == {1}
            await emptied(server)

    run(main)


@pytest.mark.parametrize("fault", ["/cut", "/goaway", "/refused", "/stream-error"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_http2_connections_and_streams_that_die(run: Run, fault: str, method: str) -> None:
    """HTTP/2: under a connection that ends all its open streams die. GETs are repeated; a POST is never received twice."""

    async def main() -> None:
        with HostileServer() as server:
            count = CALLS
            urls = [
                server.url(f"{fault}?once=1&n={number}" if number % 10 == 0 else f"/echo?n={number}", "h2")
                for number in range(count)
            ]
            async with Client(ca_file=server.ca_file) as client:
                outcomes = await play(client, urls, method)
            kinds = Counter(type(outcome).__name__ for outcome in outcomes)
            assert kinds.total() == count
            received = Counter(
                {key: n for key, n in server.counts().items() if key.startswith(f"{method} ") and "n=" in key}
            )
            if method == "GET":
                assert kinds == {"Done": count}
                for outcome in outcomes:
                    target = outcome.value.url.split("/", 3)[3]
                    assert 1 <= received[f"GET /{target}"] <= outcome.value.attempts
            else:
                assert kinds["Failed"] >= count // 10
                assert {type(outcome.error) for outcome in outcomes if isinstance(outcome, hr.Failed)} == {
                    InDoubt
                }
                assert set(received.values()) == {1}
            await emptied(server)

    run(main)
