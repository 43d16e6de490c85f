"""`headrace status OUT`: how the jobs of an output stand, and what can be done next."""

from __future__ import annotations

import time
from typing import Any

from headrace.cli.ending import ending
from headrace.cli.options import JobName, Json, Output
from headrace.ports import JobSummary

__all__ = ["status"]


@ending
def status(out: Output, job: JobName = None, json: Json = False) -> int:
    """Say how the jobs of an output stand, what is left, and what can be done next."""
    from headrace.cli.places import find_job, find_jobs
    from headrace.cli.screen import tell, tell_json

    found = find_jobs(out) if job is None else [find_job(out, job)]
    if json:
        for summary in found:
            tell_json(_as_dict(summary))
        return 0
    tell("\n\n".join("\n".join(_describe(summary)) for summary in found))
    return 0


def _left(summary: JobSummary) -> int | None:
    from headrace.cli.places import total_of

    total = total_of(summary)
    return None if total is None else max(0, total - summary.done - summary.failed - summary.skipped)


def _as_dict(summary: JobSummary) -> dict[str, Any]:
    names = (
        "name", "place", "state", "done", "failed", "skipped", "parked", "in_doubt", "exit_code", "holder", "table",
        "created_at", "updated_at", "finished_at", "next_due",
    )  # fmt: skip
    from headrace.cli.places import total_of

    found = {name: getattr(summary, name) for name in names}
    return {**found, "total": total_of(summary), "left": _left(summary)}


def _describe(summary: JobSummary) -> list[str]:
    from headrace.terminal.text import clean, count, duration, moment

    left = _left(summary)
    numbers = [
        f"done {count(summary.done)}",
        f"failed {count(summary.failed)}",
        f"skipped {count(summary.skipped)}",
        f"parked {count(summary.parked)}",
    ]
    if left is not None:
        numbers.append(f"left {count(left)}")
    lines = [
        f"job {clean(summary.name)} in {clean(summary.place)}: {_state(summary)}",
        "  " + " · ".join(numbers),
    ]
    if summary.in_doubt:
        lines.append(
            f"  {count(summary.in_doubt)} of the failed are in doubt: their calls may have taken effect"
        )
    ago = duration(max(0.0, time.time() - summary.updated_at))
    lines.append(
        f"  begun {moment(summary.created_at)}, last written {moment(summary.updated_at)} ({ago} ago)"
    )
    if summary.next_due is not None:
        lines.append(f"  the next parked item is due {moment(summary.next_due)}")
    if summary.table is not None:
        lines.append(f"  results in table {clean(summary.table)}")
    return lines + _next(summary, left)


def _state(summary: JobSummary) -> str:
    if summary.holder is not None:
        return f"running, as process {summary.holder}" if summary.holder else "running"
    if summary.state == "finished":
        return "finished"
    if summary.state == "failed":
        return "finished, with failures"
    code = "" if summary.exit_code is None else f" (its last run ended with exit code {summary.exit_code})"
    return f"unfinished{code}"


def _next(summary: JobSummary, left: int | None) -> list[str]:
    from headrace.cli.places import next_steps
    from headrace.cli.screen import command_line

    if summary.holder is not None:
        return []
    steps = next_steps(summary)
    lines = []
    if summary.state == "unfinished" or left:
        command = command_line(*steps.resume) if steps.resume else "run your program again"
        lines.append(f"  to go on:         {command}")
    if summary.failed:
        lines.append(f"  to see failures:  {steps.failures()}")
        lines.append(f"  to try again:     {steps.retry()}")
    return lines
