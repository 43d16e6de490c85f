"""What goes to child processes and comes back, as pickles.

Rules:
1. What a child could not import (from `__main__`, from modules that are no files) goes by its definition, with cloudpickle.
2. What cannot be loaded here is the failure of its item, and names the type; an exception that cannot is told in its words.
3. An exception that came from a child has its traceback there as its cause.
"""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import cloudpickle

from headrace.errors import CallError
from headrace.lanes import wire
from headrace.lanes.child import said
from headrace.ports import Raised

__all__ = ["RemoteTraceback", "by_value", "unwrapped"]


class RemoteTraceback(Exception):
    """What stands as the cause of an error that came from a child process: its traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def _code_with_its_file(code: types.CodeType) -> Any:
    """Reduce code as cloudpickle does, but keep the name of its file: tracebacks without it help nobody."""
    reduced = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    args = [code.co_filename if type(arg) is str and arg == "<dynamic-code>" else arg for arg in reduced[1]]
    return (reduced[0], tuple(args), *reduced[2:])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it brings no types
    dispatch_table: ClassVar[Any] = collections.ChainMap(
        {types.CodeType: _code_with_its_file}, cloudpickle.Pickler.dispatch_table
    )


def by_value(value: Any) -> bytes:
    """Pickle with the definitions of all that the child could not import: of `__main__`, and of modules from nowhere."""
    file = io.BytesIO()
    with contextlib.ExitStack() as stack:
        for name, module in tuple(sys.modules.items()):
            if (
                type(module) is types.ModuleType
                and module.__spec__ is None
                and name == module.__name__ != "__main__"
            ):
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        _Pickler(file, 5).dump(value)
    return file.getvalue()


def unwrapped(content: memoryview, load: Callable[[memoryview], Any] = pickle.loads) -> Any:
    """Load what a wrapped part carries, or says the type of: a value, or what a call raised."""
    if content[0] == wire.VALUE[0]:
        end = 2 + content[1]
        try:
            return load(content[end:])
        except Exception as error:  # noqa: BLE001 - it is the item's failure
            name = str(content[2:end], "utf-8", "replace")
            raised = CallError(
                f"the result, of type {name}, cannot be unpickled here: {said(error)}. Return plain data instead"
            )
            raised.ambiguous = True
            raised.__cause__ = error
            return Raised(raised)
    data, text, trace, notes = pickle.loads(content[1:])
    return Raised(_error(data, text, trace, notes))


def _error(data: bytes | None, text: str, trace: str, notes: Sequence[str]) -> Exception:
    error: object = None
    if data is not None:
        with contextlib.suppress(Exception):  # its words are there
            error = pickle.loads(data)
    if isinstance(error, Exception):
        found = error
    else:
        found = CallError(text)
        found.ambiguous = True
    known = getattr(found, "__notes__", ())
    for note in notes:
        if note not in known:
            found.add_note(note)
    found.__cause__ = RemoteTraceback(trace)
    return found
