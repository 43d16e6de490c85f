"""What a client promises, against a server on a real socket and against a script: neither may differ from the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.http.origins import Origin, scripted_origin, socket_origin, unreachable

import headrace as hr
from headrace.errors import Disposition
from headrace.http.errors import (
    BodyTooLarge,
    BodyTruncated,
    ClientClosed,
    ConnectionLost,
    HttpError,
    RedirectRefused,
    StatusError,
    TooManyRedirects,
    TotalTimedOut,
)
from headrace.http.profile import Timeouts
from headrace.http.secrets import Secret
from headrace.http.streaming import StreamedResponse
from headrace.http.url import parse
from headrace.testing import ScriptedReply, ScriptedRequest, no_leaks
from headrace.testing import run as run_virtual

Case = Callable[[Origin], Awaitable[None]]
Play = Callable[[Case], None]


WORLDS = [
    ("socket", "asyncio"),
    ("socket", "uvloop"),
    ("script", "asyncio"),
    ("script", "uvloop"),
    ("script", "virtual"),
]


@pytest.fixture(params=WORLDS, ids="-".join)
def world(request: pytest.FixtureRequest) -> tuple[str, str]:
    """What answers, and the kind of loop."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def loop_kind(world: tuple[str, str]) -> str:
    """For the fixture `run`."""
    return world[1]


@pytest.fixture
def play(world: tuple[str, str], run: Any) -> Play:
    """Give a function that runs a case against an origin, and looks for what it left behind."""
    begin = socket_origin if world[0] == "socket" else scripted_origin

    def played(case: Case) -> None:
        async def main() -> None:
            async with begin() as origin:
                with no_leaks() if world[0] == "script" else contextlib.nullcontext():
                    await case(origin)

        if world[1] == "virtual":
            run_virtual(main)
        else:
            run(main)

    return played


# ------------------------------------------------------------------------------------------------ answers


def test_answer_has_what_was_sent(play: Play) -> None:
    """Status, headers in any case, repeated ones, body and its decoding."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/a").reply(
            201,
            json={"name": "Ada"},
            headers=[("X-Kind", "one"), ("set-cookie", "a=1"), ("Set-Cookie", "b=2")],
        )
        origin.on("GET", "/text").reply(text="Grüße")
        origin.on("GET", "/none").reply(204)
        async with origin.client() as client:
            answer = await client.get(origin.url("/a"))
            assert (answer.status, answer.json(), answer.http_version) == (201, {"name": "Ada"}, "HTTP/1.1")
            assert answer.headers["x-KIND"] == "one"
            assert answer.headers.all("SET-cookie") == ("a=1", "b=2")
            assert answer.headers.pairs() == (
                ("X-Kind", "one"),
                ("set-cookie", "a=1"),
                ("Set-Cookie", "b=2"),
                ("Content-Type", "application/json"),
                ("Content-Length", "14"),
            )
            assert (answer.url, answer.final_url, answer.redirects) == (origin.url("/a"),) * 2 + (0,)
            assert (await client.get(origin.url("/text"))).text == "Grüße"
            nothing = await client.get(origin.url("/none"))
            assert (nothing.status, nothing.body) == (204, b"")

    play(case)


def test_head_has_the_headers_and_no_body(play: Play) -> None:
    """The answer to HEAD tells a length and brings nothing."""

    async def case(origin: Origin) -> None:
        origin.on("HEAD", "/a").reply(body=b"twelve bytes")
        async with origin.client() as client:
            answer = await client.head(origin.url("/a"))
            assert (answer.body, answer.headers["content-length"]) == (b"", "12")
            async with client.stream("HEAD", origin.url("/a")) as streamed:
                assert await streamed.read() == b""

    play(case)


@pytest.mark.parametrize(
    ("status", "disposition", "ambiguous"),
    [
        (404, Disposition.PERMANENT, False),
        (429, Disposition.OVERLOAD, False),
        (500, Disposition.TRANSIENT, True),
        (503, Disposition.TRANSIENT, True),
    ],
)
def test_refused_status_says_what_to_do(
    play: Play, status: int, disposition: Disposition, ambiguous: bool
) -> None:
    """What `accept` does not list is an error with status, headers and body; what it lists is an answer."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/a").reply(status, body=b"why", headers={"X-Why": "so"})
        async with origin.client() as client:
            with pytest.raises(StatusError) as caught:
                await client.get(origin.url("/a"))
            error = caught.value
            assert (error.status, error.body, error.headers["x-why"]) == (status, b"why", "so")
            assert (error.disposition, error.ambiguous, error.hold) == (disposition, ambiguous, False)
            assert error.url == origin.url("/a")
            assert (await client.get(origin.url("/a"), accept=f"2xx,{status}")).status == status
            with pytest.raises(StatusError, match=str(status)):
                async with client.stream("GET", origin.url("/a")):
                    pass

    play(case)


