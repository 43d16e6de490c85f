"""The user's own code, named on the command line as `MODULE:NAME` or `FILE.py:NAME`.

Rules:
1. What the user's code raises is shown with the user's own lines; headrace's frames are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from headrace.errors import HeadraceError, PlanError

__all__ = ["UserCodeFailed", "guarded", "load_module", "show_user_error", "split_target"]


class UserCodeFailed(Exception):
    """The user's module or function raised; its cause is that exception."""


def split_target(target: str, example_name: str) -> tuple[str, str]:
    """Give the module or file, and the name in it. Raises PlanError for what is neither."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        example = target.rstrip(":") if target.rstrip(":").endswith(".py") else "job.py"
        raise PlanError(
            f"{target!r}: give a file or a module, a colon and a name, as in {example}:{example_name}"
        )
    if place.endswith(".py") and not os.path.isfile(place):
        raise PlanError(f"{place} does not exist (looked in {os.getcwd()}); check the name")
    return place, name


def load_module(place: str, name: str) -> ModuleType:
    """Import a module or a file for what is called `name` there.

    Raises PlanError where it is not there, UserCodeFailed where its code raises.
    """
    return _import_file(place) if place.endswith(".py") else _import_module(place, name)


def _import_module(name: str, wanted: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    except (ModuleNotFoundError, ValueError) as error:
        raise PlanError(
            f"there is no module {name} here or in this Python; for a file write {name}.py:{wanted}"
        ) from error
    module: ModuleType = guarded(lambda: importlib.import_module(name))
    return module


def _import_file(path: str) -> ModuleType:
    path = os.path.abspath(path)
    sys.path.insert(0, os.path.dirname(path))
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PlanError(f"{path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    before = sys.modules.get(name)
    sys.modules[name] = module  # so that what the file defines can be found again by its name
    try:
        guarded(lambda: loader.exec_module(module))
    except UserCodeFailed:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def guarded(call: Any) -> Any:
    """Call the user's code. Raises HeadraceError as it comes, and UserCodeFailed for anything else."""
    try:
        return call()
    except HeadraceError:
        raise  # a PlanError of the flow says by itself what is wrong
    except (Exception, SystemExit) as error:
        raise UserCodeFailed from error


def show_user_error(failed: UserCodeFailed, when: str) -> None:
    """Show what the user's code raised, from the user's first line on."""
    from headrace.cli.screen import say
    from headrace.terminal.text import clean

    error = failed.__cause__
    assert error is not None
    trace = error.__traceback__
    here = os.path.dirname(os.path.abspath(__file__))
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename, here):
        trace = trace.tb_next
    say(f"headrace: your code raised an exception {when}:")
    for line in "".join(traceback.format_exception(type(error), error, trace)).splitlines():
        say(clean(line))


def _is_ours(file: str, here: str) -> bool:
    return file.startswith((here, "<frozen importlib")) or "/importlib/" in file
