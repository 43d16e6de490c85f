"""How long to wait before a call is repeated.

Rules:
1. Full jitter: the wait is drawn from the whole range up to the bound, so that calls that failed together do
   not come back together.
2. The bound doubles with every attempt up to a cap, and no number of attempts overflows it.
"""

from __future__ import annotations

import math
from random import Random

__all__ = ["full_jitter"]


def full_jitter(attempt: int, base: float, cap: float, rng: Random) -> float:
    """Draw the wait (seconds) after failed attempt `attempt` (from 1): U(0, min(cap, base·2ⁿ⁻¹))."""
    try:
        bound = min(cap, math.ldexp(base, attempt - 1))
    except OverflowError:
        bound = cap
    return bound * rng.random()
