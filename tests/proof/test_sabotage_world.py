"""More sabotage, by the world: full disks, rivals, clocks, a blocked loop, hostile rows, sources and predicates."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.engine import parking
from headrace.sqlite.ledger import SqliteLedger
from headrace.sqlite.sink import Table
from headrace.testing import run_real


def run(main: Callable[[], Coroutine[Any, Any, Any]], limit: float = 20.0) -> Any:
    """Run it to its end, in real time: threads have a part in it. What takes `limit` seconds hangs."""

    async def bounded() -> Any:
        task = asyncio.create_task(main())
        await asyncio.wait({task}, timeout=limit)
        assert task.done(), "it hangs"
        return task.result()

    return run_real(bounded)


def positions(place: Path, table: str = "results") -> list[int]:
    """Read the positions of the results."""
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [n for (n,) in connection.execute(f"SELECT _position FROM {table} ORDER BY _position")]


def dead(place: Path) -> list[int]:
    """Read the positions of the dead letters."""
    return [letter.position for letter in hr.open(place).job().failures()]


class Stranger(BaseException):
    """An error outside Exception."""


class Mute:
    """A value that is neither true nor false."""

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


async def number(n: int) -> dict[str, int]:
    """Make a row of a number."""
    await asyncio.sleep(0)
    return {"n": n}


# ---------------------------------------------------------------------------------------------------- processes


async def kilobyte(n: int) -> dict[str, Any]:
    """Make a row of 1 KB."""
    await asyncio.sleep(0.0005)
    return {"n": n, "text": "x" * 1000}


def child(what: str, place: str) -> int:
    """Run 3 000 rows of 1 KB into a file, which may not grow beyond 2 MB if `what` is "full"."""
    if what == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, 2**21))
    flow = hr.Flow(range(3000)).map(kilobyte, concurrency=50).into(hr.sqlite.table(place))
    try:
        return flow.run_sync().exit_code
    except hr.errors.LedgerBusy as error:
        print(f"busy {error.pid}")
        return 75
    except hr.LedgerError as error:
        print(error)
        return int(error.report.exit_code)  # type: ignore[attr-defined]


def command(what: str, place: Path) -> list[str]:
    """Give the command line of a child."""
    return [sys.executable, __file__, what, str(place)]


def test_a_full_disk_stops_the_run_resumable(tmp_path: Path) -> None:
    """Where the file may grow no more, the run ends with 4 and the reason; with room again, it goes on and completes."""
    place = tmp_path / "out.db"
    for _ in range(2):
        full = subprocess.run(command("full", place), capture_output=True, text=True, timeout=60, check=False)
        assert full.returncode == 4, full.stdout + full.stderr
        assert "disk" in full.stdout
    written = positions(place)
    assert 0 < len(written) < 3000
    assert subprocess.run(command("free", place), timeout=60, check=False).returncode == 0
    assert positions(place) == list(range(3000))


def test_of_rivals_for_one_place_one_runs(tmp_path: Path) -> None:
    """Six processes open one new place at once: one runs the job, the others are told that it is busy, and by whom."""
    place = tmp_path / "out.db"
    rivals = [subprocess.Popen(command("free", place), stdout=subprocess.PIPE, text=True) for _ in range(6)]
    told = [(rival.communicate(timeout=60)[0], rival.returncode) for rival in rivals]
    codes = [code for _, code in told]
    assert set(codes) <= {0, 75}
    assert 0 in codes
    pids = {str(rival.pid) for rival, code in zip(rivals, codes, strict=True) if code == 0}
    assert all(out.split()[1] in pids for out, code in told if code == 75)
    assert positions(place) == list(range(3000))


# ---------------------------------------------------------------------------------------------------- time


def test_a_clock_that_jumps_changes_no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's clock leaps a year ahead and decades back while the run commits: every item is there once."""
    place = tmp_path / "out.db"
    leaps = [0.0, 3.2e7, -1.5e9, 5.0, -3.0, 1e9]
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return time.time() + leaps[asked % len(leaps)]

    monkeypatch.setattr(
        Table, "ledger", lambda table: SqliteLedger(table.place, table.name, table.columns(), clock=clock)
    )

    def flow(count: int) -> hr.Flow[Any]:
        return hr.Flow(range(count)).map(number, concurrency=8).into(hr.sqlite.table(place))

    assert run(lambda: flow(900).run(window=16)).done == 900
    assert run(lambda: flow(1000).run(window=16)).done == 100
    assert positions(place) == list(range(1000))
    again = run(lambda: flow(1000).run(max_age=3600.0))
    assert again.balanced
    assert positions(place) == list(range(1000))


