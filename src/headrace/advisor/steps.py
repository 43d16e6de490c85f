"""How long a coroutine keeps the loop between two of its awaits.

    Task ─► stepped(coroutine) ─► send ─► … until it waits ─► note the time ─► the loop goes on

Rules:
1. What is awaited is handed on as it is; cancellation and exceptions pass through.
2. Only the coroutine's own steps are counted, never what the loop does meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Steps", "stepped"]


class Steps:
    """What the steps of one call took, in seconds: the longest, their sum, and the CPU time in them."""

    __slots__ = ("cpu", "in_all", "longest")

    def __init__(self) -> None:
        self.longest = self.in_all = self.cpu = 0.0

    def note(self, wall: float, cpu: float) -> None:
        """Count one step."""
        self.longest = max(self.longest, wall)
        self.in_all += wall
        self.cpu += cpu


class stepped:
    """Await `coroutine` to its end, noting each step, and give its result."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], steps: Steps) -> None:
        self._coroutine = coroutine
        self._steps = steps

    def __await__(self) -> stepped:
        return self

    def __iter__(self) -> stepped:
        return self

    def __next__(self) -> Any:
        return self._step(self._coroutine.send, None)

    def send(self, value: Any) -> Any:
        """Go on to the next await."""
        return self._step(self._coroutine.send, value)

    def throw(self, *raised: Any) -> Any:
        """Go on by what was raised where it waits."""
        return self._step(self._coroutine.throw, *raised)

    def close(self) -> None:
        """End it."""
        self._coroutine.close()

    def _step(self, go_on: Callable[..., Any], *given: Any) -> Any:
        began, computed = time.perf_counter(), time.thread_time()
        try:
            return go_on(*given)
        finally:
            self._steps.note(time.perf_counter() - began, time.thread_time() - computed)
