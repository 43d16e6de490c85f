"""The window: how many deliveries a run holds open, in number and in bytes.

Rules:
1. A level is what lies between two fan-outs or batches. Each level has an equal share of the window, so that a level
   below always has room to move: a full one above waits for it, never the other way round.
2. In a level fed by fan-outs, half of the share is open to all; the rest is for the descendants of the oldest root that
   fans out, and one root has at most half a share of them. So the oldest root can always end, and with it the next.
3. Everything that is not settled counts: queued, running, waiting for a retry, in a batch, out of order, not committed,
   not consumed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
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
    try:
        nbytes = getattr(value, "nbytes", 0)
    except Exception:  # noqa: BLE001 - a property of the user's own class; what has no weight that can be told has none
        return 0
    return nbytes if isinstance(nbytes, int) else 0


def _nothing() -> None:
    pass


class Level:
    """The deliveries of one level that are open."""

    __slots__ = ("number", "open", "reorders", "sequence", "share")

    def __init__(self, number: int, share: int) -> None:
        self.number = number
        self.share = share
        self.open = 0
        self.sequence = 0  # numbers deliveries in the order in which they enter
        self.reorders: list[Any] = []  # the ordered stages of this level


class Window:
    """The levels of a run, the bytes of what is under way, and who may fan out."""

    __slots__ = (
        "_ages",
        "_closed",
        "_descendants",
        "_waiters",
        "bytes_limit",
        "bytes_open",
        "levels",
        "limit",
        "on_weighs",
        "roots",
        "weighs",
    )

    def __init__(self, limit: int, levels: int, bytes_limit: int) -> None:
        self.limit = limit
        self.bytes_limit = bytes_limit
        self.bytes_open = 0
        self.weighs = False  # whether any delivery has counted with bytes so far
        self.on_weighs: Callable[[], None] = _nothing  # called when the first one does
        self.levels = [Level(number, max(1, limit // levels)) for number in range(levels)]
        self.roots = self.levels[0]
        self._descendants: dict[
            int, dict[Level, int]
        ] = {}  # by the root's number: how many it has in each level
        self._ages: list[
            int
        ] = []  # a heap of these numbers; those of settled roots leave when they reach its top
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def open(self) -> int:
        """All open deliveries."""
        return sum(level.open for level in self.levels)

    def weigh(self, delivery: Delivery, value: Any) -> int:
        """Count what `value` weighs for `delivery`, in the place of what it weighed before, and give it."""
        weight = weigh(value)
        if weight != delivery.weight:
            self.bytes_open += weight - delivery.weight
            delivery.weight = weight
            if not self.weighs:
                self.weighs = True
                self.on_weighs()
        return weight

    @property
    def is_heavy(self) -> bool:
        """Whether it is full by bytes."""
        return self.bytes_open >= self.bytes_limit

    def room(self) -> int:
        """How many more items may be taken now."""
        if self.is_heavy:
            return 0
        return self.roots.share - self.roots.open

    # ------------------------------------------------------------------ fan-outs

    def enter(self, root: Delivery, level: Level) -> None:
        """Count one more descendant of `root` in `level`."""
        counts = self._descendants.get(root.seq)
        if counts is None:
            counts = self._descendants[root.seq] = {}
            heapq.heappush(self._ages, root.seq)
        counts[level] = counts.get(level, 0) + 1
        level.open += 1

    def leave(self, root: Delivery) -> None:
        """Give back the places of all descendants of a root that is settled."""
        counts = self._descendants.pop(root.seq, None)
        if counts is None:
            return
        for level, count in counts.items():
            level.open -= count
        while self._ages and self._ages[0] not in self._descendants:
            heapq.heappop(self._ages)
        self._wake()

    def may_have_more(self, root: Delivery, level: Level) -> bool:
        """Whether `root` has fewer descendants in `level` than one item may have: half of the level's share."""
        return self._descendants.get(root.seq, {}).get(level, 0) < max(1, level.share // 2)

    def has_room(self, root: Delivery, level: Level) -> bool:
        """Whether a descendant of `root` may enter `level` now."""
        if self._closed or level.open < level.share // 2:
            return True
        return not self._ages or root.seq <= self._ages[0]

    async def wait_room(self, root: Delivery, level: Level) -> None:
        """Wait until a descendant of `root` may enter `level`."""
        while not self.has_room(root, level):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def close(self) -> None:
        """Let nobody wait any more: the run stops, and whoever fans out looks for himself whether to go on."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        # All of them: which one may go on depends on whose root is oldest, and there are as many as workers at the most.
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
