"""What `uses=` opens: entered if it is a context manager, closed if it can be, in the reverse order."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["open_resource"]


async def open_resource(stack: contextlib.AsyncExitStack, factory: Callable[[], Any]) -> Any:
    """Call `factory` on the loop and open what it gives, to be closed with `stack`.

    A coroutine is awaited; a context manager is entered; anything else with `aclose()` or `close()` is closed in the end.
    """
    resource = factory()
    if inspect.isawaitable(resource) and not hasattr(resource, "__aenter__"):
        resource = await resource
    if hasattr(resource, "__aenter__"):
        return await stack.enter_async_context(resource)
    if hasattr(resource, "__enter__"):
        return stack.enter_context(resource)
    close = getattr(resource, "aclose", None) or getattr(resource, "close", None)
    if close is not None:
        stack.push_async_callback(_close, close)
    return resource


async def _close(close: Callable[[], Any]) -> None:
    result = close()
    if inspect.isawaitable(result):
        await result
