"""The client against a hostile server: each fault ends in its documented error, in time, in bounded memory, for good."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from headrace.errors import Disposition
from headrace.http import errors
from headrace.http.client import Client
from headrace.http.errors import (
    AddressRefused,
    BadResponse,
    BodyTooLarge,
    BodyTruncated,
    ConnectFailed,
    ConnectionLost,
    FirstByteTimedOut,
    HttpError,
    RedirectRefused,
    Stalled,
    StatusError,
    TlsFailed,
    TooManyRedirects,
    TotalTimedOut,
)
from headrace.http.guard import Guard
from headrace.http.profile import Timeouts
from headrace.testing.hostile import FAULTS, HostileServer
from headrace.testing.hostile.bombs import bomb

Run = Callable[..., Any]
PERMANENT, TRANSIENT = Disposition.PERMANENT, Disposition.TRANSIENT
LIMITS = Timeouts(connect=0.4, first_byte=0.4, stall=0.4, total=4.0)
#: Each fault ends within its limits and a good deal more: the machine may be busy.
DEADLINE = 20.0


class End(NamedTuple):
    """How a call is to end."""

    kind: type[HttpError]
    phase: str
    disposition: Disposition = TRANSIENT
    ambiguous: bool = True


LOST = End(ConnectionLost, "first byte")
TRUNCATED = End(BodyTruncated, "body")
NO_HTTP = End(BadResponse, "first byte", PERMANENT)
TOO_LARGE = End(BodyTooLarge, "body", PERMANENT)
HEAD_TOO_LARGE = End(BodyTooLarge, "first byte", PERMANENT)
BAD_CODING = End(BadResponse, "body", TRANSIENT)
NO_CODING = End(BadResponse, "body", PERMANENT)
STALLED = End(Stalled, "body")
REFUSED = End(RedirectRefused, "redirect", PERMANENT, False)
CERTIFICATE = End(TlsFailed, "tls", PERMANENT, False)

#: It may be seen by reading, or by sending what the protocol asks for.
CUT = [LOST, LOST._replace(phase="send")]
#: It may be seen while the connection is made, or when the request is out.
RESET_AT_ACCEPT = [*CUT, End(ConnectFailed, "connect", TRANSIENT, False)]

#: What is sent, and how it ends: an error, or the size of a good answer. «listener» before the path where it is not plain.
ENDS: dict[str, End | int | list[End]] = {
    "/ok": 2,
    "/echo": 0,
    "/payload": 1 << 20,
    "/compressed": 9000,
    "/early-hints": 2,
    "/trailers": 2,
    "/duplicate-headers": 2,
    "/until-close": 2,
    "/length-short": 2,
    "/chunk-extensions": 2,
    "/follow": 2,
    "/redirect": 2,
    "/redirect-with-body": 2,
    "/status": End(StatusError, "body", TRANSIENT, True),
    "/status?code=429&after=3": End(StatusError, "body", Disposition.OVERLOAD, False),
    "/status?code=404": End(StatusError, "body", PERMANENT, False),
    "/delay": End(FirstByteTimedOut, "first byte"),
    "/stall": STALLED,
    "/trickle": STALLED,
    "/slow-headers": STALLED,
    "/trickle?s=0.001": End(TotalTimedOut, "body"),
    "/forever": TOO_LARGE,
    "/line": TOO_LARGE,
    "/payload?size=1048577": TOO_LARGE,
    "/drop": LOST,
    "/cut-in-head": LOST,
    "/reset": LOST,
    "/reset-in-status": LOST,
    "/reset-in-head": LOST,
    "/reset-in-body": End(ConnectionLost, "body"),
    "/partial": TRUNCATED,
    "/partial-chunks": TRUNCATED,
    "/not-http": NO_HTTP,
    "/http09": NO_HTTP,
    "/bad-header": NO_HTTP,
    "/nul-header": NO_HTTP,
    "/length-negative": NO_HTTP,
    "/length-no-number": NO_HTTP,
    "/length-twice": NO_HTTP,
    "/header-flood": HEAD_TOO_LARGE,
    "/header-huge": HEAD_TOO_LARGE,
    "/interim-flood": HEAD_TOO_LARGE,
    "/chunk-bad-size": BAD_CODING,
    "/chunk-huge-size": BAD_CODING,
    "/gzip-broken": BAD_CODING,
    "/encoding-unknown": NO_CODING,
    "/bomb": TOO_LARGE,
    "/bomb?encoding=deflate": TOO_LARGE,
    "/bomb?encoding=br": TOO_LARGE,
    "/bomb?encoding=gzip,+gzip": TOO_LARGE,
    "/bomb?encoding=gzip,+deflate,+gzip": TOO_LARGE,
    "/bomb?encoding=gzip,gzip,gzip,gzip,gzip,gzip": NO_CODING,
    "/loop": End(TooManyRedirects, "redirect", PERMANENT, False),
    "/redirect?to=file:///etc/passwd": REFUSED,
    "/redirect?to=ftp://127.0.0.1/x": REFUSED,
    "/redirect?to=javascript:alert(1)": REFUSED,
    "/redirect?to=data:text/plain,x": REFUSED,
    "/redirect?to=http://[": REFUSED,
    "https /ok": 2,
    "h2 /ok": 2,
    "expired /ok": CERTIFICATE,
    "wrong-host /ok": CERTIFICATE,
    "self-signed /ok": CERTIFICATE,
    "tls-cut /ok": End(TlsFailed, "tls", TRANSIENT, False),
    "resetting /ok": RESET_AT_ACCEPT,
    "silent /ok": End(FirstByteTimedOut, "first byte"),
    "h2 /stream-error": LOST,
    "h2 /cut": CUT,
    "https /partial": TRUNCATED,
    "https /reset-in-body": End(ConnectionLost, "body"),
    "https /drop": LOST,
}
#: The same for requests with a body of 25 MB that is sent while it is made.
UPLOADS: dict[str, End] = {
    "/early": End(StatusError, "body", PERMANENT, False),
    "/early-close": End(StatusError, "body", PERMANENT, False),
    "/early-reset": LOST,
    "/deaf": End(Stalled, "send"),
}


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    """One server for all. Its bombs are made beforehand, so that nobody waits for them."""
    for encoding in ("gzip", "deflate", "br", "gzip, gzip", "gzip, deflate, gzip"):
        bomb(encoding, 64)
    with HostileServer() as server:
        yield server


async def emptied(server: HostileServer) -> None:
    """Wait until the server has noticed that nobody is there: its connections are in this process, too."""
    async with asyncio.timeout(20):
        while server.open:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


def at(server: HostileServer, where: str) -> str:
    listener, _, path = where.rpartition(" ")
    return server.url(path, listener or "http")


def test_every_fault_has_its_end() -> None:
    """A fault that is added has a line in the table, or is known to be told apart by nobody."""
    tried = {where.rpartition(" ")[2].partition("?")[0] for where in (*ENDS, *UPLOADS)}
    assert set(FAULTS) - tried == {"/gzip-partial"}


def test_the_table_of_the_documentation_has_every_error() -> None:
    """A class that is added is explained there, and no other is."""
    page = (Path(__file__).parents[2] / "docs/explanation/http-errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    classes = [name for name in errors.__all__ if name != "HttpError"]
    assert sorted(rows) == sorted(classes)


@pytest.mark.parametrize("where", ENDS)
def test_faults_end_in_their_documented_errors(run: Run, hostile: HostileServer, where: str) -> None:
    """The class, the phase, whether it is worth a retry and whether it may have taken effect; the client works on."""
    end = ENDS[where]

    async def main() -> None:
        async with Client(timeouts=LIMITS, ca_file=hostile.ca_file, max_body=1 << 20) as client:
            began = time.monotonic()
            if isinstance(end, int):
                assert len((await client.get(at(hostile, where))).body) == end
            else:
                with pytest.raises(HttpError) as caught:
                    await client.get(at(hostile, where))
                error = caught.value
                found = (type(error), error.phase, error.disposition, error.ambiguous)
                assert found in end if isinstance(end, list) else found == end
                assert error.host.startswith("127.0.0.1:")
            assert time.monotonic() - began < DEADLINE
            for _ in range(2):  # whatever it was, it is over
                assert (await client.get(hostile.url("/ok"))).body == b"ok"
            assert client.statistics().in_flight == 0
        await emptied(hostile)

    run(main)


@pytest.mark.parametrize("where", UPLOADS)
def test_faults_of_uploads_end_in_their_documented_errors(
    run: Run, hostile: HostileServer, where: str
) -> None:
    """An early answer is the answer; what nobody takes stalls in the phase «send»."""

    async def main() -> None:
        async with Client(timeouts=LIMITS) as client:
            with pytest.raises(HttpError) as caught:
                await client.post(at(hostile, where), body=[bytes(1 << 16)] * 400)
            error = caught.value
            assert (type(error), error.phase, error.disposition, error.ambiguous) == UPLOADS[where]
            assert (await client.get(hostile.url("/ok"))).body == b"ok"
        await emptied(hostile)

    run(main)


@pytest.mark.parametrize(
    "where", [where for where, end in ENDS.items() if end in (LOST, CUT, TRUNCATED, BAD_CODING, STALLED)]
)
def test_streams_end_as_calls_do(run: Run, hostile: HostileServer, where: str) -> None:
    """What had arrived is given, and then the same error is raised."""

    async def main() -> None:
        async with Client(timeouts=LIMITS, ca_file=hostile.ca_file) as client:
            with pytest.raises(HttpError) as caught:
                async with client.stream("GET", at(hostile, where), timeouts=LIMITS) as response:
                    await response.read()
            error = caught.value
            found = (type(error), error.phase, error.disposition, error.ambiguous)
            end = ENDS[where]
            assert found in end if isinstance(end, list) else found == end
            assert (await client.get(hostile.url("/ok"))).body == b"ok"
        await emptied(hostile)

    run(main)


def test_redirects_to_private_addresses_are_refused_by_a_guard(run: Run, hostile: HostileServer) -> None:
    """From the hostile server, which is allowed, to what is not."""

    async def main() -> None:
        async with Client(guard=Guard(allow=["127.0.0.1"])) as client:
            for to in (
                "http://127.0.0.2/",
                "http://169.254.169.254/latest/",
                "http://[::1]/",
                "http://10.0.0.1:80/",
            ):
                with pytest.raises(AddressRefused):
                    await client.get(hostile.url(f"/redirect?to={to}"))
        await emptied(hostile)

    run(main)


SCRIPT = """
import asyncio, re, sys
import headrace as hr

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

