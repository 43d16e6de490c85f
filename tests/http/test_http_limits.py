"""Limits around real requests: each hop and each request of a call is charged, and rates that answers tell are heeded."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from server import Request, answer, serve

import headrace as hr
from headrace.http import Client, StatusError, fetch, host
from headrace.http.permits import rate_hint
from headrace.http.response import Response
from headrace.policies.limits import LimitRefused
from headrace.policies.rate_headers import RateHint

Run = Callable[..., Any]


class Site:
    """Answers, and notes when it was asked; /to/URL redirects there, a number is a status."""

    def __init__(self, headers: str = "") -> None:
        self.headers = headers
        self.times: list[float] = []
        self.running = 0
        self.most = 0

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.times.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        if request.target.startswith("/to/"):
            writer.write(answer(b"", "302 Found", f"Location: {request.target[4:]}\r\n{self.headers}"))
        else:
            status = request.target[1:4] if re.match(r"/\d{3}", request.target) else "200"
            writer.write(answer(b"ok", f"{status} X", self.headers))


def idle(*limits: hr.Limit) -> bool:
    return all((limit.statistics().running, limit.statistics().waiting) == (0, 0) for limit in limits)


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "flow"])
def test_a_hop_to_the_same_host_is_charged(run: Run, bare: bool) -> None:
    """A redirect is a request like any other: with it, the rate of the host holds."""

    async def main() -> None:
        site, limit = Site(), hr.Limit(by=host, rate="50/s", concurrency=1)
        async with serve(site) as server:
            urls = [server.url(f"/to//{n}") for n in range(5)]
            if bare:
                async with Client(limits=[limit]) as client:
                    await asyncio.gather(*(client.get(url) for url in urls))
            else:
                assert len((await hr.map(fetch(limits=[limit]), urls)).done) == 5
        assert len(site.times) == 10
        assert site.most == 1
        assert site.times[-1] - site.times[0] > 9 / 50 - 0.02
        assert idle(limit)

    run(main)


def test_every_request_of_a_call_is_charged(run: Run) -> None:
    """A stage's function that makes three requests in a call keeps to the rate of the host."""

    async def main() -> None:
        site, limit = Site(), hr.Limit(by=host, rate="50/s", concurrency=2)

        async def call(url: str, *, client: Client) -> None:
            for page in range(3):
                await client.get(f"{url}/{page}")

        async with serve(site) as server:
            got = await hr.map(
                call, [server.url(f"/{n}") for n in range(4)], uses={"client": Client}, limits=[limit]
            )
            assert len(got.done) == 4
        assert len(site.times) == 12
        assert site.times[-1] - site.times[0] > 11 / 50 - 0.02
        assert idle(limit)

    run(main)


def test_a_client_keeps_its_limits_within_a_flow(run: Run) -> None:
    """They are taken for each request, once where the stage has them too, and given back whatever came of it."""

    async def main() -> None:
        site = Site()
        shared, own = hr.Limit(by=host, concurrency=3), hr.Limit(concurrency=1)
        async with serve(site) as server:
            urls = [server.url(f"/{'404' if n % 3 else 'to//x'}/{n}") for n in range(30)]
            request = fetch(client=lambda: Client(limits=[shared, own]), limits=[shared])
            got = await hr.map(request, urls, concurrency=10)
            assert (len(got.done), len(got.failed)) == (10, 20)
            assert site.most == 1
            site.most = 0
            request = fetch(client=lambda: Client(limits=[shared]))
            await hr.map(request, urls, concurrency=10)
            assert site.most == 3
            assert idle(shared, own)

    run(main)


def test_a_templated_fetch_moves_with_its_redirect(run: Run) -> None:
    """by=request.host gives the key of the hop, not that of the row: the other host's limit holds."""

    async def main() -> None:
        door, house = Site(), Site()
        async with serve(house) as there, serve(door) as here:
            request = fetch(here.url(f"/to/{there.url('/')}") + "{id}")
            limit = hr.Limit(by=request.host, concurrency=2)
            got = await hr.map(request, [{"id": n} for n in range(20)], limits=[limit])
            assert len(got.done) == 20
            keys = {each.key for each in limit.busiest(9)}
            assert keys == {f"127.0.0.1:{server.port}" for server in (here, there)}
            assert (door.most <= 2, house.most <= 2) == (True, True)
            assert idle(limit)

    run(main)


