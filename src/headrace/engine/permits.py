"""The permits of a stage's calls: given back when a call ends, with what its end says of load.

Rules:
1. Each claim that was taken is released once, wherever its call ends: here, in another turn, or one day in its thread.
2. What a call's end says of load is told with the release, and only where a limit learns from it.
3. A call holds each limit once. Its first request is covered by the start it was charged for, and a further one is
   charged to the rates again; requests that a call makes at the same time share its permits.
4. Nothing waits for a permit while it holds one. Where a request has to, all that its call holds is given back before,
   and taken again together with what is missing: calls that need the same limits in another order cannot wait for
   each other. A call goes through a short wait for a rate with its permits, since time passes whoever holds what.
5. What waits for a limit no longer holds it, so a cancellation there finds nothing to give back.
6. What the call took of a budget ends with its permits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.aio.gate import Gate, wake_waiters
from headrace.aio.strain import Strain
from headrace.engine.slot import Held, Slot
from headrace.engine.spending import Spending
from headrace.engine.texts import one_line
from headrace.errors import TimedOut
from headrace.events import KeyHeld
from headrace.item import Delivery
from headrace.policies import limits as admission
from headrace.policies.classify import load_signal
from headrace.policies.further import Further, further, is_moved, settle, step_back
from headrace.policies.limits import Claim, KeyState, Limit
from headrace.policies.rate_headers import RateHint, heed
from headrace.policies.retry import Retry
from headrace.policies.retry_budget import RetryBudget
from headrace.policies.signals import Signal
from headrace.policies.spacing import space
from headrace.ports import current_call

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Permits", "Waits"]

T = TypeVar("T")
#: What has failed for longer than anything waits in a run is looked at again after so many times that wait.
GONE = 6.0
OVER = "no call is under way here any more"


class Permits:
    """What a stage does with the claims of its deliveries once they are admitted."""

    def __init__(self, run: Run, limits: Sequence[Limit], spending: Spending | None) -> None:
        self._run = run
        self._spending = spending
        self._gate = Gate(run.rng)
        self.limits = tuple(limits)
        self._learns = any(limit.learns for limit in limits)
        self._strain = Strain(run.loop) if any(limit.is_adaptive for limit in limits) else None
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
        run, now = self._run, self._run.clock()
        may_grow = self._strain is None or not self._strain.is_on(now)
        for state in admission.learn(claims, signal, now, run.rng, may_grow=may_grow):
            assert state.circuit is not None
            if now - state.circuit.failing_since > run.parking.wait:
                admission.hold(state, now + GONE * run.parking.wait)
            self._hold_began(state, "nearly all calls fail")

    def hold(self, delivery: Delivery, seconds: float, error: Exception) -> None:
        """Let everything of a delivery's keys wait for `seconds`, as its failed call asks for, and tell of it."""
        if delivery.claims:
            for state in admission.hold(delivery.claims, self._run.clock() + seconds):
                self._hold_began(state, one_line(error)[:200])

    def _hold_began(self, state: KeyState, reason: str) -> None:
        """Tell those who listen of a key that is held, and have parked what waits for it for too long."""
        run = self._run
        seconds = state.held_until - run.clock()
        if run.bus is not None:
            at = time.time()
            run.bus.emit(KeyHeld(at, state.limit.name, str(state.key), at + seconds, reason))
        run.parking.hold_began(seconds)

    def wait_of_budget(self, delivery: Delivery, retry: Retry, calls: Callable[[], int]) -> float:
        """Give the seconds that a repetition is to wait so that its key's repetitions stay within their share.

        `calls` counts those of the stage, which is one key where no limit has any.
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
        return self._retries.take(calls(), now)

    @staticmethod
    def give_back_late(slot: Slot) -> None:
        """Give back what `keep` left to a call that ended after all."""
        if isinstance(slot.stuck, Held) and slot.stuck.claims:
            wake_waiters(admission.release(slot.stuck.claims))

    # ------------------------------------------------------------------ requests that a call makes

    def covers(self, slot: Slot, claims: list[Claim], value: Any, item: Any) -> bool:
        """Say whether a call that holds `claims` may make a request for `value` as it is, and count it."""
        delivery = slot.delivery
        if slot.charged is claims or delivery is None:
            return False
        known = value is delivery.value or (item is not None and item is delivery.value)
        if not known and is_moved(claims, value, _is_url(delivery.value)):
            return False
        slot.charged = claims
        return True

    async def readmit(
        self, slot: Slot, value: Any, limits: Sequence[Limit], is_answered: bool
    ) -> list[Claim]:
        """Let the running attempt make a request for `value`; give the claims on `limits` that it does not hold.

        Requests of one attempt are let through one after the other, and share its permits.
        """
        if not self._is_here():
            # The call is in a thread, with a loop of its own: what belongs to the run's loop cannot be waited for here.
            return await self._gate.enter(limits, value)
        delivery = slot.delivery
        if delivery is None:
            raise LookupError(OVER)
        waits = self._waits_of(slot, delivery)
        with waits:
            async with waits.turn:
                while True:  # again, where another request of the call gave the permits back meanwhile
                    waits.check()
                    held = delivery.claims
                    plan = self._plan(slot, delivery, value, limits)
                    if is_answered and plan.leaves:
                        self._learn(plan.leaves, "success")
                        is_answered = False
                    waits.is_let_go = False
                    if await self._gate.go_on(plan, waits.let_go, lambda held=held: waits.holds(held)):  # type: ignore[misc]
                        delivery.claims = slot.charged = plan.kept
                        return plan.own

    def _plan(self, slot: Slot, delivery: Delivery, value: Any, limits: Sequence[Limit]) -> Further:
        held = delivery.claims
        of_urls = _is_url(delivery.value)
        if held or not self.limits:
            return further(held or (), value, limits, is_first=slot.charged is not held, of_urls=of_urls)
        # A request of the call was broken off while it had given everything back: all of it is taken anew.
        own = [limit for limit in limits if limit not in self.limits]
        plan = further((), value, own, is_first=False, of_urls=of_urls)
        try:
            plan.comes[:0] = admission.claim(self.limits, delivery.value)
        except BaseException:
            admission.drop(plan.comes)
            raise
        return plan

    async def aside(self, slot: Slot, waiting: Awaitable[T], rest: float) -> T:
        """Wait with all permits given back, and take them again.

        Other requests of the attempt do not wait for this one: what it waits for may be waiting for them.
        """
        delivery = slot.delivery
        if delivery is None or not self._is_here():
            return await waiting
        waits = self._waits_of(slot, delivery)
        with waits:
            held = delivery.claims or ()
            if rest > 0.0 and any(claim.state.limit.by is not None for claim in held):
                admission.hold(held, self._run.loop.time() + rest)
            plan = further(held, None, is_first=slot.charged is not held, of_urls=False)
            delivery.claims = []
            wake_waiters(step_back(plan))
            try:
                result = await waiting
                await waits.turn.acquire()
            except BaseException:
                admission.drop(plan.comes)
                raise
            try:
                if not waits.is_on or delivery.claims:
                    admission.drop(
                        plan.comes
                    )  # the attempt is over, or another request of it has taken them again
                    waits.check()
                    return result
                await self._gate.admitted(plan.comes, is_under_way=True)
                settle(plan)
                if not waits.is_on:
                    self._gate.leave(plan.comes)
                    waits.check()
                delivery.claims = plan.comes
                if not plan.is_first:
                    slot.charged = plan.comes
                return result
            finally:
                waits.turn.release()

    def _waits_of(self, slot: Slot, delivery: Delivery) -> Waits:
        waits = slot.waits
        if waits is None or not waits.is_on:
            waits = slot.waits = Waits(self._run, slot, delivery)
        return waits

    def hint(self, slot: Slot, hint: RateHint) -> None:
        """Hold the keys of the running attempt where an answer says that their rate is about to be used up."""
        run = self._run
        delivery = slot.delivery
        if delivery is None or not delivery.claims or not self._is_here():
            return
        for state in heed(delivery.claims, hint, run.loop.time(), run.rng):
            self._hold_began(state, f"{hint.remaining} calls left for {hint.reset:.3g} s")

    def space(self, slot: Slot, value: Any, interval: float) -> bool:
        """Slow the keys down that the running attempt's limits have for `value`; say whether there are any."""
        delivery = slot.delivery
        if delivery is None or not delivery.claims or not self._is_here():
            return False
        return space(delivery.claims, interval, value, _is_url(delivery.value), self._run.loop.time())

    def _is_here(self) -> bool:
        """Whether this is the run's loop, and not one in a thread of a call's own."""
        return asyncio.get_running_loop() is self._run.loop


