"""Adaptive rate: how many calls a second the other side takes, found from when it refuses.

        no rate ─► it asks ─► right below the ceiling ─► try a little above it, seldom ─► borne: up, faster and faster
                                   ▲     what it took        │                                        │
                                   └───── asked again ◄──────┴────────────────────────────────────────┘

Rules:
1. There is no rate until the other side asks for a wait, or refuses as if it did: nobody is slowed who does neither.
2. The ceiling is counted, not guessed: what the other side took in the second before it first asked, since the last
   wait ended where it asks again at once, and over the whole time where the wait that it asks for is long. Where it
   goes on asking, the ceiling lies between the most that it surely took and the least that it refused.
3. At most one decrease for each time it asks: calls that began before that say nothing new.
4. A ceiling is tried again seldom, so that a fixed limit costs a refusal now and then; it is never believed for ever.
5. Starts keep the rate with a burst so small that a limit counted over any second still holds.
"""

from __future__ import annotations

import math
from array import array
from typing import Final

__all__ = ["AdaptiveRate"]

#: The rate, as a share of the ceiling.
BELOW: Final = 0.97
#: Answers are counted in parts of so many seconds, over so many of them: one second in all.
PART: Final = 0.05
PARTS: Final = 20
#: One object for all: each `-math.inf` makes a new one, and there may be very many keys.
NEVER: Final = -math.inf
#: Nothing counted. An array, since the collector of cycles looks at each list of each of very many keys.
NONE: Final = array("I", [0] * PARTS)
#: A wait of more seconds is taken at its word: what was counted is the limit of the whole time. Shorter ones are rounded up.
LONG: Final = 3.0
#: Seconds without a wait after which the rate was nearly right; and so many of the waits that it asked for.
CALM: Final = 4.0
CALM_WAITS: Final = 2.0
#: Where it asks again before that, the ceiling falls to this share of the rate at least.
SOON: Final = 0.9
#: Where it took nothing at all since it last asked, which says little of how much it takes, to this one.
NOTHING: Final = 0.5
#: What was taken in a second or less may be the limits of two windows that were used in part: of so many whole ones.
WINDOWS: Final = 1.6
#: A ceiling above this share of the rate that was refused is nearly right, and need not be tried early.
SURE: Final = 0.85
#: What was taken in fewer seconds is a limit of any second, and not of two windows.
WITHIN: Final = 0.8
#: A refusal for too many calls at once was none if it asks for a wait again within so many seconds.
RECENT: Final = 10.0
#: What lies further apart, in seconds, has nothing to do with each other.
RELATED: Final = 600.0
#: The ceiling is tried after so many seconds (or of the waits) and calls; each try that fails doubles them, up to 32 times.
PATIENCE: Final = 20.0
PATIENCE_CALLS: Final = 60.0
MOST_PATIENCE: Final = 32.0
#: The first try comes so much earlier where the ceiling is that of a second or less.
UNSURE: Final = 0.15
#: The try is so much above the ceiling, and lasts so many seconds, ten calls and a wait before the rate may grow.
TRY: Final = 1.02
TRIED: Final = 2.0
#: Then the rate grows by this share a second, doubled each second up to the second number, by the third a call at most.
GROWTH: Final = 0.02
MOST_GROWTH: Final = 0.3
GROWTH_PER_CALL: Final = 0.05
#: Since the second that was surely borne it grew by so many times its growth.
GREW: Final = 0.85
#: Refused at less than so many times the ceiling, it was right; so few answers a second say nothing.
NEAR: Final = 1.1
FEW: Final = 10.0
#: It grows and is tried where so much of it is used.
USED: Final = 0.7
#: What may start at once, in seconds of the rate: timers are late, and what was missed may be made up for.
BURST: Final = 0.02
#: A rate that was not used for so many seconds may be forgotten.
KEPT: Final = 600.0
#: The slowest rate, a second.
SLOWEST: Final = 1.0 / 600.0


