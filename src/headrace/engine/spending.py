"""What the calls of a stage take of its budget, and what happens when the next one does not fit.

Rules:
1. A call reserves right before it starts, and what it reserved ends with it: settled, kept, or given back where it
   certainly never started.
2. The first call that does not fit stops its stage, whether or not a later one would fit. It queues again while calls under
   way may give back what it needs; where they cannot, it drains the run.
3. What has reserved before a drain goes on, also where its lane has not begun it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError
from headrace.item import QUEUED, Delivery
from headrace.policies.budget import Reservation

if TYPE_CHECKING:
    from headrace.engine.stage import Caller

__all__ = ["Spending", "spending_of"]

End = Callable[[Delivery], None]


def spending_of(caller: Caller) -> Spending | None:
    """Give what looks after a stage's budget; None for a stage without one."""
    return None if caller.spec.budget is None else Spending(caller)


class Spending:
    """The reservations of a stage's calls."""

    def __init__(self, caller: Caller) -> None:
        assert caller.spec.budget is not None
        self._caller = caller
        self._run = caller.run
        self._budget = caller.spec.budget
        self._reserved: dict[Delivery, Reservation] = {}  # of the calls under way
        self._waits = False  # for a reservation to end
        self._is_spent = False

    def reserve(self, delivery: Delivery) -> End | None:
        """Reserve what the delivery's call may cost; where it may not start now, give what is to be done with it."""
        if self._is_spent:
            return self._run.endings.give_back
        if self._waits:
            return self._wait
        try:
            reservation = self._budget.reserve(delivery.value)
        except HeadraceError as error:
            refusal = error
            return lambda delivery: self._run.endings.fail(delivery, self._caller.spec.name, refusal)
        if reservation is not None:
            self._reserved[delivery] = reservation
            return None
        return self._wait if self._budget.may_fit_later else self._stop

    def _stop(self, delivery: Delivery) -> None:
        """Stop the run, and return the delivery whose call did not fit."""
        self._is_spent = True
        shutdown = self._run.shutdown
        if not shutdown.is_stopping:
            shutdown.drain(self._budget.shortage(), spent=self._budget)
        self._run.endings.give_back(delivery)

    def _wait(self, delivery: Delivery) -> None:
        """Queue the delivery again, and let the stage take nothing until a reservation of its budget ends."""
        if not self._run.shutdown.carries_on(delivery, self._caller):
            self._run.endings.give_back(delivery)
            return
        dispatch = self._caller.dispatch
        dispatch.close()
        if not self._waits:
            self._waits = True
            self._budget.waiters.append(self)
        delivery.state = QUEUED
        if not delivery.tried and not delivery.attempts:
            delivery.began = 0.0  # its first call is yet to be admitted
        self._run.delays.watch(self._caller, delivery)
        dispatch.put_back((delivery,))

    def _wake(self) -> None:
        """Let those go on that waited for what has ended just now."""
        waiters, self._budget.waiters = self._budget.waiters, []
        for spending in waiters:
            spending.go_on()

    def go_on(self) -> None:
        """Take again."""
        self._waits = False
        if self._run.state in ("running", "draining"):  # a pause ends by itself
            dispatch = self._caller.dispatch
            dispatch.is_open = True
            dispatch.wake_more()

    # ------------------------------------------------------------------ how a reservation ends

    def settle(self, delivery: Delivery, value: Any) -> None:
        """Count what a call cost by its result."""
        reservation = self._reserved.pop(delivery, None)
        if reservation is not None:
            self._budget.settle(reservation, value)
            self._wake()

    def keep(self, delivery: Delivery) -> None:
        """Count a call that ended without a result, if it reserved anything."""
        reservation = self._reserved.pop(delivery, None)
        if reservation is not None:
            self._budget.keep(reservation)
            self._wake()

    def give_back(self, delivery: Delivery) -> None:
        """Take back the reservation of a call that certainly never started."""
        reservation = self._reserved.pop(delivery, None)
        if reservation is not None:
            self._budget.give_back(reservation)
            self._wake()