def test_retry_after_is_heeded(play: Play) -> None:
    """A 429 with Retry-After holds its host; in a flow the next attempt comes when it says."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/a").reply(429, retry_after=0.2).then(200, body=b"ok")
        origin.on("GET", "/b").reply(429, retry_after=7)
        async with origin.client() as client:
            got = await hr.map(hr.http.fetch(client=client), [origin.url("/a")])
            assert [outcome.attempts for outcome in got] == [2]
            assert got.values[0].attempts == 2
            first, second = origin.requests
            assert second.at - first.at >= 0.19
            with pytest.raises(StatusError) as caught:
                await client.get(origin.url("/b"))
            assert (caught.value.retry_after, caught.value.hold) == (7, True)

    play(case)


# ------------------------------------------------------------------------------------------------ requests


def test_request_is_sent_as_written(play: Play) -> None:
    """Method, target, headers, secrets, body and what describes it arrive as they were given."""

    async def case(origin: Origin) -> None:
        origin.on("POST", "/a?x=1").reply()
        origin.on("PUT", "/b").reply()
        origin.on("GET", "/c").reply()
        headers = {"X-Kind": "one", "Authorization": Secret("Bearer t")}
        async with origin.client(headers=headers, user_agent="tests/1") as client:
            await client.post(origin.url("/a?x=1"), json={"a": [1]})
            await client.put(origin.url("/b"), body="text", headers={"x-kind": "two", "X-More": "3"})
            await client.get(origin.url("/c").replace("//", "//me:pw@"))
        post, put, get = origin.requests
        host = origin.url("")[7:]
        common = {"host": host, "user-agent": "tests/1", "accept": "*/*", "authorization": "Bearer t"}
        sent = [
            {name: value for name, value in each.headers.items() if name != "accept-encoding"}
            for each in (post, put, get)
        ]
        assert sent == [
            {**common, "x-kind": "one", "content-type": "application/json", "content-length": "9"},
            {
                **common,
                "x-kind": "two",
                "x-more": "3",
                "content-type": "text/plain; charset=utf-8",
                "content-length": "4",
            },
            {**common, "x-kind": "one"},
        ]
        assert "gzip" in post.headers["accept-encoding"]
        assert [post.json(), put.body, get.body] == [{"a": [1]}, b"text", b""]
        assert [(each.method, each.url) for each in origin.requests] == [
            ("POST", origin.url("/a?x=1")),
            ("PUT", origin.url("/b")),
            ("GET", origin.url("/c")),
        ]

    play(case)


def test_userinfo_becomes_a_header(play: Play) -> None:
    """A user and a password in the URL are sent as Basic, and the URL without them."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/a").reply()
        async with origin.client() as client:
            answer = await client.get(origin.url("/a").replace("//", "//me:pw@"))
            assert answer.url == origin.url("/a")
        assert origin.requests[0].headers["authorization"] == "Basic bWU6cHc="

    play(case)


