"""Resources that a thread or a child process opens for itself.

Rules:
1. All are opened or none.
2. What can be entered is entered; what can be closed is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from headrace.aio.resources import stays_open

__all__ = ["open_all"]


def open_all(stack: contextlib.ExitStack, factories: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Open a thread's or a process's own resources, all or none, to be closed with `stack`."""
    opened: dict[str, Any] = {}
    with contextlib.ExitStack() as attempt:
        for key, factory in factories.items():
            resource = factory()
            entered = hasattr(resource, "__enter__")
            if hasattr(resource, "close") and (not entered or stays_open(resource)):
                attempt.callback(resource.close)
            if entered:
                resource = attempt.enter_context(resource)
            opened[key] = resource
        stack.push(attempt.pop_all())
    return opened
