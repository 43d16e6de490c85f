"""Limits: how many calls may run at once, and how many may start in a time, in all or by key.

        claim ─► admit ─► (the call runs) ─► refund ─► release, with what its end says of load
          └─► drop           └─► cancel, where it never started

Rules:
1. One Limit object is one limit, wherever it is used. A call never takes twice what it already holds.
2. `admit` is one synchronous step over all claims of a call: all are taken or none, and nothing is held while
   waiting.
3. Permits are conserved: what `admit` took, exactly one of `release` and `cancel` gives back. What never was
   admitted goes back with `drop`.
4. A key that is idle, not held and recovered is forgotten, so that memory follows the keys in use and not all
   those ever seen.
5. A level that finds itself moves only by how calls end. A lower one ends no call: nothing more is admitted until
   so many have ended.
6. Not for use by several threads at once.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import sys
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import Any, Final

from headrace.errors import CallError, Disposition, EngineError, HeadraceError, PlanError
from headrace.policies.adaptive import KEPT, Adaptive
from headrace.policies.breaker import Breaker
from headrace.policies.gcra import Gcra, parse_rate
from headrace.policies.key_state import Claim, KeyState
from headrace.policies.limit_options import as_cost, name_of, problems, short
from headrace.policies.signals import Signal

__all__ = [
    "Claim",
    "KeyState",
    "KeyStatistics",
    "Limit",
    "LimitRefused",
    "LimitStatistics",
    "admit",
    "blocked",
    "cancel",
    "claim",
    "delayed",
    "drop",
    "hold",
    "learn",
    "refund",
    "release",
    "wait_of",
]

#: So many keys are kept without asking whether they are idle: keys that come and go need not be made anew
#: each time.
KEYS_KEPT: Final = 256
#: With more keys than this, what was learnt of a key that refuses nothing is forgotten sooner.
CROWD: Final = 10_000
#: A `now` that is so many seconds behind the last one comes from another clock, and not from a caller a
#: moment late.
CLOCK_CHANGED: Final = 1.0


class LimitRefused(CallError):
    """A limit's function for the key or the cost failed for this item, or gave what cannot be used."""

    disposition = Disposition.PERMANENT


@dataclasses.dataclass(frozen=True, slots=True)
class KeyStatistics:
    """One key of a limit: calls running, waiters for a permit, end of its hold.

    `level` is how many calls may run now, and `found_rate` how many may start a second, where the limit finds that
    itself. `is_open` says that its breaker is open, or lets probes through only.
    """

    key: Hashable
    running: int
    waiting: int
    held_until: float
    level: int | None = None
    found_rate: float | None = None
    is_open: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class LimitStatistics:
    """A limit at one moment: keys known, of them held, calls running, waiters for a permit; what it allows.

    `unsettled` counts the calls whose `actual` function failed, so that their estimate stood; `trouble` is
    the last such failure. `level` is how many calls the known keys may run together, where each finds that
    itself. `paced` counts the keys with a rate that was found, `open` those whose breaker is open.
    """

    name: str
    keys: int
    running: int
    waiting: int
    held: int
    concurrency: int | Adaptive | None
    rate: float | None
    unsettled: int = 0
    trouble: str = ""
    level: int | None = None
    paced: int = 0
    open: int = 0


