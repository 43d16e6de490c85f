"""A stage whose lane is chosen while it runs: it begins in threads, a few at a time, and may go on in processes.

Rules:
1. Until the choice is made, no more calls run at once than the lane allows, so that it sees what a call costs by itself.
2. A move takes no call back and makes none twice: what runs in a thread ends there, and what has not begun begins in the
   new place.
3. The choice is made once; it is an event, and stands in the report.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from headrace.engine.chunks import ChunkCaller, ChunkSlot
from headrace.engine.slot import Slot
from headrace.engine.stage import Caller
from headrace.engine.window import Level
from headrace.events import LaneChosen
from headrace.item import Delivery
from headrace.plan import StageSpec
from headrace.ports import ChoosingLane, LaneChoice

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["ChoosingCaller"]

#: How often the lane is asked whether it knows enough, in seconds.
LOOK_EVERY = 0.01
#: Why a worker is to end after its call: the stage has moved.
MOVED = "moved"


class ChoosingCaller(ChunkCaller):
    """A stage that calls a function in threads, and may move to processes."""

    def __init__(self, run: Run, spec: StageSpec, lane: ChoosingLane, level: Level, below: Level) -> None:
        super().__init__(run, dataclasses.replace(spec, lane="thread"), lane, level, below)
        self._choosing = lane
        self._allowed = lane.allows
        self._is_looking = False
        self._is_moved = False
        self.dispatch.limit_starts(self._allowed)

    def load(
        self, fn: Callable[..., Any], opened: Mapping[str, Any], factories: Mapping[str, Callable[[], Any]]
    ) -> None:
        """Give the lane its function; it begins in threads."""
        self._call = self._choosing.bind(fn, opened, factories)

    # ------------------------------------------------------------------ the choice

    def _look(self) -> None:
        if self.ended or self.choice is not None:
            return
        choice = self._choosing.look()
        if choice is not None:
            self._chosen(choice)
            return
        if self._choosing.allows > self._allowed:
            self.dispatch.add_workers(self._choosing.allows - self._allowed)
            self._allowed = self._choosing.allows
        self.run.later(LOOK_EVERY, self._look)

    def _chosen(self, choice: LaneChoice) -> None:
        self.choice = choice
        if choice.lane == "process":
            self._move(choice.concurrency)
        else:
            self.dispatch.add_workers(choice.concurrency - self._allowed)
        bus = self.run.bus
        if bus is not None:
            bus.emit(LaneChosen(time.time(), self.spec.name, *choice))

    def _move(self, places: int) -> None:
        self._is_moved = True
        self._places = self._choosing.moved_to()
        self.spec = dataclasses.replace(self.spec, lane="process", concurrency=places)
        for slot in tuple(self.slots):
            if slot.delivery is None:
                self.stop(slot)
            elif slot.ending is None:
                slot.ending = MOVED
        self.dispatch.limit_starts(places)
        self.dispatch.wake_more()

    # ------------------------------------------------------------------ workers of both kinds

    def spawn(self) -> None:
        """Start one more worker, where the stage is now."""
        if self._is_moved:
            super().spawn()
            return
        self._start_worker(Slot(self))
        if not self._is_looking:
            self._is_looking = True
            self.run.later(LOOK_EVERY, self._look)

    async def _work(self, slot: Slot) -> None:
        await self._kind(slot)._work(self, slot)

    @staticmethod
    def _kind(slot: Slot) -> type[Caller]:
        return ChunkCaller if isinstance(slot, ChunkSlot) else Caller

    def expired(self, slot: Slot, now: float) -> None:
        """Look at a call whose time limit may have passed."""
        self._kind(slot).expired(self, slot, now)

    def stop(self, slot: Slot) -> None:
        """End the call in this slot, or its idle worker."""
        self._kind(slot).stop(self, slot)

    def give_up(self, slot: Slot, error: Exception | None) -> None:
        """Go on without a call that will not end."""
        self._kind(slot).give_up(self, slot, error)

    def _end_of_timeout(self, slot: Slot) -> None:
        super()._end_of_timeout(slot)
        if self._is_moved and slot.ending is None and not isinstance(slot, ChunkSlot):
            slot.ending = MOVED

    def _overran(self, slot: Slot, delivery: Delivery, value: Any) -> bool:
        if slot.ending != MOVED:
            return super()._overran(slot, delivery, value)
        self.permits.settle(delivery, value)
        delivery.value = value
        if self._reorder is not None:
            self._reorder.passes(delivery, lambda: self.forward(delivery))
        else:
            self.forward(delivery)
        return True
