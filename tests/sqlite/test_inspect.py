"""Looking at jobs from outside, and marking, dropping, vacuuming them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headrace import sqlite as hr_sqlite
from headrace.errors import LedgerBusy, LedgerError
from headrace.ports import Commit, DeadLetter, JobRequest, Parking, Row
from headrace.sqlite import inspect
from headrace.sqlite.ledger import SqliteLedger


def run(path: Path, steps: Callable[[SqliteLedger], Awaitable[Any]], **changes: Any) -> list[tuple[int, int]]:
    async def main() -> list[tuple[int, int]]:
        ledger = hr_sqlite.table(path, "t").ledger()
        try:
            fields = {"name": "job", "identity": {}, "verify_source": lambda fingerprint: None}
            state = await ledger.open(JobRequest(**{**fields, **changes}))
            await steps(ledger)
            return list(state.settled)
        finally:
            await ledger.close()

    return asyncio.run(main())


async def nothing(ledger: SqliteLedger) -> None:
    """Only open and close."""


def letter(position: int, error: str = "TimedOut", **changes: Any) -> DeadLetter:
    return DeadLetter(
        position, f"item {position}", "fetch", 4, error, "too slow", where=f"line {position}", **changes
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a file with one job: 3 done, 4 failed, 1 skipped, 1 parked."""
    path = tmp_path / "x.db"

    async def steps(ledger: SqliteLedger) -> None:
        await ledger.commit(
            Commit(
                [Row(position, 0, {"v": position}) for position in range(3)],
                done=range(3),
                skipped=[3],
                failed=[
                    letter(4, body=b"oops", status=503),
                    letter(5, "HTTPError"),
                    letter(6, "InDoubt", in_doubt=True, effect_sent=True),
                    letter(7, "HTTPError", effect_sent=True),
                ],
                parked=[Parking(8, 50.0, 1, "429")],
            )
        )
        await ledger.finish(1, complete=True, report={"total": 9})

    run(path, steps, options={"input": "urls.txt", "attempts": 4})
    return path


def test_jobs_are_summed_up(place: Path) -> None:
    """A summary has the counts, the times, the table and the options that the job was given."""
    [job] = inspect.jobs(place)
    assert (job.name, job.place, job.state, job.table, job.exit_code) == ("job", str(place), "failed", "t", 1)
    assert (job.done, job.failed, job.skipped, job.parked, job.in_doubt) == (3, 4, 1, 1, 1)
    assert job.options == {"input": "urls.txt", "attempts": 4}
    assert (job.total, job.next_due, job.holder) == (9, 50.0, None)
    assert job.finished_at is not None
    assert job.created_at <= job.updated_at
    assert sorted(os.listdir(place.parent)) == ["x.db"]


def test_a_running_job_says_who_runs_it(place: Path) -> None:
    """While a run is open its state is running, with its pid, and looking does not disturb it."""

    async def look(ledger: SqliteLedger) -> None:
        [job] = inspect.jobs(place)
        assert (job.state, job.holder) == ("running", os.getpid())
        await ledger.commit(Commit([Row(9, 0, {"v": 9})], done=[9]))
        assert inspect.jobs(place)[0].done == 4

    run(place, look)
    assert inspect.jobs(place)[0].state == "unfinished"


def test_failures_come_whole_and_in_order(place: Path) -> None:
    """Dead letters come back as they were recorded, by position; only the doubtful ones when asked; as many as asked."""
    assert next(inspect.failures(place, "job")) == letter(4, body=b"oops", status=503)
    assert [found.position for found in inspect.failures(place, "job")] == [4, 5, 6, 7]
    assert [found.position for found in inspect.failures(place, "job", in_doubt=True)] == [6]
    assert [found.position for found in inspect.failures(place, "job", limit=2)] == [4, 5]


def test_many_failures_come_by_pages(tmp_path: Path) -> None:
    """More dead letters than one page holds come all, each once."""
    path = tmp_path / "x.db"

    async def steps(ledger: SqliteLedger) -> None:
        await ledger.commit(Commit(failed=[letter(position) for position in range(1201)]))

    run(path, steps)
    assert [found.position for found in inspect.failures(path, "job")] == list(range(1201))
    assert len(list(inspect.failures(path, "job", limit=700))) == 700


