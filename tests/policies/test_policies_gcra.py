"""The promise of a rate, counted exactly: time as fractions, no tolerance."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.policies.gcra import Gcra, parse_rate, rate_ratio


@pytest.mark.parametrize(
    ("text", "per_second"),
    [
        ("500/s", 500.0), ("90000/min", 1500.0), ("10/h", 10 / 3600), ("2.5/s", 2.5),
        ("1/day", 1 / 86400), (0.00012345678901234567, 0.00012345678901234567), (" 5 / S ", 5.0),
        ("1e3/s", 1000.0), (7, 7.0), (0.1, 0.1), (1e-5, 1e-5),
        ("60/m", 1.0), (2**40 / 2**20, 2.0**20),
    ],
)  # fmt: skip
def test_rates_read_as_written(text: str | float, per_second: float) -> None:
    """A rate is a number per s, min, h or day; a bare number is per second."""
    assert parse_rate(text) == per_second


@pytest.mark.parametrize(
    "value",
    ["", "500", "/s", "5/", "5/week", "0/s", "-5/s", "inf/s", "nan/s", "5/s/s", "5 s", 0, -1, math.inf,
     math.nan, True, None, [], 1e10, 1e-12, 10**400, "9" * 400 + "/s", "5e99/s", "٣/s"],
)  # fmt: skip
def test_a_bad_rate_is_refused_with_the_right_form(value: Any) -> None:
    """The error shows the value and how to write it."""
    with pytest.raises(PlanError, match='such as "500/s", "90000/min", "10/h"') as caught:
        parse_rate(value)
    assert repr(value) in str(caught.value)


@given(st.text())
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    """No text raises anything but PlanError."""
    try:
        assert 0.0 < parse_rate(text) < math.inf
    except PlanError:
        pass


@pytest.mark.parametrize("burst", [0, -1, math.inf, math.nan])
def test_a_bad_burst_is_refused(burst: float) -> None:
    """A burst of 0 would admit nothing for ever."""
    with pytest.raises(PlanError, match="burst="):
        Gcra(1.0, burst)


def test_a_new_rate_has_its_whole_burst() -> None:
    """So many start at once, and the next exactly one period later."""
    gcra = Gcra("10/s", 3)
    assert [gcra.admit(0.1) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert gcra.admit(0.1) == pytest.approx(0.1)
    assert gcra.admit(0.15) == pytest.approx(0.05)
    assert gcra.admit(0.2) == 0.0


def test_idle_time_gives_no_more_than_the_burst() -> None:
    """An hour of silence does not add up to an hour's worth of starts."""
    gcra = Gcra("10/s", 3)
    for _ in range(3):
        gcra.take(0.0)
    started = sum(gcra.admit(3600.0) == 0.0 for _ in range(100))
    assert started == 3


def test_what_exceeds_the_burst_never_fits() -> None:
    """Its wait is infinite, and nothing is taken."""
    gcra = Gcra("10/s", 3)
    assert gcra.wait(0.0, 3.5) == math.inf
    assert gcra.admit(1e6, 3.5) == math.inf
    assert gcra.admit(0.0, 3) == 0.0


def test_waiting_takes_nothing() -> None:
    """Asking how long to wait, any number of times, changes no answer."""
    gcra = Gcra("10/s", 1)
    gcra.take(0.0)
    assert {gcra.wait(0.0) for _ in range(10)} == {gcra.admit(0.0)}


def test_a_refund_is_available_at_once() -> None:
    """What was reserved and not used admits others; what was used beyond the estimate delays them."""
    gcra = Gcra("10/s", 100)
    assert gcra.admit(0.0, 100) == 0.0
    assert gcra.wait(0.0, 40) == pytest.approx(4.0)
    gcra.refund(100, 60)
    assert gcra.wait(0.0, 40) == 0.0
    gcra.refund(60, 90)
    assert gcra.wait(0.0, 40) == pytest.approx(3.0)


def test_an_overdrawn_rate_recovers() -> None:
    """Even where much more was used than estimated, the wait is only what pays for it."""
    gcra = Gcra("10/s", 10)
    gcra.take(0.0, 10)
    gcra.refund(10, 1000)
    assert gcra.wait(0.0, 10) == pytest.approx(100.0)
    assert not gcra.is_recovered(99.0)
    assert gcra.is_recovered(100.0)


@pytest.mark.parametrize("origin", [0.0, 0.3, 1e5, 1.7e9])
@pytest.mark.parametrize("rate", ["10/h", "3/s", "1500/s", "0.1/s", "999999/s", "7/min"])
def test_a_saturated_rate_is_reached(origin: float, rate: str) -> None:
    """Who comes back when told gets the whole rate, whatever the clock shows."""
    gcra = Gcra(rate, 1)
    now, starts = origin, 0
    while starts < 2000:
        wait = gcra.admit(now)
        if wait == 0.0:
            starts += 1
        now += wait
    expected = (starts - 1) / parse_rate(rate)
    # Floats at `origin` are this far apart, and a start waits for the next one.
    assert now - origin == pytest.approx(expected, rel=1e-9, abs=starts * math.ulp(origin + expected))


