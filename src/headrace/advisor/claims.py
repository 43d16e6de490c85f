"""What articles on async Python claim, measured on this machine.

    waiting one after the other ─ at once      threads ─ processes ─ the loop
    asyncio ─ uvloop                           an INSERT a commit ─ a batch a commit

Rules:
1. All of it takes less than a minute, talks to nobody but this process, and leaves nothing behind.
2. Compared are speeds taken in turns, medians of some rounds; the figure is the ratio.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from headrace.advisor.measure import cores
from headrace.flow.builder import Flow
from headrace.flow.main import new_loop
from headrace.plan import LaneName

__all__ = ["Claim", "claims"]

ROUNDS: Final = 3
_WAIT: Final = 0.02
_COMPUTING: Final = 0.005
_ECHOES: Final = 100
_ROWS: Final = 10_000
_SINGLE_ROWS: Final = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """One claim, measured: `speeds` are calls, round trips or rows a second of each way to do it.

    `ratio` is the fastest of them over the one that people begin with, the first.
    """

    claim: str
    what: str
    speeds: dict[str, float]

    @property
    def ratio(self) -> float:
        """The fastest way over the first one."""
        first = next(iter(self.speeds.values()))
        return max(self.speeds.values()) / first if first else 0.0

    @property
    def best(self) -> str:
        """The name of the fastest way."""
        return max(self.speeds, key=lambda name: self.speeds[name])


def claims() -> Iterator[Claim]:
    """Measure each claim in turn. Takes less than a minute in all, and gives each as it is ready."""
    yield _in_turns(
        "waiting at once takes as long as waiting once",
        f"{_COUNT_WAITS} waits of {_WAIT:g} s",
        {"one after the other": _waits_in_turn, "at once": _waits_at_once},
        rounds=1,
    )
    for claim, what, async_fn, plain_fn, count in (
        ("what waits belongs on the loop", f"waits of {_WAIT:g} s, async", _wait, None, 400),
        ("what blocks belongs in threads", f"blocking calls of {_WAIT:g} s", _block_on_loop, _block, 100),
        (
            "what computes belongs in processes",
            f"calls that compute for {_COMPUTING:g} s",
            _compute_on_loop,
            _compute,
            120,
        ),
    ):
        yield _by_lane(claim, what, async_fn, plain_fn, count)
    yield _in_turns(
        "uvloop is 2 to 4 times faster",
        f"echoes over {_ECHOES} connections",
        {"asyncio": lambda: _echoes(asyncio.SelectorEventLoop), "uvloop": lambda: _echoes(new_loop)},
    )
    yield _in_turns(
        "many rows belong in one commit",
        "rows into SQLite, synced to the disk",
        {"a row a commit": lambda: _inserts(1), "1000 rows a commit": lambda: _inserts(1000)},
    )


def _in_turns(claim: str, what: str, ways: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> Claim:
    """Measure ways of doing the same, taking turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return Claim(claim, what, {name: statistics.median(speeds) for name, speeds in found.items()})


# ---------------------------------------------------------------------------------------------------- waiting

_COUNT_WAITS: Final = 50


def _waits_in_turn() -> float:
    async def all_of() -> None:
        for _ in range(_COUNT_WAITS):
            await asyncio.sleep(_WAIT)

    began = time.perf_counter()
    asyncio.run(all_of())
    return _COUNT_WAITS / (time.perf_counter() - began)


def _waits_at_once() -> float:
    began = time.perf_counter()
    Flow(range(_COUNT_WAITS)).map(_wait, concurrency=_COUNT_WAITS).run_sync().check()
    return _COUNT_WAITS / (time.perf_counter() - began)


# ---------------------------------------------------------------------------------------------------- lanes


async def _wait(_: int) -> None:
    await asyncio.sleep(_WAIT)


def _block(_: int) -> None:
    time.sleep(_WAIT)


async def _block_on_loop(_: int) -> None:
    _block(_)


def _compute(_: int) -> int:
    total, until = 0, time.thread_time() + _COMPUTING
    while time.thread_time() < until:
        total += sum(range(200))
    return total


async def _compute_on_loop(_: int) -> int:
    return _compute(_)


def _by_lane(
    claim: str,
    what: str,
    async_fn: Callable[[int], Any],
    plain_fn: Callable[[int], Any] | None,
    count: int,
) -> Claim:
    """Measure one kind of work on the loop, in threads and in processes, with each lane's usual concurrency."""
    plain = plain_fn or _block
    ways: dict[str, tuple[Callable[[int], Any], LaneName, int]] = {
        "loop": (async_fn, "loop", 100),
        "threads": (plain, "thread", 32),
        "processes": (plain, "process", cores()),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (fn, lane, concurrency) in ways.items():
            found[name].append(_speed(fn, lane, concurrency, count))
    return Claim(claim, what, {name: statistics.median(speeds) for name, speeds in found.items()})


def _speed(fn: Callable[[int], Any], lane: LaneName, concurrency: int, count: int) -> float:
    """Say how many calls a second there are once all workers are up: the first ones are not counted."""
    # Where nothing runs side by side, as many calls as elsewhere would take too long.
    slow = (lane == "loop" and fn is _block_on_loop) or (lane == "process" and fn is _block)
    many = max(2 * concurrency, count // 4) if slow and lane == "process" else count // 4 if slow else count
    started = 0.0
    done = 0

    async def all_of() -> None:
        nonlocal started, done
        async with Flow(range(many)).map(fn, lane=lane, concurrency=concurrency).stream() as outcomes:
            async for _ in outcomes:
                if not started:
                    started = time.perf_counter()
                else:
                    done += 1

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(all_of())
    return done / max(time.perf_counter() - started, 1e-9)


# ---------------------------------------------------------------------------------------------------- loops


def _echoes(factory: Callable[[], asyncio.AbstractEventLoop], seconds: float = 0.5) -> float:
    """Say how many round trips a second go over connections to an echo server on the same loop."""
    trips = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    async def ask(port: int, until: float) -> None:
        nonlocal trips
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            writer.write(b"x" * 100)
            await reader.readexactly(100)
            trips += 1
        writer.close()
        await writer.wait_closed()

    async def all_of() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        until = time.perf_counter() + seconds
        async with server:
            await asyncio.gather(*[ask(port, until) for _ in range(_ECHOES)])
        await asyncio.sleep(0.01)  # the server's side of the connections ends

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(all_of())
    return trips / seconds


# ---------------------------------------------------------------------------------------------------- rows


def _inserts(rows_a_commit: int) -> float:
    """Say how many rows a second go into an SQLite file."""
    count = _SINGLE_ROWS if rows_a_commit == 1 else _ROWS
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        connection = sqlite3.connect(os.path.join(directory, "x.db"), isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("CREATE TABLE t (n INTEGER, text TEXT)")
            began = time.perf_counter()
            for start in range(0, count, rows_a_commit):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT INTO t VALUES (?, ?)",
                    [(n, "x" * 100) for n in range(start, start + rows_a_commit)],
                )
                connection.execute("COMMIT")
            return count / (time.perf_counter() - began)
        finally:
            connection.close()
