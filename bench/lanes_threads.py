"""The thread lane: plain functions in 32 threads, headrace beside what asyncio and the standard library offer.

Rules:
1. Small calls are `x + 1`; the others block for 1 ms in `time.sleep`, as a library that waits for a socket does.
2. The sides on a loop keep 32 calls under way by 32 workers over one iterator; nothing holds a task for each item.
3. Ideal is 32 bare threads, each looping over its share: nothing is handed over and nothing comes back.
4. A side repeats the whole until it has taken half a second, after a first one that does not count.
5. The watchdog's row is no race: a stage computes on the loop, and the report must name the function.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.harness import Check, Report, Side, Table, above, play, run_side

THREADS = 32
Fn = Callable[[int], int]


def add_one(item: int) -> int:
    return item + 1


def one_millisecond(item: int) -> int:
    time.sleep(0.001)
    return item


# ---------------------------------------------------------------------------------------------------- the sides


async def headrace_map(fn: Fn, count: int) -> int:
    import headrace as hr

    got = await hr.map(fn, range(count), concurrency=THREADS)
    return got.report.done


async def _workers(call: Callable[[int], Awaitable[int]], count: int) -> int:
    items = iter(range(count))
    seen = 0

    async def worker() -> None:
        nonlocal seen
        for item in items:
            await call(item)
            seen += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(THREADS):
            group.create_task(worker())
    return seen


async def to_thread(fn: Fn, count: int) -> int:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))  # else it has min(32, cores + 4) threads
    return await _workers(lambda item: asyncio.to_thread(fn, item), count)


async def run_in_executor(fn: Fn, count: int) -> int:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as pool:
        return await _workers(lambda item: loop.run_in_executor(pool, fn, item), count)


async def executor_map(fn: Fn, count: int) -> int:
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(1 for _ in pool.map(fn, range(count)))


async def ideal(fn: Fn, count: int) -> int:
    def loop_over(share: range) -> None:
        for item in share:
            fn(item)

    threads = [threading.Thread(target=loop_over, args=(range(n, count, THREADS),)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count


# ---------------------------------------------------------------------------------------------------- measuring


def measure(side: str, count: int, kind: str, loop: str, least: float = 0.5) -> dict[str, float]:
    """Run one side in this process."""
    chosen: Callable[[Fn, int], Awaitable[int]] = globals()[side]
    fn: Fn = {"x + 1": add_one, "1 ms": one_millisecond}[kind]
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop

    async def all_of() -> tuple[float, int, float]:
        await chosen(fn, min(count, 2000))
        began, cpu, done = time.perf_counter(), time.process_time(), 0
        while (took := time.perf_counter() - began) < least:
            seen = await chosen(fn, count)
            if seen != count:
                raise RuntimeError(f"{side} lost {count - seen} results")
            done += seen
        return took, done, time.process_time() - cpu

    with asyncio.Runner(loop_factory=factory) as runner:
        took, done, cpu = runner.run(all_of())
    return {"items_per_second": done / took, "cpu_us": cpu / done * 1e6}


def computes(item: int) -> int:
    """Compute for some 200 ms."""
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        item = (item * 31 + 7) % 1_000_003
    return item


async def on_the_loop(item: int) -> int:
    await asyncio.sleep(0)
    return computes(item)


def watchdog(count: int) -> dict[str, float]:
    """Run a stage that computes on the loop; 1 where the report names its function and advises processes."""
    import headrace as hr

    report = hr.map_sync(on_the_loop, range(count), concurrency=4).report
    named = [hold for hold in report.held if hold.function == "computes" and hold.cure == "process"]
    return {
        "named": float(bool(named) and named[0].file.endswith("lanes_threads.py")),
        "share": sum(hold.seconds for hold in named) / (0.2 * count),
    }


SIDES = {
    "hr.map": "headrace_map",
    "asyncio.to_thread": "to_thread",
    "loop.run_in_executor": "run_in_executor",
    "ThreadPoolExecutor.map": "executor_map",
    "bare threads": "ideal",
}
COLUMNS = {"items_per_second": "items/s", "cpu_us": "CPU µs/item"}


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure both kinds of call on both loops, and look whether the watchdog sees."""
    report = Report()
    rounds = 2 if quick else 5
    for loop in ("uvloop", "asyncio"):
        for kind, count in (("x + 1", 20_000), ("1 ms", 10_000)):
            sides = [
                Side(
                    name,
                    "bench.lanes_threads:measure",
                    {"side": side, "count": count, "kind": kind, "loop": loop},
                    pinned=False,
                )
                for name, side in SIDES.items()
            ]
            found = play(sides, rounds, say)
            title = f"threads, {kind}, {THREADS} at a time, {count} items, {loop}"
            report.tables.append(Table(title, COLUMNS, found, "hr.map", "items_per_second"))
            report.checks.append(_check(kind, loop, found))
    seen = run_side(Side("watchdog", "bench.lanes_threads:watchdog", {"count": 10}))
    report.checks.append(
        Check("CPU work on the loop: the watchdog names the function", seen["named"], 1, unit="")
    )
    report.checks.append(Check("… and the share of the time held that it saw", seen["share"], 0.8, unit=""))
    return report


def _check(kind: str, loop: str, found: Any) -> Check:
    rate = "items_per_second"
    if kind == "1 ms":
        return above(
            f"1 ms blocking, {loop}: hr.map against ideal", found, "hr.map", "bare threads", rate, 0.95
        )
    return above(
        f"small calls, {loop}: hr.map against to_thread", found, "hr.map", "asyncio.to_thread", rate, 4.0
    )
