"""Hedging's decisions: the quantile within its bound of sorted data, the extra load under any order of steps."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.policies.hedging import (
    BURST,
    CLASSES,
    ENOUGH,
    GROWTH,
    HALF_LIFE,
    HALVED_AFTER,
    KEYS_KEPT,
    LEAST,
    Hedge,
    Latencies,
    problems,
)

MOST = LEAST * GROWTH ** (CLASSES - 1)
SECONDS = st.floats(min_value=1e-6, max_value=3600.0)
MANY = HALVED_AFTER - 1  # what is counted before anything fades


def filled(values: list[float]) -> Latencies:
    latencies = Latencies(0.0)
    for value in values:
        latencies.add(value, 0.0)
    return latencies


@given(st.lists(SECONDS, min_size=ENOUGH, max_size=MANY))
def test_the_quantile_is_that_of_the_sorted_data_within_a_tenth(values: list[float]) -> None:
    """As long as nothing has faded: never less than the 95th of a hundred, and at most a tenth more."""
    true = max(sorted(values)[math.ceil(0.95 * len(values)) - 1], LEAST)
    found = filled(values).quantile()
    assert found is not None
    assert true * (1 - 1e-9) <= found <= true * GROWTH * (1 + 1e-9)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0.3, 1.5))
def test_the_quantile_of_long_data_is_that_of_their_distribution(seed: int, sigma: float) -> None:
    """Where old calls fade: 92 to 98 % of the calls that count are not above it."""
    rng = random.Random(seed)
    values = [rng.lognormvariate(-2.0, sigma) for _ in range(4 * HALVED_AFTER)]
    found = filled(values).quantile()
    assert found is not None
    recent = values[-2 * HALVED_AFTER :]
    assert 0.92 <= sum(value <= found for value in recent) / len(recent) <= 0.98


def test_the_quantile_follows_a_server_that_turns_slower() -> None:
    """After some hundreds of slower calls the quantile is theirs, and back again."""
    latencies = filled([0.01] * 5000)
    for value in (0.1, 0.01):
        for _ in range(5 * HALVED_AFTER):
            latencies.add(value, 0.0)
        found = latencies.quantile()
        assert found is not None
        assert value <= found <= value * GROWTH


def test_there_is_no_quantile_before_enough_calls_nor_long_after_them() -> None:
    """Fewer than 20 calls say nothing, and calls of long ago say nothing any more."""
    latencies = filled([0.01] * (ENOUGH - 1))
    assert latencies.quantile() is None
    latencies.add(0.01, 1.0)
    assert latencies.quantile() is not None
    latencies.age(HALF_LIFE * 5)
    assert latencies.quantile() is None
    latencies.age(HALF_LIFE * 1e9)
    assert latencies.total < 1e-9
    latencies.age(0.0)  # another loop's clock
    for _ in range(ENOUGH):
        latencies.add(0.5, 1.0)
    assert 0.5 <= (latencies.quantile() or 0.0) <= 0.5 * GROWTH


@pytest.mark.parametrize("value", [0.0, 1e-9, LEAST, MOST, 1e9, math.inf, -1.0])
def test_latencies_beyond_the_classes_are_in_the_last_ones(value: float) -> None:
    """What is shorter than a millisecond or longer than an hour is counted with those."""
    found = filled([value] * ENOUGH).quantile()
    assert found in (LEAST, pytest.approx(MOST))


def test_memory_is_bounded() -> None:
    """Of very many keys those used last are known."""
    hedge = Hedge(0.1)
    for number in range(KEYS_KEPT * 3):
        for _ in range(ENOUGH):
            hedge.end("always", 0.01, 0.0)
            hedge.end(number, 0.01, 0.0)
    assert hedge.statistics().keys == KEYS_KEPT
    assert hedge.begin("always", 0.0) is not None
    assert hedge.begin(0, 0.0) is None
    assert hedge.begin(KEYS_KEPT * 3 - 1, 0.0) is not None


class Budget(RuleBasedStateMachine):
    """Calls and copies in any order, against the list of all that happened."""

    @rule(share=st.sampled_from([0.01, 0.05, 0.1, 1 / 3, 0.5, 1.0]))
    @precondition(lambda self: not hasattr(self, "hedge"))
    def make(self, share: float) -> None:
        self.share = share
        self.hedge = Hedge(share)
        self.happened: list[int] = []  # 0 for a call, 1 for a copy
        self.refused_at: int | None = None

    @precondition(lambda self: hasattr(self, "hedge"))
    @rule(calls=st.integers(1, 300))
    def call(self, calls: int) -> None:
        for _ in range(calls):
            self.hedge.begin("key", 0.0)
        self.happened += [0] * calls

    @precondition(lambda self: hasattr(self, "hedge"))
    @rule(tries=st.integers(1, 30))
    def copy(self, tries: int) -> None:
        for _ in range(tries):
            if self.hedge.may_copy:
                self.hedge.copy()
                self.happened.append(1)

    @precondition(lambda self: hasattr(self, "hedge"))
    @rule()
    def a_copy_is_allowed_where_the_share_is_not_used(self) -> None:
        """After 1 / share calls in a row without a copy one is allowed."""
        quiet = math.ceil(1 / self.share)
        if len(self.happened) >= quiet and not any(self.happened[-quiet:]):
            assert self.hedge.may_copy

    @invariant()
    def copies_keep_to_their_share(self) -> None:
        """Of all calls so far, and of any stretch up to now, but for a small burst there."""
        if not hasattr(self, "hedge"):
            return
        calls = copies = 0
        for copied in reversed(self.happened):
            copies += copied
            calls += not copied
            assert copies <= self.share * calls + BURST + 1e-6
        assert copies <= self.share * calls + 1e-6
        figures = self.hedge.statistics()
        assert (figures.calls, figures.copies) == (calls, copies)


TestBudget = Budget.TestCase
TestBudget.settings = settings(max_examples=100, stateful_step_count=30)


GOOD: dict[str, Any] = {"kind": "map", "effect": "safe", "lane": "loop", "is_async": True, "concurrency": 100}


@pytest.mark.parametrize("share", [None, 0.05, 1, 1.0, 1e-9])
def test_a_share_up_to_one_is_right(share: Any) -> None:
    """A number above 0 and up to 1, or nothing."""
    assert problems(share, **GOOD) == []


@pytest.mark.parametrize(
    ("share", "change", "words"),
    [
        (0, {}, "hedge=0.05"),
        (-0.1, {}, "hedge=0.05"),
        (1.5, {}, "hedge=0.05"),
        (True, {}, "hedge=0.05"),
        ("5%", {}, "hedge=0.05"),
        (math.nan, {}, "hedge=0.05"),
        (math.inf, {}, "hedge=0.05"),
        (0.05, {"kind": "filter"}, "is for map"),
        (0.05, {"effect": "idempotent"}, 'effect="safe"'),
        (0.05, {"effect": "once"}, 'effect="safe"'),
        (0.05, {"lane": "thread"}, "async function"),
        (0.05, {"is_async": False}, "async function"),
        (0.05, {"concurrency": 1}, "concurrency=2"),
    ],
)
def test_what_cannot_hedge_is_told_with_the_form_that_works(
    share: Any, change: dict[str, Any], words: str
) -> None:
    """One problem each, and it names what to write."""
    (problem,) = problems(share, **{**GOOD, **change})
    assert words in problem