def test_dates_that_jump_lose_no_parked_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's clock leaps while items are parked for a moment and for their key: all are done, once, in the end."""
    place = tmp_path / "out.db"
    leaps = [0.0, 3.2e7, -1.5e9, 5.0, -3.0, 1e9]
    asked: set[int] = set()

    class Leaping:
        @staticmethod
        def time() -> float:
            return time.time() + leaps[0]

    monkeypatch.setattr(parking, "time", Leaping)

    async def call(n: int) -> dict[str, int]:
        leaps.append(leaps.pop(0))
        await asyncio.sleep(0.001)
        if n % 7 == 3 and n not in asked:
            asked.add(n)
            raise hr.RetryAfter(0.05, hold=n % 3 == 0)
        return {"n": n}

    def flow() -> hr.Flow[Any]:
        limits = [hr.Limit(by=lambda n: n % 5, concurrency=3)]
        return hr.Flow(range(300)).map(call, concurrency=8, limits=limits).into(hr.sqlite.table(place))

    for _ in range(4):
        assert run(lambda: flow().run(window=24, wait=0.02)).balanced
    leaps[:] = [2e9]
    assert run(lambda: flow().run(wait=0.5)).exit_code == 0
    assert positions(place) == list(range(300))


def test_a_function_that_blocks_the_loop_makes_nobody_late(tmp_path: Path) -> None:
    """One call holds the loop up for longer than the others' time limit: what they waited for is there, so they are done."""
    place = tmp_path / "out.db"

    async def call(n: int) -> dict[str, int]:
        if n == 5:
            await asyncio.sleep(0.05)
            time.sleep(1.0)
        else:
            await asyncio.sleep(0.2)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return {"n": n}

    flow = hr.Flow(range(60)).map(call, concurrency=20, timeout=0.5, effect="once")
    report = run(lambda: flow.into(hr.sqlite.table(place)).run())
    assert (report.done, report.failed) == (60, 0)


# ---------------------------------------------------------------------------------------------------- hostile parts


def test_rows_of_a_hundred_megabytes(tmp_path: Path) -> None:
    """A few rows of 100 MB each go through, one by one, beside small ones."""
    place = tmp_path / "out.db"

    async def large(n: int) -> dict[str, Any]:
        return {"n": n, "body": bytes(100_000_000) if n % 4 == 1 else b"small"}

    report = run(lambda: hr.Flow(range(12)).map(large, concurrency=2).into(hr.sqlite.table(place)).run(), 60)
    assert report.done == 12
    with closing(sqlite3.connect(place)) as connection:
        sizes = [size for (size,) in connection.execute("SELECT length(body) FROM results ORDER BY n")]
    assert sizes == [100_000_000 if n % 4 == 1 else 5 for n in range(12)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_row_that_ends_in_a_strangers_error(tmp_path: Path) -> None:
    """A row whose as_row() raises what is no Exception stops the run, in words, and loses nothing; it hangs nobody."""
    place = tmp_path / "out.db"

    class Row:
        def as_row(self) -> Any:
            raise Stranger

    cured = False

    async def make(n: int) -> Any:
        return Row() if n == 7 and not cured else {"n": n}

    flow = hr.Flow(range(12)).map(make, concurrency=1).into(hr.sqlite.table(place))
    try:
        report = run(lambda: flow.run())
    except hr.LedgerError as error:
        report = error.report  # type: ignore[attr-defined]
    assert report.balanced
    cured = True
    hr.open(place).job().retry()
    run(lambda: flow.run())
    assert positions(place) == list(range(12))


def test_a_predicate_that_gives_what_is_neither_true_nor_false(tmp_path: Path) -> None:
    """filter and until with such a value fail that item, and no other."""
    place = tmp_path / "out.db"

    async def keep(n: int) -> Any:
        return Mute() if n == 3 else n != 5

    def enough(n: int) -> Any:
        return Mute() if n == 4 else False

    flow = hr.Flow(range(8)).filter(keep).until(enough).map(number).into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.done, report.failed, report.skipped) == (5, 2, 1)
    assert (positions(place), dead(place)) == ([0, 1, 2, 6, 7], [3, 4])


