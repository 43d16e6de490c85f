"""Python's own iterables as sources.

Rules:
1. A sequence can be read again and may be a job; an iterator or generator is read once.
2. A plain iterator is advanced on the loop, a little at a time: its `next()` must be quick. What blocks belongs into an
   async generator, or a stage.
3. An async generator is closed by the task that reads it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from headrace.errors import PlanError
from headrace.ports import Bookmark, Chunk, Reader, Source

__all__ = ["AsyncIterableSource", "IterableSource", "SequenceSource", "as_source"]

#: How long a plain iterator may be advanced in one go, in seconds.
TURN = 0.002


class _SequenceReader:
    def __init__(self, source: SequenceSource, items: Sequence[Any], at: int) -> None:
        self._source = source
        self._items = items
        self._at = at

    async def read(self, limit: int) -> Chunk | None:
        start = self._at
        payloads = self._items[start : start + limit]
        if not len(payloads):
            return None
        self._at = end = start + len(payloads)
        self._source.sample(end)
        return Chunk(start, end, payloads, None, Bookmark(start, None))

    async def close(self) -> None:
        pass


class SequenceSource:
    """A list, tuple, range or the like. Replayable: its fingerprint samples a fixed set of positions."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.name = f"{type(items).__name__} of {len(items)}"
        self._items = items
        self._hash_at = 0
        self._samples: list[tuple[int, str]] = []

    def open(self, bookmark: Bookmark | None = None) -> Reader:
        """Begin at the bookmark's position, or at the start."""
        return _SequenceReader(self, self._items, bookmark.position if bookmark is not None else 0)

    def fingerprint(self, end: int) -> Mapping[str, Any]:
        """Give the number of covered items and hashes of those at 0 … 15 and at the powers of two (and halfway between)."""
        end = min(end, len(self._items))
        self.sample(end)
        return {"kind": "sequence", "end": end, "samples": [list(s) for s in self._samples if s[0] < end]}

    def sample(self, end: int) -> None:
        """Remember the hashes of items up to `end` as they are now, before a function writes into them."""
        while (at := _sample_position(len(self._samples))) < end:
            self._samples.append((at, _digest(self._items[at])))

    def verify(self, fingerprint: Mapping[str, Any]) -> str | None:
        """Compare the covered part."""
        if fingerprint.get("kind") != "sequence":
            return f"the source was of kind {fingerprint.get('kind')!r} and is a sequence now"
        if len(self._items) < fingerprint["end"]:
            return f"the source had {fingerprint['end']} items or more, and has {len(self._items)} now"
        for at, digest in fingerprint["samples"]:
            if _digest(self._items[at]) != digest:
                return f"item {at} of the source is another one than before"
        return None

    def describe(self, position: int) -> str:
        """Name a position."""
        return f"item {position}"

    def total(self) -> int | None:
        """Give the length."""
        return len(self._items)


def _sample_position(number: int) -> int:
    if number < 16:
        return number
    power, half = divmod(number - 16, 2)
    base: int = 16 << power
    return base + base // 2 * half


def _digest(item: Any) -> str:
    try:
        text = repr(item)
    except Exception:  # noqa: BLE001 - of a user's class; all that can be told of it is its type
        text = type(item).__qualname__
    if " at 0x" in text:  # an address says nothing about the value, and changes from run to run
        text = type(item).__qualname__
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _IteratorReader:
    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._at = 0

    async def read(self, limit: int) -> Chunk | None:
        payloads: list[Any] = []
        until = time.monotonic() + TURN
        for item in self._iterator:
            payloads.append(item)
            if len(payloads) >= limit or (not len(payloads) & 15 and time.monotonic() > until):
                break
        if not payloads:
            return None
        start, self._at = self._at, self._at + len(payloads)
        return Chunk(start, self._at, payloads)

    async def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


class IterableSource:
    """Any other iterable, read once."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.name = type(items).__name__
        self._items = items

    def open(self, bookmark: Bookmark | None = None) -> Reader:
        """Begin to iterate."""
        return _IteratorReader(iter(self._items))


class _AsyncReader:
    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator
        self._at = 0

    async def read(self, limit: int) -> Chunk | None:
        try:
            item = await anext(self._iterator)
        except StopAsyncIteration:
            return None
        start, self._at = self._at, self._at + 1
        return Chunk(start, self._at, (item,))

    async def close(self) -> None:
        close: Callable[[], Any] | None = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class AsyncIterableSource:
    """An async iterable or async generator, read once."""

    def __init__(self, items: AsyncIterable[Any]) -> None:
        self.name = type(items).__name__
        self._items = items

    def open(self, bookmark: Bookmark | None = None) -> Reader:
        """Begin to iterate."""
        return _AsyncReader(aiter(self._items))


def as_source(items: Any) -> Source:
    """Make a source of what the user gave. Raises PlanError, with the right form, for what only looks like one."""
    if isinstance(items, Source):
        return items
    if isinstance(items, (str, bytes, bytearray)):
        raise PlanError(
            f"a {type(items).__name__} as source would give its characters one by one. For the lines of a file: "
            f"hr.files.lines({str(items)[:40]!r}); for one item: [item]"
        )
    if isinstance(items, Mapping):
        raise PlanError("a dict as source is ambiguous: give list(d), list(d.values()) or list(d.items())")
    if hasattr(items, "itertuples") or (hasattr(items, "iter_rows") and hasattr(items, "columns")):
        raise PlanError(
            "a DataFrame as source would give its column names. Give its rows: df.to_dict('records') (pandas) or "
            "df.to_dicts() (polars)"
        )
    if hasattr(items, "__aiter__"):
        return AsyncIterableSource(items)
    if isinstance(items, Sequence):
        return SequenceSource(items)
    if isinstance(items, Iterable):
        return IterableSource(items)
    if callable(items):
        raise PlanError(
            f"the source {getattr(items, '__name__', items)!r} is a function: call it (its result is what is iterated). The "
            f"form is hr.map(fn, items)"
        )
    raise PlanError(
        f"the source is {type(items).__name__}, which cannot be iterated: give a list, a generator, hr.files.lines(…)"
    )
