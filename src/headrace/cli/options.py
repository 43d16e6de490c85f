"""Options as the commands share them, and how their values are read.

Rules:
1. Every value arrives as text and is read here, so that all that is wrong can be said at once.
2. A message names the flag, the value and the right form. The value of a header is never repeated.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from headrace.errors import PlanError

if TYPE_CHECKING:
    from headrace.policies.adaptive import Adaptive

__all__ = [
    "DATABASE",
    "DEFAULT_WAIT",
    "AcceptChanges",
    "Fresh",
    "Fuse",
    "Headers",
    "InDoubt",
    "JobName",
    "Json",
    "MaxAge",
    "MaxFailures",
    "NoProgress",
    "Output",
    "Problems",
    "Quiet",
    "SecretHeaders",
    "Wait",
    "Window",
    "Within",
    "read_count",
    "read_duration",
    "read_failures",
    "read_fuse",
    "read_levels",
    "read_rate",
]  # fmt: skip

T = TypeVar("T")

#: The database of a directory of files.
DATABASE = "headrace.db"
#: Of `--wait`.
DEFAULT_WAIT = "10m"


def _database_of(out: str) -> str:
    """Give the database of an output, which may be a directory of files."""
    inner = os.path.join(out, DATABASE)
    return inner if os.path.isdir(out) and os.path.exists(inner) else out


Output = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        callback=_database_of,
        help="The output of a job: an SQLite file, or a directory of files.",
    ),
]
JobName = Annotated[
    str | None, typer.Option("--job", metavar="NAME", help="The job, where OUT holds several.")
]
Json = Annotated[bool, typer.Option("--json", help="Give JSON, for programs.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing where all is done; no progress either.")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress, only the accounting.")]
InDoubt = Annotated[
    bool,
    typer.Option("--in-doubt", help="Those whose call may have taken effect although its end is unknown."),
]
Headers = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        metavar="'NAME: VALUE'",
        help="Send this header; repeatable. {env:NAME} in the value is taken from the environment and never stored.",
    ),
]
SecretHeaders = Annotated[
    list[str] | None,
    typer.Option(
        "--secret-header",
        metavar="'NAME: VALUE'",
        help="The same for a value that must not be stored or shown.",
    ),
]
Within = Annotated[
    str | None, typer.Option(metavar="TIME", help="Stop after this time (30s, 10m, 2h), resumable.")
]
Wait = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Park what must wait longer than this; a later run takes it up. [default: 10m]"
    ),
]
MaxFailures = Annotated[
    str | None,
    typer.Option(metavar="N|N%", help="Stop when more fail; fewer than that are no failure of the run."),
]
Fuse = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Stop where the first N items all fail for good in the same way; 0: never. [default: 50]",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(metavar="N", help="The most open items. [default: 4 × concurrency, at least 2048]"),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Do all of it anew; the old results stay until the end.")
]
MaxAge = Annotated[
    str | None, typer.Option("--max-age", metavar="TIME", help="Redo what was done longer ago (24h, 7d).")
]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although the list or the request is another one now.")
]


class Problems:
    """Collects what is wrong with the options; `check` raises it all as one PlanError."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Note one."""
        self.found.append(problem)

    def read(self, flag: str, text: str | None, reader: Callable[[str, str], T]) -> T | None:
        """Read the value of a flag; None where it was not given, or is wrong (which is then noted)."""
        if text is None:
            return None
        try:
            return reader(flag, text)
        except PlanError as error:
            self.add(str(error))
            return None

    def run(self, make: Callable[[], T]) -> T | None:
        """Call something that may refuse its arguments; None where it does (which is then noted)."""
        try:
            return make()
        except PlanError as error:
            self.found += str(error).splitlines()
            return None

    def check(self) -> None:
        """Raise PlanError with everything that was noted; return if that is nothing."""
        found = list(dict.fromkeys(self.found))
        if len(found) == 1:
            raise PlanError(found[0])
        if found:
            listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(found, 1))
            raise PlanError(f"{len(found)} things are wrong; nothing was started:\n{listed}")


def read_count(flag: str, text: str, least: int = 1) -> int:
    """Read a whole number."""
    digits = text.strip().replace("_", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16 and int(digits) >= least):
        raise PlanError(f"{flag} {text!r}: give a whole number, {least} or more")
    return int(digits)


def read_fuse(flag: str, text: str) -> int:
    """Read after how many like failures a run stops; 0 for never."""
    return read_count(flag, text, 0)


def read_levels(flag: str, text: str) -> int | Adaptive:
    """Read how many at once: a number, or the least and the most between which a level finds itself, as 1-16."""
    from headrace.policies.adaptive import Adaptive

    least, dash, most = (part.strip().replace("_", "") for part in text.partition("-"))
    numbers = [least, most] if dash else [least]
    if not all(part.isascii() and part.isdigit() and len(part) < 16 and int(part) for part in numbers):
        raise PlanError(
            f"{flag} {text!r}: give a whole number, 1 or more, or a least and a most, such as 1-16"
        )
    if not dash:
        return int(least)
    if int(least) > int(most):
        raise PlanError(f"{flag} {text!r}: the least comes first; write {most}-{least}")
    return Adaptive(int(least), int(most))


def read_duration(flag: str, text: str) -> float:
    """Read a time, in seconds."""
    from headrace.policies.deadlines import parse_duration

    try:
        return parse_duration(text)
    except PlanError as error:
        raise PlanError(f"{flag} {text!r}: give a time such as 30s, 10m, 2h or 7d, more than 0") from error


def read_rate(flag: str, text: str) -> str:
    """Check a rate of starts, and give it as it was written."""
    from headrace.policies.gcra import parse_rate

    try:
        parse_rate(text)
    except PlanError as error:
        raise PlanError(
            f"{flag} {text!r}: give a number per time, such as 20/s, 600/min or 1000/h"
        ) from error
    return text


def read_failures(flag: str, text: str) -> str:
    """Check how many failures are accepted, and give it as it was written."""
    from headrace.policies.deadlines import FailureCap

    try:
        FailureCap(text)
    except PlanError as error:
        raise PlanError(f"{flag} {text!r}: give a number such as 100, or a share such as 1%") from error
    return text
