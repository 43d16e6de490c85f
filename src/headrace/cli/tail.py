"""`headrace tail`: logs over HTTP and from files, read while they grow, as one.

Rules:
1. Lines go to standard output or into OUT; what happens to a log is said on standard error.
2. With -o OUT.db the same command again goes on after the last line that is there.
3. Ending at --until, at --lines or by Ctrl-C closes every connection at once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.ending import ending
from headrace.cli.options import Headers, Problems, Quiet, SecretHeaders, read_count, read_duration
from headrace.errors import PlanError

if TYPE_CHECKING:
    pass

__all__ = ["tail"]

Text = str | None
Start = Any  # "start", "end" or a number of bytes


@ending
def tail(
    inputs: Annotated[list[str], typer.Argument(metavar="URL|FILE…", help="Logs: URLs, files, or both.")],
    out: Annotated[
        Text,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="Append to OUT: .db (table lines; can be gone on with), .jsonl, or any other name for text.",
        ),
    ] = None,
    grep: Annotated[Text, typer.Option(metavar="RE", help="Only lines in which this is found.")] = None,
    until: Annotated[
        Text, typer.Option(metavar="RE", help="Stop after the first line in which this is found.")
    ] = None,
    lines: Annotated[Text, typer.Option(metavar="N", help="Stop after N lines.")] = None,
    start: Annotated[
        Text,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="Where to begin: start, end (only what is new), or bytes, as 1000000 or -64K. [default: start]",
        ),
    ] = None,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="End at the end of the logs, do not wait for more.")
    ] = False,
    idle: Annotated[
        Text,
        typer.Option(metavar="TIME", help="Connect anew after so long without a byte. [default: 5m]"),
    ] = None,
    attempts: Annotated[
        Text, typer.Option(metavar="N", help="Failures in a row before a log is given up. [default: 10]")
    ] = None,
    header: Headers = None,
    secret_header: SecretHeaders = None,
    json: Annotated[bool, typer.Option("--json", help="Give each line as JSON: url, offset, text.")] = False,
    quiet: Quiet = False,
) -> int:
    """Follow many logs at once: merged, labelled, filtered, and gone on with where a connection breaks."""
    from headrace.cli.headers import read_headers
    from headrace.cli.tailing import Tailing, TailOptions

    problems = Problems()
    headers = [
        found.to_send() for found in read_headers(header, secret_header, problems) if found.value is not None
    ]
    options = TailOptions(
        inputs=inputs,
        out=out,
        grep=problems.read("--grep", grep, _read_pattern),
        until=problems.read("--until", until, _read_pattern),
        lines=problems.read("--lines", lines, read_count),
        start=problems.read("--from", start, _read_place),
        follow=not no_follow,
        idle=problems.read("--idle", idle, read_duration) or 300.0,
        attempts=problems.read("--attempts", attempts, read_count) or 10,
        headers=headers,
        json=json,
        quiet=quiet,
    )
    problems.run(options.check)
    problems.check()
    return Tailing(options).run()


def _read_pattern(flag: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise PlanError(f"{flag} {text!r} is no regular expression: {error}") from error


_PLACE = re.compile(r"(-?)([0-9]{1,15})([KMG]?)", re.IGNORECASE)


def _read_place(flag: str, text: str) -> Start:
    if text in ("start", "end"):
        return text
    found = _PLACE.fullmatch(text.strip())
    if found is None:
        raise PlanError(f"{flag} {text!r}: give start, end, or a number of bytes, as 1000000 or -64K")
    sign, digits, unit = found.groups()
    size = int(digits) << {"": 0, "K": 10, "M": 20, "G": 30}[unit.upper()]
    return -size if sign else size