class AdaptiveRate:
    """The rate of one key. `rate` is in starts a second, inf as long as the other side never asked for less."""

    __slots__ = (
        "_answered_at", "_answers", "_asked_at", "_ceiling", "_counted", "_first_at", "_growth", "_is_first", "_least",
        "_most", "_new", "_part", "_part_at", "_patience", "_ready", "_resumes_at", "_scale", "_tried_at", "_was_soon",
        "rate",
    )  # fmt: skip

    def __init__(self) -> None:
        self.rate = math.inf
        self._ready = NEVER  # when all that has started will have been paid for
        self._ceiling = math.inf  # what it took, as far as is known
        self._is_first = False  # whether it has asked once
        self._asked_at = NEVER
        self._resumes_at = NEVER  # when the wait that it asked for ends
        self._scale = 1.0  # the seconds that it thinks in: the wait that it asked for
        self._tried_at = math.inf  # when the try began that is under way
        self._growth = 0.0  # a second
        self._was_soon = False  # whether it asked again before there was a calm
        self._least = 0.0  # the most that it surely took a second since then
        self._most = math.inf  # the least a second that it refused soon
        self._patience = 1.0
        self._first_at = math.inf  # when the first answer came
        self._answered_at = NEVER
        self._counted = 0  # the answers until it first asked, and then the starts since it last did
        self._answers = NONE
        self._new = 0  # the answers of this part, not yet among them
        self._part = 0
        self._part_at = NEVER

    # ------------------------------------------------------------------ starts

    def wait(self, now: float) -> float:
        """Give the seconds until a start is due; 0.0 where it may be now. Takes nothing."""
        slack = self._slack()
        early = self._ready + 1.0 / self.rate - slack - now
        return early if early > 0.0 else 0.0

    def take(self, now: float) -> None:
        """Note a start."""
        self._ready = max(self._ready, now) + 1.0 / self.rate
        self._counted += 1

    def _slack(self) -> float:
        return max(1.0 / self.rate, BURST)

    # ------------------------------------------------------------------ ends

    def answered(self, began: float, now: float) -> None:
        """Take in that a call was answered that began at `began`; the rate may grow by it."""
        if now - self._part_at >= PART:
            self._turn(now)
        self._new += 1
        if self.rate == math.inf:
            self._counted += 1
            if began <= self._asked_at:
                self._ceiling += 1.0  # it took this one, too, before it refused
            self._first_at = min(self._first_at, now)
        elif began > self._asked_at:
            self._is_first = False
            self._go_on(now)
        elif self._is_first and self._scale <= LONG:
            self._ceiling += 1.0  # it took this one, too, before it asked
            self.rate = BELOW * self._ceiling
        self._answered_at = now

    def refused(self, began: float, now: float) -> None:
        """Take in a refusal that seems to be for too many calls at once; in case it is not, count what was taken before."""
        if self.rate == math.inf and began > self._asked_at:
            self._turn(now)
            self._ceiling, self._asked_at = float(self._last_second()), now

    def asked(self, began: float, now: float, until: float) -> None:
        """Take in that the other side asked for a wait until `until` when it refused a call that began at `began`."""
        if began <= self._asked_at and self.rate < math.inf:
            self._resumes_at = max(self._resumes_at, until)
            return
        self._turn(now)
        until = max(until, now)
        wait = max(0.0, until - now)
        self._is_first = self.rate == math.inf
        ceiling = self._taken_at_first(began, now, wait) if self._is_first else self._taken(began, now)
        self._ceiling = max(ceiling, SLOWEST)
        self.rate = BELOW * self._ceiling
        self._asked_at, self._resumes_at, self._scale = now, until, max(1.0, wait)
        self._tried_at, self._growth, self._counted = math.inf, 0.0, 0
        self._ready = now

    def _taken_at_first(self, began: float, now: float, wait: float) -> float:
        if wait > LONG:
            return max(1, self._counted) / (wait + max(0.0, now - self._first_at))
        if now - self._asked_at < RECENT:  # what was taken since then may be of two windows
            self._is_first = began <= self._asked_at
            return max(1.0, self._ceiling)
        return float(max(1, self._last_second()))

    def _taken(self, began: float, now: float) -> float:
        """Give how much a second it took since it last asked, as far as that can be told."""
        since, free = now - self._asked_at, now - self._resumes_at
        # What started before the call that it refused, be it answered yet or not.
        taken = max(0, self._counted - 1 - int((now - began) * self.rate))
        # One call more or less in the time that is counted is no sign: of five calls a second it is a fifth.
        was_right = self.rate < NEAR * self._ceiling + 1.0 / self._scale
        if self._tried_at < math.inf or (self._growth and was_right):
            self._patience = min(max(1.0, 2.0 * self._patience), MOST_PATIENCE)
        elif self._growth:
            self._patience = 1.0
        if self._tried_at < math.inf:
            return self._ceiling
        if self._growth:
            before = self.rate / (1.0 + GREW * self._growth)
            if was_right:
                before = max(min(before, self._ceiling), float(int(before)))
            return max(min(before, max(FEW, self._last_second())), min(before, self._ceiling))
        if since - free > LONG and since < RELATED:
            return min(taken / since, self.rate)
        if free >= max(CALM, CALM_WAITS * self._scale):
            self._was_soon, self._least, self._most = False, 0.0, math.inf
            return self.rate
        if not taken:
            self._patience = UNSURE
            return NOTHING * self.rate
        return self._taken_soon(taken, since, free)

    def _taken_soon(self, taken: int, since: float, free: float) -> float:
        """Give the same where there was no calm before it asked again, and `taken` calls were taken."""
        most = min(self.rate, taken / max(1.0, free))
        self._least = min(max(self._least, taken / since), most)
        self._most = min(most, self._most)
        if not self._was_soon:
            self._was_soon = free > WITHIN or most > SOON * self.rate
            ceiling = min(most, SOON * self.rate)
        else:
            # The second time it is far too much, and may have been two windows that took it.
            least = max(self._least, most * min(1.0, max(1.0, free) / WINDOWS))
            ceiling = math.sqrt(least * most)
        self._patience = 1.0 if ceiling > SURE * self.rate else UNSURE
        return ceiling

    def _last_second(self) -> int:
        return sum(self._answers) + self._new

    def _go_on(self, now: float) -> None:
        """Try the ceiling, or let the rate grow, where it is time and the rate is used."""
        passed = max(0.0, now - self._answered_at)
        if passed > 2.0 / self.rate and self._last_second() < USED * self.rate:
            return
        if self._tried_at < math.inf:
            if now - self._tried_at >= max(TRIED, 10.0 / self.rate, self._scale):
                self._tried_at, self._growth = math.inf, GROWTH
        elif self._growth:
            seconds = min(passed, 1.0) / self._scale
            self.rate *= 1.0 + min(self._growth * seconds, GROWTH_PER_CALL)
            if not self.rate < self._most < math.inf:
                self._growth = min(self._growth * 2.0**seconds, MOST_GROWTH)
        elif now - self._resumes_at >= self._patience * max(
            PATIENCE * self._scale, PATIENCE_CALLS / self.rate
        ):
            self._tried_at = now
            self.rate = TRY * self._ceiling

    def _turn(self, now: float) -> None:
        """Let what is older than a second fall away."""
        if now - self._part_at >= PART * PARTS:
            self._answers, self._new = NONE, 0
            self._part_at = now
            return
        if self._new and now - self._part_at >= PART:
            if self._answers is NONE:
                self._answers = NONE[:]
            self._answers[self._part] += self._new
            self._new = 0
        while now - self._part_at >= PART:
            self._part = (self._part + 1) % PARTS
            if self._answers is not NONE:
                self._answers[self._part] = 0
            self._part_at += PART

    def shift(self, seconds: float) -> None:
        """Move all times by `seconds`: the clock was replaced by another one."""
        self._ready += seconds
        self._asked_at += seconds
        self._resumes_at += seconds
        self._first_at += seconds
        self._answered_at += seconds
        self._tried_at += seconds
        self._part_at = -math.inf

    def is_idle(self, now: float) -> bool:
        """Say whether there is no rate to be remembered."""
        return self.rate == math.inf or not now - self._ready < KEPT

    def __repr__(self) -> str:
        return f"<AdaptiveRate {self.rate:.3g}/s, ceiling {self._ceiling:.3g}/s>"
