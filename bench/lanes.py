"""Lanes: what it costs to send small calls, and large values, to other processes, headrace beside the pools that people use.

Rules:
1. The function is `x + 1`: what is measured is the way there and back. Every side gets the same items, drops nothing, and
   its sum is checked.
2. All have as many processes as the machine has cores. Each side has its own number of items, so that it takes about a
   second: a pool that is a hundred times slower need not be watched for a minute. Starting the pool is part of the time,
   and is shown by itself too, as the time of a first result.
3. Sides run on all cores: the parent and its children are to run beside each other.
4. Where values are large, the calls do nothing, and time counts from the first result: starting the pool is no part of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from bench.harness import Report, Side, Table, above, play

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plus_one(x: int) -> int:
    return x + 1


# ---------------------------------------------------------------------------------------------------- processes


def headrace_flow(items: range) -> Iterable[int]:
    import headrace as hr

    async def main() -> list[int]:
        found: list[int] = []
        keep = found.append
        async with hr.Flow(items).map(plus_one, lane="process").stream() as outcomes:
            async for outcome in outcomes:
                keep(outcome.value)
        return found

    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def headrace_map(items: range) -> Iterable[int]:
    import headrace as hr

    return hr.map_sync(plus_one, items, lane="process").values


def executor_submit(items: range) -> Iterable[int]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(CORES) as pool:
        return [future.result() for future in [pool.submit(plus_one, item) for item in items]]


def executor_map(items: range) -> Iterable[int]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(CORES) as pool:
        return list(pool.map(plus_one, items, chunksize=100))


def pool_imap(items: range) -> Iterable[int]:
    from multiprocessing import Pool

    with Pool(CORES) as pool:
        return list(pool.imap(plus_one, items))


def pool_imap_chunks(items: range) -> Iterable[int]:
    from multiprocessing import Pool

    with Pool(CORES) as pool:
        return list(pool.imap(plus_one, items, chunksize=100))


def joblib_parallel(items: range) -> Iterable[int]:
    from joblib import Parallel, delayed

    found: list[int] = Parallel(n_jobs=CORES)(delayed(plus_one)(item) for item in items)
    return found


def mpire_map(items: range) -> Iterable[int]:
    from mpire import WorkerPool

    with WorkerPool(n_jobs=CORES) as pool:
        found: list[int] = pool.map(plus_one, items)
        return found


def measure_processes(side: str, count: int) -> dict[str, float]:
    """Run one side in this process: a first result, then all of them."""
    chosen: Callable[[range], Any] = globals()[side]
    began = time.perf_counter()
    assert list(chosen(range(1))) == [1]
    first = time.perf_counter() - began
    began = time.perf_counter()
    total = sum(chosen(range(count)))
    took = time.perf_counter() - began
    if total != count * (count + 1) // 2:
        raise RuntimeError(f"{side} lost or changed results")
    return {"items_per_second": count / took, "first_ms": first * 1000}


#: Side → its function, and its number of items.
PROCESSES = {
    "hr.map": ("headrace_map", 400_000),
    "Flow.stream": ("headrace_flow", 400_000),
    "ProcessPoolExecutor.submit": ("executor_submit", 20_000),
    "ProcessPoolExecutor.map, chunks of 100": ("executor_map", 200_000),
    "multiprocessing.Pool.imap": ("pool_imap", 20_000),
    "multiprocessing.Pool.imap, chunks of 100": ("pool_imap_chunks", 200_000),
    "joblib": ("joblib_parallel", 20_000),
    "mpire": ("mpire_map", 200_000),
}


def processes(quick: bool, say: Callable[[str], None]) -> Report:
    """Small calls to processes."""
    rounds, share = (1, 5) if quick else (5, 1)
    sides = [
        Side(name, "bench.lanes:measure_processes", {"side": function, "count": count // share}, pinned=False)
        for name, (function, count) in PROCESSES.items()
    ]
    found = play(sides, rounds, say)
    columns = {"items_per_second": "items/s", "first_ms": "first, ms"}
    report = Report()
    title = f"processes, x + 1, {CORES} of them"
    report.tables.append(Table(title, columns, found, "hr.map", "items_per_second"))
    rate, submit = "items_per_second", "ProcessPoolExecutor.submit"
    report.checks += [
        above(f"processes: {name} against {submit}", found, name, submit, rate, 50.0)
        for name in ("hr.map", "Flow.stream")
    ]
    return report


# ---------------------------------------------------------------------------------------------------- large values

MEGABYTE = 1_000_000
KEPT: dict[int, bytes] = {}


def give(size: int) -> bytes:
    if size not in KEPT:
        KEPT[size] = os.urandom(1000) * (size // 1000)
    return KEPT[size]


def headrace_large(fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
    import asyncio

    import headrace as hr

    times: list[float] = []

    async def main() -> None:
        async with hr.Flow(items).map(fn, lane="process").stream() as outcomes:
            async for outcome in outcomes:
                outcome.value  # noqa: B018 - it raises where the call failed
                times.append(time.perf_counter())

    asyncio.run(main())
    return times


def executor_large(fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(CORES) as pool:
        return [time.perf_counter() for _ in pool.map(fn, items)]


def measure_large(side: str, direction: str, size: int, count: int) -> dict[str, float]:
    """Send `count` values of `size` bytes to processes, or get as many from them."""
    chosen: Callable[..., Iterable[float]] = globals()[side]
    if direction == "results":
        times = list(chosen(give, [size] * count))
    else:
        times = list(chosen(len, iter([os.urandom(1000) * (size // 1000) for _ in range(count)])))
    return {"megabytes_per_second": size * (count - 1) / (times[-1] - times[0]) / MEGABYTE}


#: Direction, megabytes of a value, number of values.
LARGE = (("results", 1, 600), ("results", 8, 80), ("results", 64, 16), ("items", 1, 600), ("items", 8, 80))


def large(quick: bool, say: Callable[[str], None]) -> Report:
    """Large values to processes, and from them."""
    report = Report()
    for direction, megabytes, count in LARGE[::2] if quick else LARGE:
        told = {"direction": direction, "size": megabytes * MEGABYTE, "count": count}
        sides = [
            Side(name, "bench.lanes:measure_large", {"side": function, **told}, pinned=False)
            for name, function in (
                ("Flow.stream", "headrace_large"),
                ("ProcessPoolExecutor.map", "executor_large"),
            )
        ]
        found = play(sides, 1 if quick else 5, say)
        title = f"processes, {direction} of {megabytes} MB, bytes"
        columns = {"megabytes_per_second": "MB/s"}
        report.tables.append(Table(title, columns, found, "Flow.stream", "megabytes_per_second"))
    return report


# ---------------------------------------------------------------------------------------------------- all of them

#: One function for each lane: `(quick, say) -> Report`.
PARTS: tuple[Callable[[bool, Callable[[str], None]], Report], ...] = (processes, large)


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure all parts."""
    report = Report()
    for part in PARTS:
        found = part(quick, say)
        report.tables += found.tables
        report.checks += found.checks
    return report
