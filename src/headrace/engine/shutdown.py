"""How a run is stopped: drain, then cancel.

    running ─► draining ─► cancelling ─► flushing ─► closed

Rules:
1. Draining lets running calls finish and takes no more; an item whose *once* call went out is carried to its settlement, and
   where a budget is spent, so is one that has left the stages of that budget.
2. Cancelling ends the running calls; what was decided is still committed.
3. Each phase has an end: the grace, then the patience with calls that do not end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.engine.batch import Gatherer
from headrace.engine.committer import Committer
from headrace.engine.lineage import is_sent
from headrace.engine.stage import Caller
from headrace.errors import EngineError
from headrace.item import Delivery
from headrace.policies.budget import Budget

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Shutdown"]

#: How long calls may take to end when they are cancelled after a drain, in seconds: they have had the grace already.
STOP_PATIENCE = 1.0


class Shutdown:
    """Stops a run, and remembers why."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.is_stopping = False
        self.reason: str | None = None
        self.signal: int | None = None
        self._spent: Budget | None = None  # the budget whose end stops the run
        self.leaves_work = False  # is what is left work undone? Not where `take` stopped the source

    def drain(self, reason: str, signal: int | None = None, *, spent: Budget | None = None) -> None:
        """Drain: let running calls finish, take no more. Asked again while draining, cancel.

        `spent` is the budget that has come to its end: calls that have reserved of it count as running ones.
        """
        run = self.run
        if run.state in ("draining", "cancelling", "flushing", "closed"):
            if signal is not None:
                self.signal = self.signal or signal
            if run.state == "draining":
                self.cancel(reason, signal)
            return
        self._spent = spent
        self.note(reason, signal)
        run.set_state("draining", reason)
        self._stop_taking()
        run.later(run.options.grace, self.cancel, f"grace of {run.options.grace:g} s is over")
        run.check_over()

    def cancel(self, reason: str, signal: int | None = None) -> None:
        """Cancel the running calls; what was decided is still committed."""
        run = self.run
        if run.state in ("cancelling", "flushing", "closed"):
            return
        self.note(reason, signal)
        patience = STOP_PATIENCE if self.is_stopping else run.options.grace
        run.set_state("cancelling", reason)
        self._stop_taking()
        for caller in run.callers:
            for slot in tuple(caller.slots):
                caller.stop(slot)
        run.later(patience, self._give_up_stuck)
        self._take_back_unconsumed()
        run.check_over()

    def _take_back_unconsumed(self) -> None:
        """Take back what a consumer has not consumed."""
        run = self.run
        give_back = getattr(run.exit, "give_back_unconsumed", None)
        if give_back is not None:
            give_back()

    def note(self, reason: str, signal: int | None = None) -> None:
        """Note why the run stops, the first reason and the first signal."""
        if not self.leaves_work:
            self.reason = reason  # that `take` stopped the source before is no reason for what is left
        self.signal = self.signal or signal
        self.leaves_work = True

    def carries_on(
        self, delivery: Delivery, at: Caller | Gatherer | None = None, *, called: bool = False
    ) -> bool:
        """Whether a delivery may go on: while the run drains, only one of which a *once* call went out.

        Where the drain is for a budget that is spent, so may what is `at` a stage beyond the last one of that budget, or was
        `called` by that one just now: it is paid.
        """
        if not self.is_stopping:
            return True
        return self.run.state == "draining" and (self._is_paid(at, called) or is_sent(delivery))

    def _is_paid(self, at: Caller | Gatherer | None, called: bool) -> bool:
        if self._spent is None or at is None:
            return False
        nodes = self.run.nodes
        last = max(number for number, node in enumerate(nodes) if node.spec.budget is self._spent)
        return nodes.index(at) >= last + (not called)

    def _stop_taking(self) -> None:
        run = self.run
        first, self.is_stopping = not self.is_stopping, True
        run.intake.resume()
        run.intake.stop()
        if first:
            run.stop_reading()
        run.window.close()
        for node in run.nodes:
            if isinstance(node, Caller):
                self._drain_caller(node)
            elif isinstance(node, Gatherer):
                for member in node.drain():
                    run.endings.give_back(member)
        for caller, delivery in run.delays.drain():
            if self.carries_on(delivery, caller):
                caller.retry_due(delivery)
            else:
                caller.waiting -= 1
                run.endings.give_back(delivery)
        if isinstance(run.exit, Committer):
            run.exit.hurry()

    def _drain_caller(self, caller: Caller) -> None:
        run = self.run
        carried = []
        for delivery in caller.dispatch.drain():
            if self.carries_on(delivery, caller):
                carried.append(delivery)
            else:
                run.endings.give_back(delivery)
        is_paid = self._spent is not None and caller.spec.budget is self._spent and run.state == "draining"
        if not is_paid:
            caller.recall()
        caller.dispatch.open()
        for delivery in carried:
            caller.dispatch.accept(delivery)
        if caller.ahead is not None and not is_paid:
            caller.ahead.withdraw()

    def _give_up_stuck(self) -> None:
        """Go on without the calls that do not end although they were cancelled."""
        run = self.run
        for caller in run.callers:
            for slot in tuple(caller.slots):
                if slot.task is not None and not slot.task.done() and slot.delivery is not None:
                    caller.give_up(slot, None)
        if isinstance(run.trouble_raised, EngineError):
            run.end()  # a fault of ours may have lost track of items: better to end without them than to hang
        run.check_over()
