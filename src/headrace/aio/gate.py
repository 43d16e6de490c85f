"""The gate: admission for calls that are not dispatched, such as those of a bare client or of a redirect's next hop.

Rules:
1. It asks the same limits in the same synchronous step as the engine's dispatch does; a limit is one, wherever it is used.
2. A cancelled `enter` has taken nothing, and a permit that was offered to it goes to the next in line.
3. Who waits here for a permit holds none. A call that goes on with another request keeps its permits through a short
   wait for a rate, so that it comes to its end before new calls begin; before any other wait it gives all of them back.
4. A permit that was offered to one who cannot use it yet is offered to the next in line.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from headrace.policies import further as requests
from headrace.policies import limits as admission
from headrace.policies.further import Further
from headrace.policies.limits import Claim, KeyState, Limit
from headrace.policies.signals import Signal

__all__ = ["SHORTEST", "Gate", "wake_waiters"]

#: The longest wait for a rate (seconds) through which a call keeps its permits.
BRIEF = 1.0


def wake_waiters(states: Sequence[KeyState]) -> None:
    """Let those try again who wait for a permit that came free: as many as there are free permits."""
    for state in states:
        line = state.line
        if not line:
            continue
        free = state.free
        while line and free > 0:
            free -= 1
            line.popleft().permit_freed(state)


#: The shortest wait for a rate, in seconds. Timers may fire that early, and a remainder of less would be waited for again
#: and again at the same time.
SHORTEST = 2e-6


class _Waiter:
    """One call that waits for a permit of a key."""

    __slots__ = ("future", "is_under_way", "state")

    def __init__(self, state: KeyState, is_under_way: bool) -> None:
        self.state = state
        self.is_under_way = is_under_way
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stand_in_line(self) -> None:
        waiters = self.state.waiters
        if not self.is_under_way:
            waiters.append(self)
            return
        ahead = 0
        for each in waiters:
            if not (isinstance(each, _Waiter) and each.is_under_way):
                break
            ahead += 1
        waiters.insert(ahead, self)

    def permit_freed(self, state: KeyState) -> None:
        if self.future.done():
            wake_waiters((state,))
        else:
            self.future.set_result(None)

    async def wait(self) -> None:
        try:
            await self.future
        except asyncio.CancelledError:
            if self in self.state.waiters:
                self.state.waiters.remove(self)
            elif self.future.done() and not self.future.cancelled():
                wake_waiters((self.state,))
            raise


class Gate:
    """Admission to calls one by one, in order of asking where they ask for the same permit."""

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or Random()

    async def enter(self, limits: Sequence[Limit], value: Any, held: Sequence[Claim] = ()) -> list[Claim]:
        """Wait until all `limits` admit a call for `value`, and give the claims that `leave` wants back.

        Limits whose key is in `held` are not taken again. Raises CallError where a key or cost cannot be had.
        """
        claims = admission.claim(limits, value, held=held)
        await self.admitted(claims)
        return claims

    @staticmethod
    async def admitted(claims: list[Claim], *, is_under_way: bool = False) -> None:
        """Wait until all claims are taken; cancelled, they are dropped.

        A call that `is_under_way` goes before those that have not begun. It has a worker: if a permit were offered to
        deliveries before it, and these had no other worker to begin with, all would wait for ever.
        """
        loop = asyncio.get_running_loop()
        offered: KeyState | None = None
        try:
            while (wait := admission.admit(claims, now := loop.time())) != 0.0:
                state = admission.blocked(claims, now) if math.isinf(wait) else None
                if offered is not None and offered is not state:
                    wake_waiters((offered,))  # what cannot be used yet is for the next in line
                offered = None
                if state is None:
                    await asyncio.sleep(max(wait, SHORTEST) if math.isfinite(wait) else 0.001)
                    continue
                waiter = _Waiter(state, is_under_way)
                waiter.stand_in_line()
                await waiter.wait()
                offered = state
        except asyncio.CancelledError:
            admission.drop(claims)
            raise

    async def go_on(
        self, plan: Further, step_back: Callable[[], None], may_go_on: Callable[[], bool]
    ) -> bool:
        """Wait until a call has what a further request of it needs; `plan` says what it holds then.

        `step_back` is called where everything that the call held was given back. Where the call is found to be over
        (`may_go_on` is asked after each wait) nothing is taken, and False is given. Cancelled, the call holds what it
        held before, or nothing any more.
        """
        loop = asyncio.get_running_loop()
        leaves = [each.state for each in plan.leaves]
        try:
            while (wait := requests.trade(plan, loop.time())) != 0.0:
                if leaves or wait > BRIEF:
                    break
                await asyncio.sleep(max(wait, SHORTEST))
                if not may_go_on():
                    admission.drop(plan.comes)
                    return False
        except asyncio.CancelledError:
            admission.drop(plan.comes)
            raise
        if wait == 0.0:
            wake_waiters(leaves)
            return True
        step_back()
        wake_waiters(requests.step_back(plan))
        await self.admitted(plan.comes, is_under_way=True)
        requests.settle(plan)
        if may_go_on():
            return True
        self.leave(plan.comes)
        return False

    def leave(self, claims: list[Claim], signal: Signal = "ignore") -> None:
        """Give the permits back, with what the end of the call says of load."""
        if signal != "ignore":
            admission.learn(claims, signal, asyncio.get_running_loop().time(), self._rng)
        wake_waiters(admission.release(claims))