@pytest.mark.parametrize("kind", ["list", "asynchronous", "file", "empty"])
def test_uploads_arrive_whole(play: Play, kind: str, tmp_path: Path) -> None:
    """A body that is read while it is sent arrives as it was, with its length where that is known."""
    pieces = [b"one", b"", b"two" * 100_000, b"three"]
    data = b"" if kind == "empty" else b"".join(pieces)
    (tmp_path / "body").write_bytes(data)

    async def slowly() -> AsyncIterator[bytes]:
        for piece in pieces:
            await asyncio.sleep(0.01)
            yield piece

    async def case(origin: Origin) -> None:
        body: Any = {"list": pieces, "asynchronous": slowly(), "file": tmp_path / "body", "empty": []}[kind]
        origin.on("POST", "/up").reply(lambda request: ScriptedReply(json=len(request.body)))
        async with origin.client() as client:
            assert (await client.post(origin.url("/up"), body=body)).json() == len(data)
        request = origin.requests[0]
        assert request.body == data
        length, coding = request.headers.get("content-length"), request.headers.get("transfer-encoding")
        assert (length, coding) == ((str(len(data)), None) if kind == "file" else (None, "chunked"))

    play(case)


def test_upload_that_fails_ends_the_request_with_its_own_error(play: Play) -> None:
    """What reading the body raises is raised, and the client works on."""

    def broken() -> Iterator[bytes]:
        yield b"one"
        raise KeyError("mine")

    async def case(origin: Origin) -> None:
        origin.on("POST", "/up").reply()
        origin.on("GET", "/a").reply(body=b"ok")
        async with origin.client() as client:
            with pytest.raises(KeyError, match="mine"):
                await client.post(origin.url("/up"), body=broken())
            assert client.statistics().in_flight == 0
            assert (await client.get(origin.url("/a"))).body == b"ok"

    play(case)


# ------------------------------------------------------------------------------------------------ redirects


def test_redirects_are_followed_and_credentials_stay_behind(play: Play) -> None:
    """A chain over two origins ends at its answer; the other origin sees no credentials, nor does the way back."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/1").reply(302, headers={"Location": "/2"})
        origin.on("GET", "/2").reply(308, headers={"Location": origin.url("/3", other=True)})
        origin.on("GET", "/3", other=True).reply(301, headers={"Location": origin.url("/4")})
        origin.on("GET", "/4").reply(body=b"here")
        async with origin.client(headers={"Authorization": "Bearer t", "X-Public": "p"}) as client:
            answer = await client.get(origin.url("/1"))
        assert (answer.body, answer.redirects) == (b"here", 3)
        assert (answer.url, answer.final_url) == (origin.url("/1"), origin.url("/4"))
        sent = [request.headers.get("authorization") for request in origin.requests]
        assert sent == ["Bearer t", "Bearer t", None, None]
        assert {request.headers["x-public"] for request in origin.requests} == {"p"}

    play(case)


@pytest.mark.parametrize(
    ("status", "method", "body"),
    [(303, "GET", b""), (302, "GET", b""), (307, "POST", b"sent"), (308, "POST", b"sent")],
)
def test_what_a_redirect_makes_of_a_post(play: Play, status: int, method: str, body: bytes) -> None:
    """302 and 303 make a GET of it, without a body; 307 and 308 send it again."""

    async def case(origin: Origin) -> None:
        origin.on("POST", "/1").reply(status, headers={"Location": "/2"}, body=b"x" * 100_000)
        origin.on("*", "/2").reply(body=b"here")
        async with origin.client() as client:
            assert (await client.post(origin.url("/1"), body=b"sent")).body == b"here"
        second = origin.requests[1]
        assert (second.method, second.body) == (method, body)
        assert ("content-length" in second.headers) == bool(body)

    play(case)


def test_redirects_that_are_not_followed(play: Play) -> None:
    """Too many of them, one to nowhere, one that asks for a stream again; `follow=False` gives the redirect itself."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/loop").reply(302, headers={"Location": "/loop"})
        origin.on("GET", "/ftp").reply(302, headers={"Location": "ftp://127.0.0.1/x"})
        origin.on("POST", "/again").reply(307, headers={"Location": "/loop"})
        async with origin.client(max_redirects=3) as client:
            with pytest.raises(TooManyRedirects, match="more than 3"):
                await client.get(origin.url("/loop"))
            assert len(origin.requests) == 4
            with pytest.raises(RedirectRefused, match="no usable URL"):
                await client.get(origin.url("/ftp"))
            with pytest.raises(RedirectRefused, match="read once only") as caught:
                await client.post(origin.url("/again"), body=iter([b"once"]))
            assert caught.value.ambiguous
            answer = await client.get(origin.url("/loop"), follow=False, accept="3xx")
            assert (answer.status, answer.redirects) == (302, 0)

    play(case)


