"""Adaptive limits around real requests: what answers teach, hop by hop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from server import Request, answer, serve

import headrace as hr
from headrace.http import Client, HttpError, fetch, host
from headrace.policies.adaptive import Adaptive
from headrace.policies.limits import Limit

Run = Callable[..., Any]


async def respond(request: Request, writer: asyncio.StreamWriter) -> None:
    """Answer with the status that stands in the path."""
    writer.write(answer(b"ok", f"{request.target[1:]} X"))


def put(limit: Limit, key: str, level: int) -> None:
    """Let a key stand at a level."""
    state = limit._states.get(key) or limit._new_state(key)
    assert state.adaptive is not None
    state.adaptive.level = float(level)
    state.capacity = level


def level(limit: Limit, key: str) -> int | None:
    return {each.key: each.level for each in limit.busiest(100)}.get(key)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "raised"), (404, "raised"), (500, "left"), (429, "lowered"), (503, "lowered")],
    ids=lambda value: str(value),
)
def test_answers_teach_the_limit_of_a_bare_client(run: Run, status: int, expected: str) -> None:
    """An answer raises the level, if only a 404; 500 says nothing; 429 and 503 lower it."""
    limit = Limit(concurrency=Adaptive(1, 8), by=host)

    async def main() -> None:
        async with serve(respond) as server, Client(limits=[limit]) as client:
            put(limit, host(server.url("/")), 4)
            calls = [client.get(server.url(f"/{status}")) for _ in range(4)]
            for got in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(got, HttpError) == (status != 200)
            after = level(limit, host(server.url("/"))) or 0
            assert ("raised" if after > 4 else "lowered" if after < 4 else "left") == expected
            assert limit.statistics().running == 0

    run(main)


def test_a_connection_that_is_refused_lowers_the_level(run: Run) -> None:
    """A port where nobody listens is overload, in a flow too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    limit = Limit(concurrency=Adaptive(1, 8), by=host)
    put(limit, host(url), 6)

    async def main() -> None:
        got = await hr.map(fetch(limits=[limit]), [url], retry=hr.Retry(attempts=1))
        assert got.report.failed == 1
        assert level(limit, host(url)) == 4

    run(main)


def test_a_redirect_is_a_success_of_its_host(run: Run) -> None:
    """Both hosts learn from a redirect from one to the other: the first that it answered, the second how it ended."""
    limit = Limit(concurrency=Adaptive(1, 8), by=host)

    async def main() -> None:
        async with serve(respond) as inner:

            async def redirect(request: Request, writer: asyncio.StreamWriter) -> None:
                writer.write(answer(b"", "302 Found", f"Location: {inner.url('/503')}\r\n"))

            async with serve(redirect) as door:
                put(limit, host(inner.url("/")), 6)
                got = await hr.map(fetch(limits=[limit]), [door.url("/")], retry=hr.Retry(attempts=1))
                assert got.report.failed == 1
                assert level(limit, host(door.url("/"))) == 2
                assert level(limit, host(inner.url("/"))) == 4

    run(main)
