"""The permits of a stage's calls: given back when a call ends, with what its end says of load.

Rules:
1. Each claim that was taken is released once, wherever its call ends: here, in another turn, or one day in its thread.
2. What a call's end says of load is told with the release, and only where a limit learns from it.
3. What the call took of a budget ends with its permits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.aio.gate import Gate, wake_waiters
from headrace.engine.slot import Held, Slot
from headrace.engine.spending import Spending
from headrace.errors import TimedOut
from headrace.item import Delivery
from headrace.policies import limits as admission
from headrace.policies.classify import load_signal
from headrace.policies.limits import Claim, Limit
from headrace.policies.retry import Retry
from headrace.policies.retry_budget import RetryBudget
from headrace.policies.signals import Signal
from headrace.ports import current_call

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Permits"]


class Permits:
    """What a stage does with the claims of its deliveries once they are admitted."""

    def __init__(self, run: Run, limits: Sequence[Limit], spending: Spending | None) -> None:
        self._run = run
        self._spending = spending
        self._gate = Gate()
        self._learns = any(limit.learns for limit in limits)
        self._corrects = any(limit.actual is not None for limit in limits)
        self._retries: RetryBudget | None = None  # of the stage, where no limit has keys

    def settle(self, delivery: Delivery, value: Any) -> None:
        """Correct what a call cost by its result, and give its permits back."""
        if self._spending is not None:
            self._spending.settle(delivery, value)
        if self._corrects and delivery.claims:
            admission.refund(delivery.claims, value)
        self.release(delivery, "success")

    def cancel(self, delivery: Delivery) -> None:
        """Give back all that an attempt took that certainly never started."""
        if self._spending is not None:
            self._spending.give_back(delivery)
        claims, delivery.claims = delivery.claims, None
        if claims:
            wake_waiters(admission.cancel(claims))

    def signal_of(self, delivery: Delivery, error: Exception) -> Signal:
        """Say what a failed call tells of load; nothing where it was cut short by the end of its item's time."""
        if not self._learns or not delivery.claims:
            return "ignore"
        if isinstance(error, TimedOut) and delivery.until is not None and self._run.clock() >= delivery.until:
            return "ignore"
        return load_signal(error)

    def release(self, delivery: Delivery, signal: Signal = "ignore") -> None:
        """Give a delivery's permits back, with what the end of its call says of load.

        Those of a call that still hangs in its thread go back when it returns.
        """
        if self._spending is not None:
            self._spending.keep(delivery)
        claims, delivery.claims = delivery.claims, None
        if not claims:
            return
        if self._learns and signal != "ignore":
            self._learn(claims, signal)
        call = current_call.get(None)
        stuck = call.stuck if call is not None else None
        if stuck is not None and call is not None:
            call.stuck = None
            stuck.on_return = lambda: wake_waiters(admission.release(claims))
        else:
            wake_waiters(admission.release(claims))

    def keep(self, slot: Slot, delivery: Delivery, error: Exception | None) -> None:
        """Leave the permits to a call that will not end; what made it be given up may tell of load."""
        if self._spending is not None:
            self._spending.keep(delivery)
        claims, delivery.claims = delivery.claims, None
        slot.stuck = Held(claims)
        if claims and error is not None and self._learns:
            self._learn(claims, load_signal(error))

    def _learn(self, claims: Sequence[Claim], signal: Signal) -> None:
        """Tell the keys how a call ended, and those who listen which of them pause by that."""
        run = self._run
        for state in admission.learn(claims, signal, run.clock(), run.rng):
            assert state.circuit is not None
            run.delays.tell_held(
                state, state.circuit.open_until - run.clock(), "nearly all calls fail", run.bus
            )

    def wait_of_budget(self, delivery: Delivery, retry: Retry, calls: int) -> float:
        """Give the seconds that a repetition is to wait so that its key's repetitions stay within their share.

        `calls` are those of the stage, which is one key where no limit has any.
        """
        if retry.budget is None:
            return 0.0
        now: float = self._run.clock()
        claims: Sequence[Claim] = delivery.claims or ()
        for each in claims:
            state = each.state
            if state.limit.by is not None:
                if state.retries is None:
                    state.retries = RetryBudget(retry.budget, now)
                return state.retries.take(state.ended + 1, now)
        if self._retries is None:
            self._retries = RetryBudget(retry.budget, now)
        return self._retries.take(calls, now)

    @staticmethod
    def give_back_late(slot: Slot) -> None:
        """Give back what `keep` left to a call that ended after all."""
        if isinstance(slot.stuck, Held) and slot.stuck.claims:
            wake_waiters(admission.release(slot.stuck.claims))

    async def readmit(self, slot: Slot, value: Any) -> None:
        """Change the keyed permits of the running attempt for those of `value`; its time limit stands still."""
        delivery = slot.delivery
        if delivery is None or not delivery.claims:
            return
        keyed = [claim for claim in delivery.claims if claim.state.limit.by is not None]
        if not keyed:
            return
        loop, sweep = self._run.loop, self._run.sweep
        limits = [claim.state.limit for claim in keyed]
        delivery.claims = [claim for claim in delivery.claims if claim not in keyed]
        # it was answered, if only with a redirect
        self._learn(keyed, "success")
        wake_waiters(admission.release(keyed))
        left = None if slot.deadline is None else slot.deadline - loop.time()
        slot.deadline = None
        claims = await self._gate.enter(limits, value, held=delivery.claims)
        delivery.claims = [*delivery.claims, *claims]
        if left is not None:
            slot.deadline = loop.time() + left
            if slot.deadline < sweep.at:
                sweep.arm(slot.deadline)
