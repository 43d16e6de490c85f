"""Requests from rows: the templates of a fetch as they are written on the command line, checked against the first rows.

Rules:
1. Everything is checked before anything is sent: the form of each template, and its fields against what the input has.
2. A row that lacks what others have is its own trouble; a field that no row has is everybody's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.cli.inputs import STDIN, first_items
from headrace.cli.options import Problems
from headrace.errors import PlanError

__all__ = ["LOOKED_AT", "bodies", "check_fields", "read_body", "shown_url", "url_template"]

LOOKED_AT = 100
_MOST_NAMES = 30
_REFERENCE = re.compile(r"(\{env:[A-Za-z_][A-Za-z0-9_]*\})")
_QUERY_VALUE = re.compile(r"=([^&;#]*)")


def read_body(flag: str, texts: Sequence[str] | None) -> str | None:
    """Give the text of a body: as it was written, or what a file holds (@FILE). Parts of a form are joined by &."""
    if not texts:
        return None
    return "&".join(_contents(flag, text) for text in texts)


def _contents(flag: str, text: str) -> str:
    if not text.startswith("@"):
        return text
    path = text[1:]
    if path in ("", STDIN):
        raise PlanError(f"{flag} {text}: give the name of a file behind the @")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            found = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{flag} {text}: it cannot be read: {error}") from error
    return found if flag == "--json" else found.replace("\r", "").replace("\n", "")


def bodies(values: Mapping[str, str | None], problems: Problems) -> dict[str, Any]:
    """Give the options of the body of `fetch`: json or data, or none."""
    found: dict[str, Any] = {}
    data, text = values["data"], values["json"]
    if data is not None:
        found["data"] = data
        if data.lstrip().startswith(("{", "[")) and not re.match(r"\s*\{[^\s\"{}]+\}", data):
            problems.add("--data is a form, as 'a={x}&b={y}'; a body of JSON is given by --json")
            return {}
    if text is not None:
        found["json"] = problems.run(lambda: _read_json(text))
    if len(found) == 2:
        problems.add("--json and --data: a request has one body; give one of them")
        return {}
    return found


def _read_json(text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        hint = ""
        if re.search(r"[:\[,]\s*\{[^\s\"{}]+\}", text):
            hint = '; a field stands in quotes: "{count}" for its text, "{json:count}" for a number'
        raise PlanError(f"--json is not JSON: {error}{hint}") from error


def url_template(values: Mapping[str, str | None], urls: Sequence[str], problems: Problems) -> str | None:
    """Give the template of the URL: --url, or the one URL that refers to a secret; None where items have it."""
    given = values["url"]
    if given is not None:
        if urls:
            problems.add(
                "--url is filled from the rows of an INPUT, and URLs were given; leave one of them out"
            )
        elif "://" not in given and not given.startswith("{"):
            problems.add(f"--url {given!r}: give a whole URL, such as 'https://api.example/users/{{id}}'")
        elif re.search(r"//[^/?#]*@", given):
            problems.add(
                "--url: user and password do not belong there; give --header 'Authorization: Basic {env:NAME}'"
            )
        return given
    if not any(_REFERENCE.search(url) for url in urls):
        return None
    if len(urls) > 1:
        problems.add("a URL with {env:NAME} must be the only one: fetch the others by another command")
        return None
    parts = _REFERENCE.split(urls[0])
    return "".join(
        part if number % 2 else part.replace("{", "{{").replace("}", "}}")
        for number, part in enumerate(parts)
    )


# ---------------------------------------------------------------------------------------------------- against rows


def check_fields(source: Any, name: str, fetch: Any, problems: Problems) -> None:
    """Note each field of the request that no row has, with those that there are."""
    from headrace.http.template import is_given
    from headrace.ports import Unreadable

    items = problems.run(lambda: first_items(source, LOOKED_AT))
    if items is None:
        return
    rows = [item for _, item in items if not isinstance(item, Unreadable)]
    if items and not rows:
        problems.add(
            f"{name}: none of the first {len(items)} items can be read; of the first, {items[0][1].why}"
        )
        return
    if rows and isinstance(rows[0], str):
        for field in fetch.fields:
            if field not in ("item", *(("url",) if fetch.takes_urls else ())):
                problems.add(
                    f"{{{field}}}: {name} is read as lines, which have no columns; a line itself is {{item}}. "
                    "For rows give --input-format csv, tsv or jsonl"
                )
        return
    columns = _columns(source, rows)
    if not rows and not columns:
        return
    for field in fetch.fields:
        if field in columns or any(is_given(field, row) for row in rows):
            continue
        if field == "url" and fetch.takes_urls:
            problems.add(
                f"{name} has no column url{_those_of(field, columns)}; give --url 'https://…/{{{columns[0]}}}'"
            )
        else:
            problems.add(f"{{{field}}}: {name} has no such column{_those_of(field, columns)}")


def _columns(source: Any, rows: Sequence[Any]) -> list[str]:
    named = getattr(source, "columns", None)
    if named is not None:
        return list(named())
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def _those_of(field: str, columns: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(field, columns, 1)
    for mark, flag in ((";", "';'"), ("\t", "$'\\t'"), ("|", "'|'")):
        if len(columns) == 1 and mark in columns[0]:
            return f" (it has one: {columns[0]!r}; is it to be split by --delimiter {flag}?)"
    shown = ", ".join(columns[:_MOST_NAMES])
    more = f" and {len(columns) - _MOST_NAMES} more" if len(columns) > _MOST_NAMES else ""
    return f" (it has: {shown}{more})" + (f"; did you mean {near[0]}?" if near else "")


def shown_url(fetch: Any, template: str | None, item: Any) -> str:
    """Give the URL of an item for a screen: what the row put into it is shown, other values of its query are not."""
    from headrace.cli.screen import shown_item
    from headrace.http.template import fill_url
    from headrace.terminal.text import clean

    if template is None:
        return shown_item(fetch.preview(item).url)
    head, question, query = template.partition("?")
    masked = _QUERY_VALUE.sub(lambda pair: pair.group() if "{" in pair.group(1) else "=***", query)
    return clean(fill_url(head + question + masked, item, secrets=False))
