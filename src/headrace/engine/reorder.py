"""Order kept: what leaves an ordered stage leaves in the order in which its level was entered.

Rules:
1. Every delivery of the level passes exactly once: with a value, or as a tombstone (failed, skipped, returned, gathered).
2. What waits here counts in the window; nobody waits for it but the consumer of the order.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.item import Delivery

__all__ = ["Reorder"]


class Reorder:
    """Hold deliveries back until all before them have passed."""

    __slots__ = ("_held", "_next")

    def __init__(self) -> None:
        self._held: dict[int, Callable[[], None] | None] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def passes(self, delivery: Delivery, go_on: Callable[[], None] | None) -> bool:
        """Let `delivery` pass when its turn comes: then call `go_on`, or nothing for a tombstone.

        False, with nothing done, where it has passed before.
        """
        if delivery.seq < self._next or delivery.seq in self._held:
            return False
        self._held[delivery.seq] = go_on
        held = self._held
        while self._next in held:
            action = held.pop(self._next)
            self._next += 1
            if action is not None:
                action()
        return True
