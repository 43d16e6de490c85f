"""Peak memory as the input grows: the window holds what is open, and nothing else may grow.

Rules:
1. Each size is a process of its own; the figure is the most that it ever held.
2. Sources are ranges, outcomes are dropped as they come; the durable job writes a row for each item.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.harness import Check, Report, Side, Table, below, peak_megabytes, play

SMALL = 10_000


async def no_op(item: int) -> int:
    return item


def stream(count: int) -> dict[str, float]:
    import uvloop

    import headrace as hr

    async def main() -> int:
        seen = 0
        async with hr.Flow(range(count)).map(no_op, concurrency=100).stream() as outcomes:
            async for _ in outcomes:
                seen += 1
        return seen

    if uvloop.run(main()) != count:
        raise RuntimeError("outcomes are missing")
    return {"peak_mb": peak_megabytes()}


def durable(count: int) -> dict[str, float]:
    import uvloop

    import headrace as hr

    async def main(path: Path) -> None:
        flow = hr.Flow(range(count)).map(no_op, concurrency=100).into(hr.sqlite.table(path, "results"))
        (await flow.run()).check()

    with tempfile.TemporaryDirectory() as directory:
        uvloop.run(main(Path(directory, "out.db")))
    return {"peak_mb": peak_megabytes()}


def bench(quick: bool, say: Callable[[str], None], long: bool = False) -> Report:
    """Measure 10⁴ against 10⁶ items, and 10⁷ where asked for."""
    sizes = [SMALL, 100_000] if quick else [SMALL, 1_000_000, *([10_000_000] if long else [])]
    sides = [
        Side(_name(kind, size), f"bench.memory:{kind}", {"count": size}, False)
        for size in sizes
        for kind in ("stream", "durable")
    ]
    found = play(sides, 1 if quick else 3, say)
    checks: list[Check] = []
    for size in sizes[1:]:
        for kind in ("stream", "durable"):
            grown = statistics.median(
                more["peak_mb"] - less["peak_mb"]
                for more, less in zip(found[_name(kind, size)], found[_name(kind, SMALL)], strict=True)
            )
            checks.append(below(f"memory, {kind}: {SMALL} → {size} items grows by", grown, 10, "MB"))
    return Report([Table("peak memory", {"peak_mb": "peak MB"}, found)], checks)


def _name(kind: str, size: int) -> str:
    return f"{kind}, {size} items"
