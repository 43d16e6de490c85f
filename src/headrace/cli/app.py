"""The commands, put together.

Rules:
1. Help is plain text: it is quick, and reads the same in a pipe.
"""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.demo import demo
from headrace.cli.failures import failures
from headrace.cli.fetch import fetch
from headrace.cli.init import init
from headrace.cli.jobs import jobs
from headrace.cli.resume import resume
from headrace.cli.retry import retry
from headrace.cli.run import run
from headrace.cli.status import status

__all__ = ["app"]

app = typer.Typer(
    name="headrace",
    help="Run a million calls, bounded, retried, resumable, and account for every one.",
    epilog=(
        "Exit codes: 0 all done, 1 items failed, 2 wrong usage, 3 unfinished and resumable, 4 stopped by disk, database or "
        "network and resumable, 75 another process holds the output, 130 and 143 stopped by a signal and resumable, "
        "70 a fault of headrace."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (fetch, run, resume, status, failures, retry, jobs, demo, init):
    app.command(no_args_is_help=command is not demo)(command)


def _say_version(wanted: bool) -> None:
    if wanted:
        from headrace.cli.screen import version

        print(f"headrace {version()}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_say_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Run a million calls, bounded, retried, resumable, and account for every one."""
