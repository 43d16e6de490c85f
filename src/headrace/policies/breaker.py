"""The circuit breaker: where nearly nothing succeeds, calls pause; single ones probe whether that is over.

    closed ── half of them failed, or the last 20 ──► open, 5 s ─► half-open: 1, 2, 4 probes ─► closed
                                                         ▲                          │
                                                         └── twice as long ◄── one failed

Rules:
1. Open means wait. A call that is not made has not failed, and costs its item no attempt.
2. Only what the other side is to blame for counts: no connection, no answer, 5xx. One that answers 404 or 429 is
   there.
3. What began before the breaker opened says nothing after it.
4. A breaker that opens again soon after it closed waits longer than before.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from random import Random
from typing import Any, Final

from headrace.errors import PlanError
from headrace.policies.signals import Signal

__all__ = ["Breaker", "Circuit"]

#: The calls at once that try whether the other side is back: so many after each other.
PROBES: Final = (1, 2, 4)
#: What is drawn on top of each pause, as a share of it, so that many programs do not come back at once.
SPREAD: Final = 0.1
#: What the other side is to blame for.
BLAMED: Final = frozenset({"overload", "lost", "fault"})
#: The parts that the time looked back on is counted in.
PARTS: Final = 10
#: One object for all: each `-math.inf` makes a new one, and there may be very many keys.
NEVER: Final = -math.inf
#: What nothing was counted in yet: shared, and never changed. Most keys of very many never see a failure.
NONE: Final = [0] * PARTS


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Breaker:
    """When calls of a key pause because the other side fails: `hr.Limit(by=hr.http.host, breaker=hr.Breaker())`.

    Where at least `calls` ended in the last `window` seconds, and `share` of them or more because the other side
    failed (no connection, no answer in time, 5xx; never 4xx), no call starts for `pause` seconds; nor where the last
    `calls` all failed, however many went well before. Then one does; if it succeeds, two, four, and then all. If
    one fails the pause is twice as long, `longest` seconds at most. What waits meanwhile is not failed and loses no
    attempt. Raises PlanError for values that make no sense.
    """

    share: float = 0.5
    calls: int = 20
    window: float = 30.0
    pause: float = 5.0
    longest: float = 300.0

    def __post_init__(self) -> None:
        problems = []
        if not (_is_number(self.share) and 0.0 < self.share <= 1.0):
            problems.append(f"share={self.share!r}: give a share of calls, above 0 and at most 1")
        if type(self.calls) is not int or self.calls < 1:
            problems.append(f"calls={self.calls!r}: give a whole number, 1 or more")
        for name in ("window", "pause", "longest"):
            seconds = getattr(self, name)
            if not (_is_number(seconds) and 0.0 < seconds < math.inf):
                problems.append(f"{name}={seconds!r}: give seconds, a finite number above 0")
        if not problems and self.longest < self.pause:
            problems.append(f"longest={self.longest:g} is less than pause={self.pause:g}")
        if problems:
            raise PlanError("Breaker: " + "; ".join(problems))

    def __repr__(self) -> str:
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Breaker({', '.join(given)})"


class Circuit:
    """The breaker of one key. It lets `admits` calls run at once, and none before `open_until`."""

    __slots__ = (
        "_bad", "_changed_at", "_closed_at", "_good", "_in_a_row", "_new", "_opened", "_part", "_passed", "_since",
        "_stage", "admits", "breaker", "failing_since", "open_until",
    )  # fmt: skip

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.admits = sys.maxsize
        self.open_until = NEVER
        self.failing_since = math.inf  # when it opened for the first time since all was well
        self._stage = -1  # the place in PROBES; -1 is closed
        self._passed = 0  # probes of this stage that succeeded
        self._opened = 0  # openings without a lasting recovery between them
        self._changed_at = NEVER  # what began before says nothing
        self._closed_at = NEVER
        self._good = self._bad = NONE
        self._new = 0  # successes of this part, not yet in the list
        self._in_a_row = 0  # the latest calls, all of which failed
        self._part = 0
        self._since = NEVER

    @property
    def is_closed(self) -> bool:
        """Whether calls go on as if there were no breaker."""
        return self._stage < 0

    def is_idle(self, now: float, crowded: bool = False) -> bool:
        """Say whether nothing would be lost if this were forgotten; where it is `crowded`, what succeeded does not count."""
        if self._stage >= 0:
            return False
        return (
            crowded and (self._bad is NONE or not any(self._bad))
        ) or not 0.0 <= now - self._since < self.breaker.window

    def learn(self, signal: Signal, began: float, now: float, rng: Random | None = None) -> bool:
        """Take in how a call ended that began at `began`; say whether the breaker has opened by that."""
        if signal == "ignore" or began < self._changed_at:
            return False
        failed = signal in BLAMED
        if self._stage >= 0:
            if failed:
                self._open(now, rng)
                return True
            self._pass(now)
            return False
        if now - self._since >= self.breaker.window / PARTS:
            self._turn(now)
        if not failed:
            self._in_a_row = 0
            self._new += 1
            return False
        self._in_a_row += 1
        if self._bad is NONE:
            self._bad = [0] * PARTS
        self._bad[self._part] += 1
        bad = sum(self._bad)
        total = bad + sum(self._good) + self._new
        # What went well half a minute ago keeps the share low for long, on a host that was busy and has gone.
        if self._in_a_row < self.breaker.calls and (
            total < self.breaker.calls or bad < self.breaker.share * total
        ):
            return False
        self._open(now, rng)
        return True

    def shift(self, seconds: float) -> None:
        """Move all times by `seconds`: the clock was replaced by another one."""
        self.open_until += seconds
        self.failing_since += seconds
        self._changed_at = -math.inf
        self._closed_at += seconds
        self._since = -math.inf

    def _turn(self, now: float) -> None:
        """Let what is older than the window fall away."""
        length = self.breaker.window / PARTS
        passed = now - self._since
        if not passed < self.breaker.window:
            self._good = self._bad = NONE
            self._new = self._in_a_row = 0
            self._since = now
            return
        if self._new:
            if self._good is NONE:
                self._good = [0] * PARTS
            self._good[self._part] += self._new
            self._new = 0
        steps = int(passed / length)
        for _ in range(steps):
            self._part = (self._part + 1) % PARTS
            if self._good is not NONE:
                self._good[self._part] = 0
            if self._bad is not NONE:
                self._bad[self._part] = 0
        self._since += steps * length

    def _open(self, now: float, rng: Random | None) -> None:
        breaker = self.breaker
        if self.is_closed:
            if now - self._closed_at > breaker.window:
                self._opened = 0
            self.failing_since = min(self.failing_since, now)
        pause = min(breaker.longest, breaker.pause * 2.0 ** min(self._opened, 60))
        self._opened += 1
        self.open_until = now + pause * (1.0 + SPREAD * (rng.random() if rng is not None else 0.0))
        self._changed_at = self.open_until
        self._stage = self._passed = self._in_a_row = 0
        self.admits = PROBES[0]

    def _pass(self, now: float) -> None:
        self._passed += 1
        if self._passed < PROBES[self._stage]:
            return
        self._passed = 0
        self._stage += 1
        if self._stage < len(PROBES):
            self.admits = PROBES[self._stage]
            return
        self._stage = -1
        self.admits = sys.maxsize
        self._closed_at = self._changed_at = now
        self.failing_since = math.inf
        self._since = -math.inf

    def __repr__(self) -> str:
        state = (
            "closed" if self.is_closed else f"open until {self.open_until:g}, then {self.admits:g} at once"
        )
        return f"<Circuit {state}>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
