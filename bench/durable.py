"""Durable no-op items into SQLite: a flow beside raw inserts, beside `executemany` with a busy loop, and beside DBOS.

Rules:
1. Raw inserts write the columns that headrace writes, 1000 rows a commit, WAL and FULL. They keep no ledger: they are the
   ceiling, not an alternative.
2. «Busy» is an event loop that computes all the time, with a turn now and then; both sides write from a thread of their own.
   The flow's commits are timed where the engine asks for them. Whether a thread gets the interpreter beside such a loop is
   a matter of luck, from run to run: what counts is the worst round, and a side that is starved is stopped in the end.
3. DBOS runs as it comes, on its default SQLite: no-op steps in one workflow, which suits it best, and one workflow an item.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness import Check, Report, Side, Table, above, below, play

BATCH = 1000
TURNS = (0.001, 0.005, 0.02)  # seconds that the busy loop computes between two turns
STARVED = 20.0  # seconds after which `executemany` beside a busy loop is counted as far as it got


async def no_op(item: int) -> int:
    return item


async def burn(stop: asyncio.Event, turn: float) -> None:
    """Keep the loop computing."""
    while not stop.is_set():
        until = time.perf_counter() + turn
        while time.perf_counter() < until:
            sum(range(100))
        await asyncio.sleep(0)


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


# ---------------------------------------------------------------------------------------------------- the sides


def flow(count: int, window: int | None = None) -> dict[str, float]:
    """A whole job: its place is opened and closed in the time that counts."""
    import headrace as hr

    with _directory() as directory:
        plan = hr.Flow(range(count)).map(no_op, concurrency=100)
        began = time.perf_counter()
        report = plan.into(hr.sqlite.table(directory / "out.db", "results")).run_sync(window=window)
        took = time.perf_counter() - began
        report.check()
        _counted(directory / "out.db", count)
    return {"items_per_second": count / took}


def _counted(path: Path, count: int) -> None:
    connection = sqlite3.connect(path)
    (rows,) = connection.execute("SELECT count(DISTINCT _position) FROM results").fetchone()
    connection.close()
    if rows != count:
        raise RuntimeError(f"{rows} of {count} items are in the database")


def _raw_table(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE results (value, _job TEXT NOT NULL, _position INTEGER NOT NULL, _child INTEGER NOT NULL)"
    )
    return connection


def _insert(
    connection: sqlite3.Connection, count: int, times: list[float], until: float = float("inf")
) -> int:
    written = 0
    for start in range(0, count, BATCH):
        if time.perf_counter() > until:
            break
        rows = [(number, "default", number, 0) for number in range(start, min(start + BATCH, count))]
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
        times.append(time.perf_counter() - began)
        written += len(rows)
    return written


def raw(count: int) -> dict[str, float]:
    with _directory() as directory:
        connection = _raw_table(directory / "out.db")
        began = time.perf_counter()
        _insert(connection, count, [])
        took = time.perf_counter() - began
        connection.close()
        _counted(directory / "out.db", count)
    return {"items_per_second": count / took}


def flow_busy(count: int, turn: float) -> dict[str, float]:
    """A flow whose loop something else keeps busy. What it shares with that is a turn of the loop now and then."""
    import headrace as hr
    from headrace.sqlite.ledger import SqliteLedger

    times: list[float] = []
    commit = SqliteLedger.commit

    async def timed(self: Any, what: Any) -> None:
        began = time.perf_counter()
        await commit(self, what)
        times.append(time.perf_counter() - began)

    SqliteLedger.commit = timed  # type: ignore[method-assign]

    async def main(path: Path) -> float:
        plan = hr.Flow(range(count)).map(no_op, concurrency=100).into(hr.sqlite.table(path, "results"))
        stop = asyncio.Event()
        busy = asyncio.create_task(burn(stop, turn))
        began = time.perf_counter()
        report = await plan.run()
        took = time.perf_counter() - began
        stop.set()
        await busy
        report.check()
        return took

    with _directory() as directory:
        took = asyncio.run(main(directory / "out.db"))
        _counted(directory / "out.db", count)
    return {
        "items_per_second": count / took,
        "p50_ms": 1e3 * _quantile(times, 0.5),
        "p99_ms": 1e3 * _quantile(times, 0.99),
    }


def executemany_busy(count: int, turn: float) -> dict[str, float]:
    times: list[float] = []
    written = 0

    async def main(path: Path) -> float:
        connection = _raw_table(path)
        stop, ended, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
        busy = asyncio.create_task(burn(stop, turn))

        def write() -> None:
            nonlocal written
            written = _insert(connection, count, times, time.perf_counter() + STARVED)
            loop.call_soon_threadsafe(ended.set)

        began = time.perf_counter()
        thread = threading.Thread(target=write)
        thread.start()
        await ended.wait()
        took = time.perf_counter() - began
        stop.set()
        thread.join()
        await busy
        connection.close()
        return took

    with _directory() as directory:
        took = asyncio.run(main(directory / "out.db"))
    return {
        "items_per_second": written / took,
        "p50_ms": 1e3 * _quantile(times, 0.5),
        "p99_ms": 1e3 * _quantile(times, 0.99),
    }


def _quantile(times: list[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * part))] if times else 0.0


def dbos(count: int, form: str) -> dict[str, float]:
    from dbos import DBOS

    with _directory() as directory:
        DBOS(
            config={
                "name": "bench",
                "system_database_url": f"sqlite:///{directory / 'dbos.sqlite'}",
                "log_level": "ERROR",
                "run_admin_server": False,
            }
        )

        @DBOS.step()
        def step(item: int) -> int:
            return item

        @DBOS.workflow()
        def steps(count: int) -> int:
            return sum(1 for item in range(count) if step(item) == item)

        @DBOS.workflow()
        def one(item: int) -> int:
            return step(item)

        DBOS.launch()
        began = time.perf_counter()
        done = steps(count) if form == "steps" else sum(one(item) == item for item in range(count))
        took = time.perf_counter() - began
        DBOS.destroy()
        if done != count:
            raise RuntimeError(f"DBOS did {done} of {count}")
    return {"items_per_second": count / took}


# ---------------------------------------------------------------------------------------------------- measuring


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure all of it."""
    rounds, count, busy, few = (1, 20_000, 5000, 100) if quick else (5, 300_000, 50_000, 500)
    rate = "items_per_second"
    alone = play(
        [
            Side("headrace flow", "bench.durable:flow", {"count": count}, False),
            Side("headrace flow, window=8192", "bench.durable:flow", {"count": count, "window": 8192}, False),
            Side("raw inserts, 1000 a commit", "bench.durable:raw", {"count": count}, False),
            Side("DBOS, steps", "bench.durable:dbos", {"count": few, "form": "steps"}, False),
            Side("DBOS, workflows", "bench.durable:dbos", {"count": few // 2, "form": "workflows"}, False),
        ],
        rounds,
        say,
    )
    beside = play(
        [
            Side(f"{name}, {1e3 * turn:g} ms", f"bench.durable:{side}", {"count": many, "turn": turn}, False)
            for turn in TURNS
            for name, side, many in (
                ("headrace flow", "flow_busy", busy),
                ("executemany", "executemany_busy", 3000),
            )
        ],
        rounds,
        say,
    )
    ours, theirs = (
        min(one[rate] for name, found in beside.items() if name.startswith(side) for one in found)
        for side in ("headrace", "executemany")
    )
    p99 = max(one["p99_ms"] for name, found in beside.items() if name.startswith("headrace") for one in found)
    checks = [
        above(
            "durable items: flow against raw inserts",
            alone,
            "headrace flow",
            "raw inserts, 1000 a commit",
            rate,
            0.6,
        ),
        above("durable items: flow against DBOS, steps", alone, "headrace flow", "DBOS, steps", rate, 500),
        Check("beside a busy loop: worst round against that of executemany", ours / theirs, 30),
        below("beside a busy loop: p99 of a commit, worst round", p99, 300, "ms"),
    ]
    columns = {rate: "items/s", "p50_ms": "commit p50 ms", "p99_ms": "commit p99 ms"}
    return Report(
        [
            Table(
                f"durable no-op items into SQLite, {count}", {rate: "items/s"}, alone, "headrace flow", rate
            ),
            Table("the same beside a busy loop, by the length of its turns", columns, beside),
        ],
        checks,
    )
