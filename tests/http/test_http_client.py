"""The client over real sockets: connections, redirects, credentials, cancellation, limits, closing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from server import Request, always, answer, serve

from headrace.errors import PlanError
from headrace.http import Client, ClientClosed, ConnectFailed, RedirectRefused, Secret, Timeouts, host
from headrace.http.transfer import MultiFailed
from headrace.policies.limits import Limit
from headrace.ports import current_call

Run = Callable[[Callable[[], Any]], Any]


async def _echo(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(request.target.encode()))


def test_connections_are_reused(run: Run) -> None:
    """100 workers making 1000 requests need at most 100 connections; one worker needs one."""

    async def main() -> None:
        async with serve(_echo) as server, Client() as client:
            for number in range(50):
                assert (await client.get(server.url(f"/{number}"))).body == f"/{number}".encode()
            assert server.connections == 1
            numbers = iter(range(1000))

            async def worker() -> None:
                for number in numbers:
                    response = await client.get(server.url(f"/{number}"))
                    assert response.text == f"/{number}"

            await asyncio.gather(*(worker() for _ in range(100)))
            assert server.connections <= 100
            assert client.statistics().connections == server.connections
            assert client.statistics().requests == 1050

    run(main)


@pytest.mark.slow
def test_old_connections_are_not_trusted_with_a_post(run: Run) -> None:
    """A POST takes only a connection that was used a moment ago: one idle for longer may be about to die."""

    async def main() -> None:
        async with serve(_echo) as server, Client() as client:
            await client.get(server.url())
            await client.post(server.url(), body=b"at once")
            assert server.connections == 1
            await asyncio.sleep(2.2)  # libcurl counts idle time in whole seconds of the real clock
            await client.get(server.url())
            assert server.connections == 1
            await asyncio.sleep(2.2)
            await client.post(server.url(), body=b"later")
            assert server.connections == 2

    run(main)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"])
def test_methods_and_bodies(run: Run, method: str) -> None:
    """Every method arrives as it was asked for, with its body and nothing that libcurl would add."""

    async def main() -> None:
        async with serve(_echo) as server, Client() as client:
            await client.request(method, server.url("/plain"))
            await client.request(method, server.url("/body"), json={"a": 1})
            await client.request(method, server.url("/large"), body=bytes(2 << 20))
            await client.request(method, server.url("/plain"))
            plain, body, large, again = server.requests
            assert [each.method for each in server.requests] == [method] * 4
            assert (plain.body, again.body) == (b"", b"")
            assert "content-type" not in plain.headers
            assert "expect" not in large.headers
            if method != "HEAD":
                assert (body.body, body.headers["content-type"]) == (b'{"a":1}', "application/json")
                assert len(large.body) == 2 << 20
                assert "content-type" not in large.headers

    run(main)


def test_forms_texts_and_contradictions(run: Run) -> None:
    """data= is a form, a str body is text, and two bodies at once are refused."""

    async def main() -> None:
        async with serve(_echo) as server, Client(headers={"X-A": "1", "User-Agent": "mine"}) as client:
            await client.post(server.url(), data={"a": "x y", "b": ["1", "2"]})
            await client.post(server.url(), body="ä", headers={"x-a": "2", "Content-Type": "text/x"})
            form, text = server.requests
            assert (form.body, form.headers["content-type"]) == (
                b"a=x+y&b=1&b=2",
                "application/x-www-form-urlencoded",
            )
            assert (text.body.decode(), text.headers["content-type"], text.headers["x-a"]) == (
                "ä",
                "text/x",
                "2",
            )
            assert (form.headers["x-a"], form.headers["user-agent"]) == ("1", "mine")
            with pytest.raises(PlanError, match="only one"):
                await client.post(server.url(), body=b"x", json=None)
            with pytest.raises(PlanError, match="method"):
                await client.request("GET / HTTP/1.1\r\n", server.url())
            with pytest.raises(PlanError, match="JSON"):
                await client.post(server.url(), json={1, object()})

    run(main)


def test_response_tells_its_story(run: Run) -> None:
    """URL as given, final URL, redirects, protocol, times and the item are in the answer."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.target == "/a?x=1":
            writer.write(answer(b"x" * 100_000, "302 Found", "Location: b\r\n"))
        else:
            writer.write(answer(b"here", headers="X-A: 1\r\nx-a: 2\r\n"))

    async def main() -> None:
        async with serve(handler) as server, Client() as client:
            url = server.url("/a?x=1#part")
            got = await client.get(url, item={"id": 7})
            assert (got.url, got.final_url, got.redirects) == (url, server.url("/b"), 1)
            assert (got.http_version, got.attempts, got.item) == ("HTTP/1.1", 1, {"id": 7})
            assert got.headers.all("X-A") == ("1", "2")
            assert 0 < got.timings.first_byte <= got.timings.total < 5
            assert got.timings.tls == 0
            stay = await client.get(url, follow=False, accept="302")
            assert (stay.status, stay.headers["location"]) == (302, "b")

    run(main)


