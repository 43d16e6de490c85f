"""What a Budget counts, what it refuses, and what it says."""

from __future__ import annotations

import math
from decimal import localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import Disposition, EngineError, PlanError, Skip
from headrace.policies.budget import Budget, BudgetRefused, Reservation


def reserved(budget: Budget, value: Any = None) -> Reservation:
    """Reserve, where it must fit."""
    reservation = budget.reserve(value)
    assert reservation is not None
    return reservation


async def later(value: Any) -> float:
    return 1.0


class Later:
    async def __call__(self, value: Any) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give calls= or cost="),
        ({"calls": 0}, "calls=0: give a whole number"),
        ({"calls": -3}, "calls=-3"),
        ({"calls": 2.0}, "calls=2.0"),
        ({"calls": True}, "calls=True"),
        ({"calls": "10"}, "calls='10'"),
        ({"cost": 0, "estimate": 1}, "cost=0: give a finite number above 0"),
        ({"cost": -1.5, "estimate": 1}, "cost=-1.5"),
        ({"cost": math.inf, "estimate": 1}, "cost=inf"),
        ({"cost": math.nan, "estimate": 1}, "cost=nan"),
        ({"cost": 10**400, "estimate": 1}, "cost=1000"),
        ({"cost": True, "estimate": 1}, "cost=True"),
        ({"cost": "5", "estimate": 1}, "cost='5'"),
        ({"cost": 5, "estimate": 0}, "estimate=0: give a finite number above 0"),
        ({"cost": 5, "estimate": -1}, "estimate=-1"),
        ({"cost": 5, "estimate": math.inf}, "estimate=inf"),
        ({"cost": 5, "estimate": math.nan}, "estimate=nan"),
        ({"cost": 5, "estimate": 10**400}, "estimate=1000"),
        ({"cost": 5, "estimate": True}, "estimate=True"),
        ({"cost": 5, "estimate": 6}, "estimate=6 can never fit into cost=5"),
        ({"cost": 5}, "cost= needs estimate="),
        ({"calls": 5, "estimate": 1}, "estimate= counts against a cost"),
        ({"calls": 5, "actual": len}, "actual= counts against a cost"),
        ({"cost": 5, "estimate": later}, "give a plain function"),
        ({"cost": 5, "estimate": Later()}, "give a plain function"),
        ({"cost": 5, "actual": later}, "give a plain function"),
        ({"cost": 5, "actual": 3}, "actual=3: give a plain function"),
        ({"calls": 5, "name": ""}, "name=''"),
        ({"calls": 5, "name": 7}, "name=7"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    """The option, its value and the right form are named."""
    with pytest.raises(PlanError) as raised:
        Budget(**options)
    assert said in str(raised.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    """One PlanError holds every problem."""
    with pytest.raises(PlanError) as raised:
        Budget(calls=0, cost=-1, estimate=math.inf, actual=later, name="")  # type: ignore[arg-type]
    for said in ("calls=0", "cost=-1", "estimate=inf", "actual=", "name=''"):
        assert said in str(raised.value)


def test_calls_are_counted_to_the_last() -> None:
    """So many calls start and no more, and the budget says so."""
    budget = Budget(calls=1000, name="tokens")
    for _ in range(1000):
        budget.keep(reserved(budget))
    assert budget.reserve(None) is None
    assert not budget.may_fit_later
    assert budget.shortage().replace("\u202f", " ") == "the budget 'tokens' is spent: 1 000 of 1 000 calls"
    statistics = budget.statistics()
    assert (statistics.calls, statistics.calls_left, statistics.left) == (1000, 0, None)


@pytest.mark.parametrize(
    ("cost", "estimate", "fit"), [(0.3, 0.1, 3), (1, 0.1, 10), (29, 0.29, 100), (1e20, 1e20, 1)]
)
def test_costs_are_added_as_they_are_written(cost: float, estimate: float, fit: int) -> None:
    """Three of 0.1 make 0.3, whatever floats say of it."""
    budget = Budget(cost=cost, estimate=estimate)
    for _ in range(fit):
        reserved(budget)
    assert budget.reserve(None) is None
    assert budget.statistics().left == 0.0


@given(st.lists(st.floats(0, 1e308), max_size=30))
def test_sums_are_exact_however_a_program_sets_its_decimals(costs: list[float]) -> None:
    """The smallest beside the largest is not lost, and nobody's decimal context matters."""
    with localcontext() as context:
        context.prec = 2
        budget = Budget(cost=1.7e308, estimate=lambda value: value)
        taken = [budget.reserve(5e-324), *map(budget.reserve, costs)]
        for reservation in taken:
            if reservation is not None:
                budget.give_back(reservation)
    assert budget.statistics().reserved == 0.0
    assert budget._reserved == 0
    assert budget.statistics().calls == 0


def test_actual_corrects_the_estimate_both_ways() -> None:
    """What a result cost counts, be it less or more than was reserved."""
    budget = Budget(cost=10, estimate=4, actual=float)
    first, second = reserved(budget), reserved(budget)
    assert budget.reserve(None) is None
    assert budget.may_fit_later  # the two may have cost less
    budget.settle(first, 1)
    third = reserved(budget)
    budget.settle(second, 9)
    budget.settle(third, 0)
    assert budget.statistics().spent == 10.0
    assert budget.reserve(None) is None
    assert not budget.may_fit_later


def test_actual_alone_stops_when_all_is_spent() -> None:
    """Without an estimate calls start while anything is left; what is in flight then comes on top."""
    budget = Budget(cost=5, actual=float)
    under_way = [reserved(budget) for _ in range(3)]
    for reservation in under_way:
        budget.settle(reservation, 3)
    assert budget.reserve(None) is None
    assert not budget.may_fit_later
    assert budget.statistics().spent == 9.0
    assert budget.statistics().left == 0.0
    assert budget.shortage() == "the budget is spent: 9 of 5"


def test_a_call_that_does_not_fit_says_what_it_needs() -> None:
    """The figures are those of the call that did not fit."""
    budget = Budget(cost=10, estimate=float, name="euros")
    reserved(budget, 7)
    assert budget.reserve(3.5) is None
    assert budget.shortage() == "the budget 'euros' is spent: 7 of 10, and the next call needs 3.5"


@pytest.mark.parametrize("rubbish", [None, "much", -1, math.inf, math.nan, 10**400, object()])
def test_a_rubbish_estimate_refuses_its_item(rubbish: Any) -> None:
    """The item's call is refused, with the budget's name; nothing is reserved."""
    budget = Budget(cost=10, estimate=lambda value: value, name="tokens")
    with pytest.raises(BudgetRefused, match="budget 'tokens': estimate= raised"):
        budget.reserve(rubbish)
    assert budget.statistics().calls == 0
    assert BudgetRefused.disposition is Disposition.PERMANENT


def test_an_estimate_above_the_whole_budget_is_refused_with_the_figures() -> None:
    """It could never fit, and the message says what would help."""
    budget = Budget(cost=10, estimate=len)
    with pytest.raises(BudgetRefused, match=r"an estimate of 12 can never fit into cost=10; raise cost="):
        budget.reserve("a long value")


def test_an_estimate_may_speak_for_itself() -> None:
    """Skip and its kin, raised by an estimate, are handed on."""

    def estimate(value: Any) -> float:
        raise Skip("too dear")

    with pytest.raises(Skip):
        Budget(cost=1, estimate=estimate).reserve(None)


@pytest.mark.parametrize("rubbish", [None, "much", -1, math.inf, math.nan, 10**400])
def test_where_actual_fails_the_estimate_stands_and_is_counted(rubbish: Any) -> None:
    """A good result stays good, whatever `actual` makes of it."""
    budget = Budget(cost=10, estimate=4, actual=lambda value: value)
    budget.settle(reserved(budget), rubbish)
    statistics = budget.statistics()
    assert (statistics.spent, statistics.unsettled) == (4.0, 1)
    assert "actual= raised" in statistics.trouble


def test_a_function_that_gives_a_coroutine_is_rubbish() -> None:
    """It is closed and refused, without a warning of Python's."""
    budget = Budget(cost=10, estimate=lambda value: later(value), actual=lambda value: later(value))
    with pytest.raises(BudgetRefused, match="awaitable"):
        budget.reserve(None)
    other = Budget(cost=10, estimate=1, actual=lambda value: later(value))
    other.settle(reserved(other), None)
    assert other.statistics().unsettled == 1


def test_a_reservation_ends_once() -> None:
    """Ended twice, it raises and changes nothing."""
    budget = Budget(calls=3)
    reservation = reserved(budget)
    budget.give_back(reservation)
    before = budget.statistics()
    for end in (budget.give_back, budget.keep, lambda each: budget.settle(each, None)):
        with pytest.raises(EngineError, match="ended twice"):
            end(reservation)
    assert budget.statistics() == before


def test_a_budget_shows_what_it_was_given() -> None:
    """The repr is what explain() prints."""
    assert repr(Budget(calls=10)) == "Budget(calls=10)"
    assert repr(Budget(cost=5, estimate=len, name="x")) == "Budget 'x' (cost=5, estimate=len)"
