"""The loop lane: the function runs on the event loop itself.

Rules:
1. A plain function with `lane="loop"` runs inline and must be quick: everything waits for it.
2. Nothing is put between the worker and an async function that takes no resources.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from headrace.plan import is_async

__all__ = ["LoopLane"]

_PLAIN = frozenset({dict, list, tuple, str, bytes, int, float, bool, type(None)})


class LoopLane:
    """Runs async functions, and plain ones that are asked to run here."""

    name = "loop"
    abandoned = 0

    def bind(
        self,
        fn: Callable[..., Any],
        shared: Mapping[str, Any],
        factories: Mapping[str, Callable[[], Any]],
    ) -> Callable[[Any], Awaitable[Any]]:
        """Make the callable. All resources are opened by the run: `factories` is empty here."""
        bound = functools.partial(fn, **shared) if shared else fn
        if is_async(fn):
            return bound

        async def call(value: Any) -> Any:
            result = bound(value)
            if (
                type(result) in _PLAIN
            ):  # what nearly all give; asking costs more than some of these functions do
                return result
            return await result if inspect.isawaitable(result) else result

        return call

    async def close(self, grace: float) -> int:
        """Do nothing: calls end with their workers."""
        return 0
