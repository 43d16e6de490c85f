"""Bodies that are read while they come and sent while they are made: bounded, exact, and gone when the block is left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.http.server import CLOSE, Request, always, answer, serve

import headrace as hr
from headrace.errors import PlanError
from headrace.http.client import Client
from headrace.http.errors import (
    BodyTooLarge,
    BodyTruncated,
    ClientClosed,
    RedirectRefused,
    Stalled,
    StatusError,
)
from headrace.http.profile import Timeouts

Run = Callable[..., Any]
MEGABYTE = b"x" * (1 << 20)


def _drop(kept: list[Any]) -> None:
    kept.clear()
    gc.collect()


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that the other side is about to notice."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def chunked(*chunks: bytes, end: bool = True) -> bytes:
    """Write chunks as HTTP/1.1 does."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + (
        b"0\r\n\r\n" if end else b""
    )


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Kind: log\r\n\r\n"


# ------------------------------------------------------------------------------------------------ reading


def test_chunks_come_as_they_are_sent(run: Run) -> None:
    """The block begins with the head, before any of the body; each piece is there when it was sent."""
    more = asyncio.Event()

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        writer.write(HEAD)
        for piece in (b"one", b"two"):
            await more.wait()
            more.clear()
            writer.write(chunked(piece, end=False))
        writer.write(b"0\r\n\r\n")
        return None

    async def main() -> None:
        async with serve(handler) as server, Client() as client:
            url = server.url("/log")
            async with client.stream("GET", url) as response:
                assert (response.status, response.headers["x-kind"], response.url) == (200, "log", url)
                more.set()
                seen = []
                async for chunk in response:
                    seen.append(chunk)
                    more.set()
                assert seen == [b"one", b"two"]
                assert response.is_closed
            assert client.statistics().connections == 1

    run(main)


def test_connection_is_kept_after_a_body_read_to_its_end(run: Run) -> None:
    """Ten streams read to their ends use one connection."""

    async def main() -> None:
        async with serve(always(answer(b"all of it"))) as server, Client() as client:
            for _ in range(10):
                async with client.stream("GET", server.url()) as response:
                    assert await response.read() == b"all of it"
            assert server.connections == 1
            assert client.statistics().bytes_received == 90

    run(main)


def test_reader_that_is_behind_stops_the_server(run: Run) -> None:
    """A body of 64 MB that nobody reads stays with the server, is no stall, and comes whole when it is read."""
    written = 0

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        nonlocal written
        writer.write(answer(b"", length=64 << 20))
        for _ in range(64):
            writer.write(MEGABYTE)
            await writer.drain()
            written += 1
        return None

    async def main() -> None:
        limits = Timeouts(stall=0.2)
        async with (
            serve(handler) as server,
            Client(timeouts=limits) as client,
            client.stream("GET", server.url()) as response,
        ):
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.5)
            assert written < 40  # what the sockets hold, and a megabyte here
            size = 0
            async for chunk in response:
                size += len(chunk)
            assert size == 64 << 20

    run(main)


