"""A bounded concurrent map: 100 at a time over many items, headrace beside its peers and beside what one writes by hand.

Rules:
1. No-op items are `async def fn(item): return item`; the others sleep 1 ms. Sources are ranges; results are dropped where a
   side hands them out one by one, and kept where it keeps them (`hr.map`, gather).
2. All sides run on the same loop: once on uvloop, once on asyncio.
3. A side repeats the whole map until it has taken half a second, after a first one that does not count.
4. Every result is counted, and what a peer loses is shown (pypeln's iteration ends early at times).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.harness import Check, Report, Side, Table, above, peak_megabytes, play

CONCURRENCY = 100
Fn = Callable[[int], Awaitable[int]]
Map = Callable[[Fn, int], Awaitable[int]]


async def no_op(item: int) -> int:
    return item


async def one_millisecond(item: int) -> int:
    await asyncio.sleep(0.001)
    return item


# ---------------------------------------------------------------------------------------------------- the sides


async def headrace_map(fn: Fn, count: int, **options: Any) -> int:
    import headrace as hr

    got = await hr.map(fn, range(count), concurrency=CONCURRENCY, **options)
    return got.report.done


async def headrace_map_guarded(fn: Fn, count: int) -> int:
    import headrace as hr

    return await headrace_map(fn, count, timeout=30, retry=hr.Retry(attempts=4))


async def headrace_stream(fn: Fn, count: int, **options: Any) -> int:
    import headrace as hr

    seen = 0
    async with hr.Flow(range(count)).map(fn, concurrency=CONCURRENCY, **options).stream() as outcomes:
        async for _ in outcomes:
            seen += 1
    return seen


async def headrace_stream_guarded(fn: Fn, count: int) -> int:
    import headrace as hr

    return await headrace_stream(fn, count, timeout=30, retry=hr.Retry(attempts=4))


async def workers(fn: Fn, count: int) -> int:
    items = iter(range(count))
    seen = 0

    async def worker() -> None:
        nonlocal seen
        for item in items:
            await fn(item)
            seen += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())
    return seen


async def queue_workers(fn: Fn, count: int) -> int:
    queue: asyncio.Queue[int | None] = asyncio.Queue(CONCURRENCY)
    seen = 0

    async def worker() -> None:
        nonlocal seen
        while (item := await queue.get()) is not None:
            await fn(item)
            seen += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())
        for item in range(count):
            await queue.put(item)
        for _ in range(CONCURRENCY):
            await queue.put(None)
    return seen


async def gather_semaphore(fn: Fn, count: int) -> int:
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def one(item: int) -> int:
        async with semaphore:
            return await fn(item)

    return len(await asyncio.gather(*[one(item) for item in range(count)]))


async def streamable_map(fn: Fn, count: int) -> int:
    from streamable import stream

    seen = 0
    async for _ in stream(range(count)).map(fn, concurrency=CONCURRENCY):
        seen += 1
    return seen


async def streamable_as_completed(fn: Fn, count: int) -> int:
    from streamable import stream

    seen = 0
    async for _ in stream(range(count)).map(fn, concurrency=CONCURRENCY, as_completed=True):
        seen += 1
    return seen


async def aiometer_amap(fn: Fn, count: int) -> int:
    import aiometer

    seen = 0
    async with aiometer.amap(fn, range(count), max_at_once=CONCURRENCY) as results:
        async for _ in results:
            seen += 1
    return seen


async def aiostream_map(fn: Fn, count: int) -> int:
    from aiostream import stream

    seen = 0
    mapped = stream.map(stream.range(count), fn, ordered=False, task_limit=CONCURRENCY)
    async with mapped.stream() as results:
        async for _ in results:
            seen += 1
    return seen


async def pypeln_map(fn: Fn, count: int) -> int:
    import pypeln as pl

    seen = 0
    async for _ in pl.task.map(fn, range(count), workers=CONCURRENCY, maxsize=CONCURRENCY):
        seen += 1
    return seen


# ---------------------------------------------------------------------------------------------------- measuring


def measure(side: str, count: int, kind: str, loop: str, least: float = 0.5) -> dict[str, float]:
    """Run one side in this process."""
    chosen: Map = globals()[side]
    fn: Fn = {"no-op": no_op, "1 ms": one_millisecond}[kind]
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop

    async def all_of() -> tuple[float, int, int]:
        lost = min(count, 2000) - await chosen(fn, min(count, 2000))
        began, done = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < least:
            seen = await chosen(fn, count)
            done += seen
            lost += count - seen
        return took, done, lost

    with asyncio.Runner(loop_factory=factory) as runner:
        took, done, lost = runner.run(all_of())
    if lost and side.startswith("headrace"):
        raise RuntimeError(f"{side} lost {lost} results")
    return {"items_per_second": done / took, "peak_mb": peak_megabytes(), "lost": lost}


SIDES = {
    "hr.map": "headrace_map",
    "hr.map, timeout and retry": "headrace_map_guarded",
    "Flow.stream": "headrace_stream",
    "Flow.stream, timeout and retry": "headrace_stream_guarded",
    "bare workers": "workers",
    "asyncio.Queue": "queue_workers",
    "streamable": "streamable_map",
    "streamable, as_completed": "streamable_as_completed",
    "gather + semaphore": "gather_semaphore",
    "aiometer": "aiometer_amap",
    "aiostream": "aiostream_map",
    "pypeln": "pypeln_map",
}
COLUMNS = {"items_per_second": "items/s", "peak_mb": "peak MB", "lost": "results lost"}


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure everything, on both loops."""
    report = Report()
    rounds, count = (1, 10_000) if quick else (5, 50_000)
    for loop in ("uvloop", "asyncio"):
        for kind in ("no-op", "1 ms"):
            sides = [
                Side(name, "bench.map:measure", {"side": side, "count": count, "kind": kind, "loop": loop})
                for name, side in SIDES.items()
            ]
            found = play(sides, rounds, say)
            title = f"map, {kind} items, {CONCURRENCY} at a time, {count} items, {loop}"
            report.tables.append(Table(title, COLUMNS, found, "hr.map", "items_per_second"))
            report.checks += _checks(kind, loop, found)
    return report


def _checks(kind: str, loop: str, found: Any) -> list[Check]:
    rate, ours, guarded = "items_per_second", "hr.map", "hr.map, timeout and retry"
    if kind == "1 ms":
        return [
            above(f"1 ms calls, {loop}: hr.map against bare workers", found, ours, "bare workers", rate, 0.9)
        ]
    table = Table("", {}, found).medians()
    best = max(("streamable", "streamable, as_completed"), key=lambda name: table[name][rate])
    return [
        above(f"no-op, {loop}: hr.map against {best}", found, ours, best, rate, 3.0),
        above(f"no-op, {loop}: hr.map against aiometer", found, ours, "aiometer", rate, 20.0),
        Check(f"no-op, {loop}: with timeout and retry", table[guarded][rate], 300_000, True, "/s"),
        above(f"no-op, {loop}: with timeout and retry against {best}", found, guarded, best, rate, 1.0),
    ]