def test_total_limit_covers_the_redirects(play: Play) -> None:
    """Two hops that are each within the total limit pass it together."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/1").reply(302, headers={"Location": "/2"}, after=0.6)
        origin.on("GET", "/2").reply(after=0.6)
        async with origin.client(timeouts=Timeouts(total=1)) as client:
            with pytest.raises(TotalTimedOut) as caught:
                await client.get(origin.url("/1"))
            assert caught.value.elapsed >= 0.99
            assert (await client.get(origin.url("/2"), timeouts=Timeouts())).status == 200

    play(case)


# ------------------------------------------------------------------------------------------------ bodies


def test_max_body_is_exact(play: Play) -> None:
    """A body of the allowed size is an answer, one byte more an error; streams have a cap if asked for."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/10").reply(body=b"x" * 10)
        origin.on("GET", "/11").reply(chunks=[b"x" * 10, b"x"])
        async with origin.client(max_body=10) as client:
            assert len((await client.get(origin.url("/10"))).body) == 10
            with pytest.raises(BodyTooLarge, match="more than 10 bytes"):
                await client.get(origin.url("/11"))
            assert len((await client.get(origin.url("/11"), max_body=None)).body) == 11
            async with client.stream("GET", origin.url("/11")) as streamed:
                assert len(await streamed.read()) == 11
            async with client.stream("GET", origin.url("/11"), max_body=10) as streamed:
                with pytest.raises(BodyTooLarge):
                    await streamed.read()

    play(case)


def test_stream_comes_as_it_is_sent_and_keeps_its_connection(play: Play) -> None:
    """Chunks are there when they were sent; a body read to its end leaves the connection to the next request."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/log").reply(chunks=[b"one", 0.1, b"two", 0.1, b"three"], headers={"X-Kind": "log"})
        async with origin.client() as client:
            clock = asyncio.get_running_loop().time
            for _ in range(3):
                began = clock()
                async with client.stream("GET", origin.url("/log")) as response:
                    assert (response.status, response.headers["x-kind"], response.is_closed) == (
                        200,
                        "log",
                        False,
                    )
                    seen = [(chunk, clock() - began) async for chunk in response]
                    assert response.is_closed
                assert [chunk for chunk, _ in seen] == [b"one", b"two", b"three"]
                assert seen[1][1] >= 0.09
                assert seen[2][1] >= 0.19
            assert client.statistics().connections == 1
            assert client.statistics().bytes_received == 3 * 11

    play(case)


def test_leaving_a_stream_frees_it_at_once(play: Play) -> None:
    """Left in mid-body a stream is closed, gives nothing more, and the client opens a new connection."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/endless").reply(chunks=lambda: _for_ever())
        origin.on("GET", "/a").reply(body=b"ok")
        async with origin.client() as client:
            async with client.stream("GET", origin.url("/endless")) as response:
                assert (await response.read(3)).startswith(b"mor")
                assert client.statistics().in_flight == 1
            assert (response.is_closed, client.statistics().in_flight) == (True, 0)
            assert await response.read() == b""
            assert (await client.get(origin.url("/a"))).body == b"ok"
            assert client.statistics().connections == 2

    play(case)


async def _for_ever() -> AsyncIterator[bytes | float]:
    while True:
        yield b"more"
        yield 0.01


