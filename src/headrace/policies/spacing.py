"""Starts that keep a distance: what a crawl-delay asks for, laid over the rate of one key.

Rules:
1. It only slows down: a rate that the limit has holds besides, and a start that is given back has kept its distance.
2. It stands in the place of the key's rate, so that keys without one pay nothing for it.
3. It is forgotten with its key, and whoever asked for it asks again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from headrace.errors import HeadraceError
from headrace.policies.further import has_url_keys
from headrace.policies.gcra import Gcra
from headrace.policies.limits import Claim

__all__ = ["LONGEST_INTERVAL", "Spaced", "bounded_interval", "space"]

#: The longest distance (seconds) that a stranger can ask for.
LONGEST_INTERVAL: Final = 300.0


class Spaced(Gcra):
    """A rate whose starts are at least `interval` seconds apart, over `inner`, which the key had before."""

    __slots__ = ("_inner", "_next", "interval")

    def __init__(self, inner: Gcra | None, interval: float, now: float) -> None:
        self.interval = interval
        self._inner = inner
        self._next = now + interval

    def wait(self, now: float, cost: float = 1.0) -> float:
        """Give the seconds until a start fits. Takes nothing."""
        wait = 0.0 if now >= self._next else self._next - now
        if now + wait < self._next:  # the sum was rounded down
            wait += math.ulp(self._next)
        return wait if self._inner is None else max(wait, self._inner.wait(now, cost))

    def take(self, now: float, cost: float = 1.0) -> None:
        """Note a start."""
        self._next = max(self._next, now) + self.interval
        if self._inner is not None:
            self._inner.take(now, cost)

    def admit(self, now: float, cost: float = 1.0) -> float:
        """Take a start if it fits and give 0.0; else take nothing and give the wait."""
        wait = self.wait(now, cost)
        if wait == 0.0:
            self._next = now + self.interval
            if self._inner is not None:
                self._inner.take(now, cost)
        return wait

    def refund(self, estimated: float, actual: float) -> None:
        """Correct a reservation of the rate; the distance stays."""
        if self._inner is not None:
            self._inner.refund(estimated, actual)

    def is_recovered(self, now: float) -> bool:
        """Say whether nothing that has started counts any more."""
        return now >= self._next and (self._inner is None or self._inner.is_recovered(now))

    def shift(self, seconds: float) -> None:
        """Move all times by `seconds`: the clock was replaced by another one."""
        self._next += seconds
        if self._inner is not None:
            self._inner.shift(seconds)


def bounded_interval(seconds: float | None) -> float:
    """Give a distance in seconds that can be kept, at most 300; 0.0 for none, and for what makes no sense."""
    return min(seconds, LONGEST_INTERVAL) if seconds is not None and seconds > 0.0 else 0.0


def space(claims: Sequence[Claim], interval: float, value: Any, of_urls: bool, now: float) -> bool:
    """Let starts at the keys that these claims' limits have for the URL `value` be so many seconds apart; say whether
    there is such a key.

    Limits without keys, and those with keys that are none of a URL, are not meant: it is one host that wants it slow.
    """
    interval = bounded_interval(interval)
    found = False
    for each in claims:
        limit = each.state.limit
        if interval == 0.0 or not has_url_keys(limit, of_urls):
            continue
        try:
            state = limit._state_of(value)
        except HeadraceError:
            continue
        found = True
        if not isinstance(state.gcra, Spaced):
            state.gcra = Spaced(state.gcra, interval, now)
        elif state.gcra.interval != interval:
            state.gcra.interval = interval
    return found
