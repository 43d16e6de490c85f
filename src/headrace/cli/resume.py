"""`headrace resume OUT`: go on with a job where it ended.

Rules:
1. A fetch is put together again from its record. The flow of a program is not: its command is named.
2. What a record must not keep, literal secrets, is asked for by the flag that it was given with.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from headrace.cli.ending import USAGE, ending
from headrace.cli.options import (
    DEFAULT_WAIT,
    Headers,
    JobName,
    NoProgress,
    Output,
    Problems,
    Quiet,
    SecretHeaders,
    Wait,
    Within,
    read_count,
    read_duration,
)
from headrace.cli.request import FetchRequest
from headrace.ports import JobSummary

__all__ = ["explain_program", "request_of", "resume"]


@ending
def resume(
    out: Output,
    job: JobName = None,
    header: Headers = None,
    secret_header: SecretHeaders = None,
    take: Annotated[str | None, typer.Option(metavar="N", help="Take only the next N of the list.")] = None,
    within: Within = None,
    wait: Wait = None,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> int:
    """Go on with a job where it ended."""
    from headrace.cli.fetch import run_fetch
    from headrace.cli.places import find_job, is_fetch

    problems = Problems()
    taking = problems.read("--take", take, read_count)
    waiting = problems.read("--wait", DEFAULT_WAIT if wait is None else wait, read_duration)
    ending_within = problems.read("--within", within, read_duration)
    problems.check()
    assert waiting is not None
    summary = find_job(out, job)
    if not is_fetch(summary):
        return explain_program(summary)
    request = request_of(summary, header, secret_header)
    return run_fetch(
        request,
        out,
        summary.name,
        take=taking,
        quiet=quiet,
        no_progress=no_progress,
        within=ending_within,
        wait=waiting,
    )


def request_of(
    summary: JobSummary, header: list[str] | None, secret_header: list[str] | None
) -> FetchRequest:
    """Make the request of a stored fetch again. Raises PlanError with all that is missing or wrong."""
    from headrace.cli.headers import read_headers

    problems = Problems()
    given = read_headers(header, secret_header, problems)
    request = FetchRequest.restore(summary.options, given, problems)
    problems.check()
    assert request is not None
    return request


def explain_program(summary: JobSummary) -> int:
    """Say how the job of a program is gone on with; give the exit code for what this command cannot do."""
    from headrace.cli.places import own_command
    from headrace.cli.screen import command_line, say
    from headrace.terminal.text import clean

    words = own_command(summary)
    if words is None:
        say(
            f"headrace: the job {clean(summary.name)} in {summary.place} is run by a program of yours: run that program "
            "again, and it goes on where it ended"
        )
        return USAGE
    say(f"headrace: the job {clean(summary.name)} in {summary.place} runs your own code. To go on with it:")
    directory = str(summary.options.get("directory") or "")
    if directory and directory != os.getcwd():
        say(f"  cd {command_line(directory)}")
    say(f"  {command_line(*words)}")
    return USAGE
