"""Each way to fail, over real sockets: one class each, with what it says about a repetition."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from server import CLOSE, RESET, Request, always, answer, serve

from headrace.errors import CallError, Disposition, TimedOut
from headrace.http import (
    BadResponse,
    BodyTooLarge,
    BodyTruncated,
    Client,
    ClientClosed,
    ConnectFailed,
    ConnectionLost,
    ConnectTimedOut,
    FirstByteTimedOut,
    HttpError,
    InvalidUrl,
    ResolveFailed,
    Resolver,
    Stalled,
    StatusError,
    Timeouts,
    TooManyRedirects,
    TotalTimedOut,
)

Run = Callable[[Callable[[], Any]], Any]


async def failure(client: Client, url: str, method: str = "GET", **options: Any) -> HttpError:
    """Make a request that must fail."""
    with pytest.raises(HttpError) as caught:
        await client.request(method, url, **options)
    return caught.value


async def _hang(request: Request, writer: asyncio.StreamWriter) -> str | None:
    await asyncio.Event().wait()
    return None


async def _slow_body(request: Request, writer: asyncio.StreamWriter) -> str | None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not writer.transport.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.01)
    return CLOSE


WIRE = {
    "truncated body": (answer(b"half", length=9), CLOSE, BodyTruncated, "body"),
    "truncated chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        CLOSE,
        BodyTruncated,
        "body",
    ),
    "bad chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab",
        CLOSE,
        BadResponse,
        "body",
    ),
    "not http": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", CLOSE, BadResponse, "first byte"),
    "bad gzip": (answer(b"not gzip at all", headers="Content-Encoding: gzip\r\n"), None, BadResponse, "body"),
    "no answer": (b"", CLOSE, ConnectionLost, "first byte"),
    "reset before the answer": (b"", RESET, ConnectionLost, "first byte"),
    "reset in the body": (answer(b"half", length=9), RESET, ConnectionLost, "body"),
    "half a head": (b"HTTP/1.1 200 OK\r\nX: y", CLOSE, ConnectionLost, "first byte"),
    "endless headers": (
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(400)) + b"\r\n",
        CLOSE,
        BodyTooLarge,
        "first byte",
    ),
}


@pytest.mark.parametrize("name", WIRE)
def test_broken_answers(run: Run, name: str) -> None:
    """What breaks after the request went out is ambiguous, has its own class, and names phase and host."""
    data, then, kind, phase = WIRE[name]

    async def main() -> None:
        async with serve(always(data, then)) as server, Client() as client:
            error = await failure(client, server.url("/x?token=hush"))
            assert type(error) is kind, repr(error)
            assert error.ambiguous
            assert error.host == f"127.0.0.1:{server.port}"
            assert "hush" not in f"{error!r}{error.url}{error.__cause__!r}"
            assert 0 < error.elapsed < 5
            assert error.phase == phase or name == "half a head", (error.phase, str(error))
            if kind in (BodyTruncated, ConnectionLost):
                assert error.disposition is Disposition.TRANSIENT

    run(main)


def test_connection_refused(run: Run) -> None:
    """Nobody listens: transient, and nothing was sent, so that even a POST may be repeated."""

    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            async with Client() as client:
                error = await failure(
                    client, f"http://127.0.0.1:{taken.getsockname()[1]}/", "POST", body=b"x"
                )
        assert type(error) is ConnectFailed
        assert (error.phase, error.ambiguous, error.disposition) == ("connect", False, Disposition.TRANSIENT)

    run(main)


def test_connect_timeout(run: Run) -> None:
    """A host that does not take connections ends at the connect limit, and nothing was sent."""

    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = []
            for _ in range(4):  # fill the queue, so that the next SYN is not answered
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
                fillers.append(filler)
            async with Client(timeouts=Timeouts(connect=0.2)) as client:
                error = await failure(client, f"http://127.0.0.1:{full.getsockname()[1]}/", "POST", body=b"x")
            for filler in fillers:
                filler.close()
        assert type(error) is ConnectTimedOut, repr(error)
        assert isinstance(error, TimedOut)
        assert (error.phase, error.ambiguous) == ("connect", False)

    run(main)


def test_first_byte_timeout(run: Run) -> None:
    """A server that takes the request and stays silent ends at the first-byte limit."""

    async def main() -> None:
        async with serve(_hang) as server, Client(timeouts=Timeouts(first_byte=0.15)) as client:
            error = await failure(client, server.url())
            assert type(error) is FirstByteTimedOut
            assert isinstance(error, TimeoutError)
            assert (error.phase, error.ambiguous) == ("first byte", True)
            assert 0.1 < error.elapsed < 1

    run(main)


def test_stall(run: Run) -> None:
    """A body that trickles byte by byte ends at the stall limit, though it never stands still."""

    async def main() -> None:
        limits = Timeouts(stall=10.0)
        async with serve(_slow_body) as server, Client(timeouts=limits) as client:
            error = await failure(client, server.url(), timeouts=Timeouts(stall=0.2, first_byte=5.0))
            assert type(error) is Stalled, repr(error)
            assert error.phase == "body"

    # 32 bytes a second is the least rate; the trickle has up to 100.
    from headrace.http import watch

    before, watch.LEAST_RATE = watch.LEAST_RATE, 1000  # type: ignore[misc]
    try:
        run(main)
    finally:
        watch.LEAST_RATE = before  # type: ignore[misc]


def test_long_first_byte_is_no_stall(run: Run) -> None:
    """The wait for the first byte has its own limit: it may be longer than the stall limit."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(answer(b"late"))

    async def main() -> None:
        async with serve(handler) as server, Client(timeouts=Timeouts(first_byte=5, stall=0.1)) as client:
            assert (await client.get(server.url())).body == b"late"

    run(main)


