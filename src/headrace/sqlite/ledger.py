"""The ledger of one run in an SQLite file, in one transaction with the rows of its sink.

Rules:
1. All work on the database is done in the ledger's own thread, one piece after the other, to its end: a cancellation
   neither stops nor halves a commit.
2. A commit is one transaction; what the ledger remembers changes after COMMIT only.
3. A row that cannot be stored is a SinkError with its position; everything else that the database does is a LedgerError.
4. After an error of the disk or of the file nothing more is written: the next run reads what is true.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from headrace.errors import EngineError, HeadraceError, IdentityChanged, LedgerError, PlanError
from headrace.ports import Bookmark, Commit, DeadLetter, Intent, JobRequest, JobState, Parking
from headrace.sqlite import jobs
from headrace.sqlite.exceptions import LETTER_COLUMNS, ExceptionRecord, letter_of
from headrace.sqlite.lock import PlaceLock
from headrace.sqlite.progress import Progress, Step
from headrace.sqlite.ranges import RangeSet, coalesce, decode_ranges, encode_ranges, ranges_of
from headrace.sqlite.result_table import MOST_CARE, ROW_TROUBLE, ResultTable
from headrace.sqlite.schema import connect_writer, quoted, translated
from headrace.sqlite.writer import Writer

__all__ = ["KeepingLedger", "SqliteLedger"]

T = TypeVar("T")

_BREAKING = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB")


class _Found(NamedTuple):
    """What `open` found in the place before it asks the source."""

    job: jobs.Job | None
    generation: jobs.Generation | None
    fingerprint: Mapping[str, Any] | None
    empty: bool


class _RowsNotTaken(Exception):
    """The rows as a whole were refused by SQLite; which of them is to blame is not known yet."""


class SqliteLedger:
    """Implements `headrace.ports.Ledger`. Made by `table(...)`; nothing is opened before `open`."""

    def __init__(
        self,
        path: str,
        table: str,
        declared: Sequence[str] | None,
        *,
        as_json: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._table = table
        self._declared = declared
        self._as_json = as_json
        self._clock = clock
        self._writer = Writer(f"headrace-sqlite {path}")
        self._lock = PlaceLock(path)
        self._broken: str | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode of the database

    # ------------------------------------------------------------------------------------------------ the port

    async def open(self, request: JobRequest) -> JobState:
        """Take the place, find or make the job, give its state; see `headrace.ports.Ledger.open`.

        Raises LedgerBusy, IdentityChanged, PlanError (a table of that name is somebody else's) and LedgerError.
        """
        identity = jobs.plain(request.identity, "the identity")
        code = jobs.plain(request.code, "the code")
        found = await self._writer.run(partial(self._find, request))
        differs: str | None = None
        if found.fingerprint is not None:
            differs = request.verify_source(found.fingerprint)
        changes = [] if found.generation is None else jobs.differences(found.generation.identity, identity)
        if differs:
            changes.append(f"source: {differs}")
        code_changes = [] if found.generation is None else jobs.differences(found.generation.code, code)
        return await self._writer.run(partial(self._begin, request, found, changes, code_changes))

    async def commit(self, commit: Commit) -> None:
        """Record it in one transaction, durably. A cancellation waits for the end of it.

        Raises SinkError with the position of a row that cannot be stored, LedgerError for the disk's troubles,
        EngineError for an item that is settled already. In all these cases nothing of the commit is recorded.
        """
        await self._writer.run(partial(self._commit, commit), give_way=True)

    async def finish(self, exit_code: int, *, complete: bool, report: Mapping[str, Any]) -> None:
        """Note how the run ended. A fresh generation that is complete with exit code 0 replaces the old one here."""
        await self._writer.run(partial(self._finish, exit_code, complete, report))

    async def close(self) -> None:
        """Let go of the place and end the thread. Repeatable."""
        await self._writer.close(self._close)

    # ------------------------------------------------------------------------------------------------ opening

    def _find(self, request: JobRequest) -> _Found:
        self._lock.take()
        connection = self._connection = connect_writer(self._path)
        self._file = self._file_there()
        try:
            job = jobs.find_job(connection, request.name)
            if job is None:
                return _Found(None, None, None, True)
            generation = jobs.find_generation(connection, job.active)
            progress = Progress(connection, job.active)
            empty = not len(progress.settled) and not ExceptionRecord(connection, job.active).anything
            return _Found(job, generation, progress.fingerprint, empty)
        except sqlite3.Error as error:
            raise translated(error, self._path, f"reading the job {request.name!r}") from error

    def _begin(
        self, request: JobRequest, found: _Found, changes: list[str], code_changes: list[str]
    ) -> JobState:
        warnings = [f"changed since the last run: {line}" for line in code_changes]
        if changes and not found.empty and not request.fresh:
            if not request.accept_changes:
                raise IdentityChanged(
                    f"{self._path} holds another job named {request.name!r}:{jobs.names_of(changes)}\n"
                    "Give it another job name, start over with fresh, or go on all the same by accepting the changes.",
                    changes=changes,
                )
            warnings += [f"accepted: {line}" for line in changes]
        with_table = found.generation is not None and found.generation.result_table != self._table
        if with_table and not found.empty and not request.fresh:
            assert found.generation is not None
            line = f"results: were in table {found.generation.result_table!r}, now {self._table!r}"
            raise IdentityChanged(
                f"{self._path} holds the job {request.name!r} with its results in table "
                f"{found.generation.result_table!r}; give that name, another job name, or start over with fresh",
                changes=[line],
            )
        return self._in_transaction(
            f"opening the job {request.name!r}",
            partial(self._enter, request, found, bool(changes) or with_table, warnings),
        )

    def _enter(self, request: JobRequest, found: _Found, changed: bool, warnings: list[str]) -> JobState:
        connection, now = self._open_connection(), self._clock()
        job = found.job or jobs.begin_job(connection, request, self._table, now)
        if request.fresh and not found.empty and (job.fresh is None or changed):
            if job.fresh is not None:
                jobs.forget_generation(connection, job.fresh)
            job = job._replace(
                fresh=jobs.begin_generation(connection, job.id, request, self._table, now), finished_at=None
            )
        elif job.fresh is not None:
            warnings.append("a fresh start of this job is under way and is gone on with")
        connection.execute(
            "UPDATE headrace_generations SET identity = ?, code = ?, result_table = ? WHERE id = ?",
            (
                msgspec.json.encode(request.identity).decode(),
                msgspec.json.encode(request.code).decode(),
                self._table,
                job.active,
            ),
        )
        connection.execute(
            "UPDATE headrace_jobs SET state = 'running', options = ?, updated_at = ?, fresh = ?, finished_at = ?"
            " WHERE id = ?",
            (_json(request.options), now, job.fresh, job.finished_at, job.id),
        )
        self._job = job
        self._generation = jobs.find_generation(connection, job.active)
        self._progress = Progress(connection, job.active)
        self._exceptions = ExceptionRecord(connection, job.active)
        self._results = self._result_table(self._table)
        self._rows = self._results if job.fresh is None else self._result_table(jobs.staging_name(job.fresh))
        self._rows.make()
        self._stale = RangeSet(decode_ranges(self._generation.stale))
        for lo, hi in self._progress.settled:
            self._stale.remove(lo, hi)
        if request.max_age is not None:
            self._reopen(now - request.max_age)
        return self._state(warnings)

    def _reopen(self, cutoff: float) -> None:
        """Open again what was done before `cutoff`; the old rows stay until new ones replace them."""
        opened = self._progress.reopen_before(cutoff, self._exceptions.failed_positions())
        if not opened:
            return
        self._stale = RangeSet([*self._stale, *opened])
        connection = self._open_connection()
        connection.execute(
            "UPDATE headrace_generations SET stale = ? WHERE id = ?",
            (encode_ranges(self._stale), self._generation.id),
        )
        connection.execute("UPDATE headrace_jobs SET finished_at = NULL WHERE id = ?", (self._job.id,))
        self._job = self._job._replace(finished_at=None)
        self._rows.index()

    def _state(self, warnings: Sequence[str]) -> JobState:
        parked: dict[int, Parking] = self._exceptions.parkings()
        intents: list[Intent] = self._exceptions.intents()
        bookmark: Bookmark | None = self._progress.best_bookmark()
        return JobState(
            name=self._job.name,
            generation=self._generation.key,
            settled=list(self._progress.settled),
            bookmark=bookmark,
            done=self._progress.done,
            failed=self._exceptions.failed_count(),
            skipped=self._progress.skipped,
            parked=parked,
            intents=intents,
            finished_at=self._job.finished_at,
            warnings=tuple(warnings),
        )

    def _result_table(self, name: str) -> ResultTable:
        return ResultTable(
            self._open_connection(), name, self._job.name, self._declared, as_json=self._as_json
        )

    # ------------------------------------------------------------------------------------------------ committing

    def _commit(self, commit: Commit) -> None:
        failed = [letter.position for letter in commit.failed]
        positions = sorted([*commit.done, *commit.skipped, *failed])
        try:
            ranges = ranges_of(positions)
        except ValueError as error:
            raise EngineError(f"a commit settles an item twice: {error}") from error
        twice = self._progress.taken_twice(ranges)
        if twice is not None:
            raise EngineError(f"a commit settles the item at position {twice}, which is settled already")
        settled = coalesce([*ranges, *commit.void]) if commit.void else ranges
        step = Step(settled, len(commit.done), len(commit.skipped), commit.bookmarks, commit.fingerprint)
        for care in range(MOST_CARE + 1):
            try:
                appended = self._in_transaction(
                    "recording results", partial(self._record, commit, positions, step, care), implicit=True
                )
            except _RowsNotTaken:
                continue
            break
        self._progress.accept(appended)
        self._exceptions.accept(commit, positions)
        for position in positions if self._stale else ():
            self._stale.remove(position, position + 1)

    def _record(self, commit: Commit, positions: list[int], step: Step, care: int) -> Any:
        assert self._connection is not None
        connection = self._connection
        now = self._clock()
        if self._stale:
            self._rows.remove([position for position in positions if position in self._stale])
        try:
            self._rows.store(commit.rows, care)
        except ROW_TROUBLE as error:
            if care == MOST_CARE:
                raise
            raise _RowsNotTaken from error
        self._exceptions.record(commit, positions)
        if self._job.finished_at is not None:
            connection.execute("UPDATE headrace_jobs SET finished_at = NULL WHERE id = ?", (self._job.id,))
            self._job = self._job._replace(finished_at=None)
        if self._progress.wants_joining():
            self._progress.join(now)
        return self._progress.append(step, now)

    # ------------------------------------------------------------------------------------------------ ending

    def _finish(self, exit_code: int, complete: bool, report: Mapping[str, Any]) -> None:
        self._in_transaction("noting the end of the run", partial(self._end, exit_code, complete, report))

    def _end(self, exit_code: int, complete: bool, report: Mapping[str, Any]) -> None:
        connection, now = self._open_connection(), self._clock()
        state = "unfinished"
        if complete:
            state = "finished" if exit_code == 0 else "failed"
            connection.execute(
                "UPDATE headrace_generations SET stale = '[]' WHERE id = ?", (self._generation.id,)
            )
            self._stale = RangeSet()
        if complete and exit_code == 0 and self._job.fresh is not None:
            self._replace_generation()
        self._progress.join(now)
        finished_at = now if complete else None
        connection.execute(
            "UPDATE headrace_jobs SET state = ?, exit_code = ?, report = ?, updated_at = ?, finished_at = ?,"
            " current = ?, fresh = ? WHERE id = ?",
            (
                state,
                exit_code,
                _json(report),
                now,
                finished_at,
                self._job.current,
                self._job.fresh,
                self._job.id,
            ),
        )
        self._job = self._job._replace(finished_at=finished_at)

    def _replace_generation(self) -> None:
        """Put the rows of the fresh generation in the place of the old one's."""
        assert self._job.fresh is not None
        connection = self._open_connection()
        old = jobs.find_generation(connection, self._job.current)
        if old.result_table != self._table:
            self._result_table(old.result_table).clear()
        self._results.clear()
        self._results.take_over(self._rows)
        jobs.forget_generation(connection, old.id)
        self._rows = self._results
        self._job = self._job._replace(current=self._job.fresh, fresh=None)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                connection.close()
        except sqlite3.Error as error:
            raise translated(error, self._path, "closing it") from error
        finally:
            self._lock.release()

    # ------------------------------------------------------------------------------------------------ transactions

    def _open_connection(self) -> sqlite3.Connection:
        if self._broken is not None:
            raise LedgerError(f"{self._path} takes nothing more in this run, after: {self._broken}")
        if self._connection is None:
            raise LedgerError(f"{self._path} is not open: open() has not succeeded, or close() was called")
        if self._file_there() != self._file:
            # SQLite would go on writing into a file that nobody can find any more.
            self._broken = f"{self._path} was removed or replaced while the run wrote to it"
            raise LedgerError(f"{self._broken}; put it back, or run again to start anew")
        return self._connection

    def _file_there(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _in_transaction(self, doing: str, work: Callable[[], T], *, implicit: bool = False) -> T:
        """Do `work` in a transaction of its own. With `implicit`, its first INSERT or DELETE begins it.

        sqlite3 gives up the interpreter once for an implicit beginning and once for `commit()`, three times for each as
        a statement; beside a busy loop each time costs up to 5 ms.
        """
        connection = self._open_connection()
        job = getattr(self, "_job", None)
        try:
            if not implicit:
                connection.execute("BEGIN IMMEDIATE")
            result = work()
            self._writer.let_loop_go_on()
            connection.commit()
        except (sqlite3.Error, HeadraceError, _RowsNotTaken) as error:
            self._undo(connection, job)
            if isinstance(error, sqlite3.Error):
                trouble = translated(error, self._path, doing)
                if (getattr(error, "sqlite_errorname", None) or "").startswith(_BREAKING):
                    self._broken = str(trouble)
                raise trouble from error
            raise
        except BaseException:
            self._undo(connection, job)
            raise
        return result

    def _undo(self, connection: sqlite3.Connection, job: jobs.Job | None) -> None:
        """Roll back, and bring what is remembered back to what is recorded."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if job is not None:
                self._job = job
                self._rows.load()
                self._progress.load()
        except (sqlite3.Error, PlanError) as error:
            self._broken = self._broken or f"the rollback failed: {error}"


class KeepingLedger(SqliteLedger):
    """A ledger whose rows are one JSON value each and can be read back. Made by `keep(...)`."""

    def __init__(self, path: str, table: str, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(path, table, ("value",), as_json=True, clock=clock)

    async def values(self) -> Mapping[int, Any]:
        """Give the decoded value of every done item of this job, by position."""
        values: Mapping[int, Any] = await self._writer.run(self._values)
        return values

    def _values(self) -> dict[int, Any]:
        connection = self._open_connection()
        decode = msgspec.json.Decoder().decode
        try:
            rows = connection.execute(
                f'SELECT _position, value FROM "{self._rows.name}" WHERE _job = ? AND _child = 0',  # noqa: S608
                (self._job.name,),
            )
            return {position: decode(text) for position, text in rows}
        except sqlite3.Error as error:
            raise translated(error, self._path, "reading the values back") from error
        except (msgspec.DecodeError, TypeError) as error:
            raise LedgerError(
                f"{self._path}: a value in table {self._rows.name!r} is not JSON ({error}); "
                "something else has written there: restore it, or start over with fresh"
            ) from error

    async def dead_letters(self) -> Sequence[DeadLetter]:
        """Give the dead letters of this job, by position."""
        letters: Sequence[DeadLetter] = await self._writer.run(self._dead_letters)
        return letters

    def _dead_letters(self) -> list[DeadLetter]:
        columns = ", ".join(quoted(name) for name in LETTER_COLUMNS)
        try:
            rows = self._open_connection().execute(
                f"SELECT {columns} FROM headrace_failed WHERE generation = ? ORDER BY position",  # noqa: S608
                (self._generation.id,),
            )
            return [letter_of(row) for row in rows]
        except sqlite3.Error as error:
            raise translated(error, self._path, "reading the dead letters back") from error


def _json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