class Limit:
    """How many calls may run at once (`concurrency`) and start in a time (`rate`), in all or by key.

    `concurrency` is a number, or `Adaptive(1, 16)`, which finds its own level. `rate` reads "500/s",
    "90000/min", "10/h", or a number per second; `burst` is how much may start at once (1 unless given). `by`
    gives the key of a stage's value, as `hr.http.host` does: each key then has the whole limit for itself;
    without it there is one for all. With `cost` (a number, or a function of the value) a start counts for so
    much of rate and burst, and `actual` corrects that afterwards by the call's result. Use one object in
    several places to have them share it.

    An item for which `by` or `cost` fails, or for which the cost exceeds the burst, fails with LimitRefused.
    Where `actual` fails the estimate stands, and `statistics()` counts it. Raises PlanError, with all
    problems at once, for values that make no sense.
    """

    __slots__ = (
        "_only", "_ring", "_seen", "_states", "_trouble", "_unsettled",
        "actual", "breaker", "burst", "by", "capacity", "concurrency", "cost", "gcra", "kept", "learns", "name", "rate",
        "unit_cost",
    )  # fmt: skip

    def __init__(
        self,
        *,
        concurrency: int | Adaptive | None = None,
        rate: str | float | None = None,
        by: Callable[[Any], Hashable] | None = None,
        burst: float | None = None,
        cost: float | Callable[[Any], float] | None = None,
        actual: Callable[[Any], float] | None = None,
        breaker: Breaker | None = None,
        name: str | None = None,
    ) -> None:
        found = problems(concurrency, rate, by, burst, cost, actual, breaker)
        if found:
            raise PlanError("Limit: " + "; ".join(found))
        self.concurrency = concurrency
        self.rate = rate
        self.by = by
        self.burst = 1 if burst is None else burst
        self.cost = cost
        self.actual = actual
        self.breaker = breaker
        self.name = name or name_of(by)
        self.unit_cost = 1.0 if cost is None or callable(cost) else float(cost)
        # What a new key begins with, worked out once.
        self.capacity: int = (
            sys.maxsize
            if concurrency is None
            else concurrency.min
            if isinstance(concurrency, Adaptive)
            else concurrency
        )
        self.gcra = None if rate is None else Gcra(rate, self.burst)
        #: For how many seconds a success is remembered.
        self.kept = max(KEPT if self.is_adaptive else 0.0, breaker.window if breaker is not None else 0.0)
        self.learns = (
            self.is_adaptive or breaker is not None
        )  # whether the ends of calls change anything here
        self._states: dict[Hashable, KeyState] = {}
        self._ring: deque[KeyState] = deque()
        self._only = KeyState(self, None) if by is None else None
        self._seen = 0.0  # the latest `now`
        self._unsettled = 0
        self._trouble = ""

    def __repr__(self) -> str:
        given = [
            f"{name}={value!r}"
            for name, value in (("concurrency", self.concurrency), ("rate", self.rate))
            if value is not None
        ]
        if self.by is not None:
            given.append(f"by={getattr(self.by, '__name__', self.by)}")
        if self.rate is not None and self.burst != 1:
            given.append(f"burst={self.burst!r}")
        if self.cost is not None:
            given.append(f"cost={getattr(self.cost, '__name__', self.cost)}")
        if self.breaker is not None:
            given.append(f"breaker={self.breaker!r}")
        return (
            f"Limit({', '.join(given)})"
            if self.name == name_of(self.by)
            else f"Limit {self.name!r} ({', '.join(given)})"
        )

    @property
    def is_adaptive(self) -> bool:
        """Whether its level is found by how calls end."""
        return isinstance(self.concurrency, Adaptive)

    def statistics(self) -> LimitStatistics:
        """Count what runs, waits and is held now. Takes time in proportion to the keys in use."""
        states = self._all()
        return LimitStatistics(
            name=self.name,
            keys=len(states),
            running=sum(state.inflight for state in states),
            waiting=sum(len(state.line or ()) for state in states),
            held=sum(state.held_until > self._seen for state in states),
            concurrency=self.concurrency,
            rate=None if self.rate is None else parse_rate(self.rate),
            unsettled=self._unsettled,
            trouble=self._trouble,
            level=sum(state.capacity for state in states) if self.is_adaptive else None,
            paced=sum(state.paced is not None for state in states),
            open=sum(state.is_open for state in states),
        )

    def busiest(self, count: int) -> list[KeyStatistics]:
        """Give the `count` keys with the most calls running, and then waiting."""
        states = heapq.nlargest(count, self._all(), key=lambda state: (state.inflight, len(state.line or ())))
        return [
            KeyStatistics(
                state.key,
                state.inflight,
                len(state.line or ()),
                state.held_until,
                state.capacity if self.is_adaptive else None,
                None if state.paced is None else state.paced.rate,
                state.is_open,
            )
            for state in states
        ]

    # ------------------------------------------------------------------ keys

    def _all(self) -> list[KeyState]:
        return [self._only] if self._only is not None else list(self._states.values())

    def _state_of(self, value: Any) -> KeyState:
        """Find or make the state of a value's key. Raises LimitRefused."""
        assert self.by is not None
        try:
            key = self.by(value)
        except HeadraceError:
            raise  # an adapter's key function says better than we could what is wrong with the value
        except Exception as error:
            raise LimitRefused(
                f"limit {self.name!r}: by= raised {short(error)} for {short(value)}"
            ) from error
        try:
            state = self._states.get(key)
        except Exception as error:
            raise LimitRefused(
                f"limit {self.name!r}: the key {short(key)} cannot be hashed ({short(error)}); let by= return a str"
            ) from error
        return self._new_state(key) if state is None else state

    def _new_state(self, key: Hashable) -> KeyState:
        if hasattr(key, "__await__"):
            close = getattr(key, "close", None)
            if close is not None:
                close()  # else Python warns of a coroutine that was never awaited
            raise LimitRefused(f"limit {self.name!r}: by= returned an awaitable; give a plain function")
        if key != key:
            raise LimitRefused(
                f"limit {self.name!r}: the key {key!r} is not equal to itself; let by= return a str"
            )
        self._forget_idle()
        state = self._states[key] = KeyState(self, key)
        self._ring.append(state)
        return state

    def _forget_idle(self) -> None:
        # Two looks for each new key: the ring is gone round twice as fast as it grows, so at least half of it
        # is in use at any time, at a constant cost per key.
        ring = self._ring
        if len(ring) < KEYS_KEPT:
            return
        crowded = len(ring) > CROWD
        for _ in range(2):
            state = ring.popleft()
            if state.is_idle(self._seen, crowded):
                del self._states[state.key]
            else:
                ring.append(state)

    def _living(self, state: KeyState) -> KeyState:
        """Give the state that counts for the key of `state`, which was perhaps forgotten when idle."""
        if self._only is not None:
            return state
        living = self._states.get(state.key)
        if living is None:
            self._states[state.key] = living = state
            self._ring.append(state)
        return living

    def _change_clock(self, now: float) -> None:
        """Carry all times over to a clock that shows less than the last one: another loop's."""
        for state in self._all():
            state.shift(now - self._seen)
        self._seen = now

    # ------------------------------------------------------------------ costs

    def _cost_of(self, value: Any) -> float:
        """Give what a start of `value` costs. Raises LimitRefused."""
        assert callable(self.cost)
        try:
            cost = as_cost(self.cost(value))
        except HeadraceError:
            raise
        except Exception as error:
            raise LimitRefused(
                f"limit {self.name!r}: cost= raised {short(error)} for {short(value)}"
            ) from error
        if not cost <= self.burst:
            raise LimitRefused(
                f"limit {self.name!r}: a cost of {cost:g} can never fit into burst={self.burst:g}; "
                f"raise burst=, or split the item"
            )
        return cost

    def _settle(self, state: KeyState, cost: float, value: Any) -> None:
        assert self.actual is not None
        assert state.gcra is not None
        try:
            actual = as_cost(self.actual(value))
        except Exception as error:  # noqa: BLE001  a user's function; the call's result stays good
            self._unsettled += 1
            self._trouble = f"actual= raised {short(error)} for {short(value)}"
            return
        state.gcra.refund(cost, actual)