def test_credentials_stay_at_their_origin(run: Run) -> None:
    """A redirect to another port drops Authorization, cookies and everything marked secret, and keeps the rest."""

    async def main() -> None:
        async with serve(_echo) as other:
            away = answer(b"", "302 Found", f"Location: {other.url('/there')}\r\n")

            async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
                writer.write(away if request.target != "/stay" else answer(b"", "302 X", "Location: /\r\n"))

            async with serve(handler) as server, Client() as client:
                secrets = {
                    "Authorization": "Bearer hush",
                    "Cookie": "a=hush",
                    "X-Api-Key": "hush",
                    "X-Mine": Secret("hush"),
                    "X-Plain": "hello",
                }
                await client.get(server.url("/stay"), headers=secrets)
                first, second = server.requests
                assert first.headers["x-mine"] == second.headers["x-mine"] == "hush"
                assert "hush" not in repr(other.requests[0])
                assert other.requests[0].headers["x-plain"] == "hello"
                with_user = server.url("/").replace("http://", "http://user:hush@")
                got = await client.get(with_user)
                assert server.requests[-1].headers["authorization"] == "Basic dXNlcjpodXNo"
                assert "authorization" not in other.requests[-1].headers
                assert "hush" not in f"{got.url}{got.final_url}{got.as_row()}"

    run(main)


def test_a_redirected_post_counts_as_sent(run: Run) -> None:
    """What fails after a redirect of a POST is ambiguous: the first request did arrive."""

    async def main() -> None:
        gone = answer(b"", "307 Temporary", "Location: http://127.0.0.1:1/\r\n")
        bad = answer(b"", "303 See", "Location: ftp://h/\r\n")
        async with serve(always(gone)) as server, Client() as client:
            with pytest.raises(ConnectFailed) as caught:
                await client.post(server.url(), body=b"x")
            assert caught.value.ambiguous
            with pytest.raises(ConnectFailed) as caught:
                await client.get(server.url())
            assert not caught.value.ambiguous
            server.handler = always(bad)
            with pytest.raises(RedirectRefused) as refused:
                await client.post(server.url(), body=b"x")
            assert refused.value.ambiguous

    run(main)


class _Call:
    """The attempt under way, as the engine shows it."""

    def __init__(self) -> None:
        self.position = 3
        self.attempt = 2
        self.deadline = None
        self.idempotency_key = "key-3"
        self.is_limited = True
        self.readmitted: list[Any] = []

    def covers(self, value: Any, item: Any = None) -> bool:
        return not self.readmitted and value.endswith("/1")

    async def readmit(self, value: Any, limits: Any, *, is_answered: bool) -> list[Any]:
        assert is_answered
        self.readmitted.append(value)
        return []


def test_each_hop_is_admitted(run: Run) -> None:
    """Inside a flow, a redirect asks the engine for admission, be it to another host or the same."""

    async def main() -> None:
        async with serve(_echo) as other:
            steps = {"/1": "/2", "/2": other.url("/3")}

            async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
                writer.write(answer(b"", "302 Found", f"Location: {steps[request.target]}\r\n"))

            async with serve(handler) as server, Client() as client:
                call = _Call()
                token = current_call.set(call)
                try:
                    got = await client.get(server.url("/1"))
                finally:
                    current_call.reset(token)
                assert call.readmitted == [server.url("/2"), other.url("/3")]
                assert got.attempts == 2

    run(main)


def test_a_bare_client_keeps_its_limits(run: Run) -> None:
    """limits= hold by host, redirects included, and permits come back after errors and cancellations."""

    async def main() -> None:
        now = most = 0

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.002)
            now -= 1
            writer.write(answer(b"ok", "500 X" if request.target == "/bad" else "200 OK"))

        limit = Limit(concurrency=3, by=host)
        async with serve(handler) as server:
            back = always(answer(b"", "302 Found", f"Location: {server.url('/in')}\r\n"))
            async with serve(back) as door, Client(limits=[limit]) as client:
                urls = [server.url("/a"), server.url("/bad"), door.url("/")] * 10
                await asyncio.gather(*(client.get(url) for url in urls), return_exceptions=True)
                assert most == 3
                calls = [asyncio.create_task(client.get(url)) for url in urls]
                await asyncio.sleep(0.004)
                for call in calls[::5]:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                assert limit.statistics().running == 0

    run(main)


