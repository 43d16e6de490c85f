"""`headrace failures OUT`: the dead letters of a job.

Rules:
1. Letters are read a page at a time and shown as they come: a million of them need no memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from headrace.cli.ending import ending
from headrace.cli.options import InDoubt, JobName, Json, Output, Problems, read_count
from headrace.ports import DeadLetter

__all__ = ["failures"]


@ending
def failures(
    out: Output,
    job: JobName = None,
    in_doubt: InDoubt = False,
    by_cause: Annotated[bool, typer.Option("--by-cause", help="Count them by cause.")] = False,
    limit: Annotated[str | None, typer.Option(metavar="N", help="Show at most N.")] = None,
    json: Json = False,
) -> int:
    """Show the dead letters of a job: where each stood in the list, its status, its attempts, and why it failed."""
    from headrace.cli.places import find_job
    from headrace.cli.screen import say
    from headrace.sqlite import inspect

    problems = Problems()
    most = problems.read("--limit", limit, read_count)
    problems.check()
    summary = find_job(out, job)
    letters = inspect.failures(out, summary.name, in_doubt=in_doubt, limit=None if by_cause else most)
    shown = _show_causes(letters, most, json=json) if by_cause else _show_letters(letters, json=json)
    total = summary.in_doubt if in_doubt else summary.failed
    if not shown:
        say("no item is in doubt" if in_doubt else "no item has failed")
    elif not by_cause and shown < total:
        say(f"{shown} of {total} are shown")
    return 0


def _show_letters(letters: Iterable[DeadLetter], *, json: bool) -> int:
    from headrace.cli.screen import columns, tell, tell_json

    shown = 0

    def rows() -> Iterator[tuple[str, ...]]:
        nonlocal shown
        for letter in letters:
            shown += 1
            yield _row(letter)

    if json:
        for letter in letters:
            shown += 1
            tell_json(_as_dict(letter))
        return shown
    for line in columns(rows(), (24, 6, 8, 0)):
        if shown == 1:
            tell("where                     status  attempts  cause")
        tell(line)
    return shown


def _row(letter: DeadLetter) -> tuple[str, ...]:
    from headrace.cli.screen import shown_item
    from headrace.terminal.text import clean

    cause = clean(letter.cause)
    item = shown_item(letter.item)
    if "://" not in cause:
        cause = f"{item}: {cause}"
    doubt = " (in doubt)" if letter.in_doubt else ""
    where = clean(letter.where or f"item {letter.position}")
    status = "" if letter.status is None else str(letter.status)
    return where, status, str(letter.attempts), f"{clean(letter.error)}{doubt}: {cause}"


def _as_dict(letter: DeadLetter) -> dict[str, Any]:
    from headrace.cli.screen import without_password

    found = dataclasses.asdict(letter)
    found["item"] = without_password(letter.item)
    found["body"] = None if letter.body is None else letter.body.decode("utf-8", errors="replace")
    return found


def _show_causes(letters: Iterable[DeadLetter], most: int | None, *, json: bool) -> int:
    from headrace.cli.screen import columns, tell, tell_json
    from headrace.terminal.text import clean, count

    counts: dict[tuple[str, int | None, str], int] = {}
    examples: dict[tuple[str, int | None, str], str] = {}
    for letter in letters:
        cause = (letter.error, letter.status, letter.stage)
        counts[cause] = counts.get(cause, 0) + 1
        examples.setdefault(cause, letter.cause)
    ordered = sorted(counts, key=lambda cause: (-counts[cause], cause[0]))[:most]
    if json:
        for cause in ordered:
            error, status, stage = cause
            said = {"count": counts[cause], "error": error, "status": status, "stage": stage}
            tell_json({**said, "example": examples[cause]})
        return len(ordered)
    rows = [
        (
            count(counts[cause]),
            clean(cause[0]),
            "" if cause[1] is None else str(cause[1]),
            clean(examples[cause]),
        )
        for cause in ordered
    ]
    if rows:
        tell("count   error                 status  the first of them")
    for line in columns(rows, (6, 20, 6, 0)):
        tell(line)
    return len(ordered)
