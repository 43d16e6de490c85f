"""Starts that keep a distance: exact at any time, over whatever rate the key has besides."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policies.further import understands_urls
from headrace.policies.gcra import Gcra
from headrace.policies.limits import Limit, admit, cancel, claim, release
from headrace.policies.spacing import LONGEST_INTERVAL, Spaced, bounded_interval, space


@understands_urls
def host(value: Any) -> str:
    return str(value)[0]


@given(
    rate=st.one_of(st.none(), st.floats(0.1, 100.0)),
    interval=st.floats(0.001, 300.0),
    now=st.floats(0.0, 1e9),
    steps=st.lists(st.floats(0.0, 400.0), max_size=30),
)
def test_starts_keep_their_distance(
    rate: float | None, interval: float, now: float, steps: list[float]
) -> None:
    """No two starts are nearer than the interval, nor than the rate allows; a wait that is kept is enough."""
    inner, alone = (None, None) if rate is None else (Gcra(rate), Gcra(rate))
    spaced = Spaced(inner, interval, now)
    last = now
    for step in steps:
        now += step
        wait = spaced.wait(now)
        assert spaced.admit(now) == wait
        if wait:
            now += wait
            assert spaced.admit(now) == 0.0
        assert now >= last + interval
        assert alone is None or alone.admit(now) == 0.0
        last = now
    assert not spaced.is_recovered(last)
    assert spaced.is_recovered(last + interval + 11.0)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, 0.0),
        (0.0, 0.0),
        (-1.0, 0.0),
        (math.nan, 0.0),
        (math.inf, LONGEST_INTERVAL),
        (1e300, LONGEST_INTERVAL),
        (300.0, 300.0),
        (0.5, 0.5),
    ],
)
def test_only_a_sensible_interval_is_kept(given: float | None, kept: float) -> None:
    """Nothing, negative, no number: nothing. What is too long is cut."""
    assert bounded_interval(given) == kept
    limit = Limit(concurrency=9, by=host)
    call = claim([limit], "a")
    admit(call, 100.0)
    assert space(call, math.nan if given is None else given, "a", False, 100.0) == (kept > 0.0)
    assert admit(claim([limit], "a"), 100.0) == kept


def test_one_key_is_slowed_and_no_other() -> None:
    """Limits without keys and with keys of rows are left alone; the key of the URL is meant, not the one held."""
    whole, keyed, rows = Limit(concurrency=9), Limit(concurrency=9, by=host), Limit(concurrency=9, by=len)
    call = claim([whole, keyed, rows], "abc")
    admit(call, 100.0)
    assert space(call, 10.0, "b", False, 100.0)
    assert not space(claim([whole, rows], "abc"), 10.0, "b", False, 100.0)
    assert admit(claim([whole, rows], "abc"), 100.0) == 0.0
    assert admit(claim([keyed], "abc"), 100.0) == 0.0
    assert admit(claim([keyed], "bcd"), 100.0) == 10.0


def test_a_distance_outlives_what_is_given_back() -> None:
    """A start that was cancelled keeps its distance, and asking again for the same changes nothing."""
    limit = Limit(rate="100/s", by=host)
    call = claim([limit], "a")
    admit(call, 100.0)
    space(call, 10.0, "a", False, 100.0)
    release(call)
    space(claim([limit], "a"), 10.0, "a", False, 105.0)
    call = claim([limit], "a")
    assert admit(call, 105.0) == 5.0
    assert admit(call, 110.0) == 0.0
    cancel(call)
    assert admit(claim([limit], "a"), 111.0) == pytest.approx(9.0)
