"""Rate headers, as strangers write them, and what is made of them."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.policies.limits import Claim, Limit, admit, claim, hold, release
from headrace.policies.rate_headers import RateHint, heed, parse_rate_headers, parse_reset

NOW = datetime(2004, 11, 6, 8, 48, 37, tzinfo=UTC).timestamp()
SECONDS = int(NOW)

STRUCTURED = [
    ({"ratelimit": '"default";r=50;t=30'}, RateHint(50, 30.0)),
    ({"ratelimit": '"default";r=50;t=30', "ratelimit-policy": '"default";q=100;w=60'}, RateHint(50, 30.0)),
    ({"ratelimit": "default;r=50;t=30"}, RateHint(50, 30.0)),
    ({"ratelimit": ' "default" ; r=50 ; t=30 '}, RateHint(50, 30.0)),
    ({"ratelimit": '"default";t=30;r=0;pk=:cGs=:;later="x;y,z"'}, RateHint(0, 30.0)),
    ({"ratelimit": '"a;r=1, \\"b";r=5;t=7'}, RateHint(5, 7.0)),
    ({"ratelimit": '"burst";r=50;t=30, "daily";r=3;t=3000'}, RateHint(3, 3000.0)),
    ({"ratelimit": '"burst";r=0;t=1, "daily";r=0;t=30'}, RateHint(0, 30.0)),
    ({"ratelimit": '"burst";r=0;t=0, "daily";r=9;t=30'}, RateHint(9, 30.0)),
    ({"ratelimit": '"broken";r=-1;t=5, "good";r=9;t=30'}, RateHint(9, 30.0)),
    ({"ratelimit": '"a";r=0;t=0'}, None),
    ({"ratelimit": '"a";r=0'}, None),
    ({"ratelimit": '"a";t=30'}, None),
    ({"ratelimit": '"a";r=0;t=-30'}, None),
    ({"ratelimit": '"a";r="0";t=30'}, None),
    ({"ratelimit": '"a";r=1e3;t=30'}, None),
    ({"ratelimit": '"a";r=0;t=NaN'}, None),
    ({"ratelimit": '"a";r=0;t=86401'}, None),
    ({"ratelimit": '"a";r=0;t=3601'}, RateHint(0, 3600.0)),
    ({"ratelimit": f'"a";r=0;t={"9" * 400}'}, None),
    ({"ratelimit": f'"a";r={"9" * 15};t=1'}, RateHint(int("9" * 15), 1.0)),
    ({"ratelimit": '"a"'}, None),
    ({"ratelimit": '"a;r=0;t=30'}, None),
    ({"ratelimit": ""}, None),
    ({"ratelimit-policy": '"a";q=0;w=60'}, None),
    ({"ratelimit": '"a";r=0;t=30', "ratelimit-policy": '"a";q=0;w=60'}, None),
    ({"ratelimit": '"a";r=0;t=30', "ratelimit-policy": '"a";q=9;w=60;qu="requests"'}, RateHint(0, 30.0)),
    ({"ratelimit": '"a";r=10;t=30', "ratelimit-policy": '"a";q=99;w=60;qu="content-bytes"'}, None),
    ({"ratelimit": '"a";r=0;t=30', "ratelimit-policy": '"a";q=99;qu="content-bytes"'}, RateHint(0, 30.0)),
    ({"ratelimit": '"a";r=0;t=30', "ratelimit-policy": '"a";q=9;qu="concurrent-requests"'}, None),
    ({"ratelimit": "limit=100, remaining=50, reset=50"}, RateHint(50, 50.0)),
    ({"ratelimit": "limit=100,remaining=0,reset=5;w=1"}, RateHint(0, 5.0)),
    ({"ratelimit": "limit=0, remaining=0, reset=50"}, None),
    ({"ratelimit": "remaining=0"}, None),
    ({"ratelimit": "remaining=-1, reset=50"}, None),
]  # fmt: skip

FIELDS = [
    ({"limit": "100, 100;w=60", "remaining": "7", "reset": "30"}, RateHint(7, 30.0)),
    ({"remaining": "0", "reset": "30"}, RateHint(0, 30.0)),
    ({"remaining": "12.0", "reset": "1.5"}, RateHint(12, 1.5)),
    ({"remaining": "7, 3", "reset": "30, 3000"}, RateHint(3, 3000.0)),
    ({"remaining": "7, 3", "reset": "30"}, RateHint(3, 30.0)),
    ({"remaining": "7, x", "reset": "30, 3000"}, RateHint(7, 30.0)),
    ({"remaining": "7", "reset": "30, 3000"}, None),
    ({"limit": "0", "remaining": "0", "reset": "30"}, None),
    ({"remaining": "0", "reset": "0"}, None),
    ({"remaining": "-1", "reset": "30"}, None),
    ({"remaining": "0", "reset": "-30"}, None),
    ({"remaining": "unlimited", "reset": "30"}, None),
    ({"remaining": "0", "reset": "soon"}, None),
    ({"remaining": "0"}, None),
    ({"reset": "30"}, None),
    ({"remaining": "٣", "reset": "30"}, None),
    ({"remaining": "0", "reset": str(SECONDS + 60)}, RateHint(0, 60.0)),
    ({"remaining": "0", "reset": str((SECONDS + 60) * 1000)}, RateHint(0, 60.0)),
    ({"remaining": "0", "reset": "Sat, 06 Nov 2004 08:49:37 GMT"}, RateHint(0, 60.0)),
    ({"remaining": "0", "reset": "2004-11-06T08:49:37Z"}, RateHint(0, 60.0)),
]  # fmt: skip


def at(when: float) -> str:
    return datetime.fromtimestamp(when, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize(("headers", "hint"), STRUCTURED, ids=str)
def test_structured_fields(headers: dict[str, str], hint: RateHint | None) -> None:
    """The draft's fields and the dictionary before it: the window with the least left, or nothing."""
    assert parse_rate_headers(headers, NOW) == hint


