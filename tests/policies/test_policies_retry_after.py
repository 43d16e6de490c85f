"""Retry-After headers, as strangers write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.policies.classify import parse_retry_after

NOW = datetime(1994, 11, 6, 8, 48, 37, tzinfo=UTC).timestamp()  # one minute before the dates below


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("0000000005", 5.0),
        ("3600", 3600.0),
        ("3601", 3600.0),
        ("86400", 3600.0),
        ("86401", None),
        ("1700000000", None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("NaN", None),
        ("inf", None),
        ("9" * 400, None),
        ("٣", None),
        ("1_0", None),
        ("0x10", None),
        ("", None),
        ("soon", None),
        ("5 seconds", None),
        ("5, 5", None),
    ],
)
def test_delay_seconds(value: str, seconds: float | None) -> None:
    """Numbers of seconds up to a day count, cut to an hour; all else says nothing."""
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 60.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 60.0),
        ("Sun Nov  6 08:49:37 1994", 60.0),
        ("Sun Nov 06 08:49:37 1994", 60.0),
        ("sun, 06 nov 1994 08:49:37 gmt", 60.0),
        ("Sun, 6 Nov 1994 08:49:37 UTC", 60.0),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Sun, 06 Nov 1994 07:00:00 GMT", None),
        ("Sun, 06 Nov 1994 10:00:00 GMT", 3600.0),
        ("Mon, 07 Nov 1994 08:48:37 GMT", 3600.0),
        ("Mon, 07 Nov 1994 08:48:38 GMT", None),
        ("Sun, 06 Nov 1994 08:48:60 GMT", 23.0),
        ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Foo 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("Sun, 06 Nov 9999 23:59:60 GMT", None),
        ("Sun, 06 Nov 1994 24:00:00 GMT", None),
        ("1994-11-06T08:49:37Z", None),
    ],
)
def test_dates(value: str, seconds: float | None) -> None:
    """All three formats of an HTTP-date count from the given now; dates too far from it say nothing."""
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("year", "now_year"), [("26", 2026), ("00", 1999), ("99", 1999), ("75", 2026), ("77", 1977), ("76", 2026)]
)
def test_a_year_of_two_digits_is_the_near_one(year: str, now_year: int) -> None:
    """A year of two digits is never taken for one more than 50 years ahead."""
    now = datetime(now_year, 1, 1, tzinfo=UTC).timestamp()
    date = datetime(now_year, 1, 1, 0, 0, 30, tzinfo=UTC)
    expected = 30.0 if date.year % 100 == int(year) else None
    assert parse_retry_after(f"Friday, 01-Jan-{year} 00:00:30 GMT", now) == expected


@given(value=st.text(), now=st.floats())
@example(value="Sunday, 06-Nov-94 08:49:37 GMT", now=float("nan"))
@example(value="Sunday, 06-Nov-94 08:49:37 GMT", now=1e300)
@example(value="Sunday, 06-Nov-94 08:49:37 GMT", now=-1e12)
@example(value="Sun Nov  6 08:49:37 1994", now=float("inf"))
def test_any_text_gives_seconds_or_none(value: str, now: float) -> None:
    """The parser is total: no text raises, and what it gives is 0 to 3600."""
    seconds = parse_retry_after(value, now)
    assert seconds is None or 0.0 <= seconds <= 3600.0


DATE_LIKE = st.from_regex(
    r"\A([A-Za-z]{3}|Sunday), \d{1,2}[ -](Jan|Feb|Nov|Xyz)[ -]\d{2,4} \d\d:\d\d:\d\d (GMT|UTC|)\Z"
)


@given(value=DATE_LIKE, now=st.floats(-1e11, 1e11))
def test_anything_like_a_date_gives_seconds_or_none(value: str, now: float) -> None:
    """Impossible days, months, hours and years do not raise either."""
    seconds = parse_retry_after(value, now)
    assert seconds is None or 0.0 <= seconds <= 3600.0
