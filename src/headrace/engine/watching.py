"""What a run knows of its watchdog, which is made for it above.

Rules:
1. The engine says when to watch and whose calls are made; it looks at no stack and starts no thread.
2. A run without one is the same run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from headrace.policies.holds import Hold, Place

__all__ = ["MakeWatch", "Watching"]


class Watching(Protocol):
    """What watches the loop during a run, and tells of what holds it."""

    starts_at: float  #: when the loop, if it is held from the start, calls for `start_late`; infinite once it is watched

    def start(self) -> None:
        """Begin to watch."""
        ...

    def start_late(self, whose: Place) -> None:
        """Begin in earnest: the loop was held since `start`, and a call of the function at `whose` has just ended."""
        ...

    async def close(self) -> None:
        """End."""
        ...


#: Makes one of who says whose call a task makes, and who is told of each hold.
MakeWatch = Callable[[Callable[[asyncio.Task[Any] | None], Place], Callable[[Hold], None]], Watching]
