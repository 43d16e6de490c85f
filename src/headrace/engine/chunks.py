"""A stage whose lane takes calls in chunks: the same rules as for single calls, at the price of one wake-up a chunk.

Rules:
1. A worker is a place of the lane, with one chunk of deliveries in it. There is no task and no future for a delivery.
2. Each delivery is admitted, limited, repeated and settled by itself, when its own answer comes. What was not begun goes
   back to the head of the queue, and has not been tried.
3. Stages with limits, and those of *once* calls, have one delivery in a chunk: what was admitted or intended goes out now.
4. A worker with a chunk is never cancelled: its call is ended at the place, and the answer ends the worker.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from headrace.engine.lineage import count_sent
from headrace.engine.slot import Slot
from headrace.engine.stage import Caller
from headrace.engine.window import Level
from headrace.item import QUEUED, RUNNING, Delivery
from headrace.plan import StageSpec
from headrace.ports import ChoosingLane, ChunkLane, ChunkPlace, Raised, current_call

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["ChunkCaller", "ChunkSlot"]

#: After so many seconds of one call, those behind it in its chunk go elsewhere.
STALE = 0.02
#: How long after one look at a call without result the next one comes, in seconds.
NEXT_LOOK = 0.05


class ChunkSlot(Slot):
    """A worker's place, and the chunk in it. `delivery` is the first one without an answer."""

    __slots__ = ("at", "chunk", "is_recalled", "is_sent", "place")

    def __init__(self, stage: ChunkCaller, place: ChunkPlace) -> None:
        super().__init__(stage)
        self.place = place
        self.chunk: list[Delivery] = []
        self.at = 0  # the answers that have come
        self.is_sent = False  # the chunk is at the place
        self.is_recalled = False


