"""Calls that a lane has at hand before it has a place for them.

Rules:
1. Only short calls are handed over early, and none that takes permits or must not be repeated: those begin where they are
   admitted.
2. To the outside such a call queues: it has no time limit yet, is not counted as running, and is returned by a drain.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headrace.engine.slot import Slot
from headrace.ports import ChunkLane, Lane, TakingAhead

if TYPE_CHECKING:
    from headrace.engine.stage import Caller

__all__ = ["Ahead", "ahead_of"]

#: A call that waited for less (seconds) began when it was handed over, as far as its time limit goes.
NOTICEABLE = 0.02


def ahead_of(caller: Caller, lane: Lane | ChunkLane) -> Ahead | None:
    """Give what looks after the calls that `lane` takes ahead; None for a lane that takes none."""
    return Ahead(caller, lane) if isinstance(lane, TakingAhead) else None


class Ahead:
    """What a stage must know of the calls that its lane has not begun."""

    def __init__(self, caller: Caller, lane: TakingAhead) -> None:
        self._caller = caller
        self._lane = lane
        if not caller.spec.limits and caller.spec.effect != "once":
            lane.on_quick = caller.dispatch.add_workers

    def __len__(self) -> int:
        return self._lane.queued

    @property
    def busy(self) -> float:
        """The seconds that calls took, without those that they waited for their place."""
        return self._lane.busy

    def put_off(self, slot: Slot, now: float) -> bool:
        """Put the time limit off of a call that had to wait: it counts from where the call began."""
        delivery, timeout = slot.delivery, self._caller.spec.timeout
        if delivery is None or timeout is None:
            return False
        waited = self._lane.waited(slot)
        if waited < NOTICEABLE:
            return False
        due = now + timeout if math.isinf(waited) else slot.began + waited + timeout
        if delivery.until is not None:
            due = min(due, delivery.until)
        if due > now:
            slot.deadline = due
        elif self._lane.withdraw(slot):
            self._caller.permits.cancel(delivery)  # its time is over, and it has not begun
        return due > now

    def withdraw(self) -> None:
        """Take back what has not begun, but for what a drain carries on."""
        if not self._lane.queued:
            return
        caller = self._caller
        for slot in tuple(caller.slots):
            delivery = slot.delivery
            if (
                delivery is None
                or caller.run.shutdown.carries_on(delivery, caller)
                or not self._lane.withdraw(slot)
            ):
                continue
            slot.calls -= 1  # there was none
            delivery.tried -= 1
            caller.permits.cancel(delivery)
            caller.stop(slot)
