"""Strain: whether this program itself is at its limits, so that more calls at once would only wait in it.

Rules:
1. It looks when it is asked, a few times a second at most, and has no timer of its own.
2. The loop is late where it takes long to come round; descriptors run out where the next one has a high number.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys

__all__ = ["Strain", "descriptors_run_out"]

#: Seconds between two looks.
EVERY = 0.25
#: A loop that takes longer to come round (seconds) is late.
LATE = 0.1
#: The share of the descriptors that may be in use.
DESCRIPTORS = 0.9


class Strain:
    """Looks at one loop and at this process."""

    __slots__ = ("_is_late", "_looked_at", "_loop", "_used_up")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._looked_at = -EVERY
        self._is_late = False
        self._used_up = False

    def is_on(self, now: float) -> bool:
        """Say whether the loop was late, or descriptors were nearly used up, at the last look; `now` is the loop's time."""
        if now - self._looked_at >= EVERY:
            self._looked_at = now
            self._used_up = descriptors_run_out()
            self._loop.call_soon(self._came_round)
        return self._is_late or self._used_up

    def _came_round(self) -> None:
        self._is_late = self._loop.time() - self._looked_at > LATE


def descriptors_run_out() -> bool:
    """Say whether nearly all file descriptors are in use: the system gives out the lowest free number."""
    if sys.platform == "win32":
        return False
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return False
    try:
        lowest = os.dup(2)
    except OSError as error:
        return error.errno == errno.EMFILE  # else there is no stderr to ask with
    os.close(lowest)
    return lowest >= DESCRIPTORS * most
