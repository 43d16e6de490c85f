"""Dispatch by key: what a limit with `by=` costs an item, and whether that depends on how many keys there are.

Rules:
1. Items are numbers, their key is `item % keys`; the function returns at once. No limit ever binds, so that what is
   measured is the work of admission and not waiting.
2. The figure is CPU time an item, for others may use the same cores. A side repeats its map until it has taken half a
   second of it, after a first one that does not count.
3. `by hand` is what one writes: workers over one iterator, and a dict of `asyncio.Semaphore`, which never forgets a key.
4. Memory is of streams over the same keys, ten and twenty calls for each: what is remembered of keys that
   come and go has its bound, and nothing may grow beyond it.
"""

from __future__ import annotations

import asyncio
import collections
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from bench.harness import Check, Report, Rounds, Side, Table, below, peak_megabytes, play, ratio

CONCURRENCY = 100
FEW, MANY = 100, 100_000
KEYS = (1, FEW, MANY)
#: The most that 100 000 keys may cost beside 100, for constant work an item.
CONSTANT = 2.0
Map = Callable[[int, int], Awaitable[int]]


async def no_op(item: int) -> int:
    return item


def limit_of(kind: str, keys: int) -> Any:
    """Make the limit of a side, by name."""
    import headrace as hr

    options: dict[str, Any] = {
        "concurrency": {"concurrency": 4},
        "rate": {"concurrency": 4, "rate": "1000000/s", "burst": 1_000_000},
        "adaptive": {"concurrency": hr.Adaptive(1, 16), "breaker": hr.Breaker()},
    }[kind]
    return hr.Limit(by=lambda item: item % keys, **options)


# ---------------------------------------------------------------------------------------------------- the sides


async def unlimited(count: int, keys: int) -> int:
    import headrace as hr

    return (await hr.map(no_op, range(count), concurrency=CONCURRENCY)).report.done


async def _limited(count: int, keys: int, kind: str) -> int:
    import headrace as hr

    got = await hr.map(no_op, range(count), concurrency=CONCURRENCY, limits=[limit_of(kind, keys)])
    return got.report.done


async def concurrency(count: int, keys: int) -> int:
    return await _limited(count, keys, "concurrency")


async def rate(count: int, keys: int) -> int:
    return await _limited(count, keys, "rate")


async def adaptive(count: int, keys: int) -> int:
    return await _limited(count, keys, "adaptive")


async def by_hand(count: int, keys: int) -> int:
    semaphores: dict[int, asyncio.Semaphore] = collections.defaultdict(lambda: asyncio.Semaphore(4))
    results: list[int] = []

    async def worker(items: Iterator[int]) -> None:
        for item in items:
            async with semaphores[item % keys]:
                results.append(await no_op(item))

    items = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker(items))
    return len(results)


def measure(side: str, count: int, keys: int, least: float = 0.5) -> dict[str, float]:
    """Run one side in this process."""
    import uvloop

    chosen: Map = globals()[side]

    async def all_of() -> tuple[float, int]:
        await chosen(min(count, 2000), keys)
        began, done = time.process_time(), 0
        while (took := time.process_time() - began) < least:
            done += await chosen(count, keys)
        return took, done

    took, done = uvloop.run(all_of())
    if done % count:
        raise RuntimeError(f"{side} lost results")
    return {"cpu_us": took / done * 1e6, "peak_mb": peak_megabytes()}


def memory(count: int, keys: int, kind: str) -> dict[str, float]:
    """Stream over so many items, and drop what comes."""
    import uvloop

    import headrace as hr

    async def main() -> int:
        seen = 0
        flow = hr.Flow(range(count)).map(no_op, concurrency=CONCURRENCY, limits=[limit_of(kind, keys)])
        async with flow.stream() as outcomes:
            async for _ in outcomes:
                seen += 1
        return seen

    began = time.process_time()
    if uvloop.run(main()) != count:
        raise RuntimeError("outcomes are missing")
    return {"peak_mb": peak_megabytes(), "cpu_us": (time.process_time() - began) / count * 1e6}


SIDES = {
    "concurrency": "concurrency",
    "rate": "concurrency and rate",
    "adaptive": "adaptive and breaker",
    "by_hand": "semaphores by hand",
}


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure the cost of keys, and then what they hold."""
    rounds, count = (1, 20_000) if quick else (5, 200_000)
    sides = [Side("without limits", "bench.keyed:measure", {"side": "unlimited", "count": count, "keys": 1})]
    sides += [
        Side(_name(side, keys), "bench.keyed:measure", {"side": side, "count": count, "keys": keys})
        for side in SIDES
        for keys in KEYS
    ]
    found = play(sides, rounds, say)
    title = f"keyed dispatch, no-op items, {CONCURRENCY} at a time, {count} items, uvloop"
    columns = {"cpu_us": "CPU µs an item", "peak_mb": "peak MB"}
    report = Report([Table(title, columns, found, "without limits", "cpu_us")])
    report.checks += [
        below(
            f"{SIDES[side]}: CPU an item with {MANY} keys against {FEW}",
            ratio(found, _name(side, MANY), _name(side, FEW), "cpu_us"),
            CONSTANT,
            "×",
        )
        for side in ("concurrency", "rate", "adaptive")
    ]
    less = (2 if quick else 10) * MANY
    held = _memory(1 if quick else 3, less, say)
    report.tables.append(
        Table(f"memory, {MANY} keys", {"peak_mb": "peak MB", "cpu_us": "CPU µs an item"}, held)
    )
    report.checks += _memory_checks(held, less)
    return report


def _name(side: str, keys: int) -> str:
    return f"{SIDES[side]}, {keys} {'key' if keys == 1 else 'keys'}"


def _memory(rounds: int, count: int, say: Callable[[str], None]) -> Rounds:
    sides = [
        Side(_held(kind, size), "bench.keyed:memory", {"count": size, "keys": MANY, "kind": kind})
        for kind in ("concurrency", "adaptive")
        for size in (count, 2 * count)
    ]
    return play(sides, rounds, say)


def _memory_checks(held: Rounds, count: int) -> list[Check]:
    checks = []
    for kind in ("concurrency", "adaptive"):
        less, more = held[_held(kind, count)], held[_held(kind, 2 * count)]
        grown = statistics.median(
            large["peak_mb"] - small["peak_mb"] for small, large in zip(less, more, strict=True)
        )
        checks.append(below(f"memory, {SIDES[kind]}: {count} → {2 * count} items grows by", grown, 10, "MB"))
    return checks


def _held(kind: str, size: int) -> str:
    return f"{SIDES[kind]}, {size} items"