class Waits:
    """The waits of one attempt for limits. While there are any, its time limit stands still, but not its `within=`."""

    __slots__ = ("_count", "_delivery", "_left", "_run", "_slot", "_tried", "is_let_go", "turn")

    def __init__(self, run: Run, slot: Slot, delivery: Delivery) -> None:
        self._run = run
        self._slot = slot
        self._delivery = delivery
        self._tried = delivery.tried
        self._count = 0
        self._left: float | None = None
        self.is_let_go = False
        self.turn = asyncio.Lock()

    @property
    def is_on(self) -> bool:
        """Whether the attempt is still under way."""
        return self._slot.delivery is self._delivery and self._delivery.tried == self._tried

    @property
    def is_waiting(self) -> bool:
        """Whether a request of the attempt waits, or is about to."""
        return self._count > 0 and self.is_on

    def check(self) -> None:
        """Raise LookupError where the attempt is over."""
        if not self.is_on:
            raise LookupError(OVER)

    def let_go(self) -> None:
        """Note that the attempt holds nothing."""
        self.is_let_go = True
        self._delivery.claims = []

    def holds(self, held: Any) -> bool:
        """Whether the attempt still holds just what it did when its wait began, or nothing where that was let go."""
        claims = self._delivery.claims
        return self.is_on and (not claims if self.is_let_go else claims is held)

    def __enter__(self) -> None:
        self._count += 1
        slot = self._slot
        if self._count == 1 and slot.ending is None:
            self._left = None if slot.deadline is None else slot.deadline - self._run.loop.time()
            self._set(self._delivery.until)

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count or not self.is_on or self._slot.ending is not None or self._left is None:
            return
        deadline = self._run.loop.time() + self._left
        until = self._delivery.until
        # A sum that was rounded down must not end the attempt a moment before its `within=` does.
        self._set(deadline if until is None or deadline < until - 1e-6 else until)

    def _set(self, deadline: float | None) -> None:
        self._slot.deadline = deadline
        if deadline is not None and deadline < self._run.sweep.at:
            self._run.sweep.arm(deadline)


def _is_url(value: Any) -> bool:
    """Whether a stage's value is a URL, so that its keys are those of a URL."""
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))
