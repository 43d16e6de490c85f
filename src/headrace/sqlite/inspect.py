"""Looking at the jobs of an SQLite file, and the few changes that a person makes to them.

Rules:
1. Looking uses a read-only connection and a short read; it never disturbs a running job.
2. Changing takes the place's lock, as a run does: LedgerBusy while one is under way.
3. Every function raises LedgerError, in words, for a file that is missing, no database, or without jobs.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import msgspec

from headrace.errors import LedgerError
from headrace.ports import DeadLetter, JobSummary
from headrace.sqlite import jobs as _jobs
from headrace.sqlite.exceptions import LETTER_COLUMNS, letter_of
from headrace.sqlite.lock import PlaceLock, holder_of
from headrace.sqlite.progress import Progress
from headrace.sqlite.schema import check_schema, connect_reader, connect_writer, quoted, translated

__all__ = ["drop", "failures", "is_headrace", "jobs", "retry", "vacuum"]

_PAGE = 500
_LETTERS = ", ".join(quoted(name) for name in LETTER_COLUMNS)

Place = str | os.PathLike[str]


def is_headrace(path: Place) -> bool:
    """Say whether this is an SQLite file that holds jobs' tables. Raises nothing for a missing or foreign file."""
    place = os.fspath(path)
    try:
        with closing(connect_reader(place)) as connection:
            return check_schema(connection, place)
    except LedgerError:
        return False


def jobs(path: Place) -> list[JobSummary]:
    """List the jobs of a file, oldest first. LedgerError if there are none."""
    place = os.fspath(path)
    holder = holder_of(place)
    with _reading(place) as connection:
        rows = connection.execute(
            "SELECT id, name, state, options, report, exit_code, created_at, updated_at, finished_at,"
            " coalesce(fresh, current) FROM headrace_jobs ORDER BY id"
        ).fetchall()
        summaries = [_summary(connection, place, holder, row) for row in rows]
    if not summaries:
        raise LedgerError(f"{place} holds no jobs")
    return summaries


def failures(
    path: Place, job: str, *, in_doubt: bool = False, limit: int | None = None
) -> Iterator[DeadLetter]:
    """Go through the dead letters of a job by position; with `in_doubt`, only those whose call's end is unknown.

    Reads a page at a time, so that a running job is not held up. LedgerError comes with the call, not with the first item.
    """
    place = os.fspath(path)
    with _reading(place) as connection:
        _find(connection, place, job)
    return _letters(place, job, in_doubt, limit)


def retry(
    path: Place,
    job: str,
    *,
    positions: Sequence[int] | None = None,
    in_doubt: bool = False,
    error: str | None = None,
) -> int:
    """Mark dead letters open again, so that the job's next run takes them; give their number.

    Narrow them by `positions` and by `error` (the name of the exception's class). Items whose *once* call went out are
    left out, as that would repeat it, unless `in_doubt` is set. LedgerBusy while the job runs.
    """
    place = os.fspath(path)
    with _changing(place) as connection:
        found = _find(connection, place, job)
        wanted = None if positions is None else set(positions)
        rows = connection.execute(
            "SELECT position, error, in_doubt OR effect_sent FROM headrace_failed WHERE generation = ? ORDER BY position",
            (found.active,),
        )
        chosen = [
            position
            for position, name, sent in rows
            if (wanted is None or position in wanted)
            and (error is None or name == error)
            and (in_doubt or not sent)
        ]
        if not chosen:
            return 0
        connection.execute(
            "DELETE FROM headrace_failed WHERE generation = ? AND position IN (SELECT value FROM json_each(?))",
            (found.active, msgspec.json.encode(chosen).decode()),
        )
        Progress(connection, found.active).reopen(chosen)
        connection.execute(
            "UPDATE headrace_jobs SET state = 'unfinished', finished_at = NULL, updated_at = ? WHERE id = ?",
            (time.time(), found.id),
        )
        return len(chosen)


def drop(path: Place, job: str) -> None:
    """Delete a job: its record, and its rows in the result table. LedgerBusy while it runs."""
    place = os.fspath(path)
    with _changing(place) as connection:
        found = _find(connection, place, job)
        for number in {found.current, found.active}:
            table = _jobs.find_generation(connection, number).result_table
            if connection.execute(
                "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (table,)
            ).fetchone():
                connection.execute(f"DELETE FROM {quoted(table)} WHERE _job = ?", (found.name,))  # noqa: S608
        for number in {found.current, found.active}:
            _jobs.forget_generation(connection, number)
        connection.execute("DELETE FROM headrace_jobs WHERE id = ?", (found.id,))