@pytest.mark.parametrize("how", ["leave", "raise", "cancel", "drop"])
def test_leaving_closes_the_connection_at_once(run: Run, how: str) -> None:
    """Whatever ends the block in mid-body, no connection is left open, and the client works on."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        if request.target == "/short":
            writer.write(answer(b"ok"))
            return None
        writer.write(HEAD + chunked(b"first", end=False))
        await asyncio.sleep(60)
        return None

    async def leave(client: Any, url: str) -> None:
        async with client.stream("GET", url) as response:
            async for _ in response:
                if how == "raise":
                    raise KeyError("mine")
                if how != "cancel":
                    break

    async def main() -> None:
        async with serve(handler) as server, Client() as client:
            url = server.url("/endless")
            if how == "drop":
                call = client.stream("GET", url)
                response = await call.__aenter__()
                assert await response.some() == [b"first"]
                kept = [call, response]
                del call, response
                with pytest.warns(ResourceWarning, match="not closed"):
                    _drop(kept)
            elif how == "raise":
                with pytest.raises(KeyError):
                    await leave(client, url)
            elif how == "cancel":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await leave(client, url)
            else:
                await leave(client, url)
            await until(lambda: client.statistics().in_flight == 0)
            assert (await client.get(server.url("/short"))).body == b"ok"
            assert server.connections == 2

    run(main)


def test_failure_in_mid_body_comes_after_what_had_arrived(run: Run) -> None:
    """Chunks before the break are given; then the transfer's own error is raised, once."""

    async def main() -> None:
        async with (
            serve(always(answer(b"half", length=100), then=CLOSE)) as server,
            Client() as client,
            client.stream("GET", server.url()) as response,
        ):
            assert await response.some() == [b"half"]
            with pytest.raises(BodyTruncated) as caught:
                await response.some()
            assert caught.value.phase == "body"
            assert await response.some() == []

    run(main)


def test_refused_status_keeps_evidence_and_accepted_one_is_an_answer(run: Run) -> None:
    """A status that is not accepted is a StatusError with the beginning of the body."""

    async def main() -> None:
        async with serve(always(answer(b"z" * 9000, "404 Not Found"))) as server, Client() as client:
            with pytest.raises(StatusError) as caught:
                async with client.stream("GET", server.url()):
                    pass
            assert (caught.value.status, caught.value.body) == (404, b"z" * 4096)
            async with client.stream("GET", server.url(), accept="2xx,404") as response:
                assert await response.read() == b"z" * 9000

    run(main)


def test_redirects_are_followed_to_the_stream(run: Run) -> None:
    """The block begins at the last answer."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        if request.target == "/a":
            writer.write(answer(b"moved", "302 Found", "Location: /b\r\n"))
        else:
            writer.write(answer(b"here"))
        return None

    async def main() -> None:
        async with (
            serve(handler) as server,
            Client() as client,
            client.stream("GET", server.url("/a")) as response,
        ):
            assert (response.final_url, response.redirects) == (server.url("/b"), 1)
            assert await response.read() == b"here"

    run(main)


def test_max_body_caps_a_stream(run: Run) -> None:
    """A stream has no cap, unless one is given; what passes it is an error."""

    async def main() -> None:
        async with serve(always(answer(b"z" * 100))) as server, Client(max_body=10) as client:
            async with client.stream("GET", server.url()) as response:
                assert len(await response.read()) == 100
            with pytest.raises(BodyTooLarge):
                async with client.stream("GET", server.url(), max_body=99) as response:
                    await response.read()

    run(main)


def test_limits_are_held_until_the_block_ends(run: Run) -> None:
    """With a concurrency of one, the second stream begins when the first has ended."""

    async def main() -> None:
        limit = hr.Limit(concurrency=1)
        async with serve(always(answer(b"ok"))) as server, Client(limits=[limit]) as client:
            inside = 0

            async def one() -> None:
                nonlocal inside
                async with client.stream("GET", server.url()) as response:
                    inside += 1
                    assert inside == 1
                    await response.read()
                    await asyncio.sleep(0.01)
                    inside -= 1

            await asyncio.gather(*(one() for _ in range(5)))

    run(main)


def test_closing_the_client_ends_its_streams(run: Run) -> None:
    """A stream whose client closes raises ClientClosed."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        writer.write(HEAD + chunked(b"first", end=False))
        await asyncio.sleep(60)
        return None

    async def main() -> None:
        async with serve(handler) as server:
            client = Client()
            async with client.stream("GET", server.url()) as response:
                assert await response.some() == [b"first"]
                await client.aclose()
                with pytest.raises(ClientClosed):
                    await response.some()

    run(main)


# ------------------------------------------------------------------------------------------------ sending


async def _pieces() -> AsyncIterator[bytes]:
    for number in range(5):
        await asyncio.sleep(0)
        yield b"%d" % number * 100_000


