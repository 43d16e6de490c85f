"""The SQLite ledger: what it records, what it refuses, and what it costs."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import math
import os
import random
import resource
import sqlite3
import stat
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from headrace import sqlite as hr_sqlite
from headrace.errors import IdentityChanged, LedgerBusy, LedgerError, PlanError, SinkError
from headrace.ports import Bookmark, Commit, DeadLetter, JobRequest, JobState, Row
from headrace.sqlite import schema
from headrace.sqlite.ledger import SqliteLedger
from headrace.sqlite.writer import Writer

Steps = Callable[[SqliteLedger, JobState], Awaitable[Any]]


def request(**changes: Any) -> JobRequest:
    return JobRequest(**{"name": "job", "identity": {}, "verify_source": lambda fingerprint: None, **changes})


def go(ledger: SqliteLedger, steps: Steps | None = None, **changes: Any) -> JobState:
    async def main() -> JobState:
        try:
            state = await ledger.open(request(**changes))
            if steps is not None:
                await steps(ledger, state)
            return state
        finally:
            await ledger.close()

    return asyncio.run(main())


def store(
    path: Path, values: Sequence[Any], *, columns: Sequence[str] | None = None, name: str = "t"
) -> None:
    rows = [Row(position, 0, value) for position, value in enumerate(values)]

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        await ledger.commit(Commit(rows, done=range(len(rows))))

    go(hr_sqlite.table(path, name, columns=columns).ledger(), steps, fresh=False)


def select(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


# ---------------------------------------------------------------------------------------------------- rows


class Colour(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    a: int
    b: str


class Struct(msgspec.Struct):
    a: int
    b: str


@dataclasses.dataclass
class Data:
    a: int
    b: str


class Own:
    def as_row(self) -> dict[str, Any]:
        return {"a": 1, "b": "x"}


@pytest.mark.parametrize(
    "value", [{"a": 1, "b": "x"}, Pair(1, "x"), Struct(1, "x"), Data(1, "x"), Own()], ids=repr
)
def test_values_with_fields_become_columns(value: Any, tmp_path: Path) -> None:
    """A dict, NamedTuple, Struct, dataclass or as_row() gives its columns first, then headrace's."""
    store(tmp_path / "x.db", [value])
    assert select(tmp_path / "x.db", "SELECT * FROM t") == [(1, "x", "job", 0, 0)]
    names = [row[1] for row in select(tmp_path / "x.db", "PRAGMA table_info(t)")]
    assert names == ["a", "b", "_job", "_position", "_child"]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        (True, 1),
        ((1 << 63) - 1, (1 << 63) - 1),
        (1 << 63, str(1 << 63)),
        (-(1 << 70), str(-(1 << 70))),
        (0.1, 0.1),
        (math.inf, math.inf),
        ("a\0b é \U0001f600", "a\0b é \U0001f600"),
        (b"\0\xff", b"\0\xff"),
        (bytearray(b"ab"), b"ab"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        (Path("/a/b"), "/a/b"),
        ([1, None, "x"], '[1,null,"x"]'),
        ({1: 2}, '{"1":2}'),
        ((1, 2), "[1,2]"),
    ],
    ids=repr,
)
def test_a_value_is_stored_as_it_is(value: Any, stored: Any, tmp_path: Path) -> None:
    """Plain values come back as they went in; others are text, and none is bent silently."""
    store(tmp_path / "x.db", [{"v": value}])
    assert select(tmp_path / "x.db", "SELECT v FROM t") == [(stored,)]


def test_a_dict_without_text_keys_is_one_value(tmp_path: Path) -> None:
    """A dict whose keys are not text has no columns: it goes into `value`."""
    store(tmp_path / "x.db", [{1: 2}, "plain", 3])
    assert select(tmp_path / "x.db", "SELECT value FROM t") == [('{"1":2}',), ("plain",), (3,)]


