"""How a command ends: every exception becomes one clear message and an exit code.

Rules:
1. The codes are those of the documentation: 2 wrong usage or plan, 4 the world, 70 ours, 75 held, 130 and 143 a signal.
2. No traceback, unless HEADRACE_DEBUG=1 asks for it or the fault is ours.
3. Messages are of errors that keep secrets out of their text; nothing here shows a value of an option.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

from headrace.errors import (
    EngineError,
    HeadraceError,
    IdentityChanged,
    LaneError,
    LedgerBusy,
    LedgerError,
    PlanError,
    SinkError,
    SourceError,
)

__all__ = ["BUSY", "FAULT", "INTERRUPTED", "USAGE", "WORLD", "ending", "exit_code_of", "show_trace"]

P = ParamSpec("P")

USAGE = 2
WORLD = 4
FAULT = 70
BUSY = 75
INTERRUPTED = 130


def exit_code_of(error: Exception) -> int:
    """Give the exit code of a command that ended with this error."""
    if isinstance(error, (PlanError, IdentityChanged)):
        return USAGE
    if isinstance(error, LedgerBusy):
        return BUSY
    if isinstance(error, (SourceError, SinkError, LedgerError, LaneError)):
        return WORLD
    return FAULT


def ending(command: Callable[P, int]) -> Callable[P, None]:
    """Let a command that gives its exit code end so; what it raises is explained on standard error."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        import typer

        raise typer.Exit(_code_of(lambda: command(*args, **kwargs)))

    return run


def _code_of(command: Callable[[], int]) -> int:
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our data has seen enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last place where it can be explained
        return _explained(error)
    return code


def _explained(error: Exception) -> int:
    from headrace.cli.screen import say
    from headrace.terminal.text import clean

    code = exit_code_of(error)
    show_trace(error, always=code == FAULT)
    if code != FAULT:
        lines = [clean(line) for line in str(error).splitlines()]
        say("headrace: " + "\n".join(lines or [type(error).__name__]))
    elif isinstance(error, EngineError):
        say(f"headrace: {clean(error)}")
    else:
        kind = type(error).__name__
        said = clean(error) if isinstance(error, HeadraceError) else f"{kind}: {clean(error)}"
        say(f"headrace: a fault of headrace's own: {said}. Please report it, with the lines above.")
    return code


def show_trace(error: BaseException, *, always: bool = False) -> None:
    """Show the traceback, where HEADRACE_DEBUG=1 asks for it or `always`."""
    if always or os.environ.get("HEADRACE_DEBUG") == "1":
        from headrace.cli.screen import say
        from headrace.terminal.text import clean

        for line in "".join(traceback.format_exception(error)).splitlines():
            say(clean(line))