def _list() -> Iterator[bytes]:
    yield from (b"a" * 10, b"", bytearray(b"b" * 10), memoryview(b"c" * 10))  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["async", "sync", "file", "one large piece"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_bodies_are_sent_while_they_are_made(run: Run, tmp_path: Path, kind: str, method: str) -> None:
    """Iterables go out chunked, a file with its length; the server gets every byte, and the method."""
    file = tmp_path / "upload"
    file.write_bytes(MEGABYTE + b"end")
    body, expected = {
        "async": (_pieces(), b"".join(b"%d" % number * 100_000 for number in range(5))),
        "sync": (_list(), b"a" * 10 + b"b" * 10 + b"c" * 10),
        "file": (file, MEGABYTE + b"end"),
        "one large piece": ([MEGABYTE * 3], MEGABYTE * 3),
    }[kind]

    async def main() -> None:
        async with serve(always(answer(b"thanks"))) as server, Client() as client:
            response = await client.request(method, server.url(), body=body, item=7)
            assert (response.body, response.item) == (b"thanks", 7)
            [request] = server.requests
            assert (request.method, request.body) == (method, expected)
            assert request.headers.get("content-length") == (str(len(expected)) if kind == "file" else None)

    run(main)


def test_error_of_a_body_ends_the_request(run: Run) -> None:
    """What the iterable raises is what the call raises; the connection is closed with half a request on it."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ZeroDivisionError

    async def main() -> None:
        async with serve(always(answer(b"ok"))) as server, Client() as client:
            with pytest.raises(ZeroDivisionError):
                await client.post(server.url(), body=broken())
            with pytest.raises(PlanError, match="must give bytes, not str"):
                await client.post(server.url(), body=["text"])
            with pytest.raises(PlanError, match="cannot be read: No such file"):
                await client.post(server.url(), body=Path("/nowhere/at/all"))
            assert server.requests == []
            assert (await client.post(server.url(), body=b"whole")).status == 200

    run(main)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_redirect_repeats_a_file_but_not_a_stream(run: Run, tmp_path: Path, kind: str) -> None:
    """307 asks for the body again: a file is read again; a stream is gone, which is said."""
    file = tmp_path / "upload"
    file.write_bytes(b"contents")

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        if request.target == "/a":
            writer.write(answer(b"", "307 Temporary Redirect", "Location: /b\r\n"))
        else:
            writer.write(answer(request.body))
        return None

    async def main() -> None:
        async with serve(handler) as server, Client() as client:
            if kind == "file":
                assert (await client.post(server.url("/a"), body=file)).body == b"contents"
            else:
                with pytest.raises(RedirectRefused, match="could be read once only"):
                    await client.post(server.url("/a"), body=_pieces())

    run(main)


def test_upload_that_the_server_does_not_take_stalls(run: Run) -> None:
    """A server that stops reading in mid-body fails the call within the stall limit, in the phase «send»."""

    over = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await over.wait()
        writer.transport.abort()

    async def main() -> None:
        listener = await asyncio.start_server(deaf, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener, Client(timeouts=Timeouts(stall=0.3)) as client:
            with pytest.raises(Stalled, match="taken in") as caught:
                await client.post(f"http://127.0.0.1:{port}/", body=[MEGABYTE] * 64)
            assert (caught.value.phase, caught.value.ambiguous) == ("send", True)
            over.set()
            await asyncio.sleep(0.01)

    run(main)


def test_waiting_for_the_rest_of_a_body_is_no_stall(run: Run) -> None:
    """A body that its maker takes long over is not the server's fault."""

    async def slow() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(0.7)
        yield b"second"

    async def main() -> None:
        limits = Timeouts(stall=0.2, first_byte=0.2)
        async with serve(always(answer(b"ok"))) as server, Client(timeouts=limits) as client:
            assert (await client.post(server.url(), body=slow())).body == b"ok"
            assert server.requests[0].body == b"firstsecond"

    run(main)
