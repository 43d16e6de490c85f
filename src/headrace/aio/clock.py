"""The loop's clock, at the least cost.

Rules:
1. What is compared with the loop's timers is read from the loop's own clock, virtual or not.
2. asyncio's own loops only pass `time.monotonic` on: it is called directly there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["clock_of"]


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Give the function that tells the time of `loop`, in seconds."""
    if getattr(type(loop), "time", None) is asyncio.BaseEventLoop.time and "time" not in vars(loop):
        return time.monotonic
    return loop.time