def test_total_timeout(run: Run) -> None:
    """The total limit ends what never stalls, and says what it was doing."""

    async def main() -> None:
        async with serve(_slow_body) as server, Client(timeouts=Timeouts(total=0.2, stall=None)) as client:
            error = await failure(client, server.url())
            assert type(error) is TotalTimedOut
            assert (error.phase, error.ambiguous) == ("body", True)

    run(main)


def test_total_covers_redirects(run: Run) -> None:
    """Redirects share one total limit."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.08)
        writer.write(answer(b"", "302 Found", "Location: /again\r\n"))

    async def main() -> None:
        async with serve(handler) as server, Client(timeouts=Timeouts(total=0.3)) as client:
            error = await failure(client, server.url())
            assert type(error) is TotalTimedOut, repr(error)
            assert 0.2 < error.elapsed < 0.6
            server.handler = always(answer(b"fine"))
            assert (await client.get(server.url())).body == b"fine"  # the limit is whole again

    run(main)


def test_no_limits(run: Run) -> None:
    """None switches a limit off."""

    async def main() -> None:
        off = Timeouts(resolve=None, connect=None, first_byte=None, stall=None, total=None)
        async with serve(always(answer(b"ok"))) as server, Client(timeouts=off) as client:
            assert (await client.get(server.url())).status == 200

    run(main)


def _bomb(size: int) -> bytes:
    """Make a gzip body that decodes to `size` zero bytes."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 20)
    return b"".join(squeeze.compress(block) for _ in range(size >> 20)) + squeeze.flush()


def test_decompression_bomb(run: Run) -> None:
    """The cap counts decoded bytes, and stops a bomb there: nobody holds what it decodes to."""
    body = _bomb(64 << 20)
    assert len(body) < 100_000

    async def main() -> None:
        data = answer(body, headers="Content-Encoding: gzip\r\n")
        async with serve(always(data)) as server, Client(max_body=1 << 20) as client:
            error = await failure(client, server.url())
            assert type(error) is BodyTooLarge
            assert error.disposition is Disposition.PERMANENT
            assert str(1 << 20) in str(error)
            small = answer(gzip.compress(b"fine"), headers="Content-Encoding: gzip\r\n")
            server.handler = always(small)
            assert (await client.get(server.url())).body == b"fine"
            server.handler = always(answer(b"x" * (1 << 20)))
            assert (await client.get(server.url())).nbytes == 1 << 20  # exactly at the cap
            assert (await failure(client, server.url(), max_body=10)).phase == "body"
            assert (await client.get(server.url(), max_body=None)).nbytes == 1 << 20

    run(main)


