"""The window: how many deliveries a run holds open, in number and in bytes.

Rules:
1. A level is what lies between two fan-outs or batches. Each level has an equal share of the window, so that a level
   below always has room to move: a full one above waits for it, never the other way round.
2. In a level fed by fan-outs, half of the share is open to all; the rest is for the oldest fan-out alone, which can
   therefore always end. One fan-out has at most half a share of children.
3. Everything that is not settled counts: queued, running, waiting for a retry, in a batch, out of order, not committed,
   not consumed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from headrace.item import Delivery

__all__ = ["WEIGHTLESS", "Level", "Window", "weigh"]

#: What most values are; asking their weight would cost more than it tells.
WEIGHTLESS = frozenset({int, float, bool, type(None), dict, list, tuple})


def weigh(value: Any) -> int:
    """Give the bytes that a value holds where that is known: bytes, text, or an `nbytes` of its own; else 0."""
    kind = type(value)
    if kind in WEIGHTLESS:
        return 0
    if kind is bytes or kind is str or kind is bytearray:
        return len(value)
    nbytes = getattr(value, "nbytes", 0)
    return nbytes if isinstance(nbytes, int) else 0


class Level:
    """The open deliveries of one level, and who waits for room in it."""

    __slots__ = ("_closed", "_fanning", "_waiters", "number", "open", "reorders", "sequence", "share")

    def __init__(self, number: int, share: int) -> None:
        self.number = number
        self.share = share
        self.open = 0
        self.sequence = 0  # numbers deliveries in the order in which they enter
        self.reorders: list[Any] = []  # the ordered stages of this level
        self._fanning: deque[Delivery] = deque()  # fan-outs that are not closed, oldest first
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def close(self) -> None:
        """Let nobody wait any more: the run stops, and whoever fans out looks for himself whether to go on."""
        self._closed = True
        self._wake()

    def begin_fanout(self, parent: Delivery) -> None:
        """Take a fan-out's place in line."""
        self._fanning.append(parent)

    def end_fanout(self, parent: Delivery) -> None:
        """Give it up, when all its children are in or it failed."""
        self._fanning.remove(parent)
        self._wake()

    def has_room(self, parent: Delivery) -> bool:
        """Whether a child of `parent` may enter now."""
        if self._closed or self.open < self.share // 2:
            return True
        return self.open < self.share and self._fanning[0] is parent

    async def room(self, parent: Delivery) -> None:
        """Wait until a child of `parent` may enter."""
        while not self.has_room(parent):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def leave(self) -> None:
        """Count one delivery less."""
        self.open -= 1
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        # All of them: which one may go on depends on who is oldest, and there are as many as workers at the most.
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Window:
    """The levels of a run and the bytes of what is under way."""

    __slots__ = ("bytes_limit", "bytes_open", "levels", "limit", "roots", "weighs")

    def __init__(self, limit: int, levels: int, bytes_limit: int) -> None:
        self.limit = limit
        self.bytes_limit = bytes_limit
        self.bytes_open = 0
        self.weighs = False  # whether any open delivery counts with bytes
        self.levels = [Level(number, max(1, limit // levels)) for number in range(levels)]
        self.roots = self.levels[0]

    @property
    def open(self) -> int:
        """All open deliveries."""
        return sum(level.open for level in self.levels)

    def room(self) -> int:
        """How many more items may be taken now."""
        if self.bytes_open >= self.bytes_limit:
            return 0
        return self.roots.share - self.roots.open
