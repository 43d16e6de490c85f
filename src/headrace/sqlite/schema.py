"""The database file: opening it, the tables `headrace_*`, and what SQLite's errors mean.

Rules:
1. A file that was there before is somebody's own: only tables are added to it; its journal mode, `user_version` and
   `application_id` stay as they are. Those are set in files that we made.
2. One connection writes; all others are read-only.
3. Every error of SQLite leaves this room as a LedgerError that says what happened, where, and what to do.
"""

from __future__ import annotations

import os
import sqlite3
from importlib.metadata import PackageNotFoundError, version

from headrace.errors import LedgerError

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "check_schema",
    "connect_reader",
    "connect_writer",
    "quoted",
    "translated",
]

#: «hrac», in the file header of databases that we made: `file x.db` shows it.
APPLICATION_ID = 0x68726163
SCHEMA_VERSION = 1
#: How long (seconds) a statement waits for another program that holds SQLite's own lock.
BUSY_TIMEOUT = 10.0

_TABLES = (
    "CREATE TABLE headrace_schema (version INTEGER NOT NULL, made_by TEXT NOT NULL) STRICT",
    """CREATE TABLE headrace_jobs (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,        -- running, unfinished, finished, failed
        options TEXT NOT NULL,      -- JSON
        report TEXT,                -- JSON, of the last run
        exit_code INTEGER,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        finished_at REAL,
        current INTEGER NOT NULL,   -- the generation whose rows are in the result table
        fresh INTEGER               -- the one that is to replace it, while it is under way
    ) STRICT""",
    """CREATE TABLE headrace_generations (
        id INTEGER PRIMARY KEY,
        job INTEGER NOT NULL,
        key TEXT NOT NULL UNIQUE,
        result_table TEXT NOT NULL,
        identity TEXT NOT NULL,     -- JSON
        code TEXT NOT NULL,         -- JSON
        stale TEXT NOT NULL,        -- ranges reopened by max_age, whose old rows may still be there
        began_at REAL NOT NULL
    ) STRICT""",
    # One row a commit; neighbours in time are joined later. The settled positions are the union of all ranges.
    """CREATE TABLE headrace_progress (
        seq INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL,
        since REAL NOT NULL,
        until REAL NOT NULL,
        done INTEGER NOT NULL,
        skipped INTEGER NOT NULL,
        settled TEXT NOT NULL,      -- ranges: start, length, gap, length, gap, length ...
        bookmarks TEXT NOT NULL,    -- JSON: [[position, token], ...]
        fingerprint TEXT            -- JSON
    ) STRICT""",
    """CREATE TABLE headrace_failed (
        generation INTEGER NOT NULL,
        position INTEGER NOT NULL,
        item TEXT NOT NULL,
        stage TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        error TEXT NOT NULL,
        cause TEXT NOT NULL,
        detail TEXT NOT NULL,
        status INTEGER,
        body BLOB,
        in_doubt INTEGER NOT NULL,
        effect_sent INTEGER NOT NULL,
        elapsed REAL NOT NULL,
        at REAL NOT NULL,
        "where" TEXT NOT NULL,
        PRIMARY KEY (generation, position)
    ) STRICT""",
    """CREATE TABLE headrace_parked (
        generation INTEGER NOT NULL,
        position INTEGER NOT NULL,
        due REAL NOT NULL,
        attempts INTEGER NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (generation, position)
    ) STRICT""",
    """CREATE TABLE headrace_intents (
        id INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL,
        position INTEGER NOT NULL,
        stage TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX headrace_intents_position ON headrace_intents (generation, position)",
)

_ADVICE = {
    "SQLITE_FULL": "the disk is full; make room, then run the same again: nothing of this commit was recorded",
    "SQLITE_READONLY": "it may not be written to; check the permissions of the file and of its directory",
    "SQLITE_BUSY": f"another program has held it locked for {BUSY_TIMEOUT:g} s; close that program, then run the same again",
    "SQLITE_LOCKED": "another connection holds a table of it; close it, then run the same again",
    "SQLITE_IOERR": "the disk reports an error or is full; look at the disk, then run the same again",
    "SQLITE_CORRUPT": "the file is damaged; keep a copy, try `sqlite3 FILE .recover`, or give another output",
    "SQLITE_NOTADB": "it is not an SQLite database; give another output",
    "SQLITE_CANTOPEN": "it cannot be opened; check that the directory exists and may be read and written",
    "SQLITE_PERM": "access was denied; check the permissions of the file and of its directory",
}


def translated(error: sqlite3.Error, path: str, doing: str) -> LedgerError:
    """Turn an error of SQLite into ours. Raise the result `from` the error."""
    name = str(getattr(error, "sqlite_errorname", None) or "")
    advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), None)
    code = f" [{name}]" if name else ""
    if advice is None:
        advice = (
            "if a program of yours changed the tables of headrace, restore them; otherwise please report it"
        )
    return LedgerError(f"{path}: {doing} failed: {error}{code}. This means: {advice}")


def quoted(name: str) -> str:
    """Quote an identifier; ValueError for one that SQLite cannot hold."""
    if not name or "\0" in name:
        raise ValueError(f"{name!r} cannot be a name in SQLite: it is empty or holds a NUL character")
    name.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    return '"' + name.replace('"', '""') + '"'


def connect_writer(path: str, *, busy_timeout: float | None = None) -> sqlite3.Connection:
    """Open the one writing connection, for use in one thread; make file and tables where they are missing.

    LedgerError where the file cannot be opened or written, is no database, or was written by a newer headrace.
    """
    timeout = BUSY_TIMEOUT if busy_timeout is None else busy_timeout
    try:
        made_here = _make_file(path)
    except OSError as error:
        raise LedgerError(
            f"{path} cannot be made ({error.strerror}); check that the directory exists and may be written to"
        ) from error
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        if made_here and empty and not ours:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA application_id={APPLICATION_ID:d}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION:d}")
        connection.execute("PRAGMA synchronous=FULL")
        _make_tables(connection, path)
        connection.isolation_level = "IMMEDIATE"  # what sqlite3 begins by itself is never deferred
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise translated(error, path, "opening the output") from error
    except LedgerError:
        if connection is not None:
            connection.close()
        raise
    return connection


def connect_reader(path: str) -> sqlite3.Connection:
    """Open a read-only connection; LedgerError for a file that is missing, or that is no database."""
    if not os.path.exists(path):
        raise LedgerError(f"{path} does not exist; give the output of a job")
    if os.path.isdir(path):
        raise LedgerError(f"{path} is a directory; give the output of a job, an SQLite file")
    try:
        return _connected(path, "mode=rw")
    except sqlite3.Error as error:
        # On a read-only medium SQLite cannot make the files that WAL needs. Nobody writes there either: so read it as it is.
        frozen = not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK)
        if frozen and not os.path.exists(path + "-wal") and error.sqlite_errorname != "SQLITE_NOTADB":
            try:
                return _connected(path, "immutable=1")
            except sqlite3.Error as second:
                raise translated(second, path, "opening it to read") from second
        raise translated(error, path, "opening it to read") from error


def _connected(path: str, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{_uri_path(path)}?{mode}", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None
    )
    try:
        # Not mode=ro: such a connection leaves its -wal and -shm files behind. A file without write permission is
        # opened for reading all the same.
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def check_schema(connection: sqlite3.Connection, path: str) -> bool:
    """Say whether the tables of headrace are there; LedgerError where a newer headrace wrote them."""
    found = connection.execute(
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'headrace_schema'"
    ).fetchone()
    if found is None:
        return False
    row = connection.execute("SELECT version, made_by FROM headrace_schema").fetchone()
    if row is None:
        raise LedgerError(
            f"{path}: its table headrace_schema is empty; restore it from a copy, or give another output"
        )
    if row[0] > SCHEMA_VERSION:
        raise LedgerError(
            f"{path} was written by headrace {row[1]} (ledger version {row[0]}), and this headrace knows versions up to "
            f"{SCHEMA_VERSION}; upgrade it: pip install --upgrade headrace"
        )
    return True


def _make_file(path: str) -> bool:
    """Make the file, readable by its owner only; say whether it is ours to set up (it is new, or still empty)."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if os.path.isdir(path):
            raise LedgerError(
                f"{path} is a directory; give the name of a file, such as {path}/out.db"
            ) from None
        return os.path.getsize(path) == 0
    return True


def _make_tables(connection: sqlite3.Connection, path: str) -> None:
    if check_schema(connection, path):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute("INSERT INTO headrace_schema VALUES (?, ?)", (SCHEMA_VERSION, _our_version()))
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _our_version() -> str:
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "unknown"


def _uri_path(path: str) -> str:
    return os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
