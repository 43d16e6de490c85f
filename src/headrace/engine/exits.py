"""Where deliveries leave a run that keeps no ledger: counted, collected, or handed to a consumer.

Rules:
1. An exit makes each root's one move to a final state, and gives its place in the window back when it is really over:
   for a consumer, when the outcome was consumed.
2. The durable exit is the committer.
"""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.engine.lineage import Ending, Parking, row_order
from headrace.item import (
    DECIDED,
    DONE,
    FAILED,
    LIFE_CYCLE,
    PARKED,
    RETURNED,
    RUNNING,
    SKIPPED,
    Delivery,
    Done,
    Failed,
    Outcome,
    Parked,
    Returned,
    Skipped,
)
from headrace.report import DoneColumns

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["CollectExit", "CountExit", "Exit", "StreamExit", "outcome_of"]

FINAL_STATE = {"failed": FAILED, "skipped": SKIPPED, "parked": PARKED, "returned": RETURNED}


def outcome_of(root: Delivery, ending: Ending | None, now: float, value: Any = None) -> Outcome[Any]:
    """Make the outcome of a root that ended so at `now`."""
    attempts = root.attempts + root.tried
    elapsed = now - root.began if root.began else 0.0
    if ending is None:
        return Done(root.item, value, root.position, attempts, elapsed)
    if ending.kind == "failed":
        assert ending.error is not None
        return Failed(root.item, ending.error, root.position, attempts, elapsed, ending.stage)
    if ending.kind == "skipped":
        return Skipped(root.item, ending.reason, root.position, attempts, elapsed)
    if isinstance(ending, Parking):
        return Parked(root.item, ending.due, root.position, attempts, elapsed)
    return Returned(root.item, root.position, attempts, elapsed)


class Exit(abc.ABC):
    """What all exits do: the final move of a root, and its place given back."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @abc.abstractmethod
    def done(self, delivery: Delivery) -> None:
        """Take a root that came through all stages by itself."""

    @abc.abstractmethod
    def settle(self, root: Delivery, ending: Ending | None, rows: list[Delivery]) -> None:
        """Take a root that ended otherwise: with children, in a batch, or without a value."""

    def entry(self) -> Callable[[Delivery], None]:
        """Give what the last stage calls with a root that came through all stages by itself."""
        return self.done

    def _decide(self, root: Delivery) -> None:
        if DECIDED not in LIFE_CYCLE[root.state]:
            root.move(DECIDED)  # raises, and says from where
        root.state = DECIDED

    async def close(self) -> None:  # noqa: B027 - only the durable exit buffers anything
        """Finish what is buffered."""


class CountExit(Exit):
    """Drops values and counts."""

    def done(self, delivery: Delivery) -> None:
        """Count it."""
        self._decide(delivery)
        delivery.state = DONE
        self.run.settled(delivery, None)

    def settle(self, root: Delivery, ending: Ending | None, rows: list[Delivery]) -> None:
        """Count it."""
        self._decide(root)
        root.state = DONE if ending is None else FINAL_STATE[ending.kind]
        self.run.settled(root, ending)


class CollectExit(Exit):
    """Keeps every outcome, for `map`, in columns: a million outcome objects would keep the garbage collector busy."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.columns = DoneColumns()
        self.others: list[Outcome[Any]] = []

    def entry(self) -> Callable[[Delivery], None]:
        """Keep it: what the last stage hands its deliveries to."""
        run, roots, accounts, columns = self.run, self.run.roots, self.run.accounts, self.columns
        keep_position, keep_item, keep_value = (
            columns.positions.append,
            columns.items.append,
            columns.values.append,
        )
        keep_attempts, keep_elapsed = columns.attempts.append, columns.elapsed.append

        def done(delivery: Delivery) -> None:
            if delivery.state != RUNNING:
                self._decide(delivery)
            delivery.state = DONE
            keep_position(delivery.position)
            keep_item(delivery.item)
            keep_value(delivery.value)
            keep_attempts(delivery.tried)
            keep_elapsed(run.now - delivery.began)
            accounts.done += 1
            roots.open = left = roots.open - 1
            if left <= run.notify_at:
                run.after_settled(delivery, None)

        return done

    def done(self, delivery: Delivery) -> None:
        """Keep it."""
        self.entry()(delivery)

    def settle(self, root: Delivery, ending: Ending | None, rows: list[Delivery]) -> None:
        """Keep it."""
        self._decide(root)
        root.state = DONE if ending is None else FINAL_STATE[ending.kind]
        if ending is None:
            self.columns.keep(root, self.run.clock() - root.began)
        else:
            self.others.append(outcome_of(root, ending, self.run.clock()))
        self.run.settled(root, ending)


