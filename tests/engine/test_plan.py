"""What a plan says of itself, to a job and to people."""

from __future__ import annotations

import math
from typing import Any

import pytest

import headrace as hr


async def call(number: int) -> int:
    return number


def test_take_changes_neither_identity_nor_code():
    """A job begun with `take` goes on without it, and nothing is said to have changed."""
    whole = hr.Flow(range(10)).map(call)._plan
    part = hr.Flow(range(10)).take(3).map(call)._plan
    assert part.identity() == whole.identity()
    assert part.code() == whole.code()


def test_explain_shows_a_retry_as_it_was_written():
    """`explain` shows what was given, by the names that stand in the program."""
    text = hr.Flow([1]).map(call, retry=hr.Retry(attempts=3, on=ValueError, base=0.5)).explain()
    assert "Retry(attempts=3, on=ValueError, base=0.5)" in text
    assert "Retry(attempts=4)" in hr.Flow([1]).map(call, retry=hr.Retry()).explain()


@pytest.mark.parametrize("value", [0, -1, 0.0, math.inf, math.nan, True, "5", [], -math.inf])
def test_a_bad_time_limit_is_refused_with_its_value(value: Any):
    """timeout=0 is refused instead of failing every call; so are the other limits that no clock can keep."""
    for options in ({"timeout": value}, {"within": value}):
        with pytest.raises(hr.PlanError) as caught:
            hr.Flow([1]).map(call, **options).run_sync()
        assert f"={value!r}" in str(caught.value)
