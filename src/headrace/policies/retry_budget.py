"""The retry budget: repetitions are at most a share of a key's calls, so that failures do not multiply its load.

Rules:
1. Each call earns a share of one repetition; each repetition spends one. A few more a second are always allowed, so
   that what is left at the end is not waited for by the hour.
2. What was earned and not spent within a minute or two is lost.
3. A repetition that is not affordable waits its turn; nothing fails for want of budget.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LEAST", "RetryBudget"]

#: Repetitions a second that are allowed in any case, and so many at once to begin with.
LEAST: Final = 10.0
#: The calls of how many seconds count: these and those of the part before.
WINDOW: Final = 60.0


class RetryBudget:
    """The repetitions that one key may make. `share` is theirs of all its calls."""

    __slots__ = ("_at", "_before", "_now_part", "_part_at", "_seen", "_tokens", "share", "waits")

    def __init__(self, share: float, now: float) -> None:
        self.share = share
        self.waits = 0  # repetitions that had to wait
        self._tokens = LEAST
        self._at = self._part_at = now
        self._seen = 0  # the calls so far that have been counted
        self._now_part = self._before = 0.0  # what was earned in this window and in the one before

    def take(self, calls: int, now: float) -> float:
        """Spend one repetition, and give the seconds that it is to wait for; `calls` are the key's so far."""
        passed = max(0.0, now - self._part_at)
        if passed >= WINDOW:
            self._before = self._now_part if passed < 2.0 * WINDOW else 0.0
            self._now_part = 0.0
            self._part_at = now
        earned = self.share * max(0, calls - self._seen)
        self._seen = calls
        self._now_part += earned
        most = LEAST + self._before + self._now_part
        self._tokens = min(most, self._tokens + earned + LEAST * max(0.0, now - self._at)) - 1.0
        self._at = max(self._at, now)
        if self._tokens >= 0.0:
            return 0.0
        self.waits += 1
        return -self._tokens / LEAST

    def __repr__(self) -> str:
        return f"<RetryBudget {self.share:g}, {self._tokens:.1f} left>"
