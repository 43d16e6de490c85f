"""Finding a job in an output, and saying how it is gone on with.

Rules:
1. A file that is not there, or a job that is not in it, is wrong usage; a file that cannot be read is the world's trouble.
2. Only a fetch is run again from its record; the flow of a program is run by the command that is named here.
"""

from __future__ import annotations

import os
from typing import Any

from headrace.cli.options import DATABASE
from headrace.cli.running import NextSteps
from headrace.errors import PlanError
from headrace.ports import JobSummary

__all__ = [
    "DATABASE",
    "database_in",
    "find_job",
    "find_jobs",
    "is_directory",
    "is_fetch",
    "next_steps",
    "own_command",
    "total_of",
]


def is_directory(out: str) -> bool:
    """Whether an output is a directory, or is to be one."""
    return out.endswith("/") or os.path.isdir(out)


def database_in(directory: str) -> str:
    """Name the database that goes with the files of a directory."""
    return os.path.join(directory, DATABASE)


def find_jobs(out: str) -> list[JobSummary]:
    """Give the jobs of an output. Raises PlanError where there is no such file, LedgerError where it cannot be read."""
    from headrace.sqlite import inspect

    if not os.path.exists(out):
        raise PlanError(f"{out} does not exist (looked in {os.getcwd()}); give the output of a job")
    if os.path.isdir(out):
        raise PlanError(f"{out} is a directory without a {DATABASE}: give the output of a job")
    return inspect.jobs(out)


def find_job(out: str, name: str | None) -> JobSummary:
    """Give the job of that name, or the only one. Raises PlanError, naming those there are."""
    found = find_jobs(out)
    names = ", ".join(summary.name for summary in found)
    if name is None and len(found) > 1:
        raise PlanError(f"{out} holds {len(found)} jobs: say which, by --job: {names}")
    for summary in found:
        if name is None or summary.name == name:
            return summary
    raise PlanError(f"{out} holds no job {name!r}; it holds {names}")


def is_fetch(summary: JobSummary) -> bool:
    """Whether the job is a fetch, which the record is enough to run again."""
    return summary.options.get("command") == "fetch"


def own_command(summary: JobSummary) -> list[str] | None:
    """Give the words of the command that runs a job of `headrace run` again; None for the job of another program."""
    options = summary.options
    if options.get("command") != "run":
        return None
    words = ["headrace", "run", str(options["target"])]
    if options.get("job") is not None:
        words += ["--job", str(options["job"])]
    return words


def next_steps(summary: JobSummary) -> NextSteps:
    """Give the commands that go on from a job."""
    again = [
        word
        for header in summary.options.get("headers", ())
        if header["value"] is None
        for word in (header["flag"], f"{header['name']}: …")
    ]
    if is_fetch(summary):
        return NextSteps.of_fetch(summary.place, summary.name, again)
    return NextSteps(summary.place, summary.name, own_command(summary) or ())


def total_of(summary: JobSummary) -> int | None:
    """Give the number of items in the job's source, where it costs little to know."""
    if summary.total is not None:
        return summary.total
    recorded: Any = summary.options
    if not is_fetch(summary):
        return None
    if recorded["path"] is None:
        return len(recorded["urls"]) or None
    from headrace.cli.inputs import source_of

    options = recorded["options"]
    try:
        total: int | None = source_of(recorded["path"], options).total()
    except PlanError:  # nothing here unpacks it any more
        return None
    return total