# ------------------------------------------------------------------------------------------- the steps


def claim(limits: Sequence[Limit], value: Any, held: Sequence[Claim] = ()) -> list[Claim]:
    """Work out what a call on `value` needs of each limit; takes nothing yet. `drop` what is not admitted.

    What is in `held` already, or comes twice, is left out. Raises LimitRefused, with nothing claimed, where a
    limit's function fails or gives what cannot be used; other HeadraceErrors that such a function raises pass
    through.
    """
    claims: list[Claim] = []
    try:
        for limit in limits:
            state = limit._only
            if state is None:
                state = limit._state_of(value)
            if (held or claims) and _holds(state, held, claims):
                continue
            cost = limit._cost_of(value) if callable(limit.cost) else limit.unit_cost
            state.claims += 1
            claims.append(Claim(state, cost))
    except BaseException:
        drop(claims)
        raise
    return claims


def _holds(state: KeyState, held: Sequence[Claim], claims: Sequence[Claim]) -> bool:
    for each in claims:
        if each.state is state:
            return True
    return any(each.state is state for each in held)


def admit(claims: Sequence[Claim], now: float) -> float:
    """Take all that is claimed and give 0.0; or take nothing, and say how long to wait.

    A positive number is the least time (seconds) after which rates and holds may allow it; inf says that a
    permit is taken: `blocked` gives the key to wait at.
    """
    if len(claims) == 1:  # by far the most common case, without the second pass
        each = claims[0]
        state = each.state
        if state.inflight >= state.capacity:
            return math.inf
        if (
            state.held_until <= now
            and state.paced is None
            and (state.gcra is None or state.gcra.admit(now, each.cost) == 0.0)
        ):
            state.inflight = each.at_once = state.inflight + 1
            each.taken = True
            each.began = now
            state.limit._seen = now
            return 0.0
    wait = 0.0
    for each in claims:
        state = each.state
        if state.inflight >= state.capacity:
            return math.inf
        if state.held_until > now or state.gcra is not None or state.paced is not None:
            wait = max(wait, wait_of(state, each.cost, now))
    if wait > 0.0:
        return wait
    for each in claims:
        state = each.state
        state.inflight = each.at_once = state.inflight + 1
        each.taken = True
        each.began = now
        state.limit._seen = now
        if state.gcra is not None or state.paced is not None:
            state.charge(each.cost, now)
    return 0.0


