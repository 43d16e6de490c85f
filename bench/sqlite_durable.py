"""Durable rows into SQLite: the ledger's commits of 1000 against `executemany`, alone and beside a busy loop.

Rules:
1. The same columns, WAL, synchronous=FULL, in the same run, taking turns; medians of the rounds.
2. «busy» is an event loop that computes all the time in the main thread; both sides write from a thread of their own.
3. Read «busy» on an idle machine with two free cores: only there is `executemany` robbed of the interpreter at every row.
   On a loaded one the other thread wakes too late to take it, and its figure varies a hundredfold from run to run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import headrace.sqlite as sqlite
from headrace.ports import Commit, JobRequest, Row

BATCH = 1000
BURST = 0.005  # seconds that the busy loop computes between two turns


def values(count: int) -> list[dict[str, object]]:
    return [{"value": number * 7, "name": f"name-{number}"} for number in range(count)]


async def ours(path: Path, batches: int, busy: bool, order: str, times: list[float]) -> float:
    rows = values(BATCH)
    ledger = sqlite.table(path, "results", columns=("value", "name")).ledger()
    await ledger.open(JobRequest("bench", {}, lambda fingerprint: None))
    commits = []
    shuffled = list(range(batches * BATCH))
    if order == "shuffled":
        generator = random.Random(7)
        for start in range(0, len(shuffled), 512):  # each item at most 1024 away from its place
            part = shuffled[start : start + 1024]
            generator.shuffle(part)
            shuffled[start : start + 1024] = part
    for number in range(batches):
        positions = shuffled[number * BATCH : (number + 1) * BATCH]
        commits.append(
            Commit([Row(p, 0, row) for p, row in zip(positions, rows, strict=True)], done=positions)
        )
    stop = asyncio.Event()
    burner = asyncio.create_task(burn(stop)) if busy else None
    began = time.perf_counter()
    for commit in commits:
        at = time.perf_counter()
        await ledger.commit(commit)
        times.append(time.perf_counter() - at)
    took = time.perf_counter() - began
    stop.set()
    if burner:
        await burner
    await ledger.close()
    return batches * BATCH / took


async def burn(stop: asyncio.Event) -> None:
    """Keep the loop computing, with a turn every BURST seconds."""
    while not stop.is_set():
        until = time.perf_counter() + BURST
        while time.perf_counter() < until:
            sum(range(100))
        await asyncio.sleep(0)


async def theirs(path: Path, batches: int, busy: bool) -> float:
    rows = [(row["value"], row["name"], "bench", number, 0) for number, row in enumerate(values(BATCH))]
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE results (value, name, _job TEXT NOT NULL, _position INTEGER NOT NULL, _child INTEGER NOT NULL)"
    )
    stop, ended, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def write() -> None:
        for _ in range(batches):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        loop.call_soon_threadsafe(ended.set)

    burner = asyncio.create_task(burn(stop)) if busy else None
    began = time.perf_counter()
    thread = threading.Thread(target=write)
    thread.start()
    await ended.wait()
    took = time.perf_counter() - began
    thread.join()
    stop.set()
    if burner:
        await burner
    connection.close()
    return batches * BATCH / took


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--batches", type=int, default=200)
    rounds, batches = vars(options.parse_args()).values()
    times: list[float] = []
    busy_times: list[float] = []
    sides: dict[str, Callable[[Path], object]] = {
        "executemany, alone": lambda path: theirs(path, batches, False),
        "ledger, alone": lambda path: ours(path, batches, False, "in order", times),
        "ledger, alone, shuffled": lambda path: ours(path, batches, False, "shuffled", times),
        "executemany, busy": lambda path: theirs(path, max(3, batches // 40), True),
        "ledger, busy": lambda path: ours(path, max(10, batches // 10), True, "in order", busy_times),
    }
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            with tempfile.TemporaryDirectory() as directory:
                figures[name].append(asyncio.run(side(Path(directory, "out.db"))))  # type: ignore[arg-type]
    for name, found in figures.items():
        print(name, [round(figure) for figure in found])
    medians = {name: statistics.median(found) for name, found in figures.items()}
    for name, median in medians.items():
        base = medians["executemany, busy" if "busy" in name else "executemany, alone"]
        print(f"{name:26} {median:12,.0f} rows/s   {median / base:7.2f} × executemany")
    print(f"p99 of a commit: alone {1e3 * quantile(times):.1f} ms, busy {1e3 * quantile(busy_times):.1f} ms")


def quantile(found: list[float]) -> float:
    return sorted(found)[int(len(found) * 0.99)]


if __name__ == "__main__":
    main()
