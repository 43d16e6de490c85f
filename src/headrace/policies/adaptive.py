"""Adaptive concurrency: the level of calls at once that the other side bears, found from how calls end.

        begin ─► ×2 a round trip ─► overload: ×0.7 ─► +1 a round trip ─► right below the ceiling: wait
                                       ▲                                          │
                                       └── refused again ◄── try the ceiling ◄────┘
                                                                    └─► borne: forget it, +1 a round trip

Rules:
1. Only what the other side says moves the level down: refusals, failed connections, timeouts. How long calls take
   never does, for answers differ and we are the load ourselves; it only halts growth.
2. At most one decrease a round trip: calls that began before the last decrease say nothing new, and do not let the
   level grow either.
3. The level grows only while it is used, and never leaves min … max.
4. The level that was refused is remembered as the ceiling and tried again seldom, so that a server with a fixed
   limit refuses about one call in a hundred and not one in each climb. A ceiling is never believed for ever.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from headrace.errors import PlanError
from headrace.policies.signals import Signal

__all__ = ["Adaptive", "Aimd", "after_first"]

#: The level after an overload, as a share of the one before.
DECREASE: Final = 0.7
#: Successes right below the ceiling before it is tried again, at first: so many, and two round trips. Each try that
#: is refused doubles them, or makes them four times as many where it costs a wait, up to the second number.
PATIENCE: Final = 16
MOST_PATIENCE: Final = 4096
#: But a ceiling that was tried so many seconds and successes ago is tried again.
TRIED_LONG_AGO: Final = 30.0
FEW_REFUSED: Final = 128
#: Two overloads with fewer successes between them, or than it takes to climb back and be there for two round trips:
#: the ceiling is lower than was thought.
CALM: Final = 50
#: Refused twice within so many seconds though as many were taken before: the number of calls at once is not counted.
PUZZLED: Final = 30.0
#: Growth halts where the recent latency is so many times the best.
TOO_SLOW: Final = math.log(2.0)
#: What one more call weighs in the recent latency, and in the usual one, the lowest of which is the best.
RECENT: Final = 0.2
USUAL: Final = 0.02
#: From so many calls on there is a best latency.
FEWEST: Final = 4
#: Latencies below this count as this, in seconds: a millisecond more is no sign of load.
SHORTEST: Final = 0.001
#: After so many seconds the best latency is the best of that time, or worse than before by at most this factor.
WINDOW: Final = 30.0
AGEING: Final = math.log(1.1)
#: One object for all: each `-math.inf` makes a new one, and there may be very many keys.
NEVER: Final = -math.inf
#: A key that no call has ended on for so many seconds may begin anew.
KEPT: Final = 10.0
#: The same where there are very many keys and this one was never refused anything.
KEPT_IN_CROWD: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Adaptive:
    """A number of calls at once that finds its own level, from `min` to `max`: `hr.Limit(concurrency=hr.Adaptive(1, 16))`.

    It begins with `min` and doubles with each round trip until the other side first says that it has too
    much (429, 503, a connection that fails, a timeout, RetryAfter); then it falls to 0.7 of itself, and
    climbs by one a round trip. It does not grow where calls take more than twice as long as they did at
    best, nor where it is not used. With `by=` each key has its own level. Raises PlanError for values that
    make no sense.
    """

    min: int = 1
    max: int = 16

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r}: give a whole number, 1 or more"
            for name, value in (("min", self.min), ("max", self.max))
            if type(value) is not int or value < 1
        ]
        if not problems and self.min > self.max:
            problems.append(
                f"min={self.min} is more than max={self.max}; write Adaptive({self.max}, {self.min})"
            )
        if problems:
            raise PlanError("Adaptive: " + "; ".join(problems))

    def __repr__(self) -> str:
        return f"Adaptive({self.min}, {self.max})"


def after_first(bounds: Adaptive, inflight: int) -> int:
    """Say how many calls may run at once after a first success: what an `Aimd` that is told of it then admits."""
    return min(bounds.min + 1, bounds.max) if 2 * inflight >= bounds.min else bounds.min


class Aimd:
    """The level of one key. `level` is a float; `admits` is how many calls it lets run."""

    __slots__ = (
        "_at", "_best", "_calm", "_ceiling", "_decreased_at", "_doubted", "_highest", "_lowest", "_patience",
        "_peak", "_puzzled_at", "_recent", "_refused_at", "_round_began", "_samples", "_starting", "_tried_at",
        "_usual", "_waited", "_window_best", "_window_ends", "borne", "level",
    )  # fmt: skip

    def __init__(self, bounds: Adaptive) -> None:
        self._lowest = bounds.min
        self._highest = bounds.max
        self.level = float(bounds.min)
        self._starting = True  # no overload yet
        self._ceiling = math.inf  # the lowest level that was refused, as far as is known
        self._patience = PATIENCE
        self._tried_at = NEVER  # when the ceiling was last tried
        self._waited = 0  # successes right below the ceiling since it was last tried
        self.borne = 0  # the most calls at once of which none was refused
        self._calm = 0  # successes since the last decrease
        self._doubted = False  # there was an overload below the ceiling already
        self._decreased_at = self._refused_at = self._puzzled_at = NEVER
        self._at = NEVER  # the latest `now`
        self._round_began = NEVER
        self._peak = 0  # the most calls at once since then: those that end together were in flight together
        self._recent = self._usual = 0.0  # logarithms: a mean of ratios, which a few long answers hardly move
        self._samples = 0
        self._best = self._window_best = math.inf
        self._window_ends = NEVER

    @property
    def admits(self) -> int:
        """How many calls may run at once."""
        return int(self.level)

    @property
    def ceiling(self) -> float:
        """The lowest level that was refused, as far as is known."""
        return self._ceiling

    @property
    def is_lowest(self) -> bool:
        """Whether the level cannot fall."""
        return self.level <= self._lowest

    @property
    def is_slow(self) -> bool:
        """Whether calls take so much longer than at best that the level does not grow."""
        return self._recent - self._best > TOO_SLOW

    def is_idle(self, now: float, crowded: bool = False) -> bool:
        """Say whether no call has ended here lately, so that this may begin anew."""
        kept = KEPT_IN_CROWD if crowded and self._starting else KEPT
        return not 0.0 <= now - self._at < kept

    def learn(
        self,
        signal: Signal,
        began: float,
        now: float,
        inflight: int,
        *,
        may_grow: bool = True,
        at_once: int = 0,
        waits: bool = False,
    ) -> None:
        """Take in how a call ended that began at `began`; `inflight` are the calls at once, this one included, and `at_once`
        were those when it began, as far as that is known.

        `may_grow=False` says that this program itself is at its limits, and `waits` that a refusal costs a wait.
        """
        if signal == "ignore" or signal == "fault":
            return
        if now < self._at - 1.0:
            self._change_clock(now)
        self._at = now
        at_once = at_once or inflight
        if began >= self._round_began:  # a round trip is over
            self._round_began, self._peak = now, inflight
        elif inflight > self._peak:
            self._peak = inflight
        if signal == "success":
            if at_once > self.borne and began > self._refused_at:  # else some of those were refused
                self.borne = at_once
            self._measure(now - began, now)
            self._calm += 1
            if (
                may_grow
                and began > self._decreased_at
                and 2 * self._peak >= int(self.level)
                and not self.is_slow
            ):
                self._grow(at_once, began, now)
        else:
            self._refused_at = now
            if began > self._decreased_at:
                # Only who says that it is too much says of how many.
                self._decrease(at_once if signal == "throttled" else self.admits, waits, now)

    def is_no_limit(self, at_once: int, began: float, now: float) -> bool:
        """Say whether a call that began as one of `at_once`, and is refused, is hardly refused for their number: as many
        were taken before, and this is the second time lately. The first time the limit may have become another one.
        """
        if at_once > self.borne or began <= self._refused_at:
            return False
        again = now - self._puzzled_at < PUZZLED
        self._puzzled_at = now
        if not again:
            self.borne = 0
        return again

    # ------------------------------------------------------------------ the level

    def _grow(self, at_once: int, began: float, now: float) -> None:
        level, top = self.level, self._ceiling - 1.0
        if self._starting:
            grown = level + 1.0
        elif level < top:
            grown = min(level + 1.0 / level, top)
        elif level >= self._ceiling:
            if began <= self._tried_at or at_once < self._ceiling:
                return  # it says nothing of this level yet
            grown = level + 1.0 / level
            if grown >= self._ceiling + 1.0:  # a round trip at the ceiling, and nothing was refused
                self._ceiling, self._waited, self._doubted = math.inf, 0, False
        else:
            self._waited += 1
            long_ago = now - self._tried_at >= TRIED_LONG_AGO and self._waited >= FEW_REFUSED
            if self._waited < self._patience and not long_ago:
                return
            self._waited, self._tried_at = 0, now
            grown = self._ceiling
        self.level = min(grown, float(self._highest))

    def _decrease(self, at_once: int, waits: bool, now: float) -> None:
        refused = int(self.level)
        if at_once > self.borne:
            refused = min(refused, at_once)
        if refused >= self._ceiling:  # it was tried again, and is still there
            self._patience = min((4 if waits else 2) * self._patience, MOST_PATIENCE)
            self._doubted = False
        elif math.isinf(self._ceiling) or (
            self._doubted and self._calm < max(CALM, refused * (refused // 3 + 2))
        ):
            self._ceiling = float(max(refused, self._lowest + 1))  # there is always a level below it
            self._patience, self._tried_at, self._doubted = max(PATIENCE, 2 * refused), now, False
        else:
            self._doubted = True  # one failure is no lower limit: any server has some
        self._starting = False
        self._calm = 0
        self._decreased_at = now
        self.level = max(float(self._lowest), min(self.level * DECREASE, self._ceiling - 1.0))

    # ------------------------------------------------------------------ latency

    def _measure(self, latency: float, now: float) -> None:
        if now >= self._window_ends:
            if now >= self._window_ends + 10.0 * WINDOW:  # so long ago that it is another server
                self._samples, self._best = 0, math.inf
            else:
                self._best = min(self._window_best, self._best + AGEING)
            self._window_best = math.inf
            self._window_ends = now + WINDOW
        self._samples += 1
        latency = math.log(max(latency, SHORTEST))
        self._recent += max(RECENT, 1.0 / self._samples) * (latency - self._recent)
        self._usual += max(USUAL, 1.0 / self._samples) * (latency - self._usual)
        if self._samples >= FEWEST:
            self._window_best = min(self._window_best, self._usual)
            self._best = min(self._best, self._usual)

    def _change_clock(self, now: float) -> None:
        """Carry all times over to a clock that shows less than the last one: another loop's."""
        back = now - self._at
        self._decreased_at = self._refused_at = self._puzzled_at = self._round_began = -math.inf
        self._window_ends += back
        self._tried_at += back

    def __repr__(self) -> str:
        return f"<Aimd {self._lowest} … {self.level:.1f} … {self._highest}, ceiling {self._ceiling:g}>"
