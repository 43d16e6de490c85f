"""Ten thousand connections open at once to slow servers: what each costs in memory, and a request in CPU.

Rules:
1. The server is a process of its own that answers each request after two seconds, over four ports; a connection serves two
   requests.
2. A side is measured in a process of its own: CPU of all its threads, and the peak of its memory less what it held before.
3. Both sides keep ten thousand requests under way from the first moment: all connections are open at the same time.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.harness import Report, Side, Table, below, peak_megabytes, play, ratio

PORTS = 4
DELAY = 2.0
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Slow(asyncio.Protocol):
    """Answer each request after a while."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.data.endswith(b"\r\n\r\n"):
            self.data = b""
            asyncio.get_running_loop().call_later(DELAY, self.answer)

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(ANSWER)


def allow_files() -> None:
    """Let this process open as many files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    ports = []
    for _ in range(PORTS):
        server = await loop.create_server(Slow, "127.0.0.1", 0, backlog=4096)
        ports.append(str(server.sockets[0].getsockname()[1]))
    print(" ".join(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the one that started it lets go


async def headrace_side(urls: list[str], at_once: int) -> int:
    import headrace as hr

    async with hr.http.Client(connections=at_once) as client:
        got = await hr.map(hr.http.fetch(client=client), urls, concurrency=at_once)
    return got.report.done


async def aiohttp_side(urls: list[str], at_once: int) -> int:
    import aiohttp

    left = iter(urls)
    done = 0
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def worker() -> None:
            nonlocal done
            for url in left:
                async with session.get(url) as response:
                    await response.read()
                done += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    return done


def measure(side: str, ports: list[str], at_once: int) -> dict[str, float]:
    """Run one side in this process."""
    import uvloop

    allow_files()
    chosen: Callable[..., Any] = globals()[side]
    urls = [f"http://127.0.0.1:{ports[number % len(ports)]}/{number}" for number in range(2 * at_once)]

    async def timed() -> dict[str, float]:
        await chosen(urls[:8], 8)  # what is loaded at the first use is loaded now
        before = peak_megabytes()
        began, cpu = time.perf_counter(), time.process_time()
        done = await chosen(urls, at_once)
        if done != len(urls):
            raise RuntimeError(f"{side} lost {len(urls) - done} answers")
        return {
            "kilobytes": (peak_megabytes() - before) * 1024 / at_once,
            "cpu_us": (time.process_time() - cpu) / len(urls) * 1e6,
            "seconds": time.perf_counter() - began,
        }

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(timed())


SIDES = {"hr.http.fetch": "headrace_side", "aiohttp": "aiohttp_side"}


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Let both sides hold ten thousand connections, taking turns."""
    allow_files()
    report = Report()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    at_once = min(2000 if quick else 10_000, most - 200)
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.many"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        ports = server.stdout.readline().split()
        sides = [
            Side(name, "bench.many:measure", {"side": side, "ports": ports, "at_once": at_once})
            for name, side in SIDES.items()
        ]
        found = play(sides, 1 if quick else 3, say)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(20)
    columns = {"kilobytes": "KB a connection", "cpu_us": "CPU µs/request", "seconds": "seconds"}
    title = f"{at_once} connections open at once, each answer after {DELAY:g} s, {2 * at_once} requests"
    report.tables.append(Table(title, columns, found, "hr.http.fetch", "cpu_us"))
    cpu = ratio(found, "hr.http.fetch", "aiohttp", "cpu_us")
    memory = ratio(found, "hr.http.fetch", "aiohttp", "kilobytes")
    report.checks.append(below("CPU a request, against aiohttp", cpu, 1.0, "×"))
    report.checks.append(below("memory a connection, against aiohttp", memory, 1.0, "×"))
    return report


if __name__ == "__main__":
    allow_files()
    asyncio.run(_serve())
