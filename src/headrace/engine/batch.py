"""Stages that call nothing: batches, and the taps that stop the source.

Rules:
1. A batch goes on when it is full, when its oldest member has waited `linger` seconds, or when no more can come: the
   source has ended or is held up by the full window, and nothing is under way before it.
2. `take` counts and `until` looks; what they see goes on unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.engine.lineage import Batch, root_of
from headrace.engine.window import Level
from headrace.item import QUEUED, SPREAD, Delivery
from headrace.plan import StageSpec

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Gatherer", "Tap"]


class Gatherer:
    """Collects deliveries into batches."""

    def __init__(self, run: Run, spec: StageSpec, level: Level, below: Level) -> None:
        self.run = run
        self.spec = spec
        self.level = level
        self.below = below
        self.members: list[Delivery] = []
        self.forward: Callable[[Delivery], None] = run.endings.leave
        self._timer: asyncio.TimerHandle | None = None

    def accept(self, delivery: Delivery) -> None:
        """Add a member; a full batch goes on at once."""
        if not self.run.shutdown.carries_on(delivery, self):
            self.run.endings.give_back(delivery)
            return
        delivery.state = QUEUED
        self.members.append(delivery)
        if len(self.members) >= self.spec.size:
            self.flush()
        elif self._timer is None and self.spec.linger is not None:
            self._timer = self.run.loop.call_later(self.spec.linger, self.flush)
        if self.members and self.run.intake.is_held_up:
            self.run.flush_batches()

    def flush(self) -> None:
        """Let what there is go on as a batch."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.members:
            return
        members, self.members = self.members, []
        for member in members:
            member.move(SPREAD)
        batch = Batch(members, self.below.sequence)
        batch.attempts = sum(member.attempts + member.tried for member in members)
        batch.began = min(member.began for member in members)
        self.below.sequence += 1
        self.run.window.enter(root_of(batch), self.below)
        self.forward(batch)

    def drain(self) -> list[Delivery]:
        """Take out what waits here, but for what must go on because a *once* call of it went out."""
        carried = [member for member in self.members if self.run.shutdown.carries_on(member, self)]
        left = [member for member in self.members if not self.run.shutdown.carries_on(member, self)]
        self.members = carried
        self.flush()
        return left


class Tap:
    """`take` and `until`: watch what passes, and stop the source when it is time."""

    def __init__(self, run: Run, spec: StageSpec) -> None:
        self.run = run
        self.spec = spec
        self.passed = 0
        self.forward: Callable[[Delivery], None] = run.endings.leave
        self._predicate: Callable[[Any], Any] | None = spec.fn

    def accept(self, delivery: Delivery) -> None:
        """Look at a delivery and let it go on."""
        parking = self.run.parking
        if parking.again and parking.has_passed(delivery, self.run.nodes.index(self)):
            self.forward(delivery)  # it was counted before it was parked
            return
        if self._predicate is None:
            self.passed += 1
            if self.passed >= self.spec.size:
                self.run.enough(f"take({self.spec.size})")
        else:
            try:
                reached = bool(self._predicate(delivery.value))
            except Exception as error:  # noqa: BLE001 - it becomes the outcome of the item
                self.run.endings.fail(delivery, self.spec.name, error)
                return
            if reached:
                self.run.enough(f"until({self.spec.name})")
        self.forward(delivery)