RATES = st.one_of(
    st.sampled_from(["10/h", "3/s", "1500/s", "7/min", "0.1/s", "999999/s", "2.5/s", "90000/min", "0.3/s"]),
    st.floats(1e-6, 1e7),
)
ORIGINS = st.sampled_from([0.0, 0.1, 1234.5678, 3.1e6, 1.7e9])


def readable(now: float) -> float:
    """Leave out what no clock shows: the first 4 ns, where floats are finer than the ticks."""
    return now if now >= 2.0**-28 else 0.0


@settings(max_examples=300, deadline=None)
@given(
    rate=RATES,
    burst=st.integers(1, 5),
    origin=ORIGINS,
    steps=st.lists(st.one_of(st.just(None), st.floats(0.0, 3.0)), min_size=1, max_size=40),
)
def test_any_window_holds_at_most_the_limit_and_the_burst_less_one(
    rate: str | float, burst: int, origin: float, steps: list[float | None]
) -> None:
    """Half-open windows of t seconds hold ≤ ⌈rate·t⌉ + burst − 1 starts, for all t, in exact arithmetic.

    A step is a time to let pass, in periods; None waits exactly as long as the rate asks.
    """
    gcra = Gcra(rate, burst)
    limit = Fraction(*rate_ratio(rate))
    now = origin
    starts: list[Fraction] = []
    for step in steps:
        now = readable(now + (gcra.wait(now) if step is None else step / parse_rate(rate)))
        for _ in range(burst + 1):
            if gcra.admit(now) == 0.0:
                starts.append(Fraction(now))
    for first, begin in enumerate(starts):
        for last in range(first, len(starts)):
            # A half-open window that holds these starts is longer than their distance.
            assert last - first + 1 <= math.floor(limit * (starts[last] - begin)) + burst


@settings(max_examples=300, deadline=None)
@given(
    rate=RATES,
    burst=st.floats(1.0, 100.0),
    origin=ORIGINS,
    calls=st.lists(
        st.tuples(st.floats(0.0, 1.0), st.one_of(st.just(None), st.floats(0.0, 3.0))), max_size=40
    ),
)
def test_any_window_costs_at_most_the_limit_and_the_burst(
    rate: str | float, burst: float, origin: float, calls: list[tuple[float, float | None]]
) -> None:
    """In cost: any window of t seconds holds ≤ rate·t + burst, exactly, for costs of any size."""
    gcra = Gcra(rate, burst)
    limit = Fraction(*rate_ratio(rate))
    now = origin
    starts: list[tuple[Fraction, Fraction]] = []
    for share, step in calls:
        cost = share * burst
        now = readable(now + (gcra.wait(now, cost) if step is None else step / parse_rate(rate)))
        while gcra.admit(now, cost) == 0.0 and len(starts) < 40:
            starts.append((Fraction(now), Fraction(cost)))
            if cost == 0.0:
                break
    # Worst over all windows that end at a start: what stood before it less what the time since has paid for.
    worst, previous = Fraction(0), starts[0][0] if starts else Fraction(0)
    for at, cost_then in starts:
        worst = max(Fraction(0), worst - limit * (at - previous)) + cost_then
        previous = at
        assert worst <= Fraction(burst)


@settings(max_examples=300, deadline=None)
@given(
    rate=RATES,
    burst=st.integers(1, 3),
    now=st.floats(0.0, 1e10),
    cost=st.floats(0.01, 1.0),
    taken=st.integers(0, 5),
)
def test_the_wait_is_enough(rate: str | float, burst: int, now: float, cost: float, taken: int) -> None:
    """At now + wait, as floats add, the start fits: no caller comes back early for ever."""
    gcra = Gcra(rate, burst)
    for _ in range(taken):
        gcra.take(now, cost * burst)
    wait = gcra.wait(now, cost * burst)
    assume(wait < math.inf)
    assert gcra.wait(now + wait, cost * burst) == 0.0


def test_large_times_do_not_drift() -> None:
    """10⁶ a second at times of the size of the epoch, whose floats are hardly finer than one period."""
    gcra = Gcra("1000000/s", 1)
    now = 1.7e9
    starts = 0
    for _ in range(20_000):
        now += 2.5e-7
        starts += gcra.admit(now) == 0.0
    span = Fraction(now) - Fraction(1.7e9)
    assert starts <= math.floor(span * 1_000_000) + 1


@given(now=st.floats(1.0, 1e9), back=st.floats(0.0, 1e9))
def test_a_shift_moves_all_times(now: float, back: float) -> None:
    """After a change of clock the same wait is left, to the fineness of a float."""
    gcra = Gcra("1/s", 1)
    gcra.take(now)
    gcra.shift(back - now)
    assert gcra.wait(back) == pytest.approx(1.0, abs=1e-6)
