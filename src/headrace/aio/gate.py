"""The gate: admission for calls that are not dispatched, such as those of a bare client or of a redirect's next hop.

Rules:
1. It asks the same limits in the same synchronous step as the engine's dispatch does; a limit is one, wherever it is used.
2. A cancelled `enter` has taken nothing, and a permit that was offered to it goes to the next in line.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from random import Random
from typing import Any

from headrace.policies import limits as admission
from headrace.policies.limits import Claim, KeyState, Limit
from headrace.policies.signals import Signal

__all__ = ["SHORTEST", "Gate", "wake_waiters"]


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

    __slots__ = ("future", "state")

    def __init__(self, state: KeyState) -> None:
        self.state = state
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

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
        loop = asyncio.get_running_loop()
        claims = admission.claim(limits, value, held=held)
        try:
            while (wait := admission.admit(claims, now := loop.time())) != 0.0:
                state = admission.blocked(claims, now) if math.isinf(wait) else None
                if state is None:
                    await asyncio.sleep(max(wait, SHORTEST) if math.isfinite(wait) else 0.001)
                    continue
                waiter = _Waiter(state)
                state.waiters.append(waiter)
                await waiter.wait()
        except asyncio.CancelledError:
            admission.drop(claims)
            raise
        return claims

    def leave(self, claims: list[Claim], signal: Signal = "ignore") -> None:
        """Give the permits back, with what the end of the call says of load."""
        if signal != "ignore":
            admission.learn(claims, signal, asyncio.get_running_loop().time(), self._rng)
        wake_waiters(admission.release(claims))
