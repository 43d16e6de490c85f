"""Budgets under any order of steps: never above, nothing lost, every reservation ended once."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from headrace.policies.budget import Budget, Reservation

COSTS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1, 2.5, 1e-9, 3])


def exact(value: float) -> Fraction:
    return Fraction(repr(value))


class Spending(RuleBasedStateMachine):
    """Calls that reserve, end with and without a result and are given back, against a model of fractions."""

    under_way = Bundle("under_way")

    @initialize(
        calls=st.none() | st.integers(1, 12),
        cost=st.none() | st.sampled_from([0.3, 1, 2.5, 7]),
        corrects=st.booleans(),
        estimates=st.booleans(),
    )
    def begin(self, calls: int | None, cost: float | None, corrects: bool, estimates: bool) -> None:
        if calls is None and cost is None:
            calls = 5
        self.cost = cost
        self.estimates = cost is not None and (estimates or not corrects)
        self.corrects = cost is not None and (corrects or not estimates)
        options: dict[str, Any] = {"calls": calls, "cost": cost}
        if self.estimates:
            options["estimate"] = lambda value: value
        if self.corrects:
            options["actual"] = lambda value: value
        self.budget = Budget(**options)
        self.calls_allowed = math.inf if calls is None else calls
        self.calls = 0
        self.spent = Fraction(0)
        self.open: dict[Reservation, Fraction] = {}
        self.overdrawn = Fraction(0)  # what `actual` added to estimates

    def fits(self, needed: Fraction) -> bool:
        if self.calls >= self.calls_allowed:
            return False
        if self.cost is None:
            return True
        taken = self.spent + sum(self.open.values())
        if not self.estimates:
            return taken < exact(self.cost)
        return taken + needed <= exact(self.cost)

    @rule(target=under_way, value=COSTS)
    def reserve(self, value: float) -> Any:
        needed = exact(value) if self.estimates else Fraction(0)
        if self.cost is not None and needed > exact(self.cost):
            return multiple()  # refused; see the tables
        before = self.budget.statistics()
        reservation = self.budget.reserve(value)
        assert (reservation is not None) == self.fits(needed)
        if reservation is None:
            assert self.budget.statistics() == before
            assert "spent" in self.budget.shortage()
            later = self.corrects and self.calls < self.calls_allowed and any(self.open.values())
            assert self.budget.may_fit_later == (
                later and self.cost is not None and self.spent + needed <= exact(self.cost)
            )
            return multiple()
        self.calls += 1
        self.open[reservation] = needed
        if self.cost is not None:
            assert self.spent + sum(self.open.values()) <= exact(self.cost) or not self.estimates
        return reservation

    @rule(reservation=consumes(under_way), result=COSTS | st.just(None))
    def settle(self, reservation: Reservation, result: float | None) -> None:
        self.budget.settle(reservation, result)
        needed = self.open.pop(reservation)
        actual = exact(result) if self.corrects and result is not None else needed
        self.overdrawn += max(Fraction(0), actual - needed)
        self.spent += actual

    @rule(reservation=consumes(under_way))
    def keep(self, reservation: Reservation) -> None:
        self.budget.keep(reservation)
        self.spent += self.open.pop(reservation)

    @rule(reservation=consumes(under_way))
    def give_back(self, reservation: Reservation) -> None:
        self.budget.give_back(reservation)
        self.open.pop(reservation)
        self.calls -= 1

    @invariant()
    def counts_what_the_model_counts(self) -> None:
        statistics = self.budget.statistics()
        assert statistics.calls == self.calls <= self.calls_allowed
        assert statistics.spent == float(self.spent)
        assert statistics.reserved == float(sum(self.open.values()))
        if self.cost is not None:
            assert self.spent + sum(self.open.values()) <= exact(self.cost) + self.overdrawn
            assert statistics.left is not None
            assert statistics.left >= 0.0


Spending.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSpending = Spending.TestCase
