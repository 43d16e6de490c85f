"""Manners under load: what a server that limits its clients sees, and what one host that hangs does to the others.

Rules:
1. The server is a process of its own on the other core, and it counts: shares are of what it saw, in its seconds.
2. «headrace fetch» is the flow that the command makes of its default options; nothing is tuned to the server.
3. By hand is what one writes: aiohttp, a semaphore for all, three attempts, and a sleep of what Retry-After says. Its
   concurrency is 8 where the server counts, as that of the fixed limit, and that of the command where one host hangs.
4. The server that counts lets 200 requests start in a second, and from second 15 on 100. What comes before second 5, and
   in the 10 seconds after the halving, is finding out and is not counted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from bench.harness import Check, Report, Side, Table, below, play, ratio
from bench.manners_server import counts, server

LIMITS = (200, 100)
#: The seconds of the server that count, before and after its limit was halved.
TURN = 15
PHASES = {"before": (5, 15), "after": (25, 38)}
LATE = 3.0  #: so much later than these the fetcher stops: the server begins to count with the first request
HOSTS, PAGES, LATENCY = 50, 150, 0.05
CONCURRENCY = 64  #: of the command
TIMEOUT = 5.0


# ---------------------------------------------------------------------------------------------------- who fetches

Fetcher = Callable[[Sequence[str], Callable[[str], None], asyncio.Event], Awaitable[None]]


async def command(urls: Sequence[str], done: Callable[[str], None], over: asyncio.Event) -> None:
    """Be the flow of `headrace fetch`, with its defaults but for the time limit of a request."""
    from headrace.cli.options import Problems
    from headrace.cli.request import FetchRequest

    request = FetchRequest.read(None, urls, {"timeout": f"{TIMEOUT:g}"}, [], Problems())
    assert request is not None
    await _consume(request.flow(), done, over)


async def fixed(urls: Sequence[str], done: Callable[[str], None], over: asyncio.Event) -> None:
    """Have a fixed number of calls at once for each host."""
    import headrace as hr

    limit = hr.Limit(by=hr.http.host, concurrency=8)
    flow = hr.Flow(urls).map(hr.http.fetch(), concurrency=CONCURRENCY, limits=[limit])
    await _consume(flow, done, over)


async def _consume(flow: Any, done: Callable[[str], None], over: asyncio.Event) -> None:
    async with flow.stream(fuse=None) as outcomes:
        async for outcome in outcomes:
            if type(outcome).__name__ == "Done":
                done(outcome.value.url)
            if over.is_set():
                return


def by_hand(at_once: int) -> Fetcher:
    """Make what one writes."""

    async def fetch(urls: Sequence[str], done: Callable[[str], None], over: asyncio.Event) -> None:
        import aiohttp

        semaphore = asyncio.Semaphore(at_once)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:

            async def one(url: str) -> None:
                async with semaphore:
                    for _ in range(3):
                        try:
                            async with session.get(url) as response:
                                if response.status == 429:
                                    await asyncio.sleep(float(response.headers["Retry-After"]))
                                    continue
                                await response.read()
                                done(url)
                                return
                        except (aiohttp.ClientError, TimeoutError):
                            continue

            tasks = [asyncio.ensure_future(one(url)) for url in urls]
            await over.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return fetch


WHO: dict[str, Fetcher] = {
    "command": command,
    "fixed": fixed,
    "hand_8": by_hand(8),
    "hand_all": by_hand(CONCURRENCY),
}


# ---------------------------------------------------------------------------------------------------- the cases


def counting(who: str, until: int = PHASES["after"][1]) -> dict[str, float]:
    """Fetch from a server that counts requests by the second; give what it saw."""
    import uvloop

    with server(limits=LIMITS, turn=TURN) as [port]:
        urls = [f"http://127.0.0.1:{port}/{number}" for number in range(LIMITS[0] * until)]

        async def main() -> None:
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(until + LATE, over.set)
            await WHO[who](urls, lambda url: None, over)

        uvloop.run(main())
        (seconds,) = counts(port)
    if len(seconds) <= until:
        raise RuntimeError(f"the server counted {len(seconds)} seconds, and {until} whole ones are wanted")
    figures = {}
    for phase, limit in zip(PHASES, LIMITS, strict=True):
        first, last = PHASES[phase]
        taken = sum(second[0] for second in seconds[first:last])
        refused = sum(second[1] for second in seconds[first:last])
        figures[f"used_{phase}"] = taken / (limit * (last - first))
        figures[f"refused_{phase}"] = refused / max(1, taken + refused)
    return figures


def trace(who: str) -> None:
    """Print what the server that counts saw in each second."""
    import uvloop

    with server(limits=LIMITS, turn=TURN) as [port]:
        urls = [f"http://127.0.0.1:{port}/{number}" for number in range(LIMITS[0] * PHASES["after"][1])]

        async def main() -> None:
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(PHASES["after"][1] + LATE, over.set)
            await WHO[who](urls, lambda url: None, over)

        uvloop.run(main())
        for number, (taken, refused) in enumerate(counts(port)[0]):
            print(f"{number:3} {taken:5} let in {refused:5} refused")


def hanging(who: str, hangs: bool, pages: int = PAGES) -> dict[str, float]:
    """Fetch from many hosts, of which the last hangs or is not asked; give the time that the others took."""
    import uvloop

    with server(ports=HOSTS, latency=LATENCY, hangs=HOSTS - 1) as ports:
        asked = ports if hangs else ports[:-1]
        bad = f":{ports[-1]}/"
        urls = [f"http://127.0.0.1:{port}/{page}" for page in range(pages) for port in asked]
        left = (HOSTS - 1) * pages
        took = 0.0

        async def main() -> None:
            nonlocal left
            over = asyncio.Event()
            began = time.perf_counter()

            def done(url: str) -> None:
                nonlocal left, took
                assert bad not in url
                left -= 1
                if not left:
                    took = time.perf_counter() - began
                    over.set()

            await WHO[who](urls, done, over)

        uvloop.run(main())
    if left:
        raise RuntimeError(f"{left} pages of hosts that answer are missing")
    return {"seconds": took}


# ---------------------------------------------------------------------------------------------------- the bench


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure both cases."""
    report = Report()
    _counting(1 if quick else 3, say, report)
    _hanging(1 if quick else 3, 30 if quick else PAGES, say, report)
    return report


