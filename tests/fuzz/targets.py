"""What is fuzzed: each parser of foreign bytes, as a function of bytes that raises only where a promise is broken.

Rules:
1. A target calls what it tests as its users do; errors that are documented are its right answer.
2. Where there is a second way to the same result, both are taken and compared.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
from collections.abc import Callable

from headrace.errors import PlanError
from headrace.http.content_range import parse_content_range
from headrace.http.errors import InvalidUrl
from headrace.http.file_names import file_path, safe_part
from headrace.http.guard import Guard
from headrace.http.template import fields_of, fill_header, fill_json, fill_url
from headrace.http.url import mask, parse
from headrace.logs.events import EventParser
from headrace.logs.lines import LineSplitter
from headrace.policies.rate_headers import parse_rate_headers
from headrace.policies.retry_after import parse_http_date, parse_retry_after

__all__ = ["TARGETS"]

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}
_GUARD = Guard()
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,101}")


def target(function: Target) -> Target:
    """Put a target under its name."""
    TARGETS[function.__name__] = function
    return function


@target
def lines(data: bytes) -> None:
    """Lines do not depend on where chunks end, and account for every byte."""
    cut = data[0] if data else 0
    body = data[1:]
    whole, parts = LineSplitter("u"), LineSplitter("u")
    expected = whole.feed(body) + whole.end()
    got = []
    for at in range(0, len(body), cut + 1):
        got += parts.feed(body[at : at + cut + 1])
    got += parts.end()
    assert got == expected
    assert (parts.replaced, parts.cut) == (whole.replaced, whole.cut)
    assert all("\n" not in line.text for line in got)


@target
def events(data: bytes) -> None:
    """Events do not depend on where chunks end."""
    cut = data[0] if data else 0
    body = data[1:]
    whole, parts = EventParser("u"), EventParser("u")
    expected = whole.feed(body)
    got = []
    for at in range(0, len(body), cut + 1):
        got += parts.feed(body[at : at + cut + 1])
    assert got == expected
    assert (parts.last_id, parts.retry) == (whole.last_id, whole.retry)


@target
def retry_after(data: bytes) -> None:
    """A wait is a number from 0 to an hour, or None."""
    wait = parse_retry_after(data.decode("latin-1"), 1_700_000_000.0)
    assert wait is None or 0.0 <= wait <= 3600.0
    date = parse_http_date(data.decode("latin-1"), 1_700_000_000.0)
    assert date is None or math.isfinite(date)


@target
def rate_headers(data: bytes) -> None:
    """Whatever the fields hold, there is a hint that makes sense or none."""
    text = data.decode("latin-1")
    for name in (
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "ratelimit-limit",
    ):
        parse_rate_headers({name: text, "x-ratelimit-limit": text}, 1_700_000_000.0)


@target
def content_range(data: bytes) -> None:
    """A range is possible, or None."""
    found = parse_content_range(data.decode("latin-1"))
    if found is not None and found.start is not None:
        assert found.end is not None
        assert 0 <= found.start < found.end
        assert found.size is None or found.end <= found.size


@target
def urls(data: bytes) -> None:
    """A URL is refused, or its canonical form is its own canonical form; masking hides and never raises."""
    text = data.decode("utf-8", "surrogateescape")
    mask(text)
    try:
        url = parse(text)
    except InvalidUrl:
        return
    again = parse(url.text)
    assert (again.text, again.host, again.port, again.scheme) == (url.text, url.host, url.port, url.scheme)
    assert url.text.isascii()
    assert not re.search(r"[\x00-\x20\x7f\\]", url.text)
    assert "@" not in url.text.split("/")[2]


@target
def addresses(data: bytes) -> None:
    """What the guard allows is an address that anybody may reach."""
    text = data.decode("latin-1")
    if _GUARD.refusal(text) is None:
        address = ipaddress.ip_address(text.strip("[]"))
        assert (getattr(address, "ipv4_mapped", None) or address).is_global


@target
def templates(data: bytes) -> None:
    """A template is refused when it is read, or filled by any row; a value cannot leave its place in a URL."""
    value, _, template = data.decode("utf-8", "replace").partition("|")
    with contextlib.suppress(PlanError):
        fields_of(template)
        row = {"a": value or "x", "b": 7}
        with contextlib.suppress(InvalidUrl, PlanError):
            fill_json(template, row)
            fill_header("x", template, row, secrets=False)
    with contextlib.suppress(InvalidUrl):
        url = parse(fill_url("https://h.example/p/{a}/q?k={a}", {"a": value}))
        assert (url.host, url.text.count("/"), url.text.count("?")) == ("h.example", 5, 1)


@target
def names(data: bytes) -> None:
    """A name is one safe part, whatever it is made of."""
    text = data.decode("utf-8", "replace")
    assert _SAFE.fullmatch(safe_part(text))
    with contextlib.suppress(InvalidUrl):
        for part in file_path("{a}/{a}.bin", {"a": text}, 1):
            assert _SAFE.fullmatch(part)
