"""`headrace run MODULE:FLOW` or `FILE.py:FLOW`: run a flow of the user's.

Rules:
1. The name after the colon is a flow, or a function without arguments that gives one.
2. What the user's code raises is shown with the user's own lines, and is wrong usage; headrace's frames are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.ending import USAGE, ending
from headrace.cli.options import (
    AcceptChanges,
    Fresh,
    MaxAge,
    MaxFailures,
    NoProgress,
    Problems,
    Quiet,
    Window,
    Within,
    read_count,
    read_duration,
    read_failures,
)
from headrace.errors import HeadraceError, PlanError

if TYPE_CHECKING:
    from headrace.flow.builder import Flow
    from headrace.report import Report

__all__ = ["run"]


class _UserCodeFailed(Exception):
    """The user's module or function raised; its cause is that exception."""


@ending
def run(
    target: Annotated[str, typer.Argument(metavar="MODULE:FLOW|FILE.py:FLOW", help="Where the flow is.")],
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name of the job. [default: default]")
    ] = None,
    within: Within = None,
    max_failures: MaxFailures = None,
    window: Window = None,
    fresh: Fresh = False,
    max_age: MaxAge = None,
    accept_changes: AcceptChanges = False,
    explain: Annotated[bool, typer.Option("--explain", help="Describe the flow, and do not run it.")] = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> int:
    """Run a flow of your own: the name after the colon is a flow, or a function without arguments that gives one."""
    problems = Problems()
    options: dict[str, Any] = {
        "within": problems.read("--within", within, read_duration),
        "max_failures": problems.read("--max-failures", max_failures, read_failures),
        "window": problems.read("--window", window, read_count),
        "max_age": problems.read("--max-age", max_age, read_duration),
        "fresh": fresh,
        "accept_changes": accept_changes,
    }
    place, name = problems.run(lambda: _split(target)) or ("", "")
    problems.check()
    try:
        flow = _load(place, name)
    except _UserCodeFailed as failed:
        _show_user_error(failed)
        return USAGE
    if explain:
        from headrace.cli.dry import clean_lines
        from headrace.cli.screen import tell

        tell(clean_lines(flow.explain(window=options["window"])))
        return 0
    return _run(flow, target, place, job, options, quiet=quiet, no_progress=no_progress)


def _run(
    flow: Flow[Any],
    target: str,
    place: str,
    job: str | None,
    options: dict[str, Any],
    *,
    quiet: bool,
    no_progress: bool,
) -> int:
    from headrace.cli.running import NextSteps, run_job

    words = ["headrace", "run", target, *(["--job", job] if job is not None else [])]
    absolute = f"{os.path.abspath(place)}:{target.rpartition(':')[2]}" if place.endswith(".py") else target

    def steps(report: Report) -> NextSteps | None:
        return (
            None if report.place is None or report.job is None else NextSteps(report.place, report.job, words)
        )

    return run_job(
        flow,
        quiet=quiet,
        no_progress=no_progress,
        steps=steps,
        job=job,
        recorded={"command": "run", "version": 1, "target": absolute, "job": job, "directory": os.getcwd()},
        **options,
    )


def _split(target: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        example = target.rstrip(":") if target.rstrip(":").endswith(".py") else "job.py"
        raise PlanError(f"{target!r}: give a file or a module, a colon and a name, as in {example}:flow")
    if place.endswith(".py") and not os.path.isfile(place):
        raise PlanError(f"{place} does not exist (looked in {os.getcwd()}); check the name")
    return place, name


def _load(place: str, name: str) -> Flow[Any]:
    """Import the module and give the flow. Raises PlanError where it is not there, _UserCodeFailed where the code raises."""
    from headrace.flow.builder import Flow

    module = _import_file(place) if place.endswith(".py") else _import_module(place)
    found = getattr(module, name, None)
    if found is None:
        flows = [key for key, value in vars(module).items() if isinstance(value, Flow)]
        has = f"; it has {', '.join(flows)}" if flows else ""
        raise PlanError(f"{place} has no {name}{has}")
    if callable(found) and not isinstance(found, Flow):
        found = _guarded(found)
    if not isinstance(found, Flow):
        raise PlanError(
            f"{place}:{name} is {type(found).__name__}: it must be a flow, or a function without arguments that gives one"
        )
    return found


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    except (ModuleNotFoundError, ValueError) as error:
        raise PlanError(
            f"there is no module {name} here or in this Python; for a file write {name}.py:flow"
        ) from error
    module: ModuleType = _guarded(lambda: importlib.import_module(name))
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
        _guarded(lambda: loader.exec_module(module))
    except _UserCodeFailed:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _guarded(call: Any) -> Any:
    try:
        return call()
    except HeadraceError:
        raise  # a PlanError of the flow says by itself what is wrong
    except (Exception, SystemExit) as error:
        raise _UserCodeFailed from error


def _show_user_error(failed: _UserCodeFailed) -> None:
    from headrace.cli.screen import say
    from headrace.terminal.text import clean

    error = failed.__cause__
    assert error is not None
    trace = error.__traceback__
    here = os.path.dirname(os.path.abspath(__file__))
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename, here):
        trace = trace.tb_next
    say("headrace: your code raised an exception before the flow could run:")
    for line in "".join(traceback.format_exception(type(error), error, trace)).splitlines():
        say(clean(line))


def _is_ours(file: str, here: str) -> bool:
    return file.startswith((here, "<frozen importlib")) or "/importlib/" in file