class StreamExit(Exit):
    """Hands outcomes to a consumer; an item is settled when its outcome is consumed."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        # A delivery stands for its own outcome, made when it is consumed. Else: root, how it ended, the outcome to hand
        # over, and whether it is the root's last, with which the root is settled.
        self.ready: deque[Delivery | tuple[Delivery, Ending | None, Outcome[Any] | None, bool]] = deque()
        self._consumer: asyncio.Future[None] | None = None
        self._closed = False
        self._is_left = False

    def entry(self) -> Callable[[Delivery], None]:
        """Offer it: what the last stage hands its deliveries to."""
        run, offer = self.run, self.ready.append

        def done(delivery: Delivery) -> None:
            if delivery.state != RUNNING:
                self._decide(delivery)
            delivery.state = DECIDED
            if delivery.began:
                delivery.began = run.now - delivery.began  # from here on the time that it took
            offer(delivery)
            if self._consumer is not None:
                self._wake()
            elif self._is_left:
                self.give_back_unconsumed()

        return done

    def done(self, delivery: Delivery) -> None:
        """Offer it."""
        self.entry()(delivery)

    def settle(self, root: Delivery, ending: Ending | None, rows: list[Delivery]) -> None:
        """Offer it: one outcome for each delivery that left the flow, the root's place going with the last."""
        self._decide(root)
        now = self.run.clock()
        if ending is not None and ending.kind == "returned":
            root.state = RETURNED
            self.run.settled(root, ending)
            return
        outcomes: list[Outcome[Any] | None]
        if ending is None:
            ordered = sorted(rows, key=row_order)
            outcomes = [
                Done(r.item, r.value, r.position, r.attempts + r.tried, now - r.began) for r in ordered
            ]
        else:
            outcomes = [outcome_of(root, ending, now)]
        for outcome in outcomes[:-1]:
            self.ready.append((root, None, outcome, False))
        # A root that gave no row has nothing to consume; its place is given back when the consumer gets there.
        self.ready.append((root, ending, outcomes[-1] if outcomes else None, True))
        self._wake()
        if self._is_left:
            self.give_back_unconsumed()

    def _wake(self) -> None:
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)

    def finish(self) -> None:
        """No more will come."""
        self._closed = True
        self._wake()

    def take(self) -> Outcome[Any] | None:
        """Give the next outcome that is there, its item being settled by that; None where there is none."""
        while self.ready:
            entry = self.ready.popleft()
            if type(entry) is not tuple:
                delivery: Delivery = entry  # type: ignore[assignment]
                delivery.state = DONE
                self.run.settled(delivery, None)
                attempts = delivery.attempts + delivery.tried
                return Done(delivery.item, delivery.value, delivery.position, attempts, delivery.began)
            root, ending, outcome, last = entry
            if last:
                root.state = DONE if ending is None else FINAL_STATE[ending.kind]
                self.run.settled(root, ending)
            if outcome is not None:
                return outcome
        return None

    async def wait(self) -> bool:
        """Wait until there is an outcome to take; False at the end."""
        while not self.ready:
            if self._closed:
                return False
            self._consumer = self.run.loop.create_future()
            try:
                await self._consumer
            finally:
                self._consumer = None
        return True

    def leave(self) -> None:
        """Note that nobody consumes any more: what is there, and what calls that would not end still bring, is returned."""
        self._is_left = True
        self.give_back_unconsumed()

    def give_back_unconsumed(self) -> None:
        """Return what was not consumed: the consumer has left, or the run was cancelled."""
        while self.ready:
            entry = self.ready.popleft()
            root, last = (entry[0], entry[3]) if isinstance(entry, tuple) else (entry, True)
            if last:
                root.state = RETURNED
                self.run.settled(root, Ending("returned"))
