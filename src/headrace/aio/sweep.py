"""Time limits of many running calls, kept by one timer.

Rules:
1. Setting a limit costs the caller one comparison; there is no timer per call (`asyncio.timeout` costs 4 µs a call).
2. A loop that was blocked did not listen: after that, results that are there count before limits that have passed.
3. The sweep looks at all slots only when the earliest limit that it knew of has passed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ["DeadlineSweep", "Limited"]

#: A sweep that comes later than this (seconds) was held up with the whole loop: by a call that blocks, or a stopped
#: process. What others waited for may be there and not yet handed on; it gets this long to arrive.
LATE = 0.1


class Limited(Protocol):
    """Something with a time limit: `deadline` in the loop's time, None while it has none."""

    deadline: float | None


class DeadlineSweep:
    """Call `on_expired(slot)` for each slot whose deadline has passed. Whoever sets a deadline compares it with `at`:

    `if deadline < sweep.at: sweep.arm(deadline)`
    """

    __slots__ = ("_loop", "_on_expired", "_slots", "_timer", "_was_late", "at")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        slots: Callable[[], Iterable[Limited]],
        on_expired: Callable[[Limited, float], None],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._on_expired = on_expired
        self._timer: asyncio.TimerHandle | None = None
        self._was_late = False
        self.at = math.inf

    def arm(self, deadline: float) -> None:
        """Look again at `deadline` at the latest."""
        if self._timer is not None:
            self._timer.cancel()
        self.at = deadline
        self._timer = self._loop.call_at(deadline, self._sweep)

    def stop(self) -> None:
        """End it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.at = math.inf

    def _sweep(self) -> None:
        now = self._loop.time() + 1e-6
        if now - self.at > LATE and not self._was_late:
            self._was_late = True  # once: on a loop that is always late, limits end calls all the same
            self._timer = self._loop.call_later(LATE, self._sweep)
            return
        self._was_late = False
        self._timer = None
        self.at = math.inf
        earliest = math.inf
        for slot in self._slots():
            deadline = slot.deadline
            if deadline is None:
                continue
            if deadline <= now:
                self._on_expired(slot, now)
                deadline = slot.deadline
                if deadline is None:
                    continue
            if deadline < earliest:
                earliest = deadline
        if earliest < self.at:
            self.arm(earliest)