@pytest.mark.parametrize(
    "value",
    [
        {"v": math.nan},
        {"v": "\ud800"},
        {"v": [math.inf]},
        {"v": object()},
        {"_position": 1},
        {"a": 1, "A": 2},
        {"a\0b": 1},
        {"": 1},
    ],
    ids=repr,
)
def test_a_row_that_cannot_be_stored_is_named(value: Any, tmp_path: Path) -> None:
    """What SQLite would bend or refuse is a SinkError with the position of its row, and nothing is recorded."""

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        rows = [Row(4, 0, {"v": 1}), Row(5, 0, value), Row(6, 0, {"v": 2})]
        with pytest.raises(SinkError, match="position 5") as caught:
            await ledger.commit(Commit(rows, done=[4, 5, 6]))
        assert caught.value.position == 5
        await ledger.commit(Commit(rows[:1], done=[4]))

    go(hr_sqlite.table(tmp_path / "x.db", "t").ledger(), steps)
    assert select(tmp_path / "x.db", "SELECT v, _position FROM t") == [(1, 4)]
    assert go(hr_sqlite.table(tmp_path / "x.db", "t").ledger()).settled == [(4, 5)]


def test_a_constraint_of_the_user_blames_one_row(tmp_path: Path) -> None:
    """Where the user put a constraint on the result table, the row that breaks it is found among the others."""
    store(tmp_path / "x.db", [{"v": 1}])
    select(tmp_path / "x.db", "CREATE UNIQUE INDEX once ON t (v)")

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        rows = [Row(position, 0, {"v": value}) for position, value in ((10, 7), (11, 1), (12, 8))]
        with pytest.raises(SinkError, match=r"position 11.*UNIQUE"):
            await ledger.commit(Commit(rows, done=[10, 11, 12]))
        await ledger.commit(Commit([rows[0], rows[2]], done=[10, 12]))

    go(hr_sqlite.table(tmp_path / "x.db", "t").ledger(), steps)
    assert select(tmp_path / "x.db", "SELECT v FROM t") == [(1,), (7,), (8,)]


def test_later_rows_may_add_columns(tmp_path: Path) -> None:
    """New keys make new columns, missing ones are NULL, and the case of ASCII letters makes no other column."""
    store(tmp_path / "x.db", [{"a": 1}, {"b": 2, "A": 3}, {}, {"c; DROP TABLE t": 4, "é": 5, "É": 6}])
    assert select(tmp_path / "x.db", 'SELECT a, b, "c; DROP TABLE t", "é", "É" FROM t') == [
        (1, None, None, None, None),
        (3, 2, None, None, None),
        (None, None, None, None, None),
        (None, None, 4, 5, 6),
    ]


def test_declared_columns_are_all_there_is(tmp_path: Path) -> None:
    """With declared columns the table is there at once, and a row with another column is refused."""
    go(hr_sqlite.table(tmp_path / "x.db", "t", columns=["a", "b"]).ledger())
    assert select(tmp_path / "x.db", "SELECT a, b, _job, _position, _child FROM t") == []

    with pytest.raises(SinkError, match="'c'"):
        store(tmp_path / "x.db", [{"a": 1, "c": 2}], columns=["a", "b"])


def test_large_values_and_many_rows(tmp_path: Path) -> None:
    """Many rows with large bodies in one commit arrive in their order and whole."""
    values = [{"n": number, "body": bytes([number % 256]) * 30_000} for number in range(2500)]
    store(tmp_path / "x.db", values)
    found = select(tmp_path / "x.db", "SELECT n, body FROM t ORDER BY rowid")
    assert found == [(value["n"], value["body"]) for value in values]