def test_cancelled_requests_give_everything_back(run: Run) -> None:
    """Cancelled while it waits for its limits, at any hop, a call leaves no permit behind."""

    async def main() -> None:
        site = Site()
        async with serve(site) as server:
            for step in range(15):
                keyed = hr.Limit(by=host, concurrency=2, rate="100/s")
                whole, own = hr.Limit(concurrency=3), hr.Limit(concurrency=1)
                request = fetch(client=lambda own=own: Client(limits=[own]), limits=[keyed, whole])
                urls = [server.url(f"/to//to//{n}") for n in range(10)]
                task = asyncio.create_task(hr.map(request, urls, concurrency=5))
                await asyncio.sleep(0.004 * step)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert idle(keyed, whole, own), step

    run(main)


def test_a_limit_that_refuses_a_request_shows_no_secret(run: Run) -> None:
    """The key function of a client's limit fails: the item fails with it, and its message masks the URL."""

    def broken(url: Any) -> Any:
        raise KeyError("x")

    async def main() -> None:
        site, own, stage = Site(), hr.Limit(by=broken, concurrency=1), hr.Limit(by=host, concurrency=1)
        async with serve(site) as server:
            request = fetch(client=lambda: Client(limits=[own]), limits=[stage])
            (failed,) = (await hr.map(request, [server.url("/x?key=hush")])).failed
            assert isinstance(failed.error, LimitRefused)
            assert "?key=***" in str(failed.error)
            assert "hush" not in str(failed.error)
            assert (site.times, idle(own, stage)) == ([], True)

    run(main)


def test_a_loop_in_a_thread_takes_its_clients_limits_alone(run: Run) -> None:
    """What belongs to the run's loop is not touched from a thread: there a client is as it is without a flow."""

    async def main() -> None:
        site, stage = Site('RateLimit: "a";r=0;t=0.1\r\n'), hr.Limit(rate="1000/s", by=host)
        async with serve(site) as server:

            def call(url: str) -> int:
                async def requests() -> int:
                    own = hr.Limit(concurrency=1)
                    async with Client() as bare, Client(limits=[own]) as limited:
                        await bare.get(url.replace("http", "HTTP"))
                        await limited.get(server.url("/to//x"))
                        return own.statistics().running

                return asyncio.run(requests())

            got = await hr.map(call, [server.url(f"/{n}") for n in range(3)], limits=[stage], concurrency=3)
            assert got.values == [0, 0, 0]
            assert len(site.times) == 9
            assert idle(stage)
            assert stage.statistics().held == 0

    run(main)


# ------------------------------------------------------------------------------------------------ rate headers


def response(*lines: str, at: float = 1000.0) -> Response:
    head = [b"HTTP/1.1 200 OK\r\n", *(f"{line}\r\n".encode("latin-1") for line in lines), b"\r\n"]
    return Response("http://h/", 200, head, b"", (0.0,) * 5, at)


def test_hints_are_read_from_raw_headers() -> None:
    """In any case, repeated fields together, dates from the answer's own clock; without such headers nothing."""
    assert rate_hint(response("Content-Type: text/plain")) is None
    assert rate_hint(response("X-Note: no limit here")) is None
    assert rate_hint(response('RATELIMIT: "a";r=5;t=9')) == RateHint(5, 9.0)
    assert rate_hint(response('RateLimit: "a";r=5;t=9', 'ratelimit: "b";r=2;t=7')) == RateHint(2, 7.0)
    assert rate_hint(response("x-rate-limit-remaining: 1", "X-Rate-Limit-Reset: 60")) == RateHint(1, 60.0)
    skewed = (
        "Date: Sat, 06 Nov 2004 08:48:37 GMT",
        "X-RateLimit-Remaining: 0",
        "X-RateLimit-Reset: 1099730947",
    )
    assert rate_hint(response(*skewed, at=0.0)) == RateHint(0, 30.0)
    assert rate_hint(response("X-RateLimit-Remaining: 0", "X-RateLimit-Reset: \xff")) is None


