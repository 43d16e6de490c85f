"""How late the event loop is while CPU work goes on beside it: in processes, in threads, and on the loop itself.

Rules:
1. 200 async calls are in flight all the time, and what computes is Python code of 10 ms a call, at the same pace for all.
2. Lag is by how much a sleep of 2 ms takes longer, measured in the same loop.
3. On the loop a call computes for 100 ms, and the watchdog must name the function: it is silent about less than 50.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from bench.harness import Check, Report, Side, Table, below, play

CALLS = 200
TICK = 0.002


def compute(item: int, seconds: float = 0.01) -> int:
    total, until = 0, time.thread_time() + seconds
    while time.thread_time() < until:
        total += sum(range(100))
    return total


async def compute_on_loop(item: int) -> int:
    return compute(item, 0.1)


async def wait(item: int) -> int:
    await asyncio.sleep(0.05)
    return item


def measure(lane: str, seconds: float) -> dict[str, float]:
    """Run both for some seconds, and give the quantiles of the lag in milliseconds."""
    import uvloop

    import headrace as hr

    lags: list[float] = []

    async def tick(stop: asyncio.Event) -> None:
        while not stop.is_set():
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            lags.append(time.perf_counter() - began - TICK)

    async def all_of() -> tuple[int, bool]:
        stop = asyncio.Event()
        fn: Callable[[int], Any] = compute_on_loop if lane == "loop" else compute
        waiting = hr.Flow(range(10**9)).map(wait, concurrency=CALLS)
        computing = hr.Flow(range(10**9)).map(fn, lane=lane, concurrency=2)  # type: ignore[arg-type]
        async with waiting.start(stop=stop), computing.start(stop=stop) as job:
            await asyncio.sleep(1.0)  # children start, the watchdog wakes
            ticking = asyncio.create_task(tick(stop))
            await asyncio.sleep(seconds)
            stop.set()
            await ticking
        assert job.report is not None
        named = any(held.function == compute.__name__ for held in job.report.held)
        return job.report.done, named

    done, named = uvloop.run(all_of())
    lags.sort()
    return {
        "p50_ms": 1e3 * lags[len(lags) // 2],
        "p99_ms": 1e3 * lags[int(len(lags) * 0.99)],
        "computed": done,
        "named": float(named),
    }


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure the three lanes."""
    rounds, seconds = (1, 2.0) if quick else (5, 4.0)
    found = play(
        [
            Side(f"CPU work: {lane}", "bench.lag:measure", {"lane": lane, "seconds": seconds}, False)
            for lane in ("process", "thread", "loop")
        ],
        rounds,
        say,
    )
    ratios = sorted(
        mine["p99_ms"] / theirs["p99_ms"]
        for mine, theirs in zip(found["CPU work: process"], found["CPU work: thread"], strict=True)
    )
    checks = [
        below("p99 of the loop's lag: processes against threads", ratios[len(ratios) // 2], 0.1, "×"),
        Check(
            "on the loop, the watchdog names the function",
            min(o["named"] for o in found["CPU work: loop"]),
            1,
        ),
    ]
    columns = {"p50_ms": "lag p50 ms", "p99_ms": "lag p99 ms", "computed": "computed"}
    return Report([Table(f"the loop's lag beside {CALLS} async calls and CPU work", columns, found)], checks)
