"""Stages on different lanes, one after the other: every item is accounted for, order is kept, nothing gets stuck."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.testing import run_real

LANES = ("loop", "thread", "process", "auto")


def add(step: int, bad: frozenset[int], pair: tuple[int, int]) -> tuple[int, int]:
    """Add `step`; fail where the item is one of `bad`."""
    item, value = pair
    if item in bad:
        raise ValueError(f"{item} is bad")
    return item, value + step


async def add_and_wait(step: int, bad: frozenset[int], pair: tuple[int, int]) -> tuple[int, int]:
    """Do the same on the loop, waiting now and then."""
    if pair[0] % 3 == 0:
        await asyncio.sleep(0)
    return add(step, bad, pair)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [pair for pair in itertools.product(LANES, LANES) if pair[0] != pair[1]]
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 300),
    ordered=st.tuples(st.booleans(), st.booleans()),
    concurrency=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bad=st.tuples(
        st.frozensets(st.integers(0, 300), max_size=4), st.frozensets(st.integers(0, 300), max_size=4)
    ),
    window=st.sampled_from([4, 64, None]),
)
def test_every_pair_of_lanes_accounts_for_every_item(
    first: str,
    second: str,
    count: int,
    ordered: tuple[bool, bool],
    concurrency: tuple[int, int],
    bad: tuple[frozenset[int], frozenset[int]],
    window: int | None,
) -> None:
    """Whatever fails where, in whichever order: done and failed are all there is, with their values and their stages."""

    async def all_of() -> tuple[list[hr.Outcome[Any]], hr.Report]:
        flow = hr.Flow([(n, 0) for n in range(count)])
        for step, lane, wrong, keeps, many in zip(
            (1, 10), (first, second), bad, ordered, concurrency, strict=True
        ):
            fn = functools.partial(add_and_wait if lane == "loop" else add, step, wrong)
            flow = flow.map(fn, lane=lane, ordered=keeps, concurrency=many, name=f"add {step}")
        async with flow.stream(window=window) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert outcomes.report is not None
        return found, outcomes.report

    found, report = run_real(all_of, kind="asyncio")
    assert report.balanced
    assert sorted(outcome.position for outcome in found) == list(range(count))
    for outcome in found:
        n = outcome.position
        if isinstance(outcome, hr.Failed):
            assert outcome.stage == ("add 1" if n in bad[0] else "add 10")
            assert n in bad[0] | bad[1]
        else:
            assert isinstance(outcome, hr.Done)
            assert outcome.value == (n, 11)
    if ordered[1] and ordered[0]:
        passed = [outcome.position for outcome in found if isinstance(outcome, hr.Done)]
        assert passed == sorted(passed)


async def ask(number: int) -> int:
    if number % 100 == 0:
        await asyncio.sleep(0.001)
    return number


def look_up(number: int) -> int:
    return number + 1


def compute(number: int) -> int:
    return number * 2


async def tell(number: int) -> int:
    return number + 3


@pytest.mark.slow
def test_fifty_thousand_items_over_four_stages_on_three_lanes() -> None:
    """async, thread, process, async: all 50 000 are done, in order, with the value that the stages make."""

    async def all_of() -> list[int]:
        flow = (
            hr.Flow(range(50_000)).map(ask).map(look_up).map(compute, lane="process").map(tell, ordered=True)
        )
        async with flow.stream() as outcomes:
            return [outcome.value async for outcome in outcomes if isinstance(outcome, hr.Done)]

    values = run_real(all_of, kind="uvloop")
    assert sorted(values) == [(n + 1) * 2 + 3 for n in range(50_000)]
