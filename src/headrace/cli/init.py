"""`headrace init job.py`: a first flow, to be changed.

Rules:
1. What it writes runs as it is, without a network.
2. A file that is there is never overwritten.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from headrace.cli.ending import ending
from headrace.errors import PlanError, SinkError

__all__ = ["STARTER", "init"]

STARTER = '''\
"""A headrace job. Run it:

    headrace run {file}:flow          progress on the terminal, resumable with the same command
    python {file}                     the same as a plain program

Stop it with Ctrl-C, kill it, pull the plug: run it again and it goes on where it was.
"""

import asyncio
import sys

import headrace as hr


async def work(number: int) -> dict[str, object]:
    """One call: what it returns becomes a row, what it raises a dead letter."""
    await asyncio.sleep(0.05)  # your request, query or upload stands here
    if number % 97 == 96:
        raise ValueError(f"nobody wants {{number}}")  # see: headrace failures {output}
    return {{"number": number, "square": number * number}}


flow = (
    hr.Flow(range(500))  # or hr.files.lines("urls.txt"), a list, rows with a key
    .map(
        work,
        concurrency=50,  # calls at once
        # rate="20/s",  # at most so many starts in a time
        # timeout=30,  # seconds for one attempt
        # retry=hr.Retry(attempts=4),  # for failures of the moment
    )
    # For URLs, instead of your own function:
    # .map(hr.http.fetch(limits=[hr.Limit(by=hr.http.host, concurrency=hr.Adaptive(1, 16))]), concurrency=64)
    .into(hr.sqlite.table("{output}", "results"))
)

if __name__ == "__main__":
    report = flow.run_sync(progress=True)
    print(report)
    sys.exit(report.exit_code)
'''


@ending
def init(
    file: Annotated[str, typer.Argument(metavar="FILE.py", help="The file to write.")] = "job.py",
) -> int:
    """Write a first flow that runs as it is, to be changed."""
    from headrace.cli.screen import command_line, say

    if not file.endswith(".py"):
        raise PlanError(f"{file}: give the name of a Python file, such as job.py")
    base = os.path.basename(file)
    text = STARTER.format(file=base, output=base[:-3] + ".db")
    try:
        with open(file, "x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise PlanError(f"{file} is there already, and is left as it is; give another name") from error
    except OSError as error:
        raise SinkError(f"{file} cannot be written: {error.strerror}; check the directory") from error
    say(f"wrote {file}; run it:  {command_line('headrace', 'run', f'{file}:flow')}")
    return 0
