"""Sets of positions as ranges [start, end), and the text in which the ledger keeps them.

Rules:
1. The ranges of a set ascend, are not empty, and neither touch nor overlap.
2. A set costs memory for its gaps, never for its positions.
3. The text is a JSON list of start, length, gap, length, gap, length …: small numbers, readable in any SQLite shell.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

import msgspec

__all__ = ["RangeSet", "coalesce", "decode_ranges", "encode_ranges", "ranges_of"]

Range = tuple[int, int]

_MERGE_FACTOR = 8


def ranges_of(positions: Sequence[int]) -> list[Range]:
    """Make ranges of ascending positions; ValueError names a position that is there twice."""
    if not positions:
        return []
    found: list[Range] = []
    start = end = positions[0]
    end += 1
    if positions[-1] - start + 1 == len(positions) and len(set(positions)) == len(positions):
        return [(start, positions[-1] + 1)]
    for position in positions[1:]:
        if position == end:
            end += 1
        elif position > end:
            found.append((start, end))
            start, end = position, position + 1
        else:
            raise ValueError(f"position {position} is there twice")
    found.append((start, end))
    return found


def coalesce(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and join those that touch or overlap; empty ones vanish."""
    found: list[Range] = []
    start = end = -1
    for lo, hi in sorted(ranges):
        if hi <= lo:
            continue
        if lo <= end:
            end = max(end, hi)
            continue
        if start >= 0:
            found.append((start, end))
        start, end = lo, hi
    if start >= 0:
        found.append((start, end))
    return found


def encode_ranges(ranges: Iterable[Range]) -> str:
    """Write ascending ranges as text."""
    flat: list[int] = []
    before = 0
    for lo, hi in ranges:
        flat.append(lo - before)
        flat.append(hi - lo)
        before = hi
    return msgspec.json.encode(flat).decode()


def decode_ranges(text: str) -> list[Range]:
    """Read ranges from text; ValueError where it is not such a text."""
    flat = msgspec.json.decode(text, type=list[int])
    if len(flat) % 2:
        raise ValueError(f"a list of ranges has an odd number of entries: {text[:80]!r}")
    found: list[Range] = []
    at = 0
    for index in range(0, len(flat), 2):
        lo = at + flat[index]
        at = lo + flat[index + 1]
        found.append((lo, at))
    return found


class RangeSet:
    """A set of positions that are mostly side by side."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        joined = coalesce(ranges)
        self._starts = [lo for lo, _ in joined]
        self._ends = [hi for _, hi in joined]

    def __contains__(self, position: int) -> bool:
        index = bisect_right(self._starts, position) - 1
        return index >= 0 and position < self._ends[index]

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """Count the ranges, not the positions."""
        return len(self._starts)

    def count(self) -> int:
        """Count the positions."""
        return sum(self._ends) - sum(self._starts)

    def first_missing(self) -> int:
        """Give the lowest position, from 0, that is not in the set."""
        if self._starts and self._starts[0] <= 0:
            return self._ends[0]
        return 0

    def meets(self, lo: int, hi: int) -> int | None:
        """Give the lowest position of [lo, hi) that is in the set; None if there is none."""
        index = bisect_right(self._ends, lo)
        if index < len(self._starts) and self._starts[index] < hi:
            return max(lo, self._starts[index])
        return None

    def add(self, lo: int, hi: int) -> None:
        """Put [lo, hi) in."""
        if hi <= lo:
            return
        starts, ends = self._starts, self._ends
        if not ends or lo > ends[-1]:
            starts.append(lo)
            ends.append(hi)
            return
        left = bisect_left(ends, lo)
        right = bisect_right(starts, hi, left)
        if left == right:
            starts.insert(left, lo)
            ends.insert(left, hi)
        elif right - left == 1:
            starts[left] = min(lo, starts[left])
            ends[left] = max(hi, ends[left])
        else:
            starts[left:right] = [min(lo, starts[left])]
            ends[left:right] = [max(hi, ends[right - 1])]

    def add_all(self, ranges: Sequence[Range]) -> None:
        """Put ascending ranges in."""
        if not ranges:
            return
        left = bisect_left(self._ends, ranges[0][0])
        right = bisect_right(self._starts, ranges[-1][1], left)
        if right - left > _MERGE_FACTOR * len(
            ranges
        ):  # far apart: most of what lies between is not concerned
            for lo, hi in ranges:
                self.add(lo, hi)
            return
        between = zip(self._starts[left:right], self._ends[left:right], strict=True)
        joined = coalesce([*between, *ranges])
        self._starts[left:right] = [lo for lo, _ in joined]
        self._ends[left:right] = [hi for _, hi in joined]

    def remove(self, lo: int, hi: int) -> None:
        """Take [lo, hi) out, as far as it is in."""
        starts, ends = self._starts, self._ends
        left = bisect_right(ends, lo)
        right = bisect_left(starts, hi, left)
        if left >= right or hi <= lo:
            return
        kept: list[Range] = []
        if starts[left] < lo:
            kept.append((starts[left], lo))
        if ends[right - 1] > hi:
            kept.append((hi, ends[right - 1]))
        starts[left:right] = [start for start, _ in kept]
        ends[left:right] = [end for _, end in kept]
