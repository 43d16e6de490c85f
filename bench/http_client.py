"""CPU per request: `Client.request` against bare `AsyncCurlMulti` and a hand-written aiohttp worker loop.

    python -m bench.http_client [--rounds 7] [--requests 20000] [--connections 100]

Rules:
1. Every client runs in a fresh process of its own, on one core with uvloop; nginx has the other core.
2. Rounds are interleaved; shown are medians, of the ratios too, which are taken within a round. Read the
   ratios: the figures depend on the machine.
3. All ask for the same documents, under URLs that differ, and read the status and the whole body of each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from bench.nginx import DOCUMENT, nginx

CLIENTS = ("headrace", "bare", "aiohttp")
Worker = Callable[[Iterator[str]], Awaitable[None]]


async def _run(worker: Worker, base: str, requests: int, connections: int) -> dict[str, float]:
    """Warm up, then measure: CPU seconds and wall seconds for `requests`."""

    async def all_of(first: int, count: int) -> None:
        urls = iter([f"{base}/doc?i={number}" for number in range(first, first + count)])
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(worker(urls))

    await all_of(0, max(connections * 5, 1000))
    cpu, wall = time.process_time(), time.perf_counter()
    await all_of(1_000_000, requests)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


async def headrace(base: str, ca_file: str, requests: int, connections: int) -> dict[str, float]:
    from headrace.http import Client

    async with Client(ca_file=ca_file) as client:

        async def worker(urls: Iterator[str]) -> None:
            for url in urls:
                response = await client.request("GET", url)
                assert response.status == 200
                assert len(response.body) == len(DOCUMENT)

        return await _run(worker, base, requests, connections)


async def bare(base: str, ca_file: str, requests: int, connections: int) -> dict[str, float]:
    """AsyncCurlMulti as pycurl has it, with the options and callbacks that headrace sets."""
    import pycurl

    from headrace.http.profile import Profile

    profile = Profile(ca_file=ca_file)
    async with pycurl.AsyncCurlMulti() as multi:
        multi.setopt(pycurl.M_MAXCONNECTS, 1000)

        async def worker(urls: Iterator[str]) -> None:
            curl = pycurl.Curl()
            profile.configure(curl, "GET")
            head: list[bytes] = []
            body: list[bytes] = []
            size = sends = 0

            def write(chunk: bytes) -> int | None:
                nonlocal size
                size += len(chunk)
                if size > 33_554_432:
                    return 0
                body.append(chunk)
                return None

            def about_to_send(*_: Any) -> int:
                nonlocal sends
                sends += 1
                return 0 if sends == 1 else 1

            curl.setopt(pycurl.HEADERFUNCTION, head.append)
            curl.setopt(pycurl.WRITEFUNCTION, write)
            curl.setopt(pycurl.PREREQFUNCTION, about_to_send)
            for url in urls:
                curl.setopt(pycurl.URL, url)
                await multi.perform(curl)
                assert curl.getinfo(pycurl.RESPONSE_CODE) == 200
                assert len(b"".join(body)) == len(DOCUMENT)
                head.clear()
                body.clear()
                size = sends = 0
            curl.close()

        return await _run(worker, base, requests, connections)


async def aiohttp(base: str, ca_file: str, requests: int, connections: int) -> dict[str, float]:
    """A worker loop as one would write it by hand."""
    import ssl

    import aiohttp

    context = ssl.create_default_context(cafile=ca_file)
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def worker(urls: Iterator[str]) -> None:
            for url in urls:
                async with session.get(url) as response:
                    assert response.status == 200
                    assert len(await response.read()) == len(DOCUMENT)

        return await _run(worker, base, requests, connections)


def _child(arguments: argparse.Namespace) -> None:
    import uvloop

    run = {"headrace": headrace, "bare": bare, "aiohttp": aiohttp}[arguments.child]
    print(
        json.dumps(uvloop.run(run(arguments.base, arguments.ca, arguments.requests, arguments.connections)))
    )


def measure(client: str, base: str, ca_file: str, requests: int, connections: int) -> dict[str, float]:
    """Run one client in a process of its own, on the core that nginx does not have."""
    command = [sys.executable, "-m", "bench.http_client", "--child", client, "--base", base, "--ca", ca_file]
    command += ["--requests", str(requests), "--connections", str(connections)]
    cores = os.cpu_count() or 1

    def pin() -> None:
        if cores > 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {1})

    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pin)
    if done.returncode:
        raise RuntimeError(f"{client} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {
        "cpu_us": result["cpu"] / requests * 1e6,
        "per_second": requests / result["wall"],
    }


def _ratio(peer: list[dict[str, float]], own: list[dict[str, float]]) -> float:
    """How many times our CPU a peer takes: the median over rounds, since the machine changes from round to
    round.
    """
    return statistics.median(
        theirs["cpu_us"] / ours["cpu_us"] for theirs, ours in zip(peer, own, strict=True)
    )


def compare(rounds: int, requests: int, connections: int) -> dict[str, Any]:
    """Measure all clients over http and https; medians, and how many times the CPU of headrace they take."""
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    with nginx() as server:
        for _ in range(rounds):
            for scheme, base in (("http", server.http), ("https", server.https)):
                for client in CLIENTS:
                    got = measure(client, base, server.ca_file, requests, connections)
                    figures.setdefault(scheme, {}).setdefault(client, []).append(got)
    result: dict[str, Any] = {"rounds": rounds, "requests": requests, "connections": connections}
    for scheme, clients in figures.items():
        medians = {
            name: {key: statistics.median(one[key] for one in runs) for key in ("cpu_us", "per_second")}
            for name, runs in clients.items()
        }
        result[scheme] = {
            "medians": medians,
            "against_aiohttp": _ratio(clients["aiohttp"], clients["headrace"]),
            "against_bare": _ratio(clients["bare"], clients["headrace"]),
        }
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--child", choices=CLIENTS)
    parser.add_argument("--base", default="")
    parser.add_argument("--ca", default="")
    arguments = parser.parse_args()
    if arguments.child:
        _child(arguments)
        return
    result = compare(arguments.rounds, arguments.requests, arguments.connections)
    for scheme in ("http", "https"):
        print(f"{scheme}, {arguments.connections} connections, median of {arguments.rounds} rounds")
        for name, median in result[scheme]["medians"].items():
            cpu, rate = median["cpu_us"], median["per_second"]
            print(f"  {name:10} {cpu:7.1f} µs of CPU per request, {rate:8.0f} requests/s")
        peer, own = result[scheme]["against_aiohttp"], result[scheme]["against_bare"]
        target = {"http": 1.6, "https": 2.2}[scheme]
        print(f"  {peer:.2f} times the speed of aiohttp (target {target}), {own:.2f} of bare (target 0.85)")


if __name__ == "__main__":
    main()
