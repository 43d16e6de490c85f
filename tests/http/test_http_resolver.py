"""Names: one look-up each, hangs that hurt nobody else, caches, and threads that end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from server import Request, answer, serve

from headrace.http import Client, ResolveFailed, Resolver, Timeouts
from headrace.http import resolver as room

Run = Callable[[Callable[[], Any]], Any]


class Names:
    """A look-up to play with: names that begin with "hang" hang until `release`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.release = threading.Event()
        self.addresses = ["127.0.0.1"]

    def __call__(self, name: str) -> list[str]:
        self.asked.append(name)
        if name.startswith("hang"):
            self.release.wait(30)
        if name.startswith("bad"):
            raise OSError("no")
        return self.addresses


def test_one_look_up_for_all_who_ask(run: Run) -> None:
    """A hundred askers share one look-up, and later ones the cached answer."""
    names = Names()

    async def main() -> None:
        resolver = Resolver(names)
        got = await asyncio.gather(*(resolver.resolve("a.test") for _ in range(100)))
        assert len({id(each) for each in got}) == 1
        assert (await resolver.resolve("a.test")) is got[0]
        assert names.asked == ["a.test"]
        await resolver.aclose()

    run(main)


def test_answers_and_failures_expire(run: Run) -> None:
    """An answer is asked for again after its time, a failure much sooner."""
    names = Names()

    async def main() -> None:
        resolver = Resolver(names, ttl=0.05, negative_ttl=0.05)
        first = await resolver.resolve("a.test")
        for _ in range(2):
            with pytest.raises(ResolveFailed):
                await resolver.resolve("bad.test")
        assert names.asked == ["a.test", "bad.test"]
        await asyncio.sleep(0.06)
        assert (await resolver.resolve("a.test")) is not first
        with pytest.raises(ResolveFailed):
            await resolver.resolve("bad.test")
        assert names.asked == ["a.test", "bad.test"] * 2
        await resolver.aclose()

    run(main)


def test_cancelled_askers_leave_the_others(run: Run) -> None:
    """Cancelling one asker does not cancel the look-up of the others."""
    names = Names()

    async def main() -> None:
        resolver = Resolver(names)
        calls = [asyncio.create_task(resolver.resolve("hang.test")) for _ in range(3)]
        await asyncio.sleep(0.01)
        calls[0].cancel()
        names.release.set()
        first, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert all(each.listed == ("127.0.0.1",) for each in others)  # type: ignore[union-attr]
        await resolver.aclose()

    run(main)


def test_ten_hanging_names_among_a_hundred_good_ones(run: Run) -> None:
    """Ten names hang: a hundred others are fetched as if those were not there, and the ten fail at the resolve limit."""
    names = Names()

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(request.headers["host"].encode()))

    async def main() -> None:
        resolver = Resolver(names)
        async with serve(handler) as server:
            limits = Timeouts(resolve=0.5)
            async with Client(resolver=resolver, timeouts=limits) as client:

                async def fetch(name: str) -> str:
                    return (await client.get(server.url("/", name))).text

                began = time.perf_counter()
                bad = [asyncio.create_task(fetch(f"hang{n}.test")) for n in range(10)]
                good = await asyncio.gather(*(fetch(f"good{n}.test") for n in range(100)))
                took = time.perf_counter() - began
                assert good == [f"good{n}.test:{server.port}" for n in range(100)]
                assert took < 0.5, took
                for result in await asyncio.gather(*bad, return_exceptions=True):
                    assert isinstance(result, ResolveFailed)
                    assert (result.phase, result.disposition.value) == ("resolve", "transient")
                before = time.perf_counter()
            assert time.perf_counter() - before < 0.05, "closing waits for nobody"
        names.release.set()
        assert await resolver.aclose() <= 10
        for _ in range(200):
            if resolver.statistics().threads == 0:
                break
            await asyncio.sleep(0.005)

    run(main)


def test_stuck_threads_are_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More hanging names than threads: after a while others take their place, up to a cap."""
    monkeypatch.setattr(room, "SLOW", 0.1)
    monkeypatch.setattr(room, "MAX_THREADS", 12)
    names = Names()

    async def main() -> None:
        resolver = Resolver(names, threads=4)
        bad = [asyncio.create_task(resolver.resolve(f"hang{n}.test", 5.0)) for n in range(8)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            good = await asyncio.gather(*(resolver.resolve(f"good{n}.test", 5.0) for n in range(20)))
        assert len(good) == 20
        assert resolver.statistics().running == 8
        assert resolver.statistics().threads <= 12
        names.release.set()
        await asyncio.gather(*bad)
        await resolver.aclose()
        assert resolver.statistics().threads == 0

    run(main)


def test_a_hanging_name_is_asked_for_once(run: Run) -> None:
    """Who asks for a name that hangs joins its one look-up, and gets the answer when it comes at last."""
    names = Names()

    async def main() -> None:
        resolver = Resolver(names)
        for _ in range(3):
            with pytest.raises(ResolveFailed, match="within"):
                await resolver.resolve("hang.test", 0.02)
        late = asyncio.create_task(resolver.resolve("hang.test", 5.0))
        await asyncio.sleep(0)
        names.release.set()
        assert (await late).listed == ("127.0.0.1",)
        assert names.asked == ["hang.test"]
        await resolver.aclose()

    run(main)


def test_new_addresses_replace_old_ones(run: Run) -> None:
    """When a name moves, the next connection goes to the new address."""
    names = Names()

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str:
        writer.write(answer(b"ok", headers="Connection: close\r\n"))
        return "close"

    async def main() -> None:
        resolver = Resolver(names, ttl=0.05)
        async with serve(handler) as server, Client(resolver=resolver) as client:
            names.addresses = ["127.0.0.9"]  # nobody listens there
            url = server.url("/", "moving.test")
            with pytest.raises(Exception, match="connect"):
                await client.get(url)
            names.addresses = ["127.0.0.9", "127.0.0.1"]
            await asyncio.sleep(0.06)
            assert (await client.get(url)).status == 200
            names.addresses = ["127.0.0.9"]
            await asyncio.sleep(0.06)
            with pytest.raises(Exception, match="connect"):
                await client.get(url)
        await resolver.aclose()

    run(main)


def test_closed(run: Run) -> None:
    """Closing fails those who wait, and ends the threads."""
    names = Names()

    async def main() -> None:
        resolver = Resolver(names)
        await resolver.resolve("a.test")
        waiting = asyncio.create_task(resolver.resolve("hang.test"))
        await asyncio.sleep(0.01)
        assert await resolver.aclose() == 1
        with pytest.raises(ResolveFailed, match="closed"):
            await waiting
        with pytest.raises(ResolveFailed, match="closed"):
            await resolver.resolve("b.test")
        names.release.set()

    run(main)
