"""The retry budget: the share holds, a few are always allowed, nothing is refused."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.policies.retry_budget import LEAST, WINDOW, RetryBudget


def test_a_share_of_the_calls_and_some_at_once() -> None:
    """A thousand calls earn two hundred repetitions; ten more are there from the beginning; the next ones wait."""
    budget = RetryBudget(0.2, 0.0)
    waits = [budget.take(1000, 1.0) for _ in range(230)]
    assert waits[:210] == [0.0] * 210
    assert all(wait > 0.0 for wait in waits[220:])
    assert waits == sorted(waits)


def test_ten_a_second_are_always_allowed() -> None:
    """Without any more calls the rest comes at ten a second, and not at a share of nothing."""
    budget = RetryBudget(0.01, 0.0)
    waits = [budget.take(0, 0.0) for _ in range(110)]
    assert 9.5 <= max(waits) <= 10.5


def test_what_was_earned_long_ago_is_lost() -> None:
    """A hundred thousand calls of an hour ago allow no storm now."""
    budget = RetryBudget(0.2, 0.0)
    budget.take(100_000, 1.0)
    assert sum(budget.take(100_000, 3600.0) == 0.0 for _ in range(1000)) <= LEAST + 1


class Machine(RuleBasedStateMachine):
    """Calls and repetitions in any order: those that need not wait never exceed what is promised."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 50.0
        self.calls = 0
        self.budget = RetryBudget(0.25, self.now)
        self.granted: list[float] = []

    @rule(calls=st.integers(0, 200))
    def call(self, calls: int) -> None:
        self.calls += calls

    @rule(times=st.integers(1, 60))
    def repeat(self, times: int) -> None:
        last = 0.0
        for _ in range(times):
            wait = self.budget.take(self.calls, self.now)
            assert wait == 0.0 or wait >= last
            last = wait
            self.granted.append(self.now + wait)

    @rule(seconds=st.floats(0.0, 2.5 * WINDOW))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_share_holds(self) -> None:
        due = sum(at <= self.now for at in self.granted)
        assert due <= 0.25 * self.calls + LEAST * (self.now - 50.0) + LEAST + 1e-6


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.floats(0.0, 1e9), st.integers(0, 10**9), st.floats(0.001, 1.0))
@settings(max_examples=100)
def test_any_time_and_any_number_are_survived(now: float, calls: int, share: float) -> None:
    """Large clocks, huge counts, and a clock that goes back."""
    budget = RetryBudget(share, now)
    assert budget.take(calls, now) >= 0.0
    assert budget.take(calls - 5, now - 100.0) >= 0.0
