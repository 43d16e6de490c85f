"""What of a generation is settled: one row for each commit, joined with its neighbours as it grows old.

Rules:
1. A commit appends one row, whose size depends on that commit only.
2. Rows are joined while the time that they span is at most an eighth of their age, so that a handful of rows is
   left of any run, and each still knows when its items were settled, as `max_age` needs.
3. Memory here is that of the gaps between settled positions, not of the positions.
4. What is in memory changes only when the transaction has been committed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.errors import LedgerError
from headrace.ports import Bookmark
from headrace.sqlite.ranges import RangeSet, coalesce, decode_ranges, encode_ranges

__all__ = ["Progress", "Step"]

_JOIN_AFTER = 64
_SPAN_OF_AGE = 8
_SHORTEST_SPAN = 1.0
_BOOKMARKS_A_ROW = 32


class Step(NamedTuple):
    """What one commit adds: ascending ranges and counts."""

    settled: Sequence[tuple[int, int]]
    done: int
    skipped: int
    bookmarks: Sequence[Bookmark]
    fingerprint: Mapping[str, Any] | None


class _Row(NamedTuple):
    seq: int
    since: float
    until: float
    done: int
    skipped: int


class Progress:
    """The progress rows of one generation, as the writing connection sees them."""

    def __init__(self, connection: sqlite3.Connection, generation: int) -> None:
        self._connection = connection
        self._generation = generation
        self.settled = RangeSet()
        self.fingerprint: Mapping[str, Any] | None = None
        self._written_fingerprint: str | None = None
        self._rows: list[_Row] = []
        self._fresh_rows = 0
        self._next_seq = 1
        self.load()

    @property
    def done(self) -> int:
        """Count the items that are done."""
        return sum(row.done for row in self._rows)

    @property
    def skipped(self) -> int:
        """Count the items that were skipped."""
        return sum(row.skipped for row in self._rows)

    def load(self) -> None:
        """Read the rows."""
        ranges: list[tuple[int, int]] = []
        self._rows.clear()
        query = (
            "SELECT seq, since, until, done, skipped, settled, fingerprint FROM headrace_progress "
            "WHERE generation = ? ORDER BY seq"
        )
        for *row, settled, fingerprint in self._connection.execute(query, (self._generation,)):
            self._rows.append(_Row(*row))
            ranges += _ranges(settled)
            if fingerprint is not None:
                self._written_fingerprint = fingerprint
        self.settled = RangeSet(ranges)
        # numbers are unique in the whole table; only this connection adds to it
        self._next_seq = (
            1 + self._connection.execute("SELECT coalesce(max(seq), 0) FROM headrace_progress").fetchone()[0]
        )
        if self._written_fingerprint is not None:
            self.fingerprint = msgspec.json.decode(self._written_fingerprint)

    def best_bookmark(self) -> Bookmark | None:
        """Give the last bookmark that leaves nothing unsettled behind it."""
        reach = self.settled.first_missing()
        best: Bookmark | None = None
        query = "SELECT bookmarks FROM headrace_progress WHERE generation = ?"
        for (text,) in self._connection.execute(query, (self._generation,)):
            for position, token in msgspec.json.decode(text):
                if position <= reach and (best is None or position > best.position):
                    best = Bookmark(position, token)
        return best

    def taken_twice(self, ranges: Sequence[tuple[int, int]]) -> int | None:
        """Give a position of these ranges that is settled already; None if there is none."""
        for lo, hi in ranges:
            found = self.settled.meets(lo, hi)
            if found is not None:
                return found
        return None

    def append(self, step: Step, now: float) -> tuple[Step, _Row, str | None]:
        """Write the row of a commit; give what `accept` needs once the transaction is through."""
        seq = self._next_seq
        since = max(now, self._rows[-1].until) if self._rows else now
        fingerprint = None if step.fingerprint is None else msgspec.json.encode(step.fingerprint).decode()
        if fingerprint == self._written_fingerprint:
            fingerprint = None
        row = _Row(seq, since, since, step.done, step.skipped)
        self._write(row, encode_ranges(step.settled), self._chosen(step), fingerprint)
        return step, row, fingerprint

    def accept(self, appended: tuple[Step, _Row, str | None]) -> None:
        """Take over what `append` wrote, now that it is committed."""
        step, row, fingerprint = appended
        self._rows.append(row)
        self._next_seq += 1
        self._fresh_rows += 1
        self.settled.add_all(step.settled)
        if fingerprint is not None:
            self._written_fingerprint = fingerprint
            self.fingerprint = step.fingerprint

    def wants_joining(self) -> bool:
        """Say whether enough rows have come together to join them."""
        return self._fresh_rows >= _JOIN_AFTER

    def join(self, now: float) -> None:
        """Join neighbouring rows, inside the caller's transaction; after a rollback, `load`."""
        kept: list[_Row] = []
        group: list[_Row] = []
        for row in self._rows:
            allowed = max(_SHORTEST_SPAN, (now - row.until) / _SPAN_OF_AGE)
            if group and row.until - group[0].since > allowed:
                kept.append(self._joined(group))
                group = []
            group.append(row)
        if group:
            kept.append(self._joined(group))
        self._rows = kept
        self._fresh_rows = 0

    def reopen_before(self, cutoff: float, failed: Sequence[int]) -> list[tuple[int, int]]:
        """Take out what was settled before `cutoff`, but for the `failed`; give those ranges."""
        opened: list[tuple[int, int]] = []
        for row in self._rows:
            if row.since >= cutoff:
                continue
            text = self._connection.execute(
                "SELECT settled FROM headrace_progress WHERE seq = ?", (row.seq,)
            ).fetchone()[0]
            out = RangeSet(_ranges(text))
            stay = [(position, position + 1) for position in failed if position in out]
            for lo, hi in stay:
                out.remove(lo, hi)
            opened += out
            self._connection.execute(
                "UPDATE headrace_progress SET settled = ?, done = 0, skipped = 0 WHERE seq = ?",
                (encode_ranges(coalesce(stay)), row.seq),
            )
        self.load()
        return coalesce(opened)

    def reopen(self, positions: Sequence[int]) -> None:
        """Take out single positions that are neither done nor skipped."""
        query = "SELECT seq, settled FROM headrace_progress WHERE generation = ?"
        for seq, text in self._connection.execute(query, (self._generation,)).fetchall():
            ranges = RangeSet(_ranges(text))
            before = ranges.count()
            for position in positions:
                ranges.remove(position, position + 1)
            if ranges.count() != before:
                self._connection.execute(
                    "UPDATE headrace_progress SET settled = ? WHERE seq = ?", (encode_ranges(ranges), seq)
                )
        self.load()

    def _chosen(self, step: Step) -> list[Bookmark]:
        """Keep two of a commit's bookmarks: the last one of all, and the last one that could be used now."""
        if not step.bookmarks:
            return []
        marks = sorted(step.bookmarks, key=lambda mark: mark.position)
        reach = self.settled.first_missing()
        usable = [mark for mark in marks if mark.position <= reach]
        return [*usable[-1:], marks[-1]] if usable[-1:] != marks[-1:] else [marks[-1]]

    def _joined(self, group: Sequence[_Row]) -> _Row:
        first, last = group[0], group[-1]
        if first is last:
            return first
        ranges: list[tuple[int, int]] = []
        marks: list[Bookmark] = []
        fingerprint = None
        rows = self._connection.execute(
            "SELECT settled, bookmarks, fingerprint FROM headrace_progress "
            "WHERE generation = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            (self._generation, first.seq, last.seq),
        ).fetchall()
        for settled, bookmarks, described in rows:
            ranges += _ranges(settled)
            marks += [Bookmark(position, token) for position, token in msgspec.json.decode(bookmarks)]
            fingerprint = described or fingerprint
        while len(marks) > _BOOKMARKS_A_ROW:
            marks = marks[::-2][::-1]  # every second one, and always the last
        joined = _Row(
            last.seq,
            first.since,
            last.until,
            sum(row.done for row in group),
            sum(row.skipped for row in group),
        )
        self._connection.execute(
            "DELETE FROM headrace_progress WHERE generation = ? AND seq BETWEEN ? AND ?",
            (self._generation, first.seq, last.seq),
        )
        self._write(joined, encode_ranges(coalesce(ranges)), marks, fingerprint)
        return joined

    def _write(self, row: _Row, settled: str, marks: Sequence[Bookmark], fingerprint: str | None) -> None:
        seq, since, until, done, skipped = row
        text = _bookmarks_text(marks)
        # `executemany` as in bulk.py: it gives up the interpreter once less than `execute`
        self._connection.executemany(
            "INSERT INTO headrace_progress VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(seq, self._generation, since, until, done, skipped, settled, text, fingerprint)],
        )


def _bookmarks_text(marks: Sequence[Bookmark]) -> str:
    return msgspec.json.encode([(mark.position, mark.token) for mark in marks]).decode()


def _ranges(text: str) -> list[tuple[int, int]]:
    try:
        return decode_ranges(text)
    except ValueError as error:
        raise LedgerError(
            f"the ledger's table headrace_progress holds a row that headrace did not write ({error}); "
            "restore the file from a copy, or give another output"
        ) from error
