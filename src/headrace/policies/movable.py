"""Whether a function may run in another process without anybody noticing.

Rules:
1. In doubt it may not: a child process has copies of everything, and what the function changes there stays there.
2. The function is looked at, never called. So are those that it names, if they are of the same package: what libraries keep
   for themselves, as parsers and caches, they may have a copy of.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
import types
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["why_not_movable"]

#: Values that are the same wherever they are copied to.
_FIXED: Final = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    type(None),
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    re.Pattern,
)
_STORES: Final = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_MOST_DEPTH: Final = 8


def why_not_movable(fn: Any) -> str | None:
    """Say why `fn` must not be moved to another process by itself; None where it may."""
    if isinstance(fn, types.FunctionType) and _package(fn) in sys.stdlib_module_names:
        return None
    return _why_not(fn, set(), 0)


def _package(fn: Any) -> str:
    return (getattr(fn, "__module__", None) or "").partition(".")[0]


def _why_not(fn: Any, seen: set[int], depth: int) -> str | None:
    if id(fn) in seen or depth > _MOST_DEPTH:
        return None
    seen.add(id(fn))
    if isinstance(fn, functools.partial):
        for given in (*fn.args, *fn.keywords.values()):
            if not _is_fixed(given):
                return f"it is given {_kind(given)}, which a process would have a copy of"
        return _why_not(fn.func, seen, depth + 1)
    if isinstance(fn, types.BuiltinFunctionType):
        owner = fn.__self__
        if owner is None or isinstance(owner, (types.ModuleType, type)) or _is_fixed(owner):
            return None
        return f"it is a method of {_kind(owner)}, which a process would have a copy of"
    if inspect.ismethod(fn):
        if isinstance(fn.__self__, type):
            return _why_not(fn.__func__, seen, depth + 1)
        return f"it is a method of {_kind(fn.__self__)}, which a process would have a copy of"
    if isinstance(fn, type):
        return None
    if not inspect.isfunction(fn):
        return f"it is {_kind(fn)}, which may keep a state"
    return _why_not_function(fn, seen, depth)


def _why_not_function(fn: types.FunctionType, seen: set[int], depth: int) -> str | None:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet: a function that names itself
            continue
        why = _why_not_value(fn, name, value, seen, depth, "it closes over")
        if why is not None:
            return why
    for name in _globals_of(fn.__code__):
        if name.startswith("\0"):
            return f"it stores the global {name[1:]!r}"
        if name in fn.__globals__:
            why = _why_not_value(fn, name, fn.__globals__[name], seen, depth, "it uses the global")
            if why is not None:
                return why
    for value in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()):
        if not _is_fixed(value) and not callable(value):
            return f"it has {_kind(value)} as a default, which a process would have a copy of"
    return None


def _why_not_value(
    user: types.FunctionType, name: str, value: Any, seen: set[int], depth: int, how: str
) -> str | None:
    if _is_fixed(value):
        return None
    if isinstance(value, types.FunctionType) and _package(value) != _package(user):
        return None
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        inner = _why_not(value, seen, depth + 1)
        return f"{name}: {inner}" if inner is not None else None
    return f"{how} {name!r}, {_kind(value)}, which a process would have a copy of"


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """Give the names of the globals that the code uses; those that it stores are marked by a NUL in front."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _STORES:
            yield f"\0{instruction.argval}"
        elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


def _is_fixed(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(_is_fixed(inner) for inner in value)
    return isinstance(value, _FIXED)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