def wait_of(state: KeyState, cost: float, now: float) -> float:
    """Give the seconds until a key's holds and rates allow a start of `cost`. Takes nothing."""
    if now < state.limit._seen - CLOCK_CHANGED:
        state.limit._change_clock(now)
    return state.wait(cost, now)


def blocked(claims: Sequence[Claim], now: float) -> KeyState | None:
    """Give the first key of which no permit is free, to wait at; None where permits are not missing."""
    for each in claims:
        if each.state.inflight >= each.state.capacity:
            return each.state
    return None


def delayed(claims: Sequence[Claim], now: float) -> KeyState:
    """Give the key whose rate or hold lets this call wait the longest."""
    return max(claims, key=lambda each: each.state.wait(each.cost, now)).state


def learn(
    claims: Sequence[Claim],
    signal: Signal,
    now: float,
    rng: Random | None = None,
    *,
    may_grow: bool = True,
) -> list[KeyState]:
    """Tell these keys how the call ended; give those whose breaker has opened by that. Its permits stay taken.

    `may_grow=False` keeps levels from growing: this program itself is at its limits.
    """
    return [
        each.state
        for each in claims
        if each.state.limit.learns
        and each.taken
        and each.state.learn(signal, each.began, now, rng, may_grow=may_grow, at_once=each.at_once)
    ]


def release(claims: Sequence[Claim]) -> list[KeyState]:
    """Give back the permits of a call that is over; give the keys they are of, to wake who waits there.

    What it took of a rate stays taken. Raises EngineError, with nothing changed, for claims that are not taken.
    """
    for each in claims:
        if not each.taken:
            raise EngineError(f"{each!r} is to be released, but is not taken")
    freed = []
    for each in claims:
        state = each.state
        each.taken = False
        state.inflight -= 1
        state.claims -= 1
        state.ended += 1
        freed.append(state)
    return freed


def cancel(claims: Sequence[Claim]) -> list[KeyState]:
    """Give back permits and rate of an attempt that was admitted and never started; else as `release`."""
    freed = release(claims)
    for each in claims:
        each.state.ended -= 1
        if each.state.gcra is not None:
            each.state.gcra.refund(each.cost, 0.0)
    return freed


def drop(claims: Sequence[Claim]) -> None:
    """Forget claims that were never admitted. Raises EngineError, with nothing changed, for taken ones."""
    for each in claims:
        if each.taken:
            raise EngineError(f"{each!r} is to be dropped, but is taken")
    for each in claims:
        each.state.claims -= 1


def refund(claims: Sequence[Claim], value: Any) -> None:
    """Correct what a call took of its rates by its result `value`, as `actual` says. Never raises.

    Call it once, before or after `release`. Where the call failed there is no result, and the estimate
    stands.
    """
    for each in claims:
        limit = each.state.limit
        if limit.actual is not None:
            limit._settle(limit._living(each.state), each.cost, value)


def hold(claims_or_state: Sequence[Claim] | KeyState, until: float) -> list[KeyState]:
    """Let nothing of these keys start before `until` (on the clock of `now`); give the keys.

    Of several claims, those on keyed limits are meant, for it is a host that asks for rest and not the whole
    run; where none is keyed, all are.
    """
    if isinstance(claims_or_state, KeyState):
        states = [claims_or_state]
    else:
        states = [each.state for each in claims_or_state]
        states = [state for state in states if state.limit.by is not None] or states
    states = [state.limit._living(state) for state in states]
    for state in states:
        state.held_until = max(state.held_until, until)
    return states
