"""What the engine asks of sources.

Rules:
1. Reading is asynchronous and in order; a position never changes its item.
2. Only a source that can be read again may be a job's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

__all__ = [
    "Bookmark",
    "Chunk",
    "Reader",
    "Replayable",
    "Source",
    "Unreadable",
]


class Bookmark(NamedTuple):
    """Where reading may start again: `position` is the next one, `token` (JSON-able) is the source's own business."""

    position: int
    token: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a chunk for an item that is there and cannot be read: the item fails with `why`, and the run goes on.

    `text` is what could be read of it; it is the item that the dead letter shows.
    """

    text: str
    why: str


@dataclasses.dataclass(slots=True)
class Chunk:
    """Some items in the order of the source: the positions from `start` up to, not including, `end`.

    `positions` has one for each payload; None means that they are consecutive from `start`. Positions in between that
    carry no item (blank lines, comments) are void: they count as dealt with and are never read again.
    """

    start: int
    end: int
    payloads: Sequence[Any]
    positions: Sequence[int] | None = None
    bookmark: Bookmark | None = None  #: restarts reading at `start`


class Reader(Protocol):
    """One pass over a source."""

    async def read(self, limit: int) -> Chunk | None:
        """Give the next chunk of 1 to `limit` items as soon as there is at least one; None at the end.

        A chunk may hold no items but void positions. May be cancelled while it waits; nothing may be lost by that.
        """
        ...

    async def close(self) -> None:
        """Let go of files and connections. Called once, also after an error or a cancellation."""
        ...


@runtime_checkable
class Source(Protocol):
    """What gives the items."""

    name: str

    def open(self, bookmark: Bookmark | None = None) -> Reader:
        """Begin a pass, at `bookmark` (one of its own) or at the start."""
        ...


@runtime_checkable
class Replayable(Source, Protocol):
    """A source that gives the same items at the same positions again. Only these may be jobs."""

    def fingerprint(self, end: int) -> Mapping[str, Any]:
        """Describe (JSON-able) the source's kind and its content up to position `end`, in time independent of `end`."""
        ...

    def verify(self, fingerprint: Mapping[str, Any]) -> str | None:
        """Say how the part that an earlier `fingerprint` covers differs now; None if it does not. It may have grown."""
        ...

    def describe(self, position: int) -> str:
        """Name a position for people: «urls.txt, line 17»."""
        ...

    def total(self) -> int | None:
        """Give the number of items if that costs nothing to know."""
        ...
