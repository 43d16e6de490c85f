"""Requests written once and filled from rows: `{field}` in a URL, a header, a form or JSON.

Rules:
1. Only `{field}`, `{env:NAME}`, `{{` and `}}` mean something: no attributes, indexes or formats, which would
   leak. A field is the name of a column, or steps into it: `{user.address.city}`, `{items.0.id}`. In JSON, `{json:field}`
   alone is what the text of a field means as JSON: a number, true, null.
2. In a URL and in a form a value is encoded in full, so that it cannot add a path, a query, a host or a field.
3. What a row cannot fill fails this row, with the names that it has.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from headrace.errors import PlanError
from headrace.http.errors import InvalidUrl
from headrace.http.headers import check_header
from headrace.http.secrets import expand

__all__ = [
    "fields_of",
    "fill_form",
    "fill_header",
    "fill_json",
    "fill_text",
    "fill_url",
    "is_given",
    "row_fields",
    "without_userinfo",
]

_PART: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELD: Final = re.compile(r"[^\s{}:!\[\]](?:[^\r\n\t{}:!\[\]]*[^\s{}:!\[\]])?")
_ENVIRONMENT: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")
_USERINFO: Final = re.compile(r"//[^/?#@]*@")
_DOTS: Final = frozenset({".", ".."})
_MOST_NAMES = 20
_MISSING: Final = object()


def fields_of(template: str, *, json: bool = False) -> tuple[str, ...]:
    """Give the names in a template, `env:NAME` among them. `json` says that it stands in JSON, where `{json:field}` may be.

    Raises PlanError for what is not of this form.
    """
    names: list[str] = []
    for part in _PART.finditer(template):
        name = part.group(1)
        if part.group() in ("{{", "}}"):
            continue
        if json and name is not None and name.startswith("json:") and part.group() == template:
            name = name.removeprefix("json:")
        if name is None or (_FIELD.fullmatch(name) or _ENVIRONMENT.fullmatch(name)) is None:
            raise PlanError(
                f"template {without_userinfo(template)!r}: {part.group()!r} at {part.start()} is no field; "
                "write {name}, {name.of.a.part}, {env:NAME}, or {{ for a brace"
                + (
                    "; {json:name} stands alone in a string of JSON"
                    if name and name.startswith("json:")
                    else ""
                )
            )
        names.append(name)
    return tuple(names)


def row_fields(template: str, *, json: bool = False) -> tuple[str, ...]:
    """Give the names in a template that a row fills. Raises PlanError as `fields_of` does."""
    return tuple(name for name in fields_of(template, json=json) if not name.startswith("env:"))


def is_given(name: str, item: Any) -> bool:
    """Whether an item has this field."""
    return _look_up(name, item)[0] is not _MISSING


def fill_url(template: str, item: Any, *, secrets: bool = True) -> str:
    """Put the fields of a row into a URL, encoded; a template that is one field alone is that field as it is.

    Without `secrets`, the references to the environment stay. Raises InvalidUrl for a missing or unusable
    field, PlanError for a missing variable.
    """
    whole = _PART.fullmatch(template)
    if whole is not None and whole.group(1) is not None:
        return _text(whole.group(1), item, template)
    filled = _fill(template, item, _quoted, secrets=secrets)
    if "/." in filled and not _DOTS.isdisjoint(filled.partition("?")[0].partition("#")[0].split("/")):
        # A path of dots is resolved before it is sent, so that it would take parts of the path away.
        raise InvalidUrl(
            f"template {without_userinfo(template)!r}: a part of the path is '.' or '..', which servers do not get to see"
        )
    return filled


def fill_text(template: str, item: Any) -> str:
    """Put the fields of a row into a text, as they are. Raises InvalidUrl for a missing or unusable field."""
    return _fill(template, item, str, secrets=False)


def fill_form(template: Any, item: Any, *, secrets: bool = True) -> str:
    """Put the fields of a row into the text of a form, encoded; an empty one is an empty value.

    A mapping has a template for each value; a list repeats its field. Raises InvalidUrl for a missing or unusable field,
    PlanError for a missing variable.
    """
    if isinstance(template, str):
        return _fill(template, item, _quoted, secrets=secrets, empty=True)
    pairs: list[str] = []
    for name, value in template.items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            text = (
                _fill(one, item, _quoted, secrets=secrets, empty=True, literal=_quoted)
                if isinstance(one, str)
                else _quoted(_plain(one))
            )
            pairs.append(f"{_quoted(str(name))}={text}")
    return "&".join(pairs)


def fill_header(name: str, template: str, item: Any, *, secrets: bool = True) -> str:
    """Put the fields of a row into the value of a header.

    Raises InvalidUrl for a missing field, and for a value with a control character or beyond ASCII; PlanError for a
    missing variable.
    """
    value = _fill(template, item, str, secrets=secrets, label=f"header {name!r}").strip(" \t")
    try:
        check_header(name, value)
    except PlanError as error:
        raise InvalidUrl(f"this row cannot be sent: {error}") from error
    return value


def fill_json(template: Any, item: Any, *, secrets: bool = True) -> Any:
    """Put the fields of a row into a JSON template. A string that is one field alone becomes the value
    with its type.

    Raises InvalidUrl for a missing field, PlanError for a missing variable.
    """
    if isinstance(template, str):
        whole = _PART.fullmatch(template)
        name = None if whole is None else whole.group(1)
        if name is not None and name.startswith("json:"):
            return _read(name.removeprefix("json:"), item, template)
        if name is not None and not name.startswith("env:"):
            return _field(name, item, template)
        return _fill(template, item, str, secrets=secrets, empty=True)
    if isinstance(template, Mapping):
        return {key: fill_json(value, item, secrets=secrets) for key, value in template.items()}
    if isinstance(template, (list, tuple)):
        return [fill_json(value, item, secrets=secrets) for value in template]
    return template


def _fill(
    template: str,
    item: Any,
    encode: Callable[[str], str],
    *,
    secrets: bool,
    empty: bool = False,
    literal: Callable[[str], str] = str,
    label: str = "",
) -> str:
    """Put fields and references, encoded, between the literal parts of a template; errors call it by its label, if any."""
    filled: list[str] = []
    for text, name in _split(template):
        if name is None:
            filled.append(literal(text))
        elif name.startswith("env:"):
            filled.append(encode(expand(text)) if secrets else text)
        else:
            filled.append(encode(_text(name, item, template, empty=empty, label=label)))
    return "".join(filled)


@functools.lru_cache(maxsize=1024)
def _split(template: str) -> tuple[tuple[str, str | None], ...]:
    """Split a template into its literal texts (with None) and its fields (with their names)."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for part in _PART.finditer(template):
        name = part.group(1)
        parts.append((template[end : part.start()], None))
        parts.append((part.group()[0], None) if name is None else (part.group(), name))
        end = part.end()
    parts.append((template[end:], None))
    return tuple(part for part in parts if part[0])