def vacuum(path: Place) -> int:
    """Give the space of deleted rows back to the disk; give the number of bytes won. LedgerBusy while a job runs."""
    place = os.fspath(path)
    before = _size(place)
    with _locked(place) as connection:
        connection.execute("VACUUM")
    return max(0, before - _size(place))


# ---------------------------------------------------------------------------------------------------- within


def _summary(
    connection: sqlite3.Connection, place: str, holder: int | None, row: Sequence[Any]
) -> JobSummary:
    _, name, state, options, report, exit_code, created_at, updated_at, finished_at, generation = row
    done, skipped, until = connection.execute(
        "SELECT coalesce(sum(done), 0), coalesce(sum(skipped), 0), max(until) FROM headrace_progress"
        " WHERE generation = ?",
        (generation,),
    ).fetchone()
    failed, doubts = connection.execute(
        "SELECT count(*), coalesce(sum(in_doubt), 0) FROM headrace_failed WHERE generation = ?", (generation,)
    ).fetchone()
    parked, next_due = connection.execute(
        "SELECT count(*), min(due) FROM headrace_parked WHERE generation = ?", (generation,)
    ).fetchone()
    running = state == "running" and holder is not None
    total = (msgspec.json.decode(report) if report else {}).get("total")
    return JobSummary(
        name=name,
        place=place,
        state="unfinished" if state == "running" and not running else state,
        done=done,
        failed=failed,
        skipped=skipped,
        parked=parked,
        created_at=created_at,
        updated_at=max(updated_at, until or 0.0),
        finished_at=finished_at,
        exit_code=exit_code,
        holder=holder if running else None,
        options=msgspec.json.decode(options),
        table=_jobs.find_generation(connection, generation).result_table,
        total=total if isinstance(total, int) else None,
        next_due=next_due,
        in_doubt=doubts,
    )


def _letters(place: str, job: str, in_doubt: bool, limit: int | None) -> Iterator[DeadLetter]:
    after, left = -1, limit
    while left is None or left > 0:
        page = _PAGE if left is None else min(_PAGE, left)
        with _reading(place) as connection:
            rows = connection.execute(
                f"SELECT {_LETTERS} FROM headrace_failed WHERE generation = ? AND position > ?"  # noqa: S608
                " AND (in_doubt OR NOT ?) ORDER BY position LIMIT ?",
                (_find(connection, place, job).active, after, in_doubt, page),
            ).fetchall()
        for row in rows:
            letter = letter_of(row)
            after = letter.position
            yield letter
        if len(rows) < page:
            return
        left = None if left is None else left - page


def _find(connection: sqlite3.Connection, place: str, name: str) -> _jobs.Job:
    job = _jobs.find_job(connection, name)
    if job is None:
        names = [row[0] for row in connection.execute("SELECT name FROM headrace_jobs ORDER BY id")]
        held = f"it holds {', '.join(map(repr, names))}" if names else "it holds no jobs"
        raise LedgerError(f"{place} holds no job named {name!r}; {held}")
    return job


def _require(connection: sqlite3.Connection, place: str) -> None:
    if not check_schema(connection, place):
        raise LedgerError(f"{place} is an SQLite file without jobs; give the output of a job")


@contextmanager
def _reading(place: str) -> Iterator[sqlite3.Connection]:
    with closing(connect_reader(place)) as connection:
        try:
            connection.execute("BEGIN")  # one state of the file for all that is read
            _require(connection, place)
            yield connection
        except sqlite3.Error as error:
            raise translated(error, place, "reading its jobs") from error


@contextmanager
def _locked(place: str) -> Iterator[sqlite3.Connection]:
    with closing(
        connect_reader(place)
    ) as connection:  # says what is wrong with the file before anything is made
        _require(connection, place)
    lock = PlaceLock(place)
    lock.take()
    try:
        with closing(connect_writer(place)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise translated(error, place, "changing its jobs") from error
    finally:
        lock.release()


@contextmanager
def _changing(place: str) -> Iterator[sqlite3.Connection]:
    with _locked(place) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _size(place: str) -> int:
    try:
        return os.path.getsize(place)
    except OSError:
        return 0
