"""The client against real servers of different make: the same promises hold for each."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.real_servers.running import KEPT, LARGE, SERVERS, TEXT, Running, run_server

import headrace as hr
from headrace.http.client import Client
from headrace.http.errors import BodyTooLarge, StatusError

Run = Callable[..., Any]


def servers(*abilities: str) -> pytest.MarkDecorator:
    """Run a test with each server that can do all this."""
    names = [name for name, server in SERVERS.items() if server.can.issuperset(abilities)]
    return pytest.mark.parametrize("server", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Run each server in turn."""
    with run_server(request.param) as running:
        yield running


@pytest.fixture(params=["http", "https"])
def base(server: Running, request: pytest.FixtureRequest) -> str:
    """Both schemes."""
    return server.http if request.param == "http" else server.https


@servers()
def test_connections_are_reused(run: Run, server: Running, base: str) -> None:
    """A hundred requests after each other use one connection; twenty at a time no more than twenty."""

    async def main() -> None:
        async with Client(ca_file=server.ca_file) as client:
            for _ in range(100):
                assert (await client.get(f"{base}/doc")).body == b"a small document\n"
            assert client.statistics().connections == 1
        async with Client(ca_file=server.ca_file) as client:

            async def some() -> None:
                for _ in range(10):
                    assert (await client.get(f"{base}/doc")).status == 200

            await asyncio.gather(*(some() for _ in range(20)))
            assert client.statistics().connections <= 20

    run(main)


@servers("h2")
def test_http2_carries_many_requests_over_one_connection(run: Run, server: Running) -> None:
    """Where the server speaks it, a hundred requests at once share a connection."""

    async def main() -> None:
        async with Client(ca_file=server.ca_file) as client:
            answers = await asyncio.gather(*(client.get(f"{server.https}/doc") for _ in range(100)))
            assert {answer.http_version for answer in answers} == {"HTTP/2"}
            assert client.statistics().connections == 1 or "h2 shared" not in server.can
        async with Client(ca_file=server.ca_file, http_version="1.1") as client:
            assert (await client.get(f"{server.https}/doc")).http_version == "HTTP/1.1"

    run(main)


@servers("gzip")
def test_packed_answers_are_unpacked(run: Run, server: Running, base: str) -> None:
    """gzip on the way, the text here; in one piece, and as a stream."""

    async def main() -> None:
        async with Client(ca_file=server.ca_file) as client:
            answer = await client.get(f"{base}/text.txt")
            assert (answer.body, answer.headers["content-encoding"]) == (TEXT, "gzip")
            async with client.stream("GET", f"{base}/text.txt") as response:
                assert await response.read() == TEXT

    run(main)


@servers("ranges", "etag")
def test_ranges_conditions_and_heads(run: Run, server: Running, base: str) -> None:
    """206 and 416, If-Range with the right and a wrong ETag, 304, and HEAD."""

    async def main() -> None:
        async with Client(ca_file=server.ca_file) as client:
            plain = {"Accept-Encoding": "identity"}
            head = await client.head(f"{base}/text.txt", headers=plain)
            assert (head.body, int(head.headers["content-length"])) == (b"", len(TEXT))
            tag = head.headers["etag"]
            part = await client.get(f"{base}/text.txt", headers=plain | {"Range": "bytes=100-199"})
            assert (part.status, part.body) == (206, TEXT[100:200])
            assert part.headers["content-range"] == f"bytes 100-199/{len(TEXT)}"
            same = await client.get(
                f"{base}/text.txt", headers=plain | {"Range": "bytes=5-", "If-Range": tag}
            )
            assert (same.status, same.body) == (206, TEXT[5:])
            other = await client.get(
                f"{base}/text.txt", headers=plain | {"Range": "bytes=5-", "If-Range": '"no"'}
            )
            assert (other.status, other.body) == (200, TEXT)
            beyond = await client.get(
                f"{base}/text.txt", headers=plain | {"Range": f"bytes={len(TEXT)}-"}, accept="416"
            )
            size = f"bytes */{len(TEXT)}"
            assert beyond.headers.get("content-range", size) == size
            fresh = await client.get(
                f"{base}/text.txt", headers=plain | {"If-None-Match": tag}, accept="2xx,304"
            )
            assert (fresh.status, fresh.body) == (304, b"")

    run(main)


