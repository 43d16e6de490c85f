"""Inbox: a live source. Others put items in while the flow runs, as a web application's handlers do.

Rules:
1. `put` waits for room and gives a ticket: the item is in memory then, not on disk. An inbox is no job's source.
2. After `close` nothing is taken, and the flow ends when what is in it has.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from headrace.aio.channel import Channel, ChannelClosed
from headrace.errors import PlanError
from headrace.ports import Bookmark, Chunk, Reader

__all__ = ["Inbox", "InboxClosed", "Ticket"]

T = TypeVar("T")


class InboxClosed(PlanError):
    """The inbox was closed; the item was not taken."""


class Ticket(Generic[T]):
    """What `put` gives: the number of the item. `position` is its position in the flow's outcomes and reports."""

    __slots__ = ("item", "position")

    def __init__(self, position: int, item: T) -> None:
        self.position = position
        self.item = item

    def __repr__(self) -> str:
        return f"<Ticket {self.position}>"


class Inbox(Generic[T]):
    """A bounded source that items are put into while the flow runs.

    `capacity` items wait at most; `put` waits beyond that. What is accepted lives in memory only: an Inbox cannot be a
    durable job's source (PlanError). Put the items into a file or a table for that. To be used from the flow's own loop.
    """

    def __init__(self, capacity: int = 1000) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise PlanError(f"Inbox(capacity={capacity!r}): give a whole number, 1 or more")
        self.name = "Inbox"
        self._channel: Channel[T] = Channel(capacity)
        self._accepted = 0
        self._opened = False

    def __len__(self) -> int:
        return len(self._channel)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._channel.closed

    async def put(self, item: T) -> Ticket[T]:
        """Wait for room and hand the item over. Cancelled, it has put nothing. Raises InboxClosed after `close`."""
        try:
            await self._channel.put(item)
        except ChannelClosed:
            raise InboxClosed("the inbox is closed: the flow takes no more items") from None
        return self._ticket(item)

    def put_nowait(self, item: T) -> Ticket[T] | None:
        """Hand the item over if there is room now, else give None: a web handler answers 503 then."""
        try:
            return self._ticket(item) if self._channel.put_nowait(item) else None
        except ChannelClosed:
            raise InboxClosed("the inbox is closed: the flow takes no more items") from None

    def _ticket(self, item: T) -> Ticket[T]:
        self._accepted += 1
        return Ticket(self._accepted - 1, item)

    def close(self) -> None:
        """Take no more; the flow ends when what is in it has."""
        self._channel.close()

    def unread(self) -> list[T]:
        """Take out what no flow has taken: after a flow that was stopped, these items are yours again."""
        return self._channel.drain()

    def open(self, bookmark: Bookmark | None = None) -> Reader:
        """Begin to read. One flow at a time reads an inbox."""
        return _InboxReader(self._channel)


class _InboxReader:
    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel
        self._at = 0

    async def read(self, limit: int) -> Chunk | None:
        try:
            first = await self._channel.get()
        except ChannelClosed:
            return None
        payloads = [first, *self._channel.get_all_nowait(limit - 1)]
        start, self._at = self._at, self._at + len(payloads)
        return Chunk(start, self._at, payloads)

    async def close(self) -> None:
        self._channel.close()