async def main(what, url):
    async with hr.http.Client(max_body=1 << 20) as client:
        await client.get(url.rpartition("/")[0] + "/ok")
        before = peak()
        if what == "call":
            try:
                await client.get(url)
            except hr.http.BodyTooLarge:
                pass
        elif what == "stream":
            size = 0
            async with client.stream("GET", url) as response:
                async for chunk in response:
                    size += len(chunk)
            assert size >= 1 << 28, size
        else:
            async with hr.http.lines(url) as log:
                [line] = [line async for line in log]
            assert len(line.text) == 16 << 20
        print(peak() - before)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("call", "/bomb?megabytes=512"),
        ("call", "/bomb?encoding=br&megabytes=512"),
        ("call", "/bomb?encoding=gzip,+gzip&megabytes=512"),
        ("call", "/line"),
        ("call", "/forever"),
        ("call", "/header-huge"),
        ("call", "/header-flood"),
        ("stream", "/line"),
        ("stream", "/bomb?megabytes=512"),
        ("lines", "/line"),
    ],
)
def test_memory_is_bounded(hostile: HostileServer, what: str, path: str) -> None:
    """Bombs of half a gigabyte, a line of a gigabyte and floods cost less than 64 MB (a line: its cap, a few times)."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what, hostile.url(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64


# ------------------------------------------------------------------------------------------------ HTTP/2


def test_http2_carries_many_streams(run: Run, hostile: HostileServer) -> None:
    """A hundred requests at once share a connection; bodies larger than the windows come whole, to slow readers too."""

    async def main() -> None:
        async with Client(ca_file=hostile.ca_file) as client:
            answers = await asyncio.gather(
                *(client.post(hostile.url("/echo", "h2"), body=b"%d" % number) for number in range(100))
            )
            assert [answer.body for answer in answers] == [b"%d" % number for number in range(100)]
            assert {answer.http_version for answer in answers} == {"HTTP/2"}
            assert client.statistics().connections == 1
            large = await asyncio.gather(
                *(client.get(hostile.url("/payload?size=3000000", "h2")) for _ in range(5))
            )
            assert [len(answer.body) for answer in large] == [3_000_000] * 5
            async with client.stream("GET", hostile.url("/payload?size=5000000", "h2")) as slow:
                # One that is not read holds up no other on the same connection.
                assert (await client.get(hostile.url("/ok", "h2"))).body == b"ok"
                size = 0
                async for chunk in slow:
                    size += len(chunk)
                    await asyncio.sleep(0)
            assert size == 5_000_000
            assert client.statistics().connections == 1
        await emptied(hostile)

    run(main)


def test_http2_limit_of_streams_is_kept(run: Run, hostile: HostileServer) -> None:
    """Where a server allows one stream at a time, all requests are answered all the same."""

    async def main() -> None:
        async with Client(ca_file=hostile.ca_file) as client:
            await client.get(hostile.url("/settings?streams=1", "h2"))
            answers = await asyncio.gather(*(client.get(hostile.url("/ok", "h2")) for _ in range(30)))
            assert [answer.body for answer in answers] == [b"ok"] * 30
        await emptied(hostile)

    run(main)