@servers()
def test_redirects_and_refusals(run: Run, server: Running, base: str) -> None:
    """A redirect is followed, whatever form its Location has; 404 is an error with its body."""

    async def main() -> None:
        async with Client(ca_file=server.ca_file, downgrade=True) as client:
            if "slash" in server.can and server.name != "haproxy":  # its server behind does not know its port
                moved = await client.get(f"{base}/folder")
                assert (moved.body, moved.redirects) == (b"the index\n", 1)
                assert moved.final_url.endswith("/folder/")
            if "echo" in server.can:
                moved = await client.get(f"{base}/moved")
                assert (moved.body, moved.redirects) == (b"a small document\n", 1)
                with pytest.raises(StatusError) as busy:
                    await client.get(f"{base}/busy")
                assert (busy.value.status, busy.value.retry_after, busy.value.hold) == (503, 7.0, True)
            with pytest.raises(StatusError) as missing:
                await client.get(f"{base}/none")
            assert missing.value.status == 404

    run(main)


@servers()
def test_large_answers_are_streamed_whole_or_capped(run: Run, server: Running, base: str) -> None:
    """24 MB come whole as a stream; a cap of one ends the transfer, and the client goes on."""

    async def main() -> None:
        async with Client(ca_file=server.ca_file, max_body=1 << 20) as client:
            digest, size = hashlib.sha256(), 0
            async with client.stream("GET", f"{base}/large") as response:
                async for chunk in response:
                    digest.update(chunk)
                    size += len(chunk)
            assert size == LARGE
            assert digest.digest() == hashlib.sha256(bytes(LARGE)).digest()
            with pytest.raises(BodyTooLarge):
                await client.get(f"{base}/large")
            assert (await client.get(f"{base}/doc")).status == 200

    run(main)


@servers("echo")
def test_what_is_sent_arrives(run: Run, server: Running, base: str) -> None:
    """JSON, and a body of 5 MB that is made while it is sent, come back as they went."""

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(50):
            yield b"%d" % (number % 10) * 100_000

    async def main() -> None:
        async with Client(ca_file=server.ca_file) as client:
            answer = await client.post(f"{base}/echo", json={"name": "Zoë"})
            assert (answer.json(), answer.headers["x-method"]) == ({"name": "Zoë"}, "POST")
            answer = await client.put(f"{base}/echo", body=pieces())
            assert answer.body == b"".join(b"%d" % (number % 10) * 100_000 for number in range(50))

    run(main)


@servers()
def test_connection_that_the_server_closed_while_idle_costs_nothing(run: Run, server: Running) -> None:
    """After a pause longer than the server keeps connections, all items are done, of GET and of POST."""

    async def main() -> None:
        async with Client(ca_file=server.ca_file) as client:
            for pause in (KEPT + 0.5, 0.0):
                for base in (server.http, server.https):
                    fetch = hr.http.fetch(client=client)
                    report = await hr.Flow([f"{base}/doc?{number}" for number in range(20)]).map(fetch).run()
                    assert (report.done, report.failed) == (20, 0)
                    if "echo" in server.can:
                        assert (await client.post(f"{base}/echo", body=b"x")).body == b"x"
                await asyncio.sleep(pause)

    run(main)


@servers("reload")
def test_reload_under_load_fails_nothing(run: Run, server: Running, base: str) -> None:
    """The server begins anew twice in mid-run; every item is done, and accounted for once."""

    async def main() -> None:
        urls = [f"{base}/doc?{number}" for number in range(3000)]
        begun = asyncio.Event()

        async def seen(response: Any) -> int:
            if response.item.endswith("?500"):
                begun.set()
            return int(response.item.rpartition("?")[2])

        async def reload() -> None:
            await begun.wait()
            for _ in range(2):
                server.reload()
                await asyncio.sleep(0.3)

        async with Client(ca_file=server.ca_file) as client:
            reloading = asyncio.create_task(reload())
            fetch = hr.http.fetch(client=client)
            retry = hr.Retry(attempts=10, base=0.1, cap=2.0)
            got: list[int] = []
            flow = hr.Flow(urls).map(fetch, concurrency=30, retry=retry).map(seen)
            async with flow.stream() as outcomes:
                async for outcome in outcomes:
                    assert isinstance(outcome, hr.Done), outcome
                    got.append(outcome.value)
            await reloading
            assert sorted(got) == list(range(3000))

    run(main)


@servers("ranges")
def test_logs_are_followed(run: Run, server: Running, base: str) -> None:
    """Lines that are appended to a served file come once each, and a rotation is seen."""

    async def main() -> None:
        log = server.www / f"{server.name}-{base.partition(':')[0]}.log"
        log.write_text("one\ntwo\n")
        async with (
            Client(ca_file=server.ca_file) as client,
            hr.http.lines(f"{base}/{log.name}", follow=0.05, client=client) as lines,
        ):
            rows = aiter(lines)
            assert [(await anext(rows)).text for _ in range(2)] == ["one", "two"]
            for number in range(3):
                with log.open("a") as file:
                    file.write(f"more {number}\n")
                assert (await anext(rows)).text == f"more {number}"
            log.unlink()
            log.write_text("new\n")
            assert (await anext(rows)).text == "new"

    run(main)
