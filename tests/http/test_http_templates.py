"""Templates of requests: what a row may and may not do to a URL, a header, a form and JSON."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.http.errors import InvalidUrl
from headrace.http.template import (
    fields_of,
    fill_form,
    fill_header,
    fill_json,
    fill_url,
    is_given,
    row_fields,
)
from headrace.http.url import parse

TEXT = st.text(max_size=12) | st.sampled_from(
    ["..", ".", "a/b", "?x=1", "#f", "@evil", "a&b=c", "%2e%2e", "\\", "\r\n"]
)
SCALAR = TEXT | st.integers() | st.floats() | st.booleans()
VALUE = st.recursive(
    st.none() | SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(one=TEXT, two=SCALAR)
def test_a_value_cannot_leave_its_place(one: str, two: Any) -> None:
    """Whatever a row holds, the URL keeps its host, its number of path segments and its query, and gives the value back."""
    template = "https://api.example/users/{one}/x-{two}/end?q={one}&fixed=1&r={two}"
    try:
        url = parse(fill_url(template, {"one": one, "two": two}))
    except InvalidUrl:
        assert (
            one in ("", ".", "..")
            or two in ("", ".", "..")
            or any("\ud800" <= c <= "\udfff" for c in f"{one}{two}")
        )
        return
    text = f"{two}".lower() if isinstance(two, bool) else str(two)
    parts = urlsplit(url.text)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "api.example", "")
    assert [unquote(segment) for segment in parts.path.split("/")] == ["", "users", one, f"x-{text}", "end"]
    assert parse_qsl(parts.query, keep_blank_values=True) == [("q", one), ("fixed", "1"), ("r", text)]


@given(one=VALUE, two=VALUE)
def test_a_form_keeps_its_fields(one: Any, two: Any) -> None:
    """Whatever a row holds, the form has the fields of the template, with the row's values."""
    row = {"one": one, "two": {"deep": [two]}}
    for template in ("a={one}&b=x{two.deep.0}y", {"a": "{one}", "b": "x{two.deep.0}y"}):
        try:
            text = fill_form(template, row)
        except InvalidUrl:
            continue
        found = parse_qsl(text, keep_blank_values=True)
        assert [name for name, _ in found] == ["a", "b"]
        if isinstance(one, str):
            assert found[0][1] == one
        if isinstance(two, str):
            assert found[1][1] == f"x{two}y"


@given(value=VALUE)
def test_a_header_is_one_line_of_ascii(value: Any) -> None:
    """Whatever a row holds, a header is one line, or its row is refused."""
    try:
        text = fill_header("X-A", "a {v} b", {"v": value})
    except InvalidUrl:
        return
    assert text.isascii()
    assert all(character.isprintable() or character == "\t" for character in text)


@given(value=VALUE)
def test_json_keeps_its_shape(value: Any) -> None:
    """A field alone is its value with its type; within a text it is text, and nothing else of the template moves."""
    template = {"whole": "{v}", "list": ["{v}"], "fixed": "{{v}}", "{v}": 1}
    assert (
        fill_json(template, {"v": value}) == {"whole": value, "list": [value], "fixed": "{v}", "{v}": 1}
        or value != value
    )
    try:
        text = fill_json("a{v}b", {"v": value})
    except InvalidUrl:
        return
    assert json.loads(json.dumps(text)) == text
    assert text.startswith("a")
    assert text.endswith("b")


@given(template=st.text(alphabet="ab{}.:![]0 /?=&", max_size=20), value=VALUE)
def test_refusals_are_of_two_kinds(template: str, value: Any) -> None:
    """A template is refused by PlanError, a row by InvalidUrl, and nothing else ever happens."""
    row = {"a": value, "b": {"a": [value]}, "ab": "x"}
    try:
        names = fields_of(template)
    except PlanError:
        return
    for fill in (fill_url, fill_form, fill_json):
        try:
            fill(template, row)
        except InvalidUrl:
            continue
        assert all(is_given(name, row) for name in names)


@pytest.mark.parametrize(
    ("value", "means"),
    [("5", 5), (" -1.5 ", -1.5), ("true", True), ("null", None), ("[1]", [1]), (7, 7), ({"a": 1}, {"a": 1})],
)
def test_text_can_be_read_as_json(value: Any, means: Any) -> None:
    """{json:field} alone in a string of JSON is what the field's text means; what is no JSON fails the row."""
    assert fill_json({"n": "{json:a.b}"}, {"a": {"b": value}}) == {"n": means}
    assert row_fields("{json:a.b}", json=True) == ("a.b",)
    for text in ("", "x", "1 2", "NaN"):
        with pytest.raises(InvalidUrl, match="is no JSON"):
            fill_json("{json:n}", {"n": text})
    for template, json_ in (("{json:n}", False), ("a{json:n}", True)):
        with pytest.raises(PlanError, match="stands alone"):
            fields_of(template, json=json_)


def test_nested_fields() -> None:
    """Dots go into objects and lists; a column that has the whole name comes first."""
    row = {"user": {"address": {"city": "Bern"}}, "items": [{"id": 7}], "a.b": "dotted", "a": {"b": "nested"}}
    assert fill_url("https://h/{user.address.city}/{items.0.id}/{a.b}", row) == "https://h/Bern/7/dotted"
    for name, says in (
        ("user.name", "'user' has no 'name' .it has: address"),
        ("items.1.id", "'items' has 1 entries"),
        ("items.x", "'items' has 1 entries"),
        ("items.-1", "'items' has 1 entries"),
        ("user.address.city.0", "'user.address.city' is a str"),
        ("nobody.x", "the row has no 'nobody'"),
        ("user.__class__", "no '__class__'"),
    ):
        assert not is_given(name, row)
        with pytest.raises(InvalidUrl, match=says):
            fill_url(f"https://h/{{{name}}}", row)


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("https://h/{v}", {"v": ".."}),
        ("https://h/a/{v}/b?c", {"v": "."}),
        ("https://h/a/{v}{w}", {"v": ".", "w": "."}),
    ],
)
def test_dots_cannot_climb(template: str, row: dict[str, str]) -> None:
    """A segment of dots would be resolved before it is sent: it is refused."""
    with pytest.raises(InvalidUrl, match=r"'\.' or '\.\.'"):
        fill_url(template, row)


def test_names_with_spaces() -> None:
    """Columns of spreadsheets have spaces in their names; references to the environment do not count as fields."""
    assert row_fields("{First Name} {env:TOKEN}") == ("First Name",)
    assert fill_url("https://h/{First Name}", {"First Name": "a"}) == "https://h/a"
