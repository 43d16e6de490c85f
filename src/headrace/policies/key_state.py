"""One key of a limit: what runs, what waits, and what was learnt of the other side.

Rules:
1. Whether a call may start is a matter of four numbers: how many run, how many may (`capacity`), until when the key is
   held, and its rates. What is learnt from the ends of calls moves these numbers, and nothing else does.
2. `capacity` is the least of what was given, what the level bears, and what the breaker lets through.
3. Who refuses counts starts, or calls at once. Where it refused one of more at once than it ever took, it is calls, and
   only the level falls. Where it had taken as many before, or refuses the fewest there can be, it is starts, and there
   is a rate, too: at once if it asks for a wait, and else the second time.
4. There may be very many keys, most of them for one call: what a key needs only later is made later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from headrace.policies.adaptive import KEPT_IN_CROWD, Adaptive, Aimd, after_first
from headrace.policies.adaptive_rate import AdaptiveRate
from headrace.policies.breaker import Circuit
from headrace.policies.retry_budget import RetryBudget
from headrace.policies.signals import Signal

if TYPE_CHECKING:
    from headrace.policies.limits import Limit

__all__ = ["Claim", "KeyState"]

#: How long to wait, in seconds, where the other side counts starts and does not say how long.
UNASKED: Final = 1.0
NEVER: Final = -math.inf


class KeyState:
    """What is running, reserved and waiting for one key of a limit.

    `waiters` is the engine's own: whom to wake when a permit comes free; `line` is the same, or None as long as nobody
    ever waited, as with most of very many keys. `claims` counts the claims not yet given back, `ended` the calls that
    are over. `capacity` is how many calls may run at once now. `paced` is the rate that was found, where the other side
    has asked for one.
    """

    __slots__ = (
        "_circuit",
        "_first",
        "_found_rate",
        "_has_begun",
        "_level",
        "capacity",
        "claims",
        "ended",
        "gcra",
        "held_until",
        "inflight",
        "key",
        "limit",
        "line",
        "paced",
        "retries",
    )

    def __init__(self, limit: Limit, key: Hashable) -> None:
        self.limit = limit
        self.key = key
        self.inflight = self.claims = self.ended = 0
        self.capacity = limit.capacity
        self.gcra = None if limit.gcra is None else limit.gcra.fresh()
        self._first: tuple[float, float, int] | None = None
        self._has_begun = False
        self._level: Aimd | None = None
        self._found_rate: AdaptiveRate | None = None
        self._circuit: Circuit | None = None
        self.paced: AdaptiveRate | None = None
        self.retries: RetryBudget | None = None
        self.held_until = NEVER
        self.line: deque[Any] | None = None

    @property
    def waiters(self) -> deque[Any]:
        """Give the line of those who wait for a permit."""
        if self.line is None:
            self.line = deque()
        return self.line

    @property
    def adaptive(self) -> Aimd | None:
        """Give the level, where there is one to find."""
        self._begin()
        return self._level

    @property
    def circuit(self) -> Circuit | None:
        """Give the breaker, where there is one."""
        self._begin()
        return self._circuit

    @property
    def free(self) -> int:
        """How many permits are free; very many where the limit has no `concurrency`, fewer than none where
        the level has just fallen.
        """
        return self.capacity - self.inflight

    @property
    def is_open(self) -> bool:
        """Whether its breaker is open, or lets probes through only."""
        return self._circuit is not None and not self._circuit.is_closed

    def wait(self, cost: float, now: float) -> float:
        """Give the seconds until its holds and rates allow a start of `cost`. Takes nothing."""
        wait = max(0.0, self.held_until - now)
        if self.gcra is not None:
            wait = max(wait, self.gcra.wait(now, cost))
        return wait if self.paced is None else max(wait, self.paced.wait(now))

    def charge(self, cost: float, now: float) -> None:
        """Let a start of `cost` count in its rates."""
        if self.gcra is not None:
            self.gcra.take(now, cost)
        if self.paced is not None:
            self.paced.take(now)

    def learn(
        self,
        signal: Signal,
        began: float,
        now: float,
        rng: Random | None = None,
        *,
        may_grow: bool = True,
        at_once: int = 1,
    ) -> bool:
        """Take in how a call ended that began at `began` as one of `at_once`; say whether the breaker has opened by that."""
        if signal == "ignore":
            return False
        if not self._has_begun:
            if signal == "success" and self._first is None and may_grow:
                self._first = began, now, self.inflight
                most = self.limit.concurrency
                if isinstance(most, Adaptive):
                    self.capacity = after_first(most, self.inflight)
                return False
            self._begin()
        level, circuit = self._level, self._circuit
        if level is not None:
            is_too_many = not level.is_lowest and at_once > level.borne
            may_count_starts = (
                self.held_until > now
                or level.is_lowest
                or (signal == "throttled" and level.is_no_limit(at_once, began, now))
            )
            level.learn(
                signal,
                began,
                now,
                self.inflight,
                may_grow=may_grow,
                at_once=at_once,
                waits=self.held_until > now,
            )
            if may_count_starts or signal == "success" or signal == "fault":
                self._learn_rate(signal, began, now, is_too_many)
        opened = False
        if circuit is not None:
            opened = circuit.learn(signal, began, now, rng)
            if opened:
                self.held_until = max(self.held_until, circuit.open_until)
        self._set_capacity()
        return opened

    def _begin(self) -> None:
        """Make what learns, and tell it of the first success: of very many keys, most have just that."""
        if self._has_begun:
            return
        self._has_begun = True
        limit, first, self._first = self.limit, self._first, None
        if isinstance(limit.concurrency, Adaptive):
            self._level = Aimd(limit.concurrency)
            self._found_rate = AdaptiveRate()
        if limit.breaker is not None:
            self._circuit = Circuit(limit.breaker)
        if first is not None:
            began, now, inflight = first
            if self._level is not None and self._found_rate is not None:
                self._level.learn("success", began, now, inflight, at_once=1)
                self._found_rate.answered(began, now)
            if self._circuit is not None:
                self._circuit.learn("success", began, now)

    def _learn_rate(self, signal: Signal, began: float, now: float, is_too_many: bool) -> None:
        rate = self._found_rate
        assert rate is not None
        if signal == "success" or signal == "fault":
            rate.answered(began, now)
        elif signal != "throttled" and signal != "overload":
            return
        elif is_too_many:
            rate.refused(began, now)
        else:
            # It refuses though it had taken as many at once before, or refuses even the fewest: it counts starts.
            self.held_until = max(self.held_until, now + UNASKED)
            rate.asked(began, now, self.held_until)
            self.paced = rate

    def _set_capacity(self) -> None:
        capacity = self.limit.capacity if self._level is None else self._level.admits
        circuit = self._circuit
        self.capacity = capacity if circuit is None or circuit.is_closed else min(capacity, circuit.admits)

    def shift(self, seconds: float) -> None:
        """Move all times by `seconds`: the clock was replaced by another one."""
        self.held_until += seconds
        if self._first is not None:
            began, ended, inflight = self._first
            self._first = began + seconds, ended + seconds, inflight
        for part in (self.gcra, self._found_rate, self._circuit):
            if part is not None:
                part.shift(seconds)

    def is_idle(self, now: float, crowded: bool = False) -> bool:
        """Say whether nothing would be lost if this state were forgotten at `now`; hardly anything, where it is
        `crowded`.
        """
        if self.claims or self.line or self.held_until > now:
            return False
        if self._first is not None and not self._has_begun:
            if 0.0 <= now - self._first[1] < (KEPT_IN_CROWD if crowded else self.limit.kept):
                return False
        elif not (
            (self._level is None or self._level.is_idle(now, crowded))
            and (self._circuit is None or self._circuit.is_idle(now, crowded))
        ):
            return False
        return (self.gcra is None or self.gcra.is_recovered(now)) and (
            self.paced is None or self.paced.is_idle(now)
        )

    def __repr__(self) -> str:
        return f"<KeyState {self.limit.name}[{self.key!r}] running={self.inflight} waiters={len(self.line or ())}>"


class Claim:
    """What one call needs, or holds, of one key. `taken` says which; `began` when it started, and `at_once` how many calls
    of the key ran then, itself included.
    """

    __slots__ = ("at_once", "began", "cost", "state", "taken")

    def __init__(self, state: KeyState, cost: float) -> None:
        self.state = state
        self.cost = cost
        self.taken = False
        self.began = 0.0
        self.at_once = 0

    def __repr__(self) -> str:
        return f"<Claim {self.state.limit.name}[{self.state.key!r}] cost={self.cost:g} taken={self.taken}>"
