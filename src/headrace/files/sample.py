"""Recognising the beginning of a file again, in constant time, however long it is.

Rules:
1. A sample covers the first `size` bytes: their number, pieces of the first and the last 64 KiB, and pieces at fixed places
   between (at each power of two), which do not move when the file grows.
2. What differs is told in words, with the lines where it is known: no one can act on a hash.
3. It finds edits, sorting, truncation and replacement; an edit of a few bytes in the middle of a large file can escape it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

__all__ = ["sample_prefix", "verify_prefix"]

_EDGE = 64 << 10
_PIECE = 4 << 10
_SCAN = 1 << 20


def sample_prefix(descriptor: int, size: int, known: dict[int, str] | None = None) -> dict[str, Any]:
    """Describe the first `size` bytes of an open file. Raises OSError.

    `known` keeps the hashes of the pieces that do not move, by offset, for the next call.
    """
    pieces: list[list[Any]] = []
    for offset, length in _places(size):
        found = known.get(offset) if known is not None and length == _PIECE else None
        if found is None:
            found = _hash(os.pread(descriptor, length, offset))
            if known is not None and length == _PIECE:
                known[offset] = found
        pieces.append([offset, length, found])
    return {"size": size, "pieces": pieces}


def verify_prefix(
    descriptor: int, path: str, sample: Mapping[str, Any], *, in_lines: bool = True
) -> str | None:
    """Say how the file's beginning differs from a sample, with the lines if it has any; None if it does not.

    Raises OSError.
    """
    size = int(sample["size"])
    now = os.fstat(descriptor).st_size
    if now < size:
        return f"{path} is shorter than before: {size:,} bytes of it had been read, it has {now:,}"
    for offset, length, recorded in sample["pieces"]:
        if _hash(os.pread(descriptor, length, offset)) != recorded:
            return (
                _where(descriptor, path, offset, length)
                if in_lines
                else f"{path} differs from what was read before"
            )
    return None


def _places(size: int) -> Iterator[tuple[int, int]]:
    head = min(size, _EDGE)
    for offset in range(0, head, _PIECE):
        yield offset, min(_PIECE, head - offset)
    tail = max(head, size - _EDGE)
    place = 2 * _EDGE
    while place + _PIECE <= tail:
        yield place, _PIECE
        place *= 2
    if tail < size:
        yield tail, size - tail


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


def _where(descriptor: int, path: str, offset: int, length: int) -> str:
    first = 1 + _line_ends(descriptor, 0, offset)
    last = first + _line_ends(descriptor, offset, offset + length - 1)
    if first == last:
        return f"{path}, line {first} differs from what was read before"
    return f"{path} differs from what was read before, between line {first:,} and line {last:,}"


def _line_ends(descriptor: int, start: int, end: int) -> int:
    """Count line ends. Only done for a file that is refused anyhow, to tell where it differs."""
    count = 0
    while start < end:
        block = os.pread(descriptor, min(_SCAN, end - start), start)
        if not block:
            break
        count += block.count(b"\n")
        start += len(block)
    return count