def test_stream_that_breaks_gives_what_had_arrived(play: Play) -> None:
    """The chunks before the end of the connection are read, then the error."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/cut").reply(chunks=[b"one", 0.05, b"two"], fault="reset in body")
        origin.on("GET", "/short").reply(body=b"all but one", fault="truncated body")
        async with origin.client() as client:
            for path, kind, whole in (
                ("/cut", ConnectionLost, b"onetwo"),
                ("/short", BodyTruncated, b"all but one"),
            ):
                seen: list[bytes] = []
                async with client.stream("GET", origin.url(path)) as response:
                    with pytest.raises(kind) as caught:
                        await _read_into(seen, response)
                assert (caught.value.phase, caught.value.ambiguous) == ("body", True)
                assert b"".join(seen) == whole
            assert client.statistics().in_flight == 0

    play(case)


async def _read_into(seen: list[bytes], response: StreamedResponse) -> None:
    async for chunk in response:
        seen.append(chunk)


def test_reader_that_is_behind_is_no_stall(play: Play) -> None:
    """A large body waits for its reader, and comes whole when it is read."""

    async def case(origin: Origin) -> None:
        size = 16 << 20
        origin.on("GET", "/large").reply(body=bytes(size))
        async with (
            origin.client(timeouts=Timeouts(stall=0.3)) as client,
            client.stream("GET", origin.url("/large")) as response,
        ):
            await asyncio.sleep(0.7)
            got = 0
            async for chunk in response:
                got += len(chunk)
            assert got == size

    play(case)


# ------------------------------------------------------------------------------------------------ endings


def test_cancelling_frees_the_request_at_once(play: Play) -> None:
    """A cancelled request is gone, be it waiting for its answer or in its body; the client works on."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/silent").reply(fault="first byte timeout")
        origin.on("GET", "/slow").reply(chunks=lambda: _for_ever())
        origin.on("GET", "/a").reply(body=b"ok")
        async with origin.client() as client:
            for path in ("/silent", "/slow"):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await client.get(origin.url(path))
                assert client.statistics().in_flight == 0
            assert (await client.get(origin.url("/a"))).body == b"ok"

    play(case)


def test_closing_ends_what_is_under_way(play: Play) -> None:
    """Calls under way fail with ClientClosed, and so do streams and later calls; closing again does nothing."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/silent").reply(fault="first byte timeout")
        origin.on("GET", "/endless").reply(chunks=lambda: _for_ever())
        client = origin.client()

        async def ask() -> None:
            with pytest.raises(ClientClosed) as caught:
                await client.get(origin.url("/silent"))
            assert caught.value.ambiguous

        async def read() -> None:
            async with client.stream("GET", origin.url("/endless")) as response:
                with pytest.raises(ClientClosed):
                    await response.read()

        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            group.create_task(read())
            while client.statistics().in_flight < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            await client.aclose()
        await client.aclose()
        assert client.statistics().in_flight == 0
        with pytest.raises(ClientClosed, match="closed"):
            await client.get(origin.url("/a"))

    play(case)


def test_statistics_count(play: Play) -> None:
    """Requests, failures, connections and bytes are counted alike; what follows one another shares a connection."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/a").reply(body=b"x" * 100)
        origin.on("GET", "/missing").reply(404, body=b"x" * 10)
        origin.on("GET", "/lost").reply(fault="reset after send")
        async with origin.client() as client:
            for path in ("/a", "/a", "/missing", "/lost", "/a"):
                with contextlib.suppress(HttpError):
                    await client.get(origin.url(path))
            now = client.statistics()
            assert (now.requests, now.in_flight, now.failures) == (5, 0, 2)
            assert (now.connections, now.bytes_received, now.rebuilt) == (2, 310, 0)

    play(case)


def test_limits_hold(play: Play) -> None:
    """At most as many requests as a limit allows are at the server at once, streams until they are left."""

    async def case(origin: Origin) -> None:
        now = most = 0

        async def count(request: ScriptedRequest) -> ScriptedReply:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1
            return ScriptedReply()

        origin.on("GET", "/a").reply(count)
        async with origin.client(limits=[hr.Limit(concurrency=2)]) as client:
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(client.get(origin.url("/a")))
            assert most == 2
            async with client.stream("GET", origin.url("/a")), client.stream("GET", origin.url("/a")):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await client.get(origin.url("/a"))
            assert len(origin.requests) == 10

    play(case)


