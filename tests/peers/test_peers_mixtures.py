"""Any mixture of lanes and stages is the same function of its input, and never hangs: properties, under hypothesis."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers_kit import collect, same, same_blocking

import headrace as hr
from headrace.testing import run

LANES = {"loop": same, "thread": same_blocking}
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ints = st.lists(st.integers(-50, 50), max_size=40)


@quick
@given(items=ints, concurrency=st.integers(1, 8), window=st.integers(1, 20))
def test_mapping_the_identity_gives_the_list(items: list[int], concurrency: int, window: int) -> None:
    """map(id) is the list, aligned, for any list, concurrency and window."""
    assert run(lambda: hr.map(same, items, concurrency=concurrency, window=window)).values == items


@pytest.mark.parametrize("lanes", list(itertools.product(LANES, repeat=2)), ids="-".join)
@quick
@given(items=ints, concurrencies=st.tuples(st.integers(1, 4), st.integers(1, 4)), window=st.integers(1, 10))
def test_any_two_lanes_in_a_row_keep_the_order(
    lanes: tuple[str, str], items: list[int], concurrencies: tuple[int, int], window: int
) -> None:
    """Loop and thread in any pair, ordered, with windows down to one open item: the list comes out."""
    flow = hr.Flow(items)
    for lane, concurrency in zip(lanes, concurrencies, strict=True):
        flow = flow.map(LANES[lane], ordered=True, concurrency=concurrency)
    found, report = collect(flow, window=window)
    assert [outcome.value for outcome in found] == items
    assert report.ok


@pytest.mark.parametrize("lanes", list(itertools.product(LANES, repeat=3)), ids="-".join)
def test_mixed_lanes_with_failures_and_delays_do_not_deadlock(lanes: tuple[str, str, str]) -> None:
    """Three stages, one worker each, a window of two, uneven delays, every fifth item failing somewhere."""

    def on_loop(stage: int) -> Any:
        async def work(number: int) -> int:
            await asyncio.sleep(number % 3 * 0.1)
            if number % 5 == stage:
                raise ValueError(number)
            return number

        return work

    def in_thread(stage: int) -> Any:
        def work(number: int) -> int:
            if number % 5 == stage:
                raise ValueError(number)
            return number

        return work

    flow = hr.Flow(range(40))
    for stage, lane in enumerate(lanes):
        flow = flow.map(on_loop(stage) if lane == "loop" else in_thread(stage), concurrency=1)
    _, report = collect(flow, window=2)
    assert (report.done, report.failed) == (16, 24)


# ---------------------------------------------------------------------------------------------------- against a model

Fate = st.sampled_from(["done", "done", "done", "fail", "skip", "slow", "late"])


@quick
@given(
    fates=st.lists(Fate, max_size=60),
    concurrency=st.integers(1, 10),
    window=st.integers(1, 30),
    ordered=st.booleans(),
)
def test_each_item_ends_as_its_call_did(
    fates: list[str], concurrency: int, window: int, ordered: bool
) -> None:
    """Done, failed, skipped, slow and too late, in any order: each outcome is its own item's, and none is missing."""

    async def call(fate: str) -> str:
        if fate == "fail":
            raise ValueError(fate)
        if fate == "skip":
            raise hr.Skip(fate)
        await asyncio.sleep({"slow": 0.5, "late": 60.0}.get(fate, 0.0))
        return fate

    flow = hr.Flow(fates).map(call, concurrency=concurrency, ordered=ordered, timeout=1)
    found, _ = collect(flow, window=window)
    expected = {"done": hr.Done, "slow": hr.Done, "fail": hr.Failed, "skip": hr.Skipped, "late": hr.Failed}
    assert len(found) == len(fates)
    ended = {outcome.position: outcome for outcome in found}
    assert [type(ended[at]) for at in range(len(fates))] == [expected[fate] for fate in fates]
    assert all(ended[at].item == fate for at, fate in enumerate(fates))
    if ordered:
        assert [outcome.position for outcome in found] == list(range(len(fates)))


Step = st.one_of(
    st.tuples(st.just("map"), st.sampled_from(["loop", "thread"]), st.booleans()),
    st.tuples(st.just("filter"), st.integers(2, 4)),
    st.tuples(st.just("flat_map"), st.integers(0, 3), st.booleans()),
)


@quick
@given(items=st.lists(st.integers(0, 100), max_size=25), steps=st.lists(Step, max_size=4))
def test_any_flow_is_what_the_comprehension_says(items: list[int], steps: list[tuple[Any, ...]]) -> None:
    """Maps, filters and fan-outs in any sequence give the values that plain Python gives, as a multiset."""
    flow, expected = hr.Flow(items), list(items)
    for step in steps:
        if step[0] == "map":
            flow = flow.map(LANES[step[1]], ordered=step[2], concurrency=3)
        elif step[0] == "filter":
            flow = flow.filter(lambda value, by=step[1]: value % by != 0)
            expected = [value for value in expected if value % step[1] != 0]
        else:
            flow = flow.flat_map(_copies(step[1]), ordered=step[2], fanout=5, concurrency=3)
            expected = [value + child for value in expected for child in range(step[1])]
    found, report = collect(flow)
    assert sorted(outcome.value for outcome in found if isinstance(outcome, hr.Done)) == sorted(expected)
    assert report.failed == 0


def _copies(count: int) -> Any:
    async def copies(value: int) -> list[int]:
        return [value + child for child in range(count)]

    return copies


@quick
@given(count=st.integers(0, 60), size=st.integers(1, 15), window=st.integers(60, 80), fails=st.booleans())
def test_batches_are_the_items_in_groups(count: int, size: int, window: int, fails: bool) -> None:
    """Every item is in exactly one batch of at most `size`; a batch that fails, fails each of its members."""

    async def total(batch: list[int]) -> int:
        if fails and 7 in batch:
            raise ValueError("seven")
        return sum(batch)

    found, report = collect(hr.Flow(range(count)).batch(size).map(total, concurrency=2), window=window)
    if not fails or count <= 7:
        assert sum(outcome.value for outcome in found) == sum(range(count))
        assert report.done == count
    else:
        done = [item for outcome in found if outcome.ok for item in outcome.item]
        failed = [outcome.item for outcome in found if not outcome.ok]
        assert sorted(done + failed) == list(range(count))
        assert 7 in failed
        assert len(failed) <= size
