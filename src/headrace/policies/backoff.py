"""How long to wait before a call is repeated.

Rules:
1. Full jitter: the wait is drawn from the whole range up to the bound, so that calls that failed together do
   not come back together.
2. The bound doubles with every attempt up to a cap, and no number of attempts overflows it.
3. A wait that the other side asked for is never shortened, and up to a tenth is drawn on top: several programs that
   were asked at once do not come back in the same instant.
"""

from __future__ import annotations

import math
from random import Random

__all__ = ["full_jitter", "spread"]

#: The share of a demanded wait that is drawn on top.
SPREAD = 0.1


def full_jitter(attempt: int, base: float, cap: float, rng: Random) -> float:
    """Draw the wait (seconds) after failed attempt `attempt` (from 1): U(0, min(cap, base·2ⁿ⁻¹))."""
    try:
        bound = min(cap, math.ldexp(base, attempt - 1))
    except OverflowError:
        bound = cap
    return bound * rng.random()


def spread(seconds: float, rng: Random) -> float:
    """Give a wait that was asked for (seconds) with up to a tenth on top."""
    return seconds * (1.0 + SPREAD * rng.random())
