"""Lines of a log over HTTP: a 100 MB file from nginx, line by line, against aiohttp and curl.

Rules:
1. Every side gets each line as text and counts them; what loses one is no side.
2. «own split» is what a program writes that has found the iteration of its client too slow: chunks, cut by hand, in lists.
3. nginx has one core, the side the other.
"""

from __future__ import annotations

import asyncio
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

from bench.harness import Check, Report, Side, Table, above, peak_megabytes, play
from bench.nginx import nginx

LINE = b"2026-11-25T06:28:24Z INFO request done path=/api/v1/users id=%07d\n"
RATE = "lines_per_second"


async def headrace_lines(url: str) -> int:
    import headrace as hr

    seen = 0
    async with hr.http.lines(url) as log:
        async for _line in log:
            seen += 1
    return seen


async def headrace_batches(url: str) -> int:
    import headrace as hr

    seen = 0
    async with hr.http.lines(url) as log:
        async for batch in log.batches():
            seen += len(batch)
    return seen


async def aiohttp_lines(url: str) -> int:
    import aiohttp

    seen = 0
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        async for line in response.content:
            line.decode().rstrip("\n")
            seen += 1
    return seen


async def aiohttp_own_split(url: str) -> int:
    import aiohttp

    seen, rest = 0, b""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            seen += len([line.decode() for line in lines])
    return seen


async def curl_to_wc(url: str) -> int:
    process = await asyncio.create_subprocess_shell(f"curl -sS '{url}' | wc -l", stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return int(out)


def measure(side: str, url: str, lines: int) -> dict[str, float]:
    """Run one side in this process."""
    import uvloop

    chosen: Callable[[str], Any] = globals()[side]

    async def timed() -> float:
        await chosen(url.replace("/log", "/doc"))  # what is loaded at the first use is loaded now
        began = time.perf_counter()
        seen = await chosen(url)
        if seen != lines:
            raise RuntimeError(f"{side} saw {seen} lines of {lines}")
        return time.perf_counter() - began

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        took = runner.run(timed())
    return {RATE: lines / took, "peak_mb": peak_megabytes()}


SIDES = {
    "hr.http.lines": "headrace_lines",
    "hr.http.lines, .batches()": "headrace_batches",
    "aiohttp, async for": "aiohttp_lines",
    "aiohttp, own split": "aiohttp_own_split",
    "curl | wc -l": "curl_to_wc",
}


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Read the log in all ways, taking turns."""
    report = Report()
    lines = 300_000 if quick else 1_500_000
    with nginx() as server:
        pathlib.Path(server.root, "log").write_bytes(b"".join(LINE % number for number in range(lines)))
        url = f"{server.http}/log"
        sides = [
            Side(name, "bench.log_lines:measure", {"side": side, "url": url, "lines": lines})
            for name, side in SIDES.items()
        ]
        found = play(sides, 2 if quick else 5, say)
    columns = {RATE: "lines/s", "peak_mb": "peak MB"}
    report.tables.append(Table(f"a log of {lines} lines over HTTP", columns, found, "hr.http.lines", RATE))
    report.checks.append(
        above("lines one by one, against aiohttp's", found, "hr.http.lines", "aiohttp, async for", RATE, 5.0)
    )
    most = max(figures["peak_mb"] for figures in found["hr.http.lines"])
    report.checks.append(Check("peak memory", most, 100, False, "MB"))
    return report
