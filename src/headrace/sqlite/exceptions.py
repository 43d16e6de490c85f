"""The items that are not simply done: dead letters, parkings, and the intents of *once* calls.

Rules:
1. Settling an item clears its parking and its intents; a cleared intent is the latest one of its item.
2. What is told about a failure is never a reason to fail: text that SQLite cannot hold is escaped, and cut to size.
3. Which positions are parked or intended is remembered, so that a commit without any costs no statement.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from headrace.ports import Commit, DeadLetter, Intent, Parking
from headrace.sqlite.bulk import Insert

__all__ = ["LETTER_COLUMNS", "ExceptionRecord", "letter_of"]

_BODY_BYTES = 4096
_TEXT_CHARACTERS = 64 * 1024
_LARGEST = (1 << 63) - 1

LETTER_COLUMNS = (
    "position",
    "item",
    "stage",
    "attempts",
    "error",
    "cause",
    "detail",
    "status",
    "body",
    "in_doubt",
    "effect_sent",
    "elapsed",
    "at",
    "where",
)


class ExceptionRecord:
    """The dead letters, parkings and intents of one generation, as the writing connection sees them."""

    def __init__(self, connection: sqlite3.Connection, generation: int) -> None:
        self._connection = connection
        self._generation = generation
        constants = [("generation", generation)]
        self._insert_failed = Insert(connection, "headrace_failed", LETTER_COLUMNS, "position", constants)
        self._insert_parked = Insert(
            connection, "headrace_parked", ("position", "due", "attempts", "reason"), "position", constants
        )
        self._insert_intents = Insert(
            connection, "headrace_intents", ("position", "stage"), "position", constants
        )
        self._parked = set(self.parkings())
        self._intended = Counter(intent.position for intent in self.intents())

    @property
    def anything(self) -> bool:
        """Whether there is any parking, intent or dead letter."""
        return bool(self._parked or self._intended or self.failed_count())

    def parkings(self) -> dict[int, Parking]:
        """Read all parkings."""
        rows = self._connection.execute(
            "SELECT position, due, attempts, reason FROM headrace_parked WHERE generation = ? ORDER BY position",
            (self._generation,),
        )
        return {row[0]: Parking(*row) for row in rows}

    def intents(self) -> list[Intent]:
        """Read all intents, oldest first."""
        rows = self._connection.execute(
            "SELECT position, stage FROM headrace_intents WHERE generation = ? ORDER BY id",
            (self._generation,),
        )
        return [Intent(*row) for row in rows]

    def failed_count(self) -> int:
        """Count the dead letters."""
        count: int = self._connection.execute(
            "SELECT count(*) FROM headrace_failed WHERE generation = ?", (self._generation,)
        ).fetchone()[0]
        return count

    def failed_positions(self) -> list[int]:
        """Give the positions of the dead letters."""
        rows = self._connection.execute(
            "SELECT position FROM headrace_failed WHERE generation = ? ORDER BY position", (self._generation,)
        )
        return [row[0] for row in rows]

    def record(self, commit: Commit, positions: Sequence[int]) -> None:
        """Write what a commit says; `positions` are those that it settles."""
        for position in commit.cleared:
            self._connection.execute(
                "DELETE FROM headrace_intents WHERE id = (SELECT max(id) FROM headrace_intents"
                " WHERE generation = ? AND position = ?)",
                (self._generation, position),
            )
        if commit.intents:
            self._insert_intents.insert([field for intent in commit.intents for field in intent])
        self._delete("headrace_intents", self._settled_of(positions, commit, self._intended))
        again = {parking.position: parking for parking in commit.parked}
        self._delete("headrace_parked", [*self._settled_of(positions, commit, self._parked), *again])
        if again:
            self._insert_parked.insert(
                [
                    field
                    for position, due, attempts, reason in again.values()
                    for field in (position, float(due), attempts, _text(reason))
                ]
            )
        if commit.failed:
            self._insert_failed.insert([field for letter in commit.failed for field in _fields(letter)])

    def accept(self, commit: Commit, positions: Sequence[int]) -> None:
        """Remember what `record` wrote, now that it is committed."""
        for position in commit.cleared:
            if self._intended[position] > 1:
                self._intended[position] -= 1
            else:
                del self._intended[position]
        for intent in commit.intents:
            self._intended[intent.position] += 1
        self._parked.update(parking.position for parking in commit.parked)
        for position in positions if self._intended or self._parked else ():
            self._parked.discard(position)
            self._intended.pop(position, None)

    def _settled_of(self, positions: Sequence[int], commit: Commit, known: Any) -> list[int]:
        if not known and not (known is self._intended and commit.intents):
            return []
        fresh = {intent.position for intent in commit.intents} if known is self._intended else ()
        return [position for position in positions if position in known or position in fresh]

    def _delete(self, table: str, positions: Sequence[int]) -> None:
        if positions:
            self._connection.execute(
                f"DELETE FROM {table} WHERE generation = ?1 AND position IN (SELECT value FROM json_each(?2))",  # noqa: S608
                (self._generation, msgspec.json.encode(list(positions)).decode()),
            )


def letter_of(row: Sequence[Any]) -> DeadLetter:
    """Make a dead letter of a row of LETTER_COLUMNS."""
    fields = dict(zip(LETTER_COLUMNS, row, strict=True))
    fields["in_doubt"] = bool(fields["in_doubt"])
    fields["effect_sent"] = bool(fields["effect_sent"])
    return DeadLetter(**fields)


def _fields(letter: DeadLetter) -> Iterator[Any]:
    status = letter.status
    yield letter.position
    yield _text(letter.item)
    yield _text(letter.stage)
    yield letter.attempts
    yield _text(letter.error)
    yield _text(letter.cause)
    yield _text(letter.detail)
    yield status if status is None or abs(status) <= _LARGEST else None
    yield None if letter.body is None else bytes(letter.body[:_BODY_BYTES])
    yield int(letter.in_doubt)
    yield int(letter.effect_sent)
    yield _number(letter.elapsed)
    yield _number(letter.at)
    yield _text(letter.where)


def _text(text: Any) -> str:
    cut = str(text)[:_TEXT_CHARACTERS]
    return cut.encode(errors="backslashreplace").decode()


def _number(value: float) -> float:
    return float(value) if value == value else 0.0  # SQLite makes NaN NULL