class ChunkCaller(Caller):
    """A stage that calls a function in chunks."""

    def __init__(
        self, run: Run, spec: StageSpec, lane: ChunkLane | ChoosingLane, level: Level, below: Level
    ) -> None:
        super().__init__(run, spec, lane, level, below)
        self._places: Any = lane
        self._is_single = bool(spec.limits) or spec.effect == "once"
        self._is_plain = spec.kind == "map" and not spec.ordered

    def load(
        self, fn: Callable[..., Any], opened: Mapping[str, Any], factories: Mapping[str, Callable[[], Any]]
    ) -> None:
        """Give the lane its function, and what it opens for it. Nothing can be opened once a run here."""
        self._places.load(fn, factories)

    # ------------------------------------------------------------------ the workers

    def spawn(self) -> None:
        """Start one more worker."""
        self._start_worker(ChunkSlot(self, self._places.place()))

    async def _work(self, slot: Slot) -> None:
        assert isinstance(slot, ChunkSlot)
        current_call.set(slot)
        dispatch = self.dispatch
        dispatch.wake_more()
        while True:
            chunk = self._take(slot)
            if not chunk:
                if self.ended:
                    return
                try:
                    await dispatch.idle()
                except asyncio.CancelledError:
                    if self.run.is_torn_down:
                        slot.place.kill_now()  # nobody will close the lane
                    raise
                dispatch.wake_more()
                continue
            slot.chunk, slot.at, slot.delivery, slot.began = chunk, 0, chunk[0], self.run.clock()
            slot.is_recalled = False
            if self.is_careful and not await self._prepare_chunk(slot):
                continue
            if not await self._call_chunk(slot):
                return

    def _take(self, slot: ChunkSlot) -> list[Delivery]:
        """Take as many deliveries as the place has room for, but leave the other places their share."""
        dispatch = self.dispatch
        now = self.run.clock()
        if self._is_single:
            delivery = dispatch.take(now)
            taken = [] if delivery is None else [delivery]
        else:
            most = min(slot.place.room(), -(-len(dispatch) // self.spec.concurrency))
            taken = dispatch.take_some(most)
        for delivery in taken:
            delivery.state = RUNNING
            delivery.tried += 1
            if not delivery.began:
                delivery.began = now
        return taken

    async def _prepare_chunk(self, slot: ChunkSlot) -> bool:
        """Do what only some stages need before a call; say whether anything is left to be called."""
        left: list[Delivery] = []
        for delivery in slot.chunk:
            slot.delivery = delivery
            try:
                if await self._prepare(slot, delivery, slot.began):
                    left.append(delivery)
            except asyncio.CancelledError as error:
                if self._cancelled(slot, delivery, error):
                    raise
        slot.chunk = left
        slot.delivery = left[0] if left else None
        return bool(left)

    async def _call_chunk(self, slot: ChunkSlot) -> bool:
        """Have a chunk called, and deal with each answer as it comes; say whether the worker goes on."""
        run, place, chunk = self.run, slot.place, slot.chunk
        place.start([delivery.value for delivery in chunk])
        slot.is_sent = True
        self._look_again(slot, slot.began)
        try:
            while not (place.is_free and slot.at == len(chunk)):
                answers = await place.answers()
                run.now = run.clock()
                slot.calls += len(answers)
                if slot.ending == "given up":
                    if place.is_free:
                        break
                    continue
                await self._deal_with(slot, answers)
                if place.length < len(chunk):
                    self._take_back(chunk, place.length)
        except asyncio.CancelledError:
            place.kill_now()
            for delivery in chunk[slot.at :]:
                self.permits.release(delivery)
                run.endings.give_back(delivery)
            raise
        finally:
            slot.is_sent = False
            slot.delivery = slot.deadline = None
            slot.chunk = []
        slot.busy += run.clock() - slot.began
        if slot.ending == "given up":
            self.given_up -= 1
        return slot.ending is None

    async def _deal_with(self, slot: ChunkSlot, answers: Any) -> None:
        chunk, settles, plain, forward = slot.chunk, self.settles, self._is_plain, self.forward
        if (
            plain and not settles and Raised not in set(map(type, answers))
        ):  # the common case, in half the time
            at = slot.at
            slot.at += len(answers)
            for delivery, answer in zip(chunk[at : slot.at], answers, strict=True):
                delivery.value = answer
                forward(delivery)
            return
        for answer in answers:
            delivery = chunk[slot.at]
            slot.at += 1
            if type(answer) is Raised:
                self._answered_badly(slot, delivery, answer)
                continue
            if settles:
                self.permits.settle(delivery, answer)
            if plain:
                delivery.value = answer
                forward(delivery)
            else:
                await self._pass(delivery, answer)

    def _answered_badly(self, slot: ChunkSlot, delivery: Delivery, answer: Raised) -> None:
        if answer.died and slot.ending == "stop":
            self.permits.release(delivery)
            self.run.endings.give_back(delivery)
        else:
            self._failed(slot, delivery, answer.error)

    def _take_back(self, chunk: list[Delivery], length: int) -> None:
        """Queue again what was not begun, before all others."""
        back = chunk[length:]
        del chunk[length:]
        kept = []
        for delivery in back:
            delivery.tried -= 1
            self.permits.cancel(delivery)
            if self.spec.effect == "once" and delivery.sent:
                count_sent(delivery, -1)
                self.run.forget_intent(delivery)
            if self.run.shutdown.carries_on(delivery, self):
                delivery.state = QUEUED
                self.run.delays.watch(self, delivery)
                kept.append(delivery)
            else:
                self.run.endings.give_back(delivery)
        if kept:
            self.dispatch.put_back(kept)

    # ------------------------------------------------------------------ calls that take long

    @property
    def running(self) -> int:
        """The calls under way: one in each place that has a chunk."""
        return sum(slot.delivery is not None for slot in self.slots)

    def _look_again(self, slot: ChunkSlot, now: float, after: float = math.inf) -> None:
        """Set the time at which the call that runs at the place is looked at."""
        timeout = self.spec.timeout
        if len(slot.chunk) > 1 and not slot.is_recalled:
            after = min(after, STALE)
        if timeout is not None:
            after = min(after, max(timeout, 0.001))
        if self.spec.within is not None:
            after = min(after, max(0.001, min(d.until or math.inf for d in slot.chunk[slot.at :]) - now))
        if math.isinf(after):
            slot.deadline = None
            return
        slot.deadline = now + after
        if slot.deadline < self.run.sweep.at:
            self.run.sweep.arm(slot.deadline)

    def expired(self, slot: Slot, now: float) -> None:
        """Look at the call that runs at a place: has its time passed, and do others wait behind it?"""
        assert isinstance(slot, ChunkSlot)
        found = slot.place.running() if slot.is_sent else None
        if found is None or found[0] >= len(slot.chunk):
            slot.deadline = now + NEXT_LOOK
            return
        number, seconds = found
        delivery = slot.chunk[number]
        left = math.inf if self.spec.timeout is None else self.spec.timeout - seconds
        if delivery.until is not None:
            left = min(left, delivery.until - now)
        if left <= 0.0 and slot.ending is None:
            slot.place.kill(number, self._timed_out(delivery))
            slot.deadline = now + NEXT_LOOK
            return
        waits = len(slot.chunk) > number + 1
        if waits and seconds >= STALE and not slot.is_recalled:
            slot.is_recalled = True
            slot.place.recall()
        if waits and not slot.is_recalled:
            left = min(left, STALE - seconds)
        slot.deadline = None if math.isinf(left) else now + max(left, 0.001)

    def recall(self) -> None:
        """Take back what has not begun: the stage starts no more calls for now."""
        for slot in self.slots:
            if isinstance(slot, ChunkSlot) and slot.is_sent and len(slot.chunk) > slot.at + 1:
                slot.is_recalled = True
                slot.place.recall()

    def stop(self, slot: Slot) -> None:
        """End the call in this slot, or its idle worker, because the run ends."""
        assert isinstance(slot, ChunkSlot)
        if not slot.is_sent:
            super().stop(slot)
        elif slot.ending != "given up":
            slot.ending = "stop"
            slot.deadline = None
            slot.place.kill_now()

    def give_up(self, slot: Slot, error: Exception | None) -> None:
        """Go on without a call that will not end although its process was killed."""
        assert isinstance(slot, ChunkSlot)
        if not slot.is_sent:
            super().give_up(slot, error)
            return
        slot.ending = "given up"
        self.given_up += 1
        self.slots.remove(slot)
        self._calls_before += slot.calls
        self._busy_before += slot.busy
        for delivery in slot.chunk[slot.at :]:
            self.permits.release(delivery)
            self.run.endings.give_back(delivery)
        self.run.worker_given_up(self)
