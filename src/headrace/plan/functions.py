"""What can be seen of a function without calling it: its name, where it is written, whether it is async."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

__all__ = ["cores", "function_name", "is_async", "unwrapped", "where_is"]


def function_name(fn: Any) -> str:
    """Name a callable as a reader of a report would: the function's own name, else its class."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return "function" if name == "<lambda>" else str(name)


def unwrapped(fn: Any) -> Any:
    """Give the function itself behind partials and callable objects."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if not (inspect.isroutine(fn) or inspect.isclass(fn)) and hasattr(fn, "__call__"):  # noqa: B004 - the method itself
        return fn.__call__
    return fn


def where_is(fn: Any) -> tuple[str, str, int]:
    """Give a function's name, file and first line; name and file are empty where it was not written in Python."""
    fn = unwrapped(fn)
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    return (code.co_name, code.co_filename, code.co_firstlineno) if code is not None else ("", "", 0)


def is_async(fn: Any) -> bool:
    """Whether calling `fn` gives something to await or to iterate asynchronously."""
    inner = unwrapped(fn)
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
