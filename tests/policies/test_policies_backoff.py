"""The waits between attempts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policies.backoff import full_jitter


class Highest(Random):
    """Draws the largest number below 1 that there is."""

    def random(self) -> float:
        return 1.0 - 2.0**-53


@given(
    attempt=st.integers(1, 10**7),
    base=st.floats(0.0, 1e6),
    cap=st.floats(0.0, 1e6),
    seed=st.integers(0, 10),
)
def test_a_wait_lies_between_zero_and_the_bound(attempt: int, base: float, cap: float, seed: int) -> None:
    """No attempt, base or cap gives a wait outside 0 … cap, or more than base · 2ⁿ⁻¹."""
    wait = full_jitter(attempt, base, cap, Random(seed))
    assert 0.0 <= wait <= cap
    if attempt <= 60:
        assert wait <= base * 2 ** (attempt - 1)


@pytest.mark.parametrize(
    ("attempt", "bound"), [(1, 0.2), (2, 0.4), (3, 0.8), (8, 25.6), (9, 30.0), (100, 30.0)]
)
def test_the_bound_doubles_up_to_the_cap(attempt: int, bound: float) -> None:
    """After each attempt the range is twice as wide, until the cap."""
    assert full_jitter(attempt, 0.2, 30.0, Highest()) == pytest.approx(bound)


@pytest.mark.parametrize("attempt", [1024, 1025, 1026, 10**6, 2**63, 10**30])
def test_no_number_of_attempts_overflows(attempt: int) -> None:
    """2 to the power of the attempt is no float any more above 1024; the wait still is one."""
    assert full_jitter(attempt, 0.2, 30.0, Highest()) == pytest.approx(30.0)
    assert full_jitter(attempt, 0.0, 30.0, Highest()) == 0.0


def test_waits_are_spread_over_the_whole_range() -> None:
    """Full jitter: calls that failed together do not come back together."""
    rng = Random(1)
    waits = sorted(full_jitter(1, 1.0, 30.0, rng) for _ in range(1000))
    assert waits[0] < 0.02
    assert waits[-1] > 0.98
    assert waits[500] == pytest.approx(0.5, abs=0.05)
