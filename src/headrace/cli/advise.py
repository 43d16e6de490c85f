"""`headrace advise MODULE:FUNCTION --input FILE`: which lane a function of the user's belongs in, and why.

Rules:
1. How many calls it may make is said before the first one.
2. The samples are the lines of a file, or the values of a .jsonl file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from headrace.cli.ending import USAGE, ending
from headrace.cli.loading import UserCodeFailed, guarded, load_module, show_user_error, split_target
from headrace.cli.options import Problems, read_count
from headrace.errors import PlanError

__all__ = ["advise"]

MOST_SAMPLES = 1000


@ending
def advise(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION|FILE.py:FUNCTION", help="Where the function is.")
    ],
    samples: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Samples of its input: a line each, or JSON values in a .jsonl file.",
        ),
    ],
    calls: Annotated[
        str | None, typer.Option(metavar="N", help="Make N calls at the most. [default: 50]")
    ] = None,
) -> int:
    """Measure a function of yours, alone and several calls at once, and say which lane it belongs in, with the evidence.

    The calls are real ones, side effects included.
    """
    from headrace.advisor.advice import CALLS
    from headrace.advisor.advice import advise as measured
    from headrace.cli.dry import clean_lines
    from headrace.cli.screen import say, tell

    problems = Problems()
    most = problems.read("--calls", calls, read_count) or CALLS
    place, name = problems.run(lambda: split_target(target, "function")) or ("", "")
    values = problems.run(lambda: list(itertools.islice(_values(samples), MOST_SAMPLES))) or []
    problems.check()
    try:
        fn = _load(place, name)
        say(f"{name} is called up to {most} times, with values from {samples}")
        advice = guarded(lambda: measured(fn, values, calls=most))
    except UserCodeFailed as failed:
        show_user_error(failed, "where it was measured")
        return USAGE
    tell(clean_lines(str(advice)))
    return 0


def _load(place: str, name: str) -> Any:
    found = getattr(load_module(place, name), name, None)
    if found is None:
        raise PlanError(f"{place} has no {name}")
    if not callable(found):
        raise PlanError(f"{place}:{name} is {type(found).__name__}: give a function that takes one value")
    return found


def _values(path: str) -> Iterator[Any]:
    """Read samples. Raises PlanError where there are none, or where a line is not JSON."""
    empty = True
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip("\r\n")
                if not text.strip():
                    continue
                empty = False
                yield _decoded(text, path, number) if path.endswith(".jsonl") else text
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"--input {path}: it cannot be read: {error}") from error
    if empty:
        raise PlanError(f"--input {path}: there are no samples in it; give a value a line")


def _decoded(text: str, path: str, number: int) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise PlanError(f"--input {path}, line {number}: it is not JSON: {error}") from error
