"""How deliveries end: with a value, failed, skipped, parked or returned, and what that means for their root and their order.

Rules:
1. Every delivery ends through here exactly once, and its root reaches the exit exactly once.
2. Where order is kept, what ends without a value leaves a tombstone behind, so that nobody waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.engine.lineage import Ending, Family, Parking, close_if_over, complete, is_sent, root_of
from headrace.engine.texts import one_line
from headrace.engine.window import Level, weigh
from headrace.errors import InDoubt
from headrace.item import DECIDED, FINAL, SPREAD, Delivery

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Endings"]


class Endings:
    """The ends of a run's deliveries."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.has_order = False

    def leave(self, delivery: Delivery) -> None:
        """Take a delivery that came through all stages."""
        if delivery.origin is None:
            self.run.exit.done(delivery)
            return
        root = root_of(delivery)
        weight = weigh(delivery.value)
        root.weight += weight
        self.run.window.bytes_open += weight - delivery.weight
        delivery.weight = 0
        complete(delivery, None, [delivery], self.settle)

    def fail(self, delivery: Delivery, stage: str, error: Exception, *, in_doubt: bool = False) -> None:
        """Fail a delivery, and with it its root."""
        if in_doubt and not isinstance(error, InDoubt):
            raised = InDoubt(f"the call may have taken effect, and its end is unknown: {one_line(error)}")
            raised.__cause__ = error
            error = raised
        self._end(delivery, Ending("failed", stage, error, in_doubt=in_doubt))

    def skip(self, delivery: Delivery, reason: str) -> None:
        """Settle a delivery as skipped."""
        self._end(delivery, Ending("skipped", reason=reason))

    def drop(self, delivery: Delivery) -> None:
        """End a child whose root has failed already."""
        self._end(delivery, Ending("skipped", reason="its item has failed"))

    def park(self, delivery: Delivery, parking: Parking) -> None:
        """Put a delivery aside, and with it its root."""
        self._end(delivery, parking)

    def give_back(self, delivery: Delivery) -> None:
        """Return a delivery to the source; one whose *once* call went out is in doubt instead."""
        if delivery.state in FINAL or delivery.state in (SPREAD, DECIDED):
            return
        self._end(delivery, self._unfinished(delivery))

    @staticmethod
    def _unfinished(delivery: Delivery) -> Ending:
        if not is_sent(delivery):
            return Ending("returned")
        stopped = InDoubt("the run was cancelled when the call had gone out; its end is unknown")
        return Ending("failed", "run", stopped, in_doubt=True)

    def _end(self, delivery: Delivery, ending: Ending) -> None:
        if delivery.weight and delivery.origin is not None:
            root_of(delivery).weight += delivery.weight  # given back when the root is settled
            delivery.weight = 0
        if not self.has_order:
            complete(delivery, ending, [], self.settle)
            return
        reorders = self._level_of(delivery).reorders
        for reorder in reorders[:-1]:
            reorder.passes(delivery, None)
        if ending.kind in ("returned", "parked") or not reorders:
            for reorder in reorders[-1:]:
                reorder.passes(delivery, None)
            complete(delivery, ending, [], self.settle)
        elif not reorders[-1].passes(delivery, lambda: complete(delivery, ending, [], self.settle)):
            complete(delivery, ending, [], self.settle)

    def _level_of(self, delivery: Delivery) -> Level:
        depth = 0
        while delivery.origin is not None:
            delivery = delivery.origin
            depth += 1
        return self.run.window.levels[depth]

    def settle(self, root: Delivery, ending: Ending | None, rows: list[Delivery]) -> None:
        """Pass a root on to the exit."""
        self.run.exit.settle(root, ending, rows)

    def stop_family(self, parent: Delivery) -> None:
        """Let no more children of `parent` in: it failed, or the run stops."""
        family: Family = parent.more
        family.closed = True
        if family.bad is None:
            family.bad = self._unfinished(parent)

    def close_family(self, parent: Delivery) -> None:
        """End `parent` if all its children have."""
        close_if_over(parent, self.settle)
