"""What waits for a time: repetitions, and the ends of `within=`.

Rules:
1. What waits here holds no worker and no permit.
2. A delivery is watched for the end of its `within=` only while it queues again: a call under way has its own limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.aio.due import DueHeap
from headrace.item import Delivery

if TYPE_CHECKING:
    from headrace.engine.stage import Caller

__all__ = ["Delays"]


class Delays:
    """The due-heaps of a run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._repeats: DueHeap[tuple[Caller, Delivery]] = DueHeap(loop, self._repeat_due)
        self._late: DueHeap[tuple[Caller, Delivery]] = DueHeap(loop, self._late_due)

    def repeat(self, caller: Caller, delivery: Delivery, after: float) -> None:
        """Let a delivery be called again in `after` seconds."""
        self._repeats.push(self._loop.time() + after, (caller, delivery))

    def __len__(self) -> int:
        return len(self._repeats)

    def repeating(self) -> list[tuple[float, tuple[Caller, Delivery]]]:
        """Give what waits to be repeated, with the time of each, in no order."""
        return self._repeats.entries()

    def remove(self, chosen: Callable[[Delivery], bool]) -> None:
        """Repeat those deliveries no more for which `chosen` is true."""
        self._repeats.remove(lambda entry: chosen(entry[1]))

    @staticmethod
    def _repeat_due(entry: tuple[Caller, Delivery]) -> None:
        caller, delivery = entry
        caller.retry_due(delivery)

    def watch(self, caller: Caller, delivery: Delivery) -> None:
        """Fail a delivery that still queues when its `within=` has passed."""
        if delivery.until is not None:
            self._late.push(delivery.until, (caller, delivery))

    @staticmethod
    def _late_due(entry: tuple[Caller, Delivery]) -> None:
        caller, delivery = entry
        caller.end_if_late(delivery)

    def drain(self) -> list[tuple[Caller, Delivery]]:
        """Take out all that waits to be repeated, and stop watching."""
        self._late.drain()
        return self._repeats.drain()