@pytest.mark.parametrize("prefix", ["ratelimit", "x-ratelimit", "x-rate-limit"])
@pytest.mark.parametrize(("fields", "hint"), FIELDS, ids=str)
def test_fields_of_their_own(prefix: str, fields: dict[str, str], hint: RateHint | None) -> None:
    """Limit, remaining and reset under each of the three names, one window or several."""
    assert parse_rate_headers({f"{prefix}-{name}": value for name, value in fields.items()}, NOW) == hint


def test_all_that_is_told_counts() -> None:
    """Where a gateway and a service both tell of windows, the one with the least left counts."""
    both = {"ratelimit": '"a";r=5;t=9', "x-ratelimit-remaining": "2", "x-ratelimit-reset": "4"}
    assert parse_rate_headers(both, NOW) == RateHint(2, 4.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 30 ", 30.0),
        ("86400", 3600.0),
        ("86401", None),
        ("999999999", None),
        (str(SECONDS + 90), 90.0),
        (str(SECONDS), 0.0),
        (str(SECONDS - 5), 0.0),
        (str(SECONDS - 3601), None),
        (str(SECONDS + 7200), 3600.0),
        (str(SECONDS + 86_401), None),
        (str((SECONDS + 90) * 1000), 90.0),
        (str((SECONDS + 90) * 1000) + ".5", 90.0005),
        (str((SECONDS + 90) * 1_000_000), None),
        (at(NOW + 90) + "Z", 90.0),
        (at(NOW + 90) + "+00:00", 90.0),
        (at(NOW + 3600 + 90) + "+01:00", 90.0),
        (at(NOW + 90) + ".250z", 90.25),
        (at(NOW + 90), 90.0),
        (datetime.fromtimestamp(NOW + 90, tz=UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), 90.0),
        ("9999-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("2004-13-41T99:99:99Z", None),
        ("20041106", None),
        ("nan", None),
        ("inf", None),
        ("-1", None),
        ("1e9", None),
        ("0x10", None),
        ("", None),
    ],
)
def test_a_reset_is_told_apart(value: str, seconds: float | None) -> None:
    """Seconds from now, epoch in seconds or milliseconds, HTTP-date, ISO time; a day ahead at most, cut to an hour."""
    found = parse_reset(value, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


NAMES = [
    "ratelimit", "ratelimit-policy",
    *(f"{p}-{n}" for p in ("ratelimit", "x-ratelimit", "x-rate-limit") for n in ("limit", "remaining", "reset")),
]  # fmt: skip
FRAGMENTS = st.lists(
    st.sampled_from(
        ['"', "a", ";", ",", "=", "r=", "t=", "0", "5", "-", ".", "\\", " ", "qu=", "remaining=", "reset=", "é", "T:"]
    ),
    max_size=30,
).map("".join)  # fmt: skip


@given(
    headers=st.dictionaries(st.sampled_from(NAMES), st.one_of(st.text(), FRAGMENTS, st.integers().map(str))),
    now=st.floats(),
)
@example(headers={"ratelimit": '"' * 5000}, now=0.0)
@example(headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9999-12-31T23:59:59-23:59"}, now=0.0)
@example(headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "2000000000"}, now=float("nan"))
def test_any_text_gives_a_hint_or_none(headers: dict[str, str], now: float) -> None:
    """The parser is total: no text raises, and a hint has something left or not, and a reset of up to an hour."""
    hint = parse_rate_headers(headers, now)
    assert hint is None or (hint.remaining >= 0 and 0.0 < hint.reset <= 3600.0)


# ------------------------------------------------------------------------------------------------------ heeding


def under_way(limits: list[Limit], value: Any, count: int, now: float = 100.0) -> list[list[Claim]]:
    calls = [claim(limits, value) for _ in range(count)]
    assert all(admit(each, now) == 0.0 for each in calls)
    return calls


@pytest.mark.parametrize(
    ("others", "remaining", "held"),
    [(0, 0, True), (0, 1, False), (3, 3, True), (3, 2, True), (3, 4, False), (3, 0, True)],
)
def test_what_the_calls_under_way_use_up_is_waited_for(others: int, remaining: int, held: bool) -> None:
    """A key is held where the calls under way beside the answered one will take all that is left."""
    limit = Limit(concurrency=9, by=lambda value: value)
    call, *_ = under_way([limit], "a", others + 1)
    states = heed(call, RateHint(remaining, 30.0), 100.0, Random(1))
    assert [state.key for state in states] == (["a"] if held else [])
    fresh = claim([limit], "a")
    assert admit(fresh, 100.0) == (pytest.approx(31.5, abs=1.5) if held else 0.0)


def test_a_hint_never_shortens_a_hold() -> None:
    """A hold that lasts longer stays as it is, and many answers of one moment make one hold."""
    limit = Limit(concurrency=9, by=lambda value: value)
    calls = under_way([limit], "a", 5)
    hold(calls[0], 200.0)
    assert heed(calls[1], RateHint(0, 30.0), 100.0, Random(1)) == []
    assert calls[0][0].state.held_until == 200.0
    assert heed(calls[1], RateHint(0, 120.0), 100.0, Random(1)) != []
    until = calls[0][0].state.held_until
    assert 220.0 <= until <= 232.0
    assert [heed(call, RateHint(0, 120.0), 100.0, Random(2)) for call in calls[2:]] == [[], [], []]
    assert calls[0][0].state.held_until == until


def test_programs_do_not_come_back_together() -> None:
    """Up to a tenth is drawn on top of the reset."""
    ends = set()
    for seed in range(50):
        (call,) = under_way([Limit(concurrency=1)], "a", 1)
        (state,) = heed(call, RateHint(0, 100.0), 100.0, Random(seed))
        assert 200.0 <= state.held_until <= 210.0
        ends.add(state.held_until)
    assert len(ends) > 40


def test_only_keyed_limits_are_held_where_there_are_any() -> None:
    """It is a host that has a rate, and not the run; without a keyed limit all of them wait."""
    whole, host, rate = Limit(concurrency=9), Limit(concurrency=9, by=lambda value: value), Limit(rate=9)
    (call,) = under_way([whole, host, rate], "a", 1)
    assert [state.limit for state in heed(call, RateHint(0, 9.0), 100.0, Random(1))] == [host]
    release(call)
    (call,) = under_way([whole, rate], "a", 1, 101.0)
    assert [state.limit for state in heed(call, RateHint(0, 9.0), 101.0, Random(1))] == [whole, rate]
    release(call)
    assert heed(call, RateHint(0, 9.0), 101.0, Random(1)) == []
