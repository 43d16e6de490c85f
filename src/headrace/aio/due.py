"""A heap of things that are due at a time, with one timer of the loop for all of them.

Rules:
1. One pending timer at most, however many entries.
2. Entries due together are handed over together, in the order of their times, then of their arrival.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["DueHeap"]

T = TypeVar("T")


class DueHeap(Generic[T]):
    """Keep entries until they are due, then call `on_due(entry)` on the loop."""

    __slots__ = ("_count", "_heap", "_loop", "_on_due", "_timer", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[T], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, at: float, entry: T) -> None:
        """Add an entry that is due at `at`, in the loop's time."""
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, entry))
        if at < self._timer_at:
            self._arm(at)

    def next_at(self) -> float | None:
        """Give the earliest time, None where the heap is empty."""
        return self._heap[0][0] if self._heap else None

    def entries(self) -> list[tuple[float, T]]:
        """Give all entries with their times, in no order."""
        return [(at, entry) for at, _, entry in self._heap]

    def remove(self, chosen: Callable[[T], bool]) -> None:
        """Take out those entries for which `chosen` is true."""
        self._heap[:] = [entry for entry in self._heap if not chosen(entry[2])]
        heapq.heapify(self._heap)

    def drain(self) -> list[T]:
        """Take all entries out, due or not, and stop the timer."""
        entries = [entry for _, _, entry in sorted(self._heap)]
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = float("inf")
        return entries

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        # The loop fires a timer up to one clock tick early; what is due within that tick is due.
        now = self._loop.time() + 1e-6
        heap: list[tuple[float, int, Any]] = self._heap
        while heap and heap[0][0] <= now:
            self._on_due(heapq.heappop(heap)[2])
        if heap and heap[0][0] < self._timer_at:
            self._arm(heap[0][0])
