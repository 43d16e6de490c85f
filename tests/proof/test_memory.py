"""Memory depends on the window, never on the input: a hundred times as many items in the memory of the small run.

    each size is a process of its own ─► the most that it ever held (VmHWM; on a Mac ru_maxrss)

Rules:
1. What is compared is the peak of 10⁶ items with that of 10⁴; no figure stands by itself.
2. SQLite's page cache is not ours: 2 000 KiB by default, empty in the small run and full in the large one. It is added
   to what the durable job may grow by, and the default is asserted.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import headrace as hr

SMALL, LARGE = 10_000, 1_000_000
GROWS = 10 * 2**20
PAGE_CACHE = 2000 * 1024
GIGABYTE = 10**9


def peak() -> int:
    """Give the bytes that this process held at the most. ru_maxrss would count what its parent held when it forked."""
    try:
        with open("/proc/self/status") as status:
            found = next(line for line in status if line.startswith("VmHWM:"))
        return int(found.split()[1]) * 1024
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def no_op(item: object) -> object:
    """Do nothing."""
    return item


async def fail(item: int) -> int:
    """Fail each of them, with an error of its own."""
    raise ValueError(f"{item} is not good")


def stream(count: int, place: str) -> None:
    """Drop the outcomes as they come."""

    async def main() -> int:
        seen = 0
        async with hr.Flow(range(count)).map(no_op, concurrency=100).stream() as outcomes:
            async for _ in outcomes:
                seen += 1
        return seen

    assert asyncio.run(main()) == count


def durable(count: int, place: str) -> None:
    """Write a row for each item."""
    flow = hr.Flow(range(count)).map(no_op, concurrency=100).into(hr.sqlite.table(place))
    assert flow.run_sync().check().done == count


def failing(count: int, place: str) -> None:
    """Write a dead letter for each of a fiftieth as many items."""
    flow = hr.Flow(range(count // 50)).map(fail, concurrency=100).into(hr.sqlite.table(place))
    assert flow.run_sync(fuse=None).failed == count // 50


def resumed(count: int, place: str) -> None:
    """Go on with a job of which every other tenth item is still open."""

    async def some(item: int) -> int:
        if item % 10 == 3 and not os.path.exists(f"{place}.again"):
            raise ValueError("not in the first run")
        return item

    flow = hr.Flow(range(count // 10)).map(some, concurrency=100).into(hr.sqlite.table(place))
    flow.run_sync()
    hr.open(place).job().retry()
    Path(f"{place}.again").touch()
    assert flow.run_sync().check().done == count // 100


def lines(count: int, place: str) -> None:
    """Read a file of so many bytes, in lines of 8 KB."""
    line = b"https://example.org/" + b"long/" * 1635 + b"\n"
    with open(place, "wb") as file:
        for _ in range(count // len(line)):
            file.write(line)

    async def main() -> int:
        read = 0
        async with hr.Flow(hr.files.lines(place)).map(no_op).stream() as outcomes:
            async for outcome in outcomes:
                read += len(outcome.item) + 1
        return read

    assert asyncio.run(main()) == count // len(line) * len(line)


CHILDREN: dict[str, Callable[[int, str], None]] = {
    child.__name__: child for child in (stream, durable, failing, resumed, lines)
}


def peak_of(kind: str, count: int, directory: Path) -> int:
    """Run it in a process of its own, and give its peak."""
    place = directory / f"{kind}-{count}"
    command = [sys.executable, __file__, kind, str(count), str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=180, check=True)
    for file in directory.glob(f"{place.name}*"):
        file.unlink()
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "small", "large", "more"),
    [
        ("stream", SMALL, LARGE, 0),
        ("durable", SMALL, LARGE, PAGE_CACHE),
        ("failing", SMALL, LARGE, PAGE_CACHE),
        ("resumed", SMALL, LARGE, PAGE_CACHE),
        ("lines", GIGABYTE // 100, GIGABYTE, 0),
    ],
)
def test_memory_does_not_grow_with_the_input(
    kind: str, small: int, large: int, more: int, tmp_path: Path
) -> None:
    """A million items, or a gigabyte of lines, take at most 10 MB more than a hundredth of that."""
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("PRAGMA cache_size").fetchone() == (-2000,)
    less, most = peak_of(kind, small, tmp_path), peak_of(kind, large, tmp_path)
    print(f"{kind}: {less / 2**20:.1f} MiB for {small}, {most / 2**20:.1f} MiB for {large}")
    assert most - less <= GROWS + more


if __name__ == "__main__":
    CHILDREN[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
    print(peak())