def _quoted(text: str) -> str:
    return text if text.isalnum() and text.isascii() else quote(text, safe="")


def _field(name: str, item: Any, template: str, label: str = "") -> Any:
    found, why = _look_up(name, item)
    if found is _MISSING:
        raise InvalidUrl(f"{label or _called(template)}: {why}")
    return found


def _read(name: str, item: Any, template: str) -> Any:
    """Give what a text means as JSON; what is no text already means something."""
    value = _field(name, item, template)
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value.strip())
    except (ValueError, RecursionError) as error:
        raise InvalidUrl(
            f"{_called(template)}: field {name!r} is no JSON, such as a number or true: {value[:50]!r}"
        ) from error


def _called(template: str) -> str:
    return f"template {without_userinfo(template)!r}"


def _look_up(name: str, item: Any) -> tuple[Any, str]:
    """Give the value of a field, or why there is none."""
    if isinstance(item, Mapping):
        if name in item:  # also one with dots in its name
            return item[name], ""
        if "." in name:
            return _walk(name, item)
        return _MISSING, f"the row has no field {name!r} (it has: {_names(item)})"
    if name == "item":
        return item, ""
    if name.startswith("item.") and isinstance(item, (list, tuple)):
        return _walk(name[5:], item)
    return _MISSING, (
        f"field {name!r} needs a row (a mapping), and the item is a {type(item).__name__}; name the item itself by {{item}}"
    )


def _walk(name: str, item: Any) -> tuple[Any, str]:
    value, before = item, ""
    for step in name.split("."):
        here = f"{before!r}" if before else "the row"
        if isinstance(value, Mapping):
            if step not in value:
                return (
                    _MISSING,
                    f"the row has no field {name!r}: {here} has no {step!r} (it has: {_names(value)})",
                )
            value = value[step]
        elif isinstance(value, (list, tuple)):
            if not (step.isascii() and step.isdigit() and len(step) < 10 and int(step) < len(value)):
                return (
                    _MISSING,
                    f"the row has no field {name!r}: {here} has {len(value)} entries, counted from 0",
                )
            value = value[int(step)]
        else:
            return _MISSING, f"the row has no field {name!r}: {here} is a {type(value).__name__}"
        before = f"{before}.{step}" if before else step
    return value, ""


def _names(row: Mapping[Any, Any]) -> str:
    names = list(map(str, row))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more


def _text(name: str, item: Any, template: str, *, empty: bool = False, label: str = "") -> str:
    """Give a field as text. `empty` text is allowed where it changes nothing but the value."""
    value = _field(name, item, template, label)
    if isinstance(value, str):
        if (value or empty) and _is_text(value):
            return value
    elif isinstance(value, (bool, int, float)):
        return _plain(value)
    shown = "empty" if value is None or value == "" else f"a {type(value).__name__}"
    if isinstance(value, str) and value:
        shown = "no valid text: it holds half of a surrogate pair"
    raise InvalidUrl(f"{label or _called(template)}: field {name!r} is {shown}; it must be text or a number")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        return str(value)
    except ValueError as error:  # an integer of more than 4300 digits
        raise InvalidUrl(f"a number of the row cannot be written: {error}") from error


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_userinfo(text: str) -> str:
    """Hide user and password of a URL template, for messages and for a job's identity."""
    return _USERINFO.sub("//***@", text)