@pytest.mark.parametrize("path", ["/200", "/404", "/429", "/to//200"])
@pytest.mark.parametrize("way", ["bare", "flow", "own"])
def test_a_spent_rate_holds_the_host(run: Run, path: str, way: str) -> None:
    """Accepted or refused, an answer with nothing left holds its host until the reset; other hosts go on."""

    async def main() -> None:
        spent, other = Site('RateLimit: "a";r=0;t=0.3\r\n'), Site()
        limit = hr.Limit(by=host, concurrency=1)
        async with serve(spent) as server, serve(other) as neighbour:
            urls = [server.url(path), server.url("/200"), *(neighbour.url(f"/{n}") for n in range(5))]
            if way == "bare":
                async with Client(limits=[limit]) as client:
                    await asyncio.gather(*(client.get(url) for url in urls), return_exceptions=True)
            else:
                request = (
                    fetch(limits=[limit]) if way == "flow" else fetch(client=lambda: Client(limits=[limit]))
                )
                await hr.map(request, urls, retry=hr.Retry(attempts=1), concurrency=8)
            assert 0.25 < spent.times[1] - spent.times[0] < 0.6
            assert other.times[-1] - spent.times[0] < 0.25
            assert idle(limit)

    run(main)


def test_what_is_left_is_used(run: Run) -> None:
    """With calls left over, and with a reset that is now, nothing is held; and nothing is sped up."""

    async def main() -> None:
        for headers in (
            'RateLimit: "a";r=100;t=3000\r\n',
            "X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 0\r\n",
        ):
            site, limit = Site(headers), hr.Limit(by=host, concurrency=4, rate="200/s")
            async with serve(site) as server:
                got = await hr.map(fetch(limits=[limit]), [server.url(f"/{n}") for n in range(20)])
            assert len(got.done) == 20
            assert 19 / 200 - 0.02 < site.times[-1] - site.times[0] < 1.0
            assert limit.statistics().held == 0

    run(main)


def test_a_far_reset_is_capped(run: Run) -> None:
    """A 200 that says nothing is left for a day holds its host for an hour and a tenth at most."""

    async def main() -> None:
        site = Site(f"X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: {int(time.time()) + 80_000}\r\n")
        limit = hr.Limit(by=host, concurrency=1)
        async with serve(site) as server, Client(limits=[limit]) as client:
            await client.get(server.url("/"))
            (key,) = limit.busiest(9)
            assert 3590 < key.held_until - asyncio.get_running_loop().time() <= 3600 * 1.1

    run(main)


def test_retry_after_holds_a_clients_own_limit(run: Run) -> None:
    """What the engine does for the limits of a stage the client does for its own."""

    async def main() -> None:
        site, limit = Site("Retry-After: 1\r\n"), hr.Limit(by=host, concurrency=1)
        async with serve(site) as server, Client(limits=[limit]) as client:
            with pytest.raises(StatusError):
                await client.get(server.url("/429"))
            (key,) = limit.busiest(9)
            assert 0.9 < key.held_until - asyncio.get_running_loop().time() <= 1.1

    run(main)


def test_a_held_host_is_told_of(run: Run) -> None:
    """The run tells which key waits, until when, and why."""

    async def main() -> None:
        site, limit = Site('RateLimit: "a";r=0;t=0.2\r\n'), hr.Limit(by=host, concurrency=1)
        told: Counter[tuple[str, str]] = Counter()
        async with serve(site) as server:
            flow = hr.Flow([server.url("/a"), server.url("/b")]).map(fetch(limits=[limit]))
            async with flow.start() as job:
                job.subscribe(
                    lambda events: told.update(
                        (each.key, each.reason) for each in events if type(each).__name__ == "KeyHeld"
                    )
                )
                assert (await job.wait()).done == 2
            assert told == {(host(server.url("/")), "0 calls left for 0.2 s"): 2}

    run(main)
