"""What is taken from an answer: a JMESPath expression over its JSON, and rows that keep the input's columns.

Rules:
1. An expression that finds nothing (null as a whole) fails the item; a null inside of what it found is a value.
2. A column of the input is never lost: where the answer has one of that name, it is called input_NAME.
3. JMESPath is loaded where an expression is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import Disposition, PlanError
from headrace.http.errors import BadResponse
from headrace.http.response import Response, free_name, with_item
from headrace.http.url import mask

__all__ = ["Columns", "Selection", "columns"]

_KEPT = ("url", "status", "attempts", "fetched_at")


class Selection:
    """A JMESPath expression, to be taken from the JSON of answers."""

    def __init__(self, expression: str) -> None:
        import jmespath
        from jmespath.exceptions import JMESPathError

        self.expression = expression
        try:
            self._compiled = jmespath.compile(expression)
        except (JMESPathError, ValueError) as error:
            raise PlanError(_why_not(expression, error)) from error
        self._error = JMESPathError

    def __call__(self, response: Response) -> Any:
        """Give what the expression finds. Raises BadResponse where that is nothing, or the body is no JSON."""
        document = response.json()
        try:
            found = self._compiled.search(document)
        except (self._error, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise self._failed(response, f"cannot be applied: {_one_line(error)}") from error
        if found is None:
            raise self._failed(response, f"nothing is there; the JSON {_described(document)}")
        return found

    def _failed(self, response: Response, why: str) -> BadResponse:
        shown = mask(response.final_url)
        return BadResponse(
            f"{shown}: select {self.expression!r}: {why}",
            url=shown,
            phase="body",
            disposition=Disposition.PERMANENT,
            ambiguous=False,
        )


class Columns:
    """Makes a row of an answer. Made by `columns`."""

    def __init__(self, expression: str, body: bool) -> None:
        self._selection = Selection(expression)
        self._body = body
        self.shape: Mapping[str, Any] = {"columns": expression, "body": body}

    def __call__(self, response: Response) -> dict[str, Any]:
        """Give the row. Raises BadResponse as the expression does."""
        found = self._selection(response)
        row = (
            {str(name): value for name, value in found.items()}
            if isinstance(found, dict)
            else {"value": found}
        )
        return with_item(_with_answer(row, response, body=self._body), response.item, response.url)


def columns(select: str, *, body: bool = False) -> Columns:
    """Make a function for `fetch(select=…)` that gives rows for a table, with the columns of the input.

    Args:
        select: A JMESPath expression over the JSON of the answer. An object that it gives makes a column of each key; any
            other value, a list too, goes into one column `value`. url, status, attempts and fetched_at of the answer
            follow.
        body: Keep the body as well.

    Where a name is there already, the answer's is called response_NAME and the input's input_NAME. Raises PlanError for
    what is no JMESPath.
    """
    return Columns(select, body)


def _with_answer(row: dict[str, Any], response: Response, *, body: bool) -> dict[str, Any]:
    names = (*_KEPT, "body") if body else _KEPT
    taken = {name.lower() for name in row}
    for name in names:
        row[free_name(f"response_{name}", taken) if name in taken else name] = getattr(response, name)
    return row


def _why_not(expression: str, error: Exception) -> str:
    hint = ""
    steps = expression.split(".")
    if all(steps) and any(step.isdigit() for step in steps[1:]):
        written = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps)
        hint = f"; entries of a list are written in brackets: {written.removeprefix('.')!r}"
    why = _one_line(error).partition(", for expression")[0]
    return f"select={expression!r} is not JMESPath: {why}{hint}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n", 1)[0].split())


def _described(document: Any) -> str:
    if isinstance(document, dict):
        names = ", ".join(map(str, list(document)[:20])) or "nothing"
        return f"has {names}"
    if isinstance(document, list):
        return f"is an array of {len(document)}"
    return f"is {document!r:.60}"
