"""`headrace jobs OUT`: the jobs of an output; `drop NAME` forgets one, `vacuum` gives unused space back."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from headrace.cli.ending import USAGE, ending
from headrace.cli.options import Json, Output
from headrace.errors import PlanError

__all__ = ["jobs"]


@ending
def jobs(
    out: Output,
    action: Annotated[
        str | None, typer.Argument(metavar="[drop|vacuum]", help="Nothing lists the jobs.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The job to drop.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Drop without asking.")] = False,
    json: Json = False,
) -> int:
    """List the jobs of an output, drop one with its results, or give unused space back to the disk."""
    if action is None:
        return _list(out, json=json)
    if action == "drop":
        if name is None:
            raise PlanError("jobs OUT drop NAME: say which job")
        return _drop(out, name, yes=yes)
    if action == "vacuum":
        if name is not None:
            raise PlanError(f"jobs OUT vacuum {name}: vacuum is of the whole file and takes no name")
        return _vacuum(out)
    raise PlanError(f"jobs OUT {action}: it is drop NAME, vacuum, or nothing for the list")


def _list(out: str, *, json: bool) -> int:
    import dataclasses

    from headrace.cli.places import find_jobs
    from headrace.cli.screen import columns, tell, tell_json
    from headrace.terminal.text import clean, count, moment

    found = find_jobs(out)
    if json:
        for summary in found:
            told = dataclasses.asdict(summary)
            del told["options"]  # they are for `resume`
            tell_json(told)
        return 0
    rows = [("job", "state", "done", "failed", "parked", "last written", "table")]
    rows += [
        (
            clean(summary.name),
            f"running ({summary.holder})" if summary.holder is not None else summary.state,
            count(summary.done),
            count(summary.failed),
            count(summary.parked),
            moment(summary.updated_at),
            clean(summary.table or ""),
        )
        for summary in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for line in columns(rows, widths):
        tell(line)
    return 0


def _drop(out: str, name: str, *, yes: bool) -> int:
    from headrace.cli.places import find_job
    from headrace.cli.screen import say
    from headrace.sqlite import inspect
    from headrace.terminal.text import clean, count

    summary = find_job(out, name)
    what = (
        f"the job {clean(name)} in {out}: its record, its {count(summary.failed)} dead letters and "
        f"its {count(summary.done)} results"
    )
    if not yes:
        if not sys.stdin.isatty():
            raise PlanError(f"this would delete {what}; --yes does it without asking")
        if not typer.confirm(f"Delete {what}?", err=True):
            say("nothing was deleted")
            return USAGE
    inspect.drop(out, name)
    say(f"deleted {what}")
    return 0


def _vacuum(out: str) -> int:
    from headrace.cli.places import find_jobs
    from headrace.cli.screen import say
    from headrace.sqlite import inspect
    from headrace.terminal.text import count

    find_jobs(out)
    say(f"{count(inspect.vacuum(out))} bytes were given back")
    return 0
