"""The commands, put together.

Rules:
1. Help is plain text: it is quick, and reads the same in a pipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from headrace.cli.advise import advise
from headrace.cli.bench import bench
from headrace.cli.demo import demo
from headrace.cli.failures import failures
from headrace.cli.fetch import fetch
from headrace.cli.init import init
from headrace.cli.jobs import jobs
from headrace.cli.resume import resume
from headrace.cli.retry import retry
from headrace.cli.run import run
from headrace.cli.status import status
from headrace.cli.tail import tail

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

#: Each command, with what the list of commands says of it.
COMMANDS: dict[Callable[..., None], str] = {
    fetch: "Fetch a list of URLs, or make requests from rows.",
    tail: "Follow many logs at once.",
    run: "Run a flow of your own.",
    resume: "Go on with a job where it ended.",
    status: "Say how jobs stand and what is left.",
    failures: "Show what failed, and why.",
    retry: "Call what failed again.",
    jobs: "List, drop or vacuum the jobs of an output.",
    advise: "Say which lane a function belongs in, measured.",
    bench: "Measure on this machine what articles claim.",
    demo: "See it work: a faulty server, a kill -9, a resume.",
    init: "Write a first flow, to be changed.",
}

for command, summary in COMMANDS.items():
    app.command(short_help=summary, no_args_is_help=command not in (bench, demo, init))(command)


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
