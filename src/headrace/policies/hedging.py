"""Hedging: when a call is slow enough for a second copy of it, and how many copies a stage may make.

Rules:
1. A call is slow when it has run longer than 95 % of the recent calls of its key. Where too few are known, none is.
2. Copies never exceed their share of the calls so far. What was not used is kept for a small burst only, so that a
   server that turns slow all at once is not asked twice as much.
3. Memory is bounded: a histogram for each of the keys used last. The work for a call does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Hashable
from typing import Any, Final

__all__ = ["GROWTH", "Hedge", "HedgeStatistics", "Latencies", "problems"]

#: The share of calls that is not slow.
QUANTILE: Final = 0.95
#: So many calls must be known before one is called slow.
ENOUGH: Final = 20
#: Each class of latencies reaches so many times as far as the one below it: so exact is the quantile.
GROWTH: Final = 1.1
#: The lowest class reaches to this (seconds), and the highest from about an hour: a copy sooner would help nobody.
LEAST: Final = 0.001
CLASSES: Final = 160
_MOST: Final = LEAST * GROWTH ** (CLASSES - 1)
#: After so many calls, and after so many seconds, those before weigh half as much.
HALVED_AFTER: Final = 512
HALF_LIFE: Final = 300.0
#: So many copies may start at once where few were needed before.
BURST: Final = 10
#: So many keys have a histogram, those used last.
KEYS_KEPT: Final = 512
#: A copy that was refused is asked for again when its call has run so many times as long.
AGAIN: Final = 1.5

_LOG_GROWTH: Final = math.log(GROWTH)


def problems(
    share: Any, *, kind: str, effect: str, lane: str, is_async: bool, concurrency: object
) -> list[str]:
    """Give what is wrong with `hedge=share` for such a stage; nothing where it is left out."""
    if share is None:
        return []
    found = []
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0.0 < share <= 1.0:
        found.append(f"hedge={share!r}: give the share of calls to add, above 0 and up to 1, as hedge=0.05")
    if kind != "map":
        found.append(f"hedge= is for map(), and this is a {kind}(): leave it out")
    if effect != "safe":
        found.append(
            f'hedge= makes some calls twice, and effect={effect!r} does not say that this does no harm: give effect="safe" '
            f"where a call only reads, or leave hedge= out"
        )
    if lane != "loop" or not is_async:
        found.append(
            "hedge= needs an async function on the loop, whose slower call can be cancelled: give an async function, "
            "or leave hedge= out"
        )
    if concurrency == 1:
        found.append(
            "hedge= needs a second place for the copy: give concurrency=2 or more, or leave hedge= out"
        )
    return found


class Latencies:
    """The latencies of recent calls, in classes; `quantile` is the one that 95 % of them do not exceed."""

    __slots__ = ("_above", "_added", "_aged_at", "_at", "_counts", "total")

    def __init__(self, now: float) -> None:
        self._counts = array("d", bytes(8 * CLASSES))
        self._at = 0  # the class of the quantile: the lowest above which there is no more than the rest
        self._above = 0.0  # how many are in the classes above it
        self._added = 0  # since the last halving
        self._aged_at = now
        self.total = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Count a call that took so long."""
        self.age(now)
        number = _class_of(seconds)
        self._counts[number] += 1.0
        self.total += 1.0
        if number > self._at:
            self._above += 1.0
        self._added += 1
        if self._added >= HALVED_AFTER:
            self._halve(1)
        self._find()

    def quantile(self) -> float | None:
        """Give the latency (seconds) that 95 % do not exceed, at most a tenth too much; None where too few are known."""
        return LEAST * GROWTH**self._at if self.total >= ENOUGH else None

    def age(self, now: float) -> None:
        """Let those weigh less that are old at `now`."""
        lives = (now - self._aged_at) / HALF_LIFE
        if lives >= 1.0:
            self._aged_at = now
            self._halve(min(int(lives), 64))
            self._find()
        elif lives < 0.0:  # another clock
            self._aged_at = now

    def _halve(self, times: int) -> None:
        weight = 0.5**times
        counts = self._counts = array("d", [count * weight for count in self._counts])
        self.total = sum(counts)
        self._above = sum(counts[self._at + 1 :])
        self._added = 0

    def _find(self) -> None:
        """Move to the class of the quantile: seldom by more than one, and never by more than there are."""
        counts, allowed = self._counts, (1.0 - QUANTILE) * self.total + 1e-9
        while self._above > allowed and self._at < CLASSES - 1:
            self._at += 1
            self._above -= counts[self._at]
        while self._at > 0 and self._above + counts[self._at] <= allowed:
            self._above += counts[self._at]
            self._at -= 1


def _class_of(seconds: float) -> int:
    if not seconds > LEAST:
        return 0
    return CLASSES - 1 if seconds >= _MOST else math.ceil(math.log(seconds / LEAST) / _LOG_GROWTH - 1e-9)


@dataclasses.dataclass(frozen=True, slots=True)
class HedgeStatistics:
    """What a stage's hedging did so far: its calls, copies of them, how many of these came first, and keys known."""

    calls: int
    copies: int
    won: int
    keys: int


class Hedge:
    """The decisions of one stage: `begin` for each call, `may_copy` and `copy` for a slow one, `end` with its time."""

    __slots__ = ("_allowed", "_keys", "_share", "calls", "copies", "won")

    def __init__(self, share: float) -> None:
        self._share = share
        self._allowed = 0.0  # copies that may be made now
        self._keys: dict[Hashable, Latencies] = {}
        self.calls = 0
        self.copies = 0
        self.won = 0

    def begin(self, key: Hashable, now: float) -> float | None:
        """Count a call; say after how many seconds it will be slow, None where that is not known yet."""
        self.calls += 1
        self._allowed = min(self._allowed + self._share, float(BURST))
        return self.slow_after(key, now)

    def slow_after(self, key: Hashable, now: float) -> float | None:
        """Say after how many seconds a call of this key is slow, None while that is not known."""
        known = self._keys.get(key)
        if known is None:
            return None
        known.age(now)
        return known.quantile()

    def end(self, key: Hashable, seconds: float, now: float) -> None:
        """Take in what a call took that gave a result, or that was ended by then."""
        known = self._keys.pop(key, None)
        if known is None:
            known = Latencies(now)
            if len(self._keys) >= KEYS_KEPT:
                del self._keys[next(iter(self._keys))]
        self._keys[key] = known  # at the end: the first is the one that was used longest ago
        known.add(seconds, now)

    def known_with(self, key: Hashable, running: int) -> bool:
        """Whether enough is known of this key although so many of its first calls still run.

        Those that have ended are the quicker ones; what is slow among all can be told once few are left.
        """
        known = self._keys.get(key)
        return known is not None and running <= (1.0 - QUANTILE) * (known.total + running)

    @property
    def may_copy(self) -> bool:
        """Whether the extra load allows one more copy."""
        return self._allowed >= 1.0 - 1e-9

    def copy(self) -> None:
        """Count a copy that starts, which `may_copy` allowed."""
        self._allowed -= 1.0
        self.copies += 1

    def statistics(self) -> HedgeStatistics:
        """Count calls and copies."""
        return HedgeStatistics(self.calls, self.copies, self.won, len(self._keys))
