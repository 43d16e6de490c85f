"""What `uses=` opens: entered if it is a context manager, closed if it can be, in the reverse order.

Rules:
1. One that cannot be closed takes nothing back of what was done with it: that is told, and the run ends as it would have.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

from headrace.aio.resources import stays_open
from headrace.engine.texts import one_line

__all__ = ["open_resource"]


async def open_resource(
    stack: contextlib.AsyncExitStack, factory: Callable[[], Any], warn: Callable[[str], None]
) -> Any:
    """Call `factory` on the loop and open what it gives, to be closed with `stack`; `warn` is told if that fails.

    A coroutine is awaited; a context manager is entered; anything else with `aclose()` or `close()` is closed in the end.
    """
    resource = factory()
    if inspect.isawaitable(resource) and not hasattr(resource, "__aenter__"):
        resource = await resource
    if hasattr(resource, "__aenter__"):
        opened = await resource.__aenter__()
        stack.push_async_exit(_closing(resource, resource.__aexit__, warn))
        return opened
    if hasattr(resource, "__enter__"):
        if stays_open(resource):
            stack.push_async_exit(_closing(resource, lambda *_: resource.close(), warn))
        opened = resource.__enter__()
        stack.push_async_exit(_closing(resource, resource.__exit__, warn))
        return opened
    close = getattr(resource, "aclose", None) or getattr(resource, "close", None)
    if close is not None:
        stack.push_async_exit(_closing(resource, lambda *_: close(), warn))
    return resource


def _closing(resource: Any, leave: Callable[..., Any], warn: Callable[[str], None]) -> Callable[..., Any]:
    """Make the end of a resource, which neither raises nor swallows an exception."""

    async def close(*error: Any) -> bool:
        try:
            result = leave(*error)
            if inspect.isawaitable(result):
                await result
        except Exception as trouble:  # noqa: BLE001 - the results are safe; the run tells of it
            what = type(resource).__name__
            warn(f"closing the resource {what} failed: {type(trouble).__name__}: {one_line(trouble)}")
        return False

    return close