def test_robots_are_asked_first(play: Play) -> None:
    """What robots.txt disallows is skipped, and asked for once a host."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/robots.txt").reply(text="User-agent: *\nDisallow: /private\n")
        origin.on("GET", "/open").reply()
        fetch = hr.http.fetch(robots=True, client=origin.client)
        got = await hr.map(fetch, [origin.url("/private"), origin.url("/open")])
        assert [type(outcome).__name__ for outcome in got] == ["Skipped", "Done"]
        assert [request.url for request in origin.requests] == [
            origin.url("/robots.txt"),
            origin.url("/open"),
        ]

    play(case)


# ------------------------------------------------------------------------------------------------ faults

T, P = Disposition.TRANSIENT, Disposition.PERMANENT
FAULTS = {
    "reset after send": ("ConnectionLost", "first byte", T, True),
    "first byte timeout": ("FirstByteTimedOut", "first byte", T, True),
    "bad response": ("BadResponse", "first byte", P, True),
    "headers too large": ("BodyTooLarge", "first byte", P, True),
    "cut in headers": ("ConnectionLost", "first byte", T, True),
    "stall": ("Stalled", "body", T, True),
    "reset in body": ("ConnectionLost", "body", T, True),
    "truncated body": ("BodyTruncated", "body", T, True),
    "bad coding": ("BadResponse", "body", T, True),
    "body too large": ("BodyTooLarge", "body", P, True),
}


#: Those that end with a limit of the client; its time is short for them, and long for the others.
SILENT = ("first byte timeout", "stall")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("how", ["request", "stream"])
def test_faults_of_servers_are_the_same_errors(play: Play, fault: Any, how: str) -> None:
    """Each fault is one class, with one phase and one verdict, and costs nothing but its request."""

    async def case(origin: Origin) -> None:
        origin.on("GET", "/f").reply(fault=fault)
        origin.on("GET", "/a").reply(body=b"ok")
        limits = Timeouts(first_byte=0.3, stall=0.3) if fault in SILENT else Timeouts()
        async with origin.client(timeouts=limits, max_body=1_000_000) as client:

            async def ask() -> None:
                if how == "request":
                    await client.get(origin.url("/f"))
                else:
                    async with client.stream("GET", origin.url("/f"), max_body=1_000_000) as response:
                        await response.read()

            with pytest.raises(HttpError) as caught:
                await ask()
            error = caught.value
            found = (type(error).__name__, error.phase, error.disposition, error.ambiguous)
            assert found == FAULTS[fault]
            assert (error.url, error.host) == (origin.url("/f"), origin.url("")[7:])
            patient = {"timeouts": Timeouts()}
            if fault == "cut in headers":  # libcurl keeps that connection, and may find it dead only now
                with contextlib.suppress(ConnectionLost):
                    await client.get(origin.url("/a"), **patient)
            assert (await client.get(origin.url("/a"), **patient)).body == b"ok"
            assert client.statistics().in_flight == 0

    play(case)


UNSENT = {
    "unknown host": ("ResolveFailed", "resolve", P, False),
    "resolve failed": ("ResolveFailed", "resolve", T, False),
    "resolve timeout": ("ResolveFailed", "resolve", T, False),
    "connect refused": ("ConnectFailed", "connect", T, False),
    "connect timeout": ("ConnectTimedOut", "connect", T, False),
    "tls untrusted": ("TlsFailed", "tls", P, False),
    "tls reset": ("TlsFailed", "tls", T, False),
    "tls timeout": ("ConnectTimedOut", "tls", T, False),
}


@pytest.mark.parametrize("fault", UNSENT)
def test_faults_before_anything_is_sent(play: Play, fault: Any) -> None:
    """Names, ports and handshakes that fail are the same errors, and they say that nothing was sent."""

    async def case(origin: Origin) -> None:
        async with unreachable(fault) as (url, options):
            origin.script.on("GET", url).reply(fault=fault)
            limits = Timeouts(resolve=0.3, connect=0.3) if "timeout" in fault else Timeouts()
            async with origin.client(timeouts=limits, **options) as client:
                with pytest.raises(HttpError) as caught:
                    await client.get(url)
        error = caught.value
        found = (type(error).__name__, error.phase, error.disposition, error.ambiguous)
        assert found == UNSENT[fault]
        assert error.url == url
        assert error.host == f"{parse(url).host}:{parse(url).port}"
        assert not any(request.sent for request in origin.requests)

    play(case)
