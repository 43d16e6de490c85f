"""`headrace run MODULE:FLOW` or `FILE.py:FLOW`: run a flow of the user's.

Rules:
1. The name after the colon is a flow, or a function without arguments that gives one.
2. What the user's code raises is wrong usage.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.ending import USAGE, ending
from headrace.cli.loading import UserCodeFailed, guarded, load_module, show_user_error, split_target
from headrace.cli.options import (
    DEFAULT_WAIT,
    AcceptChanges,
    Fresh,
    Fuse,
    MaxAge,
    MaxFailures,
    NoProgress,
    Problems,
    Quiet,
    Wait,
    Window,
    Within,
    read_count,
    read_duration,
    read_failures,
    read_fuse,
)
from headrace.errors import PlanError
from headrace.policies.fuse import FUSE_OF_JOBS

if TYPE_CHECKING:
    from headrace.flow.builder import Flow
    from headrace.report import Report

__all__ = ["run"]


@ending
def run(
    target: Annotated[str, typer.Argument(metavar="MODULE:FLOW|FILE.py:FLOW", help="Where the flow is.")],
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name of the job. [default: default]")
    ] = None,
    within: Within = None,
    wait: Wait = None,
    max_failures: MaxFailures = None,
    fuse: Fuse = None,
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
        "wait": problems.read("--wait", DEFAULT_WAIT if wait is None else wait, read_duration),
        "max_failures": problems.read("--max-failures", max_failures, read_failures),
        "fuse": problems.read("--fuse", fuse or str(FUSE_OF_JOBS), read_fuse) or None,
        "window": problems.read("--window", window, read_count),
        "max_age": problems.read("--max-age", max_age, read_duration),
        "fresh": fresh,
        "accept_changes": accept_changes,
    }
    place, name = problems.run(lambda: split_target(target, "flow")) or ("", "")
    problems.check()
    try:
        flow = _load(place, name)
    except UserCodeFailed as failed:
        show_user_error(failed, "before the flow could run")
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


def _load(place: str, name: str) -> Flow[Any]:
    """Import the module and give the flow. Raises PlanError where it is not there, UserCodeFailed where the code raises."""
    from headrace.flow.builder import Flow

    module = load_module(place, name)
    found = getattr(module, name, None)
    if found is None:
        flows = [key for key, value in vars(module).items() if isinstance(value, Flow)]
        has = f"; it has {', '.join(flows)}" if flows else ""
        raise PlanError(f"{place} has no {name}{has}")
    if callable(found) and not isinstance(found, Flow):
        found = guarded(found)
    if not isinstance(found, Flow):
        raise PlanError(
            f"{place}:{name} is {type(found).__name__}: it must be a flow, or a function without arguments that gives one"
        )
    return found