@pytest.mark.parametrize("name", ["", "a\0", "headrace_x", "SQLITE_x"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    """Table names that SQLite or headrace needs are refused before anything moves."""
    with pytest.raises(PlanError):
        hr_sqlite.table(tmp_path / "x.db", name)


@pytest.mark.parametrize("columns", ["abc", ["a", "A"], ["_job"], [""], [1]])
def test_columns_that_cannot_be(columns: Any, tmp_path: Path) -> None:
    """Columns that cannot be made are refused before anything moves."""
    with pytest.raises(PlanError):
        hr_sqlite.table(tmp_path / "x.db", columns=columns)


# ---------------------------------------------------------------------------------------------------- files


def test_a_file_of_the_user_stays_as_it_was(tmp_path: Path) -> None:
    """In a database that was there, only tables are added: journal mode, versions, tables and rows stay."""
    path = tmp_path / "own.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "PRAGMA user_version=7; PRAGMA application_id=99; CREATE TABLE mine (x); INSERT INTO mine VALUES (1);"
        )
    store(path, [{"a": 1}])
    assert select(path, "SELECT x FROM mine") == [(1,)]
    for pragma, value in (("user_version", 7), ("application_id", 99), ("journal_mode", "delete")):
        assert select(path, f"PRAGMA {pragma}") == [(value,)]
    others = select(path, "SELECT name FROM sqlite_schema WHERE name NOT LIKE '%headrace_%' ORDER BY name")
    assert others == [("mine",), ("t",)]


def test_our_file_is_private_and_ours(tmp_path: Path) -> None:
    """A file that we make is for its owner only, in WAL mode, and leaves nothing beside it when closed."""
    path = tmp_path / "x.db"
    store(path, [1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert select(path, "PRAGMA journal_mode") == [("wal",)]
    assert os.listdir(tmp_path) == ["x.db"]


def test_a_table_of_the_user_is_refused(tmp_path: Path) -> None:
    """A table of that name that headrace did not make is left alone."""
    path = tmp_path / "own.db"
    select(path, "CREATE TABLE t (a)")
    with pytest.raises(PlanError, match="'t'"):
        store(path, [{"a": 1}])
    assert select(path, "SELECT * FROM t") == []


def test_places_that_cannot_be(tmp_path: Path) -> None:
    """A directory, a missing directory, and a file that is no database are told apart in words."""
    (tmp_path / "text.db").write_text("hello, this is no database at all\n" * 100)
    for place, words in (
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "x.db", "check that the directory exists"),
        (tmp_path / "text.db", "not an SQLite database"),
    ):
        with pytest.raises(LedgerError, match=words):
            store(place, [1])
    assert (tmp_path / "text.db").read_text().startswith("hello")


def test_a_newer_ledger_asks_for_an_upgrade(tmp_path: Path) -> None:
    """A file that a newer headrace wrote is left alone, with the word to upgrade."""
    path = tmp_path / "x.db"
    store(path, [1])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE headrace_schema SET version = 99")
    with pytest.raises(LedgerError, match="upgrade"):
        store(path, [1])


def test_a_held_place_names_its_holder(tmp_path: Path) -> None:
    """The second run is refused with the pid of the first, through a link too; a leftover lock file locks nothing."""
    path = tmp_path / "x.db"
    (tmp_path / "x.db.lock").write_text("1\n")
    (tmp_path / "link.db").symlink_to(path)

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        second = hr_sqlite.table(tmp_path / "link.db").ledger()
        with pytest.raises(LedgerBusy) as caught:
            await second.open(request())
        assert caught.value.pid == os.getpid()
        await second.close()

    go(hr_sqlite.table(path).ledger(), steps)
    go(hr_sqlite.table(path).ledger())


def test_another_programs_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another program writes to the file, a commit fails in words, records nothing, and works later."""
    monkeypatch.setattr(schema, "BUSY_TIMEOUT", 0.01)
    path = tmp_path / "x.db"

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerError, match="locked"):
                await ledger.commit(Commit([Row(0, 0, 1)], done=[0]))
            other.execute("ROLLBACK")
        await ledger.commit(Commit([Row(0, 0, 1)], done=[0]))

    go(hr_sqlite.table(path, "t").ledger(), steps)
    assert select(path, "SELECT value FROM t") == [(1,)]


def test_a_full_disk_stops_resumable(tmp_path: Path) -> None:
    """Where the file may grow no more, the commit fails in words, nothing is half-recorded, and the next run goes on."""
    path = tmp_path / "x.db"

    async def fill_up(ledger: SqliteLedger) -> None:
        for number in range(100):
            rows = [Row(number * 10 + k, 0, {"b": b"x" * 20_000}) for k in range(10)]
            await ledger.commit(Commit(rows, done=[row.position for row in rows]))

    async def fill(ledger: SqliteLedger, _: JobState) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, hard))
        try:
            with pytest.raises(LedgerError, match="full"):
                await fill_up(ledger)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    go(hr_sqlite.table(path, "t").ledger(), fill)
    state = go(hr_sqlite.table(path, "t").ledger())
    assert 0 < state.done < 1000
    assert select(path, "SELECT count(*) FROM t") == [(state.done,)]
    assert select(path, "PRAGMA integrity_check") == [("ok",)]


def test_sqlites_own_full_is_told_too(tmp_path: Path) -> None:
    """SQLITE_FULL rolls the commit back, and the ledger can go on once there is room."""

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        connection = ledger._connection
        assert connection is not None
        await ledger._writer.run(lambda: connection.execute("PRAGMA max_page_count=30"))
        with pytest.raises(LedgerError, match="disk is full"):
            await ledger.commit(Commit([Row(0, 0, {"b": b"x" * 500_000})], done=[0]))
        await ledger._writer.run(lambda: connection.execute("PRAGMA max_page_count=100000"))
        await ledger.commit(Commit([Row(0, 0, {"b": b"x" * 500_000})], done=[0]))

    go(hr_sqlite.table(tmp_path / "x.db", "t").ledger(), steps)
    assert select(tmp_path / "x.db", "SELECT count(*), sum(length(b)) FROM t") == [(1, 500_000)]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """A damaged file is a LedgerError that says so, not a traceback of SQLite."""
    path = tmp_path / "x.db"
    store(path, [{"b": "x" * 100}] * 1000)
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(LedgerError, match=r"damaged|not an SQLite database"):
        store(path, [1])


# ---------------------------------------------------------------------------------------------------- jobs


def test_several_jobs_share_a_file_and_a_table(tmp_path: Path) -> None:
    """Jobs in one table keep their rows apart, also when one of them starts afresh."""
    path = tmp_path / "x.db"

    def run(name: str, value: int, fresh: bool = False) -> None:
        async def steps(ledger: SqliteLedger, _: JobState) -> None:
            await ledger.commit(Commit([Row(0, 0, {"v": value})], done=[0]))
            await ledger.finish(0, complete=True, report={"total": 1})

        go(hr_sqlite.table(path, "t").ledger(), steps, name=name, fresh=fresh)

    run("a", 1)
    run("b", 2)
    run("a", 3, fresh=True)
    assert sorted(select(path, "SELECT _job, v FROM t")) == [("a", 3), ("b", 2)]
    assert select(path, "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'headrace_fresh%'") == [(0,)]


def test_a_fresh_start_with_another_identity_begins_anew(tmp_path: Path) -> None:
    """A fresh start whose identity has changed drops the fresh start that was under way."""
    ledger = lambda: hr_sqlite.table(tmp_path / "x.db", "t").ledger()  # noqa: E731

    def settle(position: int) -> Steps:
        async def steps(ledger: SqliteLedger, _: JobState) -> None:
            await ledger.commit(Commit([Row(position, 0, position)], done=[position]))

        return steps

    go(ledger(), settle(0), identity={"stage": 1})
    go(ledger(), settle(1), identity={"stage": 2}, fresh=True)
    assert go(ledger(), identity={"stage": 2}, fresh=True).settled == [(1, 2)]
    assert go(ledger(), identity={"stage": 3}, fresh=True).settled == []
    assert select(tmp_path / "x.db", "SELECT count(*) FROM headrace_generations") == [(2,)]


def test_another_table_is_another_job(tmp_path: Path) -> None:
    """The same job with its results in another table is refused."""
    store(tmp_path / "x.db", [1], name="one")
    with pytest.raises(IdentityChanged, match="'one'"):
        go(hr_sqlite.table(tmp_path / "x.db", "two").ledger())


def test_changes_are_told_part_by_part(tmp_path: Path) -> None:
    """What differs is told by its place in the identity, with the old and the new value."""
    path = tmp_path / "x.db"

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        await ledger.commit(Commit(done=[0]))

    before = {"stages": [{"name": "fetch", "batch": 1}], "request": {"method": "GET"}}
    after = {"stages": [{"name": "fetch", "batch": 2}], "columns": ["a"]}
    go(hr_sqlite.table(path).ledger(), steps, identity=before)
    with pytest.raises(IdentityChanged) as caught:
        go(hr_sqlite.table(path).ledger(), identity=after)
    assert caught.value.changes == (
        "stages[1].batch: was 1, now 2",
        'request: was {"method":"GET"}, now it is gone',
        'columns: is new, ["a"]',
    )


def test_the_best_bookmark_leaves_nothing_behind(tmp_path: Path) -> None:
    """Reading goes on at the last bookmark before the first item that is not settled."""
    path = tmp_path / "x.db"

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        for start in range(0, 20_000, 100):
            if start != 15_000:
                await ledger.commit(
                    Commit(void=[(start, start + 100)], bookmarks=[Bookmark(start, {"offset": start})])
                )

    go(hr_sqlite.table(path).ledger(), steps)
    state = go(hr_sqlite.table(path).ledger())
    assert state.bookmark is not None
    assert 14_000 <= state.bookmark.position <= 15_000
    assert state.bookmark.token == {"offset": state.bookmark.position}


def test_a_dead_letter_is_never_poisonous(tmp_path: Path) -> None:
    """Whatever a failure says is recorded, cut to size and escaped."""

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        letter = DeadLetter(
            0, "\ud800\0", "s", 1, "E", "c" * 10**6, body=b"\0" * 10_000, status=1 << 80, elapsed=math.nan
        )
        await ledger.commit(Commit(failed=[letter]))

    go(hr_sqlite.table(tmp_path / "x.db").ledger(), steps)
    rows = select(tmp_path / "x.db", "SELECT item, length(cause), length(body), status FROM headrace_failed")
    assert rows == [("\\ud800\0", 65536, 4096, None)]


# ---------------------------------------------------------------------------------------------------- threads and cost


def test_a_row_that_exits_is_one_failure(tmp_path: Path) -> None:
    """sys.exit() in an as_row() fails its row, not the process, and not the ledger."""

    class Rude:
        def as_row(self) -> dict[str, Any]:
            raise SystemExit(3)

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        with pytest.raises(SinkError, match="position 7"):
            await ledger.commit(Commit([Row(7, 0, Rude())], done=[7]))
        await ledger.commit(Commit(failed=[DeadLetter(7, "", "s", 1, "SystemExit", "3")]))

    go(hr_sqlite.table(tmp_path / "x.db").ledger(), steps)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_writer_hangs_nobody() -> None:
    """Where the writer's thread is ended from within, whoever waits is told, and closing still does its last work."""

    def kill() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        writer, closed = Writer("w"), []
        for _time in range(2):
            with pytest.raises(LedgerError, match="ended from within"):
                await writer.run(kill)
        await writer.close(lambda: closed.append(True))
        assert closed == [True]

    asyncio.run(main())


def test_closing_ends_the_thread(tmp_path: Path, run: Any) -> None:
    """On both kinds of loop: nothing blocks the loop, and no thread, file or lock is left after close."""

    async def main() -> None:
        ledger = hr_sqlite.table(tmp_path / "x.db").ledger()
        await ledger.close()
        await ledger.open(request())
        await ledger.commit(Commit([Row(0, 0, 1)], done=[0]))
        assert any("headrace-sqlite" in thread.name for thread in threading.enumerate())
        await ledger.close()
        await ledger.close()
        assert not any("headrace-sqlite" in thread.name for thread in threading.enumerate())
        with pytest.raises(LedgerError, match="not open"):
            await ledger.commit(Commit(done=[1]))
        await ledger.close()

    run(main)


def test_a_million_shuffled_items_stay_small(tmp_path: Path) -> None:
    """The ledger of many items that end out of order, with holes, stays small: its size is that of its gaps."""
    path = tmp_path / "x.db"
    count, batch = 1_000_000, 5_000
    order = list(range(count))
    generator = random.Random(1)
    for start in range(0, count, 512):
        part = order[start : start + 1024]
        generator.shuffle(part)
        order[start : start + 1024] = part

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        for start in range(0, count, batch):
            await ledger.commit(Commit(done=[p for p in order[start : start + batch] if p % 100_000]))
        await ledger.finish(3, complete=False, report={})

    go(hr_sqlite.table(path).ledger(), steps)
    state = go(hr_sqlite.table(path).ledger())
    assert state.done == count - 10
    assert len(state.settled) == 10
    assert path.stat().st_size < 500_000


def test_joining_keeps_the_age_of_items(tmp_path: Path) -> None:
    """After many commits have been joined, `max_age` still tells old items from new ones, to within an eighth."""
    path = tmp_path / "x.db"
    now = [1000.0]

    def ledger() -> SqliteLedger:
        return SqliteLedger(str(path), "t", None, clock=lambda: now[0])

    async def steps(ledger: SqliteLedger, _: JobState) -> None:
        for number in range(1000):  # one item a second
            await ledger.commit(Commit([Row(number, 0, number)], done=[number]))
            now[0] += 1.0

    go(ledger(), steps)
    assert len(select(path, "SELECT 1 FROM headrace_progress")) < 200
    state = go(ledger(), max_age=400.0)
    assert 400 - 400 / 8 - 2 <= state.done <= 400
    assert state.settled == [(1000 - state.done, 1000)]
