"""Sets of positions: the same as Python's sets, only smaller."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.sqlite.ranges import RangeSet, coalesce, decode_ranges, encode_ranges, ranges_of

spans = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], sum(pair)))
moves = st.lists(
    st.tuples(st.sampled_from(["add", "add_all", "remove"]), st.lists(spans, min_size=1, max_size=12))
)


def members(ranges: object) -> set[int]:
    return {position for lo, hi in ranges for position in range(lo, hi)}  # type: ignore[attr-defined]


@given(moves)
def test_it_is_a_set(steps: list[tuple[str, list[tuple[int, int]]]]) -> None:
    """Adding and removing give what a set of numbers gives, in ranges that ascend and do not touch."""
    ranges, model = RangeSet(), set[int]()
    for move, found in steps:
        if move == "add_all":
            ranges.add_all(coalesce(found))
            model |= members(found)
        for lo, hi in found if move != "add_all" else ():
            getattr(ranges, move)(lo, hi)
            model = model | set(range(lo, hi)) if move == "add" else model - set(range(lo, hi))
        joined = list(ranges)
        assert members(joined) == model
        assert all(lo < hi for lo, hi in joined)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(joined))
        assert ranges.count() == len(model)
        assert ranges.first_missing() == next(p for p in range(1000) if p not in model)
        assert all((p in ranges) == (p in model) for p in range(75))
        assert ranges.meets(10, 20) == min((p for p in model if 10 <= p < 20), default=None)


@given(st.lists(spans))
def test_the_text_comes_back(found: list[tuple[int, int]]) -> None:
    """What is written is read back."""
    ranges = coalesce(found)
    assert decode_ranges(encode_ranges(ranges)) == ranges
    assert members(ranges) == members(found)


@given(st.sets(st.integers(0, 200)))
def test_positions_become_ranges(positions: set[int]) -> None:
    """Ascending positions become the ranges that hold them."""
    assert members(ranges_of(sorted(positions))) == positions


@pytest.mark.parametrize("positions", [[1, 1], [1, 2, 2], [0, 2, 2, 3], [1, 1, 3]])
def test_a_position_twice_is_named(positions: list[int]) -> None:
    """A position that is there twice is an error that names it."""
    with pytest.raises(ValueError, match="is there twice"):
        ranges_of(positions)


def test_a_text_of_other_kind_is_refused() -> None:
    """What is not a list of pairs is refused."""
    for text in ("[1]", "{}", "x", '["a","b"]'):
        with pytest.raises(ValueError):
            decode_ranges(text)