def test_a_retry_policy_that_raises(tmp_path: Path) -> None:
    """An on= that raises what cannot be printed, about an error that takes no note: the item fails, and no other."""

    class Unspeakable(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("no words")

        __str__ = __repr__

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"{name} is not for you")

    def on(error: Exception) -> bool:
        raise Unspeakable

    async def call(n: int) -> int:
        if n == 3:
            raise Unspeakable
        return n

    got = run(lambda: hr.map(call, range(8), retry=hr.Retry(attempts=3, on=on)))
    assert [outcome.position for outcome in got.failed] == [3]
    assert len(got.done) == 7


@pytest.mark.parametrize("error", [ValueError("broken"), Stranger("odd"), MemoryError()], ids=repr)
def test_a_source_that_breaks_keeps_what_it_gave(error: BaseException) -> None:
    """Whatever the source raises: what it gave before is done, the run ends, and the accounts add up."""

    def source() -> Iterator[int]:
        yield from range(40)
        raise error

    with pytest.raises(hr.SourceError) as raised:
        run(lambda: hr.map(number, source()))
    report = raised.value.report  # type: ignore[attr-defined]
    assert report.balanced
    assert report.done == report.taken


def test_a_stop_event_that_breaks_stops_the_run(tmp_path: Path) -> None:
    """A stop= that cannot be asked is not taken for «go on for ever»: the run ends with its error, resumable."""
    place = tmp_path / "out.db"

    class Broken:
        def is_set(self) -> bool:
            raise OSError("the flag's disk is gone")

    async def slow(n: int) -> dict[str, int]:
        await asyncio.sleep(0.05)
        return {"n": n}

    flow = hr.Flow(range(200)).map(slow, concurrency=4).into(hr.sqlite.table(place))
    with pytest.raises(hr.HeadraceError, match="flag's disk"):
        run(lambda: flow.run(stop=Broken()))
    assert run(lambda: flow.run()).exit_code == 0
    assert positions(place) == list(range(200))


def test_carried_once_items_end_with_the_grace(tmp_path: Path) -> None:
    """Items whose *once* call went out queue for a slow stage when the run drains: the grace ends it, in doubt."""
    place = tmp_path / "out.db"

    async def slow(row: dict[str, int]) -> dict[str, int]:
        await asyncio.sleep(30)
        return row

    flow = hr.Flow(range(6)).map(number, effect="once").map(slow, concurrency=1).into(hr.sqlite.table(place))

    async def main() -> hr.Report:
        async with flow.start(grace=0.3) as job:
            await asyncio.sleep(0.3)
            job.stop()
            return await job.wait()

    report = run(main, 10)
    assert (report.failed, report.returned) == (6, 0)
    assert {letter.error for letter in hr.open(place).job().failures(in_doubt=True)} == {"InDoubt"}


if __name__ == "__main__":
    sys.exit(child(sys.argv[1], sys.argv[2]))
