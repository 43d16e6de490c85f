"""Jobs and their generations in the ledger: finding, comparing, beginning and replacing them.

Rules:
1. A job is a name in a place. Its current generation is the one whose rows are in the result table; a fresh one is
   under way beside it until it replaces it.
2. Functions here run inside the caller's transaction and neither begin nor end one.
3. What differs between two identities is told in lines that a person can act on.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.errors import PlanError
from headrace.ports import JobRequest

__all__ = [
    "Generation",
    "Job",
    "begin_generation",
    "begin_job",
    "differences",
    "find_generation",
    "find_job",
    "forget_generation",
    "names_of",
    "plain",
    "staging_name",
]

_MOST_LINES = 20
_LONGEST = 80
_LEDGER_TABLES = ("headrace_progress", "headrace_failed", "headrace_parked", "headrace_intents")


class Job(NamedTuple):
    """A row of headrace_jobs, as far as a run needs it."""

    id: int
    name: str
    current: int
    fresh: int | None
    finished_at: float | None

    @property
    def active(self) -> int:
        """The generation that a run goes on with: the fresh one, if one is under way."""
        return self.current if self.fresh is None else self.fresh


class Generation(NamedTuple):
    """A row of headrace_generations."""

    id: int
    key: str
    result_table: str
    identity: Mapping[str, Any]
    code: Mapping[str, Any]
    stale: str


def plain(value: Any, what: str) -> Any:
    """Give a value as it will be when it comes back from JSON; PlanError where JSON cannot hold it."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError) as error:
        raise PlanError(f"{what} of a job must be made of JSON values: {error}") from error


def find_job(connection: sqlite3.Connection, name: str) -> Job | None:
    """Look a job up by name."""
    row = connection.execute(
        "SELECT id, name, current, fresh, finished_at FROM headrace_jobs WHERE name = ?", (name,)
    ).fetchone()
    return None if row is None else Job(*row)


def find_generation(connection: sqlite3.Connection, number: int) -> Generation:
    """Look a generation up."""
    row = connection.execute(
        "SELECT id, key, result_table, identity, code, stale FROM headrace_generations WHERE id = ?",
        (number,),
    ).fetchone()
    number, key, table, identity, code, stale = row
    return Generation(number, key, table, msgspec.json.decode(identity), msgspec.json.decode(code), stale)


def begin_job(connection: sqlite3.Connection, request: JobRequest, table: str, now: float) -> Job:
    """Make a job with its first generation."""
    cursor = connection.execute(
        "INSERT INTO headrace_jobs (name, state, options, created_at, updated_at, current)"
        " VALUES (?, 'unfinished', '{}', ?, ?, 0)",
        (request.name, now, now),
    )
    number = cursor.lastrowid or 0
    generation = begin_generation(connection, number, request, table, now)
    connection.execute("UPDATE headrace_jobs SET current = ? WHERE id = ?", (generation, number))
    return Job(number, request.name, generation, None, None)


def begin_generation(
    connection: sqlite3.Connection, job: int, request: JobRequest, table: str, now: float
) -> int:
    """Make a generation and give its number."""
    cursor = connection.execute(
        "INSERT INTO headrace_generations (job, key, result_table, identity, code, stale, began_at)"
        " VALUES (?, ?, ?, ?, ?, '[]', ?)",
        (
            job,
            uuid.uuid4().hex,
            table,
            msgspec.json.encode(request.identity).decode(),
            msgspec.json.encode(request.code).decode(),
            now,
        ),
    )
    return cursor.lastrowid or 0


def forget_generation(connection: sqlite3.Connection, number: int) -> None:
    """Delete all that the ledger holds of a generation, and its rows where they were still set apart."""
    for table in _LEDGER_TABLES:
        connection.execute(f"DELETE FROM {table} WHERE generation = ?", (number,))  # noqa: S608
    connection.execute("DELETE FROM headrace_generations WHERE id = ?", (number,))
    connection.execute(f"DROP TABLE IF EXISTS {staging_name(number)}")


def staging_name(generation: int) -> str:
    """Name the table where the rows of a fresh generation wait."""
    return f"headrace_fresh_{generation:d}"


def differences(before: Any, now: Any, part: str = "") -> list[str]:
    """Say in lines how two JSON values differ."""
    lines = _differences(before, now, part)
    if len(lines) > _MOST_LINES:
        return [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]
    return lines


def _differences(before: Any, now: Any, part: str) -> list[str]:
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        lines = []
        for key in [*before, *(key for key in now if key not in before)]:
            name = f"{part}.{key}" if part else str(key)
            if key not in now:
                lines.append(f"{name}: was {_short(before[key])}, now it is gone")
            elif key not in before:
                lines.append(f"{name}: is new, {_short(now[key])}")
            else:
                lines += _differences(before[key], now[key], name)
        return lines
    if _alike(before, now):
        return [
            line
            for index, (old, new) in enumerate(zip(before, now, strict=True))
            for line in _differences(old, new, f"{part}[{index + 1}]")
        ]
    return [f"{part}: was {_short(before)}, now {_short(now)}"]


def _alike(before: Any, now: Any) -> bool:
    return isinstance(before, list) and isinstance(now, list) and len(before) == len(now)


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def names_of(lines: Sequence[str]) -> str:
    """Join lines as an indented list."""
    return "".join(f"\n  - {line}" for line in lines)