def test_cancel_storm(run: Run) -> None:
    """200 of 400 requests are cancelled in flight: their connections close, the others and new ones succeed."""

    async def main() -> None:
        gate = asyncio.Event()

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            if request.target.startswith("/wait"):
                await gate.wait()
            writer.write(answer(request.target.encode()))

        async with serve(handler) as server, Client() as client:
            async with asyncio.timeout(20):
                calls = [asyncio.create_task(client.get(server.url(f"/wait/{n}"))) for n in range(400)]
                while len(server.requests) < 400:
                    await asyncio.sleep(0.001)
                for call in calls[::2]:
                    call.cancel()
                await asyncio.sleep(0)
                assert client.statistics().in_flight == 200
                fresh = asyncio.gather(*(client.get(server.url(f"/new/{n}")) for n in range(200)))
                for number, response in enumerate(await fresh):
                    assert response.text == f"/new/{number}"
                gate.set()
                results = await asyncio.gather(*calls, return_exceptions=True)
                for number, result in enumerate(results):
                    if number % 2:
                        assert result.text == f"/wait/{number}"  # type: ignore[union-attr]
                    else:
                        assert isinstance(result, asyncio.CancelledError)
                assert client.statistics().in_flight == 0

    run(main)


def test_cancelled_at_any_moment(run: Run) -> None:
    """A request cancelled at any turn of the loop leaves a client that works, and no answer meets the wrong call."""

    async def main() -> None:
        async with serve(_echo) as server, Client() as client:
            for turns in range(30):
                call = asyncio.create_task(client.get(server.url(f"/cancelled/{turns}")))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert (await call).text == f"/cancelled/{turns}"
                both = await asyncio.gather(*(client.get(server.url(f"/{turns}/{n}")) for n in range(3)))
                assert [each.text for each in both] == [f"/{turns}/{n}" for n in range(3)]
            assert client.statistics().in_flight == 0

    run(main)


def test_a_broken_multi_is_replaced(run: Run) -> None:
    """If libcurl's multi fails, its transfers fail as transient, and the next request gets a new one."""

    async def main() -> None:
        hanging = asyncio.Event()

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            if request.target == "/hang":
                await hanging.wait()
            writer.write(answer(b"ok"))

        async with serve(handler) as server, Client() as client:
            calls = [asyncio.create_task(client.get(server.url("/hang"))) for _ in range(10)]
            while len(server.requests) < 10:
                await asyncio.sleep(0.001)
            multi = client._transport._multi  # type: ignore[union-attr]
            multi._fail_all_pending(MultiFailed("as libcurl would say it"))
            for result in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(result, ClientClosed)
                assert result.ambiguous
                assert result.disposition.value == "transient"
            got = await asyncio.gather(*(client.get(server.url()) for _ in range(5)))
            assert {each.status for each in got} == {200}
            assert client.statistics().rebuilt == 1

    run(main)


def test_closing(run: Run) -> None:
    """A closed client says so; closing twice is fine; a client belongs to one loop."""

    async def main() -> None:
        async with serve(_echo) as server:
            client = Client()
            assert (await client.get(server.url("/x"))).text == "/x"
            await client.aclose()
            await client.aclose()
            with pytest.raises(ClientClosed, match="closed"):
                await client.get(server.url("/x"))
            assert "closed" in repr(client)
            await Client().aclose()

    run(main)


def test_another_loop() -> None:
    """A client used in a second loop is refused with the reason."""
    client = Client()

    async def first() -> None:
        with contextlib.suppress(ConnectFailed):
            await client.get("http://127.0.0.1:1/")

    async def second() -> None:
        with pytest.raises(PlanError, match="one in each loop"):
            await client.get("http://127.0.0.1:1/")

    async def close() -> None:
        await client.aclose()

    with asyncio.Runner() as runner:
        runner.run(first())
        with asyncio.Runner() as other:
            other.run(second())
        runner.run(close())


def test_the_environment_sets_no_proxy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy variables are not followed; proxy= is, and takes the request whatever its host is."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def main() -> None:
        async with serve(_echo) as server:
            async with Client() as client:
                assert (await client.get(server.url("/direct"))).text == "/direct"
            proxy = Secret(f"http://user:hush@localhost:{server.port}")
            async with Client(proxy=proxy) as client:
                got = await client.get("http://no.such.host.invalid/x")
                assert got.text == "http://no.such.host.invalid/x"
                assert server.requests[-1].headers["proxy-authorization"].startswith("Basic ")

    run(main)


@pytest.mark.parametrize(
    "options",
    [
        {"proxy": "localhost:3128"},
        {"proxy": "ftp://p"},
        {"headers": {"a": "b\r\n"}},
        {"user_agent": "a\r\nb"},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    """What cannot work is refused when the client is made."""
    with pytest.raises(PlanError):
        Client(**options)


def test_timeouts_of_one_request_do_not_stick(run: Run) -> None:
    """Limits given for one request hold for it alone."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15 if request.target == "/slow" else 0)
        writer.write(answer(b"ok"))

    async def main() -> None:
        async with serve(handler) as server, Client() as client:
            with pytest.raises(TimeoutError):
                await client.get(server.url("/slow"), timeouts=Timeouts(total=0.05))
            assert (await client.get(server.url("/slow"))).status == 200

    run(main)
