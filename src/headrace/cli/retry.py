"""`headrace retry OUT`: give dead letters another chance.

Rules:
1. A fetch goes on at once; for the flow of a program the letters are marked, and its next run takes them.
2. Whatever the run will need is checked before a letter is marked.
"""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.ending import ending
from headrace.cli.options import Headers, InDoubt, JobName, NoProgress, Output, Quiet, SecretHeaders

__all__ = ["retry"]


@ending
def retry(
    out: Output,
    job: JobName = None,
    error: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Only those that failed with this error, as StatusError."),
    ] = None,
    in_doubt: InDoubt = False,
    mark_only: Annotated[
        bool, typer.Option("--mark-only", help="Mark them for the next run, and do not run.")
    ] = False,
    header: Headers = None,
    secret_header: SecretHeaders = None,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> int:
    """Call the failed items of a job again. Those whose call may have taken effect are left out unless --in-doubt."""
    from headrace.cli.fetch import run_fetch
    from headrace.cli.places import find_job, is_fetch, next_steps
    from headrace.cli.resume import explain_program, request_of
    from headrace.cli.screen import command_line, say
    from headrace.sqlite import inspect
    from headrace.terminal.text import count

    summary = find_job(out, job)
    runs = is_fetch(summary) and not mark_only
    request = request_of(summary, header, secret_header) if runs else None
    marked = inspect.retry(out, summary.name, in_doubt=in_doubt, error=error)
    left = summary.failed - marked
    if not quiet or not marked:
        say(
            f"{count(marked)} dead letters are marked to be called again"
            if marked
            else "there is nothing to call again"
        )
        if left and not in_doubt and error is None:
            say(f"{count(left)} are left out: their calls may have taken effect (--in-doubt takes them too)")
    if not marked:
        return 1 if left else 0
    if request is None:
        if not is_fetch(summary):
            explain_program(summary)
        elif not quiet:
            say(f"to call them:     {command_line(*next_steps(summary).resume)}")
        return 0
    return run_fetch(request, out, summary.name, quiet=quiet, no_progress=no_progress)
