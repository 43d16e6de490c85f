"""TLS: certificates are always verified, and what is wrong with one is permanent."""

from __future__ import annotations

import asyncio
import datetime
import pathlib
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from server import Request, always, answer, serve

from headrace.errors import Disposition
from headrace.http import Client, ConnectTimedOut, RedirectRefused, Timeouts, TlsFailed

Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make an authority that the clients trust."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write its certificate to a file."""
    path: pathlib.Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def context(authority: trustme.CA, *names: str, expired: bool = False) -> ssl.SSLContext:
    """Make a server's side."""
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    issued = authority.issue_cert(*names, not_after=past) if expired else authority.issue_cert(*names)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(made)
    return made


def test_trusted(run: Run, authority: trustme.CA, ca_file: str) -> None:
    """A trusted certificate is accepted, the handshake's time is told, and the connection is kept."""

    async def main() -> None:
        tls = context(authority, "localhost", "127.0.0.1")
        async with serve(always(answer(b"ok")), tls) as server, Client(ca_file=ca_file) as client:
            first = await client.get(server.url("/", "localhost"))
            second = await client.get(server.url("/", "localhost"))
            assert first.timings.tls > 0
            assert second.timings.tls == second.timings.connect == 0
            assert server.connections == 1

    run(main)


@pytest.mark.parametrize("wrong", ["expired", "another host", "unknown authority"])
def test_untrusted(run: Run, authority: trustme.CA, ca_file: str, wrong: str) -> None:
    """An expired, foreign or self-made certificate fails for good, and nothing was sent."""
    tls = {
        "expired": lambda: context(authority, "127.0.0.1", expired=True),
        "another host": lambda: context(authority, "other.test"),
        "unknown authority": lambda: context(trustme.CA(), "127.0.0.1"),
    }[wrong]()

    async def main() -> None:
        async with serve(always(answer(b"ok")), tls) as server, Client(ca_file=ca_file) as client:
            with pytest.raises(TlsFailed) as caught:
                await client.post(server.url(), body=b"x")
            error = caught.value
            assert (error.phase, error.disposition, error.ambiguous) == ("tls", Disposition.PERMANENT, False)
            assert server.requests == []

    run(main)


def test_the_systems_store_is_used(run: Run, authority: trustme.CA) -> None:
    """Without ca_file= the system's store (or certifi's) counts, which does not know a test's authority."""

    async def main() -> None:
        tls = context(authority, "127.0.0.1")
        async with serve(always(answer(b"ok")), tls) as server, Client() as client:
            with pytest.raises(TlsFailed, match="certificate"):
                await client.get(server.url())

    run(main)


def test_a_missing_ca_file(run: Run, authority: trustme.CA) -> None:
    """A ca_file that is not there fails for good, and names it."""

    async def main() -> None:
        tls = context(authority, "127.0.0.1")
        async with (
            serve(always(answer(b"ok")), tls) as server,
            Client(ca_file="/no/such/file.pem") as client,
        ):
            with pytest.raises(TlsFailed, match=r"/no/such/file\.pem") as caught:
                await client.get(server.url())
            assert caught.value.disposition is Disposition.PERMANENT
            assert server.requests == []

    run(main)


@pytest.mark.parametrize("ending", ["plain", "closed", "silent"])
def test_handshakes_that_break_off(run: Run, ca_file: str, ending: str) -> None:
    """A handshake that is cut or never answered is transient, one met by plain HTTP permanent; nothing was sent."""

    async def main() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            if ending == "plain":
                writer.write(answer(b"", "400 Bad Request"))
            if ending == "silent":
                await reader.read()
            writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        try:
            async with Client(ca_file=ca_file, timeouts=Timeouts(connect=0.3)) as client:
                with pytest.raises(ConnectTimedOut if ending == "silent" else TlsFailed) as caught:
                    await client.post(url, body=b"x")
        finally:
            listener.close()
            await asyncio.sleep(0.01)
        error = caught.value
        assert (error.phase, error.ambiguous) == ("tls", False)
        expected = Disposition.PERMANENT if ending == "plain" else Disposition.TRANSIENT
        assert error.disposition is expected

    run(main)


def test_no_downgrade_over_the_wire(run: Run, authority: trustme.CA, ca_file: str) -> None:
    """A redirect from https to http is refused unless the client allows it."""

    async def main() -> None:
        async with serve(always(answer(b"plain"))) as plain:
            away = always(answer(b"", "302 Found", f"Location: {plain.url()}\r\n"))
            async with serve(away, context(authority, "127.0.0.1")) as server:
                async with Client(ca_file=ca_file) as client:
                    with pytest.raises(RedirectRefused):
                        await client.get(server.url())
                async with Client(ca_file=ca_file, downgrade=True) as client:
                    assert (await client.get(server.url())).body == b"plain"

    run(main)


def test_many_handshakes_do_not_wait_for_an_answer(run: Run, authority: trustme.CA, ca_file: str) -> None:
    """The first answer of a host is not waited for: calls wait at most for its handshake, which may bring HTTP/2."""

    async def main() -> None:
        gate = asyncio.Event()
        count = 0

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            if count == 20:
                gate.set()
            await gate.wait()
            writer.write(answer(b"ok"))

        tls = context(authority, "127.0.0.1")
        async with serve(handler, tls) as server, Client(ca_file=ca_file) as client:
            async with asyncio.timeout(10):
                await asyncio.gather(*(client.get(server.url()) for _ in range(20)))
            assert server.connections == 20

    run(main)


def test_a_dead_host_is_not_tried_by_one_after_the_other(run: Run, ca_file: str) -> None:
    """When the first connection to a host fails, all others fail with it or at the same time, not in turn."""

    async def main() -> None:
        async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(never, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        try:
            async with Client(ca_file=ca_file, timeouts=Timeouts(connect=0.2)) as client, asyncio.timeout(2):
                results = await asyncio.gather(*(client.get(url) for _ in range(50)), return_exceptions=True)
        finally:
            listener.close()
            await asyncio.sleep(0.01)
        assert {type(result) for result in results} == {ConnectTimedOut}

    run(main)


def test_a_cancelled_scout(run: Run, authority: trustme.CA, ca_file: str) -> None:
    """If the call that tries a host first is cancelled, those who wait for it go on."""

    async def main() -> None:
        tls = context(authority, "127.0.0.1")
        async with serve(always(answer(b"ok")), tls) as server, Client(ca_file=ca_file) as client:
            first, *others = [asyncio.create_task(client.get(server.url())) for _ in range(10)]
            await asyncio.sleep(0)
            others[0].cancel()
            first.cancel()
            async with asyncio.timeout(5):
                got = await asyncio.gather(*others, return_exceptions=True)
            assert [getattr(each, "status", None) for each in got] == [None] + [200] * 8

    run(main)
