"""A fan-out's function, made to give all its children at once, so that a failed attempt has let none of them in."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from headrace.errors import CallError

__all__ = ["collecting"]


def collecting(fn: Callable[..., Any], most: int) -> Callable[..., Any]:
    """Wrap `fn` so that it returns the list of what it yields or returns; more than `most` is the item's failure."""
    target = fn
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    if inspect.isasyncgenfunction(target):

        async def collect_async(value: Any, **resources: Any) -> list[Any]:
            found: list[Any] = []
            async with contextlib.aclosing(fn(value, **resources)) as children:
                async for child in children:
                    found.append(child)
                    if len(found) > most:
                        raise _too_many(most)
            return found

        return collect_async
    if inspect.iscoroutinefunction(target):

        async def collect_awaited(value: Any, **resources: Any) -> list[Any]:
            return _collect(await fn(value, **resources), most)

        return collect_awaited

    def collect(value: Any, **resources: Any) -> list[Any]:
        return _collect(fn(value, **resources), most)

    return collect


def _collect(children: Iterable[Any], most: int) -> list[Any]:
    if isinstance(children, (str, bytes)) or not isinstance(children, Iterable):
        raise TypeError(
            f"flat_map needs a function that gives an iterable of children; it gave {type(children).__name__}"
        )
    found = list(itertools.islice(children, most + 1))
    if len(found) > most:
        raise _too_many(most)
    return found


def _too_many(most: int) -> CallError:
    return CallError(
        f"the item fans out into more than fanout={most} children: raise fanout=, or make it two jobs (the first one's "
        f"output is the second one's source)"
    )
