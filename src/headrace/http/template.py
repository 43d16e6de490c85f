"""Requests written once and filled from rows: `{field}` in a URL or in JSON.

Rules:
1. Only `{field}`, `{env:NAME}`, `{{` and `}}` mean something: no attributes, indexes or formats, which would
   leak.
2. In a URL a value is encoded in full, so that it cannot add a path, a query or a host.
3. A field that the row lacks fails this row, with the names that it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from headrace.errors import PlanError
from headrace.http.errors import InvalidUrl
from headrace.http.secrets import expand

__all__ = ["fields_of", "fill_json", "fill_url", "without_userinfo"]

_PART: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELD: Final = re.compile(r"[^\s{}:!\[\].]+")
_USERINFO: Final = re.compile(r"//[^/?#@]*@")


def fields_of(template: str) -> tuple[str, ...]:
    """Give the names in a template, `env:NAME` among them. Raises PlanError for what is not of this form."""
    names: list[str] = []
    for part in _PART.finditer(template):
        name = part.group(1)
        if part.group() in ("{{", "}}"):
            continue
        if name is None or _FIELD.fullmatch(name.removeprefix("env:")) is None:
            raise PlanError(
                f"template {without_userinfo(template)!r}: {part.group()!r} at {part.start()} is no field; "
                "write {name}, {env:NAME}, or {{ for a brace"
            )
        names.append(name)
    return tuple(names)


def fill_url(template: str, item: Any, *, secrets: bool = True) -> str:
    """Put the fields of a row into a URL, encoded; a template that is one field alone is that field as it is.

    Without `secrets`, the references to the environment stay. Raises InvalidUrl for a missing or unusable
    field, PlanError for a missing variable.
    """
    whole = _PART.fullmatch(template)
    if whole is not None and whole.group(1) is not None:
        return _text(whole.group(1), _field(whole.group(1), item, template), template)

    def one(part: re.Match[str]) -> str:
        name = part.group(1)
        if name is None:
            return part.group()[0]
        if name.startswith("env:"):
            return quote(expand(part.group()), safe="") if secrets else part.group()
        return quote(_text(name, _field(name, item, template), template), safe="")

    return _PART.sub(one, template)


def fill_json(template: Any, item: Any) -> Any:
    """Put the fields of a row into a JSON template. A string that is one field alone becomes the value
    with its type.

    Raises InvalidUrl for a missing field, PlanError for a missing variable.
    """
    if isinstance(template, str):
        whole = _PART.fullmatch(template)
        if whole is not None and whole.group(1) is not None and not whole.group(1).startswith("env:"):
            return _field(whole.group(1), item, template)
        return _PART.sub(lambda part: _json_part(part, item, template), template)
    if isinstance(template, Mapping):
        return {key: fill_json(value, item) for key, value in template.items()}
    if isinstance(template, (list, tuple)):
        return [fill_json(value, item) for value in template]
    return template


def _json_part(part: re.Match[str], item: Any, template: str) -> str:
    name = part.group(1)
    if name is None:
        return part.group()[0]
    if name.startswith("env:"):
        return expand(part.group())
    return _text(name, _field(name, item, template), template)


def _field(name: str, item: Any, template: str) -> Any:
    if isinstance(item, Mapping):
        if name in item:
            return item[name]
        has = ", ".join(map(str, list(item)[:20])) or "none"
        raise InvalidUrl(
            f"template {without_userinfo(template)!r}: the row has no field {name!r} (it has: {has})"
        )
    if name == "item":
        return item
    raise InvalidUrl(
        f"template {without_userinfo(template)!r}: field {name!r} needs a row (a mapping), and the item is a "
        f"{type(item).__name__}; name the item itself by {{item}}"
    )


def _text(name: str, value: Any, template: str) -> str:
    if isinstance(value, str):
        if value:
            return value
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, (int, float)):
        return str(value)
    shown = "empty" if value is None or value == "" else f"a {type(value).__name__}"
    raise InvalidUrl(
        f"template {without_userinfo(template)!r}: field {name!r} is {shown}; it must be text or a number"
    )


def without_userinfo(text: str) -> str:
    """Hide user and password of a URL template, for messages and for a job's identity."""
    return _USERINFO.sub("//***@", text)
