"""Durations and the cap on failures."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.policies.deadlines import FailureCap, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0), ("10m", 600.0), ("10min", 600.0), ("2h", 7200.0), ("24h", 86400.0),
        ("7d", 604800.0), ("500ms", 0.5), ("1h30m", 5400.0), ("1h 30m", 5400.0), (" 2H ", 7200.0),
        ("1.5h", 5400.0), ("90", 90.0),
        (90, 90.0), (0.25, 0.25),
    ],
)  # fmt: skip
def test_durations(text: str | float, seconds: float) -> None:
    """Durations read as people write them; a bare number is seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "h", "2x", "-5s", "5m5", "1h-", "0", "0s", 0, -1, math.inf, math.nan, True, None, [],
     "9" * 400, 10**400, "٣s"],
)  # fmt: skip
def test_a_bad_duration_is_refused_with_its_value(value: Any) -> None:
    """The error names the option, the value and the right form."""
    with pytest.raises(PlanError, match=r"within=.*give a time such as 30s, 10m, 2h") as caught:
        parse_duration(value, "within")
    assert repr(value) in str(caught.value)


@given(st.text())
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    """No text raises anything but PlanError."""
    try:
        assert parse_duration(text) > 0.0
    except PlanError:
        pass


def test_a_count_is_judged_at_once() -> None:
    """The cap is what is accepted: one more is too many."""
    assert not FailureCap(2).exceeded(2, 2, 2)
    assert FailureCap("2").exceeded(3, 3, 3)
    assert FailureCap(0).exceeded(1, 1, 1)


@pytest.mark.parametrize(
    ("cap", "failed", "settled", "taken", "ended", "exceeded"),
    [
        ("1%", 1, 1, 1, False, False),  # too few to judge
        ("1%", 99, 99, 99, False, False),
        ("1%", 2, 100, 100, False, True),
        ("1%", 1, 100, 100, False, False),
        ("1%", 2, 100, 200, False, False),  # the open ones may still bring it under the cap
        ("1%", 3, 100, 200, False, True),
        ("1%", 1, 1, 1, True, True),  # at the end there is nothing to wait for
        ("1%", 1, 100, 300, True, False),
        ("1%", 2, 100, 300, True, True),
        ("0.5%", 1, 200, 200, True, False),
        ("0.5%", 2, 200, 200, True, True),
        ("29%", 29, 100, 100, True, False),  # 0.29 * 100 is less than 29 as floats multiply
        ("29%", 30, 100, 100, True, True),
        ("0%", 1, 100, 100, False, True),
        ("100%", 100, 100, 100, True, False),
    ],
)  # fmt: skip
def test_a_share_is_judged_when_it_means_something(
    cap: str, failed: int, settled: int, taken: int, ended: bool, exceeded: bool
) -> None:
    """A share is judged after 100 settled items or at the end, exactly."""
    assert FailureCap(cap).exceeded(failed, settled, taken, ended=ended) is exceeded


@pytest.mark.parametrize(
    "value", ["", "%", "-1", "-1%", "1.5", 0.01, "101%", "100.1%", True, None, "nan", "1%%", "x"]
)
def test_a_bad_cap_is_refused_with_its_value(value: Any) -> None:
    """0.01 could mean two things, so it is refused like nonsense."""
    with pytest.raises(PlanError) as caught:
        FailureCap(value)
    assert repr(value) in str(caught.value)