@pytest.mark.parametrize(
    ("how", "opened"),
    [
        ({}, [4, 5]),
        ({"in_doubt": True}, [4, 5, 6, 7]),
        ({"error": "HTTPError"}, [5]),
        ({"positions": [4, 6, 99]}, [4]),
        ({"positions": [99]}, []),
    ],
    ids=str,
)
def test_retry_opens_dead_letters_again(place: Path, how: dict[str, Any], opened: list[int]) -> None:
    """Retried dead letters are open for the next run; those whose once call went out only when asked for."""
    assert inspect.retry(place, "job", **how) == len(opened)
    settled = run(place, nothing)
    assert [p for p in range(8) if not any(lo <= p < hi for lo, hi in settled)] == opened
    [job] = inspect.jobs(place)
    assert (job.done, job.failed) == (3, 4 - len(opened))

    async def again(ledger: SqliteLedger) -> None:
        await ledger.commit(Commit([Row(p, 0, {"v": p}) for p in opened], done=opened))

    run(place, again)
    assert inspect.jobs(place)[0].done == 3 + len(opened)


def test_changes_wait_for_no_running_job(place: Path) -> None:
    """retry, drop and vacuum are refused while a run is open."""

    async def change(_: SqliteLedger) -> None:
        for act in (
            lambda: inspect.retry(place, "job"),
            lambda: inspect.drop(place, "job"),
            lambda: inspect.vacuum(place),
        ):
            with pytest.raises(LedgerBusy) as caught:
                act()
            assert caught.value.pid == os.getpid()

    run(place, change)


def test_drop_leaves_nothing_of_a_job(place: Path) -> None:
    """A dropped job is gone with its rows; others in the table stay."""

    async def steps(ledger: SqliteLedger) -> None:
        await ledger.commit(Commit([Row(0, 0, {"v": "other"})], done=[0]))

    run(place, steps, name="other")
    run(place, steps, fresh=True)  # a fresh start under way is dropped along
    inspect.drop(place, "job")
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("SELECT v, _job FROM t").fetchall() == [("other", "other")]
        assert connection.execute("SELECT count(*) FROM headrace_generations").fetchone() == (1,)
        assert (
            connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'headrace_fresh%'").fetchall()
            == []
        )
    assert [job.name for job in inspect.jobs(place)] == ["other"]


def test_vacuum_gives_space_back(place: Path) -> None:
    """Vacuuming makes the file smaller after a job was dropped."""

    async def steps(ledger: SqliteLedger) -> None:
        rows = [Row(position, 0, {"v": b"x" * 1000}) for position in range(1000)]
        await ledger.commit(Commit(rows, done=range(1000)))

    run(place, steps, name="large")
    before = place.stat().st_size
    inspect.drop(place, "large")
    assert inspect.vacuum(place) > 900_000
    assert place.stat().st_size < before - 900_000


def test_what_is_no_output_is_told_in_words(tmp_path: Path) -> None:
    """A missing file, a directory, a foreign file, a database without jobs and an unknown job are told apart."""
    (tmp_path / "text").write_text("no database " * 100)
    with closing(sqlite3.connect(tmp_path / "own.db")) as connection:
        connection.execute("CREATE TABLE mine (x)")
    run(tmp_path / "jobs.db", nothing)
    for name, words in (
        ("missing", "does not exist"),
        (".", "is a directory"),
        ("text", "not an SQLite database"),
        ("own.db", "without jobs"),
    ):
        for look in (
            inspect.jobs,
            lambda path: inspect.failures(path, "job"),
            lambda path: inspect.drop(path, "job"),
        ):
            with pytest.raises(LedgerError, match=words):
                look(tmp_path / name)
        assert not inspect.is_headrace(tmp_path / name)
    with pytest.raises(LedgerError, match="no job named 'other'; it holds 'job'"):
        inspect.failures(tmp_path / "jobs.db", "other")
    assert inspect.is_headrace(tmp_path / "jobs.db")
    inspect.drop(tmp_path / "jobs.db", "job")
    with pytest.raises(LedgerError, match="holds no jobs"):
        inspect.jobs(tmp_path / "jobs.db")
    assert not (tmp_path / "missing").exists()