def test_statuses(run: Run) -> None:
    """A status outside accept= is a StatusError; accept="any" takes everything."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        code = request.target.strip("/")
        writer.write(answer(b"sorry", f"{code} X", "Retry-After: 3\r\n"))

    async def main() -> None:
        async with serve(handler) as server, Client() as client:
            error = await failure(client, server.url("/429"))
            assert isinstance(error, StatusError)
            assert (error.status, error.retry_after, error.hold, error.ambiguous) == (429, 3.0, True, False)
            assert error.body == b"sorry"
            assert (await client.get(server.url("/404"), accept="2xx,404")).status == 404
            assert (await client.get(server.url("/503"), accept="any")).status == 503
            assert client.statistics().failures == 1
            assert client.statistics().connections == 1

    run(main)


def test_redirect_loop(run: Run) -> None:
    """The eleventh redirect is an error."""

    async def main() -> None:
        loop = always(answer(b"", "302 Found", "Location: /\r\n"))
        async with serve(loop) as server, Client() as client:
            error = await failure(client, server.url())
            assert type(error) is TooManyRedirects
            assert len(server.requests) == 11

    run(main)


def test_bad_urls_never_reach_the_network(run: Run) -> None:
    """A bad URL fails by itself, and the client goes on."""

    async def main() -> None:
        async with Client() as client:
            for url in ("ftp://h/", "http://h/ x", "h", "http://127.1/"):
                assert isinstance(await failure(client, url), InvalidUrl)
            assert client.statistics().requests == 0

    run(main)


def test_unknown_names(run: Run) -> None:
    """A name that does not exist is permanent, a look-up that failed otherwise is transient; nothing was sent."""

    def lookup(name: str) -> list[str]:
        if name == "gone.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def main() -> None:
        resolver = Resolver(lookup)
        async with Client(resolver=resolver) as client:
            gone = await failure(client, "http://gone.test/")
            later = await failure(client, "http://later.test/", "POST", body=b"x")
        await resolver.aclose()
        assert type(gone) is type(later) is ResolveFailed
        assert (gone.disposition, later.disposition) == (Disposition.PERMANENT, Disposition.TRANSIENT)
        assert (later.phase, later.host, later.ambiguous) == ("resolve", "later.test:80", False)

    run(main)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_dead_connection_gets_no_second_request(run: Run, method: str) -> None:
    """500 kept-alive connections die after the request: no request is sent twice, every call says ConnectionLost."""
    many = 500

    async def main() -> None:
        gate = asyncio.Event()
        waiting = 0

        async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
            nonlocal waiting
            if request.target.startswith("/die"):
                return CLOSE
            waiting += 1
            if waiting == many:
                gate.set()
            await gate.wait()  # all at once, so that each has a connection of its own
            writer.write(answer(b"first"))
            return None

        async with serve(handler) as server, Client(connections=many) as client:

            async def call(number: int) -> None:
                body = b"x" if method == "POST" else None
                await client.request(method, server.url(f"/{number}"), body=body)

            async def die(number: int) -> None:
                body = b"x" if method == "POST" else None
                error = await failure(client, server.url(f"/die/{number}"), method, body=body)
                assert isinstance(error, CallError)
                assert type(error) is ConnectionLost, repr(error)
                assert (error.ambiguous, error.disposition) == (True, Disposition.TRANSIENT)

            await asyncio.gather(*(call(number) for number in range(many)))
            assert server.connections == many
            await asyncio.gather(*(die(number) for number in range(many)))
            # libcurl opens a new connection to send the request again, and is stopped there.
            targets = [request.target for request in server.requests if request.target.startswith("/die")]
            assert len(targets) == len(set(targets)) == many
            assert all(request.nth == 1 for request in server.requests[many:])

    run(main)


def test_nothing_blocks_the_loop(run: Run) -> None:
    """While hosts hang, resets come and bodies trickle, the loop turns within 50 ms, and so it does at closing."""
    # Other programs on the machine make pauses too: what we cause would be there every time.
    pauses = []
    while not pauses or (pauses[-1] >= 0.05 and len(pauses) < 3):
        pauses.append(run(_longest_pause))
    assert pauses[-1] < 0.05, pauses


async def _misbehave(request: Request, writer: asyncio.StreamWriter) -> str | None:
    kind = request.target[1:2]
    if kind == "h":
        return await _hang(request, writer)
    if kind == "t":
        return await _slow_body(request, writer)
    if kind == "r":
        return RESET
    writer.write(answer(b"ok"))
    return None


async def _longest_pause() -> float:
    worst = 0.0

    async def metronome() -> None:
        nonlocal worst
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before)

    async with serve(_misbehave) as server:
        client = Client(timeouts=Timeouts(first_byte=0.5, total=1.0))
        await client.get(server.url("/warm"))
        ticking = asyncio.create_task(metronome())
        calls = [client.get(server.url(f"/{'htro'[number % 4]}/{number}")) for number in range(80)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        hanging = asyncio.gather(*(client.get(server.url("/h")) for _ in range(50)), return_exceptions=True)
        await asyncio.sleep(0.02)
        await client.aclose()
        ended = await hanging
        ticking.cancel()
    assert sum(1 for result in results if not isinstance(result, Exception)) == 20
    assert {type(error) for error in ended} == {ClientClosed}
    return worst