def _counting(rounds: int, say: Callable[[str], None], report: Report) -> None:
    ours = "headrace fetch"
    names = {"command": ours, "fixed": "concurrency=8", "hand_8": "aiohttp by hand, 8 at a time"}
    found = play([Side(names[who], "bench.manners:counting", {"who": who}) for who in names], rounds, say)
    columns = {
        f"{what}_{phase}": f"{what} {phase}" for phase, what in itertools.product(PHASES, ("used", "refused"))
    }
    table = Table(f"a server that lets {LIMITS[0]} requests a second in, then {LIMITS[1]}", columns, found)
    report.tables.append(table)
    figures = table.medians()[ours]
    for phase, limit in zip(PHASES, LIMITS, strict=True):
        report.checks += [
            Check(f"{limit}/s {phase} the halving: share used", figures[f"used_{phase}"], 0.9, True, ""),
            below(f"{limit}/s {phase} the halving: share refused", figures[f"refused_{phase}"], 0.02, ""),
        ]


def _hanging(rounds: int, pages: int, say: Callable[[str], None], report: Report) -> None:
    names = {"command": "headrace fetch", "hand_all": "aiohttp by hand"}
    sides = [
        Side(_side(name, hangs), "bench.manners:hanging", {"who": who, "hangs": hangs, "pages": pages})
        for who, name in names.items()
        for hangs in (False, True)
    ]
    found = play(sides, rounds, say)
    title = f"{HOSTS - 1} hosts with {pages} pages each, {CONCURRENCY} at a time: until all are there"
    report.tables.append(Table(title, {"seconds": "seconds"}, found))
    for who, name in names.items():
        held = ratio(found, _side(name, True), _side(name, False), "seconds")
        if who == "command":
            report.checks.append(below("one more host that hangs: time of the others", held, 1.05, "×"))
        else:
            report.notes.append(f"one more host that hangs, {name}: time of the others {held:.3g} ×")


def _side(name: str, hangs: bool) -> str:
    return f"{name}, {'and one that hangs' if hangs else 'all answer'}"


def main(words: Iterable[str]) -> None:
    """Print the trace of those who are named."""
    for who in words:
        print(who)
        trace(who)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
