"""The limits that libcurl does not have: time to the first byte, and a body that stands still.

Rules:
1. One timer a client, not one a request: a few sweeps over what is in flight within the shortest limit.
2. A loop that was blocked did not listen: the time by which a sweep comes late is nobody's delay, and is
   added to all marks.
3. libcurl's LOW_SPEED would count the wait for the first byte as a stall, so that neither could be longer
   than the other.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final

from headrace.http.errors import FirstByteTimedOut, HttpError, Stalled
from headrace.http.url import Url, mask

if TYPE_CHECKING:
    from headrace.http.profile import Profile
    from headrace.http.transfer import Handle

__all__ = ["LEAST_RATE", "Watch", "too_late"]

LATE: Final = 0.25  # seconds
LEAST_RATE: Final = 32  # bytes a second, below which a body stands still


class Watch:
    """Sweep over the handles in flight and end those that pass their limits, through `end(handle, error)`."""

    def __init__(self, end: Callable[[Handle, HttpError], None]) -> None:
        self.flying: set[Handle] = set()
        self._end = end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._interval = 0.0
        self._due = 0.0

    def need(self, loop: asyncio.AbstractEventLoop, profile: Profile) -> None:
        """See that sweeps come, and often enough for the limits of this profile."""
        interval = profile.sweep
        if self._timer is not None and interval >= self._interval:
            return
        if interval == math.inf:
            return
        self.stop()
        self._loop, self._interval = loop, interval
        self._schedule()

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        assert self._loop is not None
        self._due = self._loop.time() + self._interval
        self._timer = self._loop.call_at(self._due, self._sweep)

    def _sweep(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        late = now - self._due
        if late > LATE:
            for handle in self.flying:
                handle.mark += late
                handle.sent_mark += late
        else:
            for handle in list(self.flying):
                error = self._judge(handle, now)
                if error is not None:
                    self._end(handle, error)
        if self.flying:
            self._schedule()

    def _judge(self, handle: Handle, now: float) -> HttpError | None:
        limits = handle.profile.timeouts
        if not handle.sends:
            return None
        if not handle.head:
            if handle.still_sending():
                handle.mark = now
                return self._judge_upload(handle, now, limits.stall)
            if limits.first_byte is not None and now - handle.mark >= limits.first_byte:
                return _error(
                    FirstByteTimedOut, handle, f"no byte of an answer within {limits.first_byte:g} s"
                )
            return None
        if limits.stall is None:
            return None
        if handle.paused:
            handle.seen = -1
            return None
        seen = handle.size + len(handle.head)
        if handle.seen < 0 or seen - handle.seen >= LEAST_RATE * limits.stall:
            handle.seen, handle.mark = seen, now
        elif now - handle.mark >= limits.stall:
            return _error(Stalled, handle, f"only {seen - handle.seen} bytes in {limits.stall:g} s")
        return None

    @staticmethod
    def _judge_upload(handle: Handle, now: float, stall: float | None) -> HttpError | None:
        if stall is None:
            return None
        uploaded = handle.uploaded()
        if handle.hungry or handle.sent < 0 or uploaded - handle.sent >= LEAST_RATE * stall:
            handle.sent, handle.sent_mark = uploaded, now
        elif now - handle.sent_mark >= stall:
            taken = uploaded - handle.sent
            return _error(
                Stalled, handle, f"only {taken} bytes of the request were taken in {stall:g} s", "send"
            )
        return None


def _error(kind: type[HttpError], handle: Handle, what: str, phase: str | None = None) -> HttpError:
    return too_late(kind, handle.method, handle.url, what, perf_counter() - handle.began, phase)


def too_late(
    kind: type[HttpError], method: str, url: Url, what: str, elapsed: float, phase: str | None = None
) -> HttpError:
    """Make the error of a request that passed a limit."""
    shown = mask(url.text)
    return kind(f"{method} {shown}: {what}", url=shown, host=url.key, phase=phase, elapsed=elapsed)
