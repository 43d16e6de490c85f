"""One key of a limit: what runs, what waits, and what was learnt of the other side.

Rules:
1. Whether a call may start is a matter of four numbers: how many run, how many may (`capacity`), until when the key is
   held, and its rates. What is learnt from the ends of calls moves these numbers, and nothing else does.
2. `capacity` is the least of what was given, what the level bears, and what the breaker lets through.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Hashable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from headrace.policies.adaptive import Adaptive, Aimd
from headrace.policies.adaptive_rate import AdaptiveRate
from headrace.policies.breaker import Circuit
from headrace.policies.gcra import Gcra
from headrace.policies.retry_budget import RetryBudget
from headrace.policies.signals import Signal

if TYPE_CHECKING:
    from headrace.policies.limits import Limit

__all__ = ["Claim", "KeyState"]

#: How long to wait, in seconds, where the other side counts starts and does not say how long.
UNASKED: Final = 1.0


class KeyState:
    """What is running, reserved and waiting for one key of a limit.

    `waiters` is the engine's own: whom to wake when a permit comes free. `claims` counts the claims not yet
    given back, `ended` the calls that are over. `capacity` is how many calls may run at once now. `paced` is the rate
    that was found, where the other side has asked for one.
    """

    __slots__ = (
        "_found_rate",
        "_given",
        "adaptive",
        "capacity",
        "circuit",
        "claims",
        "ended",
        "gcra",
        "held_until",
        "inflight",
        "key",
        "limit",
        "paced",
        "retries",
        "waiters",
    )

    def __init__(self, limit: Limit, key: Hashable) -> None:
        self.limit = limit
        self.key = key
        self.inflight = 0
        self.claims = 0
        self.ended = 0
        most = limit.concurrency
        self.adaptive = Aimd(most) if isinstance(most, Adaptive) else None
        self._found_rate = AdaptiveRate() if isinstance(most, Adaptive) else None
        self.paced: AdaptiveRate | None = None
        self.circuit = None if limit.breaker is None else Circuit(limit.breaker)
        self._given = sys.maxsize if most is None else most.min if isinstance(most, Adaptive) else most
        self.capacity = self._given
        self.gcra = None if limit.rate is None else Gcra(limit.rate, limit.burst)
        self.retries: RetryBudget | None = None
        self.held_until = -math.inf
        self.waiters: deque[Any] = deque()

    @property
    def free(self) -> int:
        """How many permits are free; very many where the limit has no `concurrency`, fewer than none where
        the level has just fallen.
        """
        return self.capacity - self.inflight

    @property
    def learns(self) -> bool:
        """Whether the ends of calls change anything here."""
        return self.adaptive is not None or self.circuit is not None

    def wait(self, cost: float, now: float) -> float:
        """Give the seconds until its holds and rates allow a start of `cost`. Takes nothing."""
        wait = max(0.0, self.held_until - now)
        if self.gcra is not None:
            wait = max(wait, self.gcra.wait(now, cost))
        return wait if self.paced is None else max(wait, self.paced.wait(now))

    def learn(self, signal: Signal, began: float, now: float, rng: Random | None = None) -> bool:
        """Take in how a call ended that began at `began`; say whether the breaker has opened by that."""
        adaptive = self.adaptive
        if adaptive is not None:
            was_lowest = adaptive.is_lowest
            adaptive.learn(signal, began, now, self.inflight)
            self._learn_rate(signal, began, now, was_lowest)
        opened = False
        if self.circuit is not None:
            opened = self.circuit.learn(signal, began, now, rng)
            if opened:
                self.held_until = max(self.held_until, self.circuit.open_until)
        self._set_capacity()
        return opened

    def _learn_rate(self, signal: Signal, began: float, now: float, was_lowest: bool) -> None:
        rate = self._found_rate
        assert rate is not None
        if signal == "success" or signal == "fault":
            rate.answered(began, now)
        elif signal in ("throttled", "overload") and (self.held_until > now or was_lowest):
            # It asked for a wait, or refuses even the fewest calls at once: it counts starts, not calls.
            self.held_until = max(self.held_until, now + UNASKED)
            rate.asked(began, now, self.held_until)
            self.paced = rate

    def _set_capacity(self) -> None:
        capacity = self._given if self.adaptive is None else self.adaptive.admits
        circuit = self.circuit
        self.capacity = capacity if circuit is None or circuit.is_closed else min(capacity, circuit.admits)

    def shift(self, seconds: float) -> None:
        """Move all times by `seconds`: the clock was replaced by another one."""
        self.held_until += seconds
        for part in (self.gcra, self._found_rate, self.circuit):
            if part is not None:
                part.shift(seconds)

    def is_idle(self, now: float) -> bool:
        """Say whether nothing would be lost if this state were forgotten at `now`."""
        return (
            self.claims == 0
            and not self.waiters
            and self.held_until <= now
            and (self.gcra is None or self.gcra.is_recovered(now))
            and (self.adaptive is None or self.adaptive.is_idle(now))
            and (self.paced is None or self.paced.is_idle(now))
            and (self.circuit is None or self.circuit.is_idle(now))
        )

    def __repr__(self) -> str:
        return (
            f"<KeyState {self.limit.name}[{self.key!r}] running={self.inflight} waiters={len(self.waiters)}>"
        )


class Claim:
    """What one call needs, or holds, of one key. `taken` says which; `began` when, where a level learns of it."""

    __slots__ = ("began", "cost", "state", "taken")

    def __init__(self, state: KeyState, cost: float) -> None:
        self.state = state
        self.cost = cost
        self.taken = False
        self.began = 0.0

    def __repr__(self) -> str:
        return f"<Claim {self.state.limit.name}[{self.state.key!r}] cost={self.cost:g} taken={self.taken}>"
