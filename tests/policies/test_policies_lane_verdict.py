"""Which lane a function belongs in, and whether it may be moved there."""

from __future__ import annotations

import functools
import json
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policies.lane_verdict import CallCosts, advice_on_threads, judge
from headrace.policies.movable import why_not_movable


def costs(wall: float, cpu: float, **others: Any) -> CallCosts:
    return CallCosts(wall, cpu, **{"cores": 4, **others})


@pytest.mark.parametrize(
    ("given", "kind", "lane"),
    [
        (costs(0.2, 0.001, is_async=True, held=0.0005, held_in_all=0.001), "waits", "loop"),
        (
            costs(0.3, 0.2, is_async=True, held=0.2, held_in_all=0.2),
            "computes, holding the loop",
            "process",
        ),
        (costs(0.3, 0.001, is_async=True, held=0.2, held_in_all=0.2), "waits, holding the loop", "thread"),
        # short, but there is nothing else to it
        (
            costs(0.005, 0.005, is_async=True, held=0.005, held_in_all=0.005),
            "computes, holding the loop",
            "process",
        ),
        (costs(0.1, 0.001), "blocks", "thread"),
        (costs(2e-6, 2e-6), "small", "loop"),
        (
            costs(0.005, 0.005, speedup=1.0, transport=0.0001),
            "computes, holding the GIL",
            "process",
        ),
        (costs(0.005, 0.005, speedup=1.9, transport=0.0001), "computes, releasing the GIL", "thread"),
        # the way there and back costs more than the cores bring
        (costs(0.001, 0.001, speedup=1.0, transport=0.02), "computes, holding the GIL", "thread"),
        (costs(50e-6, 50e-6, speedup=1.0, transport=1e-6), "computes, holding the GIL", "thread"),
        (costs(0.005, 0.005, speedup=1.0), "computes, holding the GIL", "thread"),
        (costs(0.005, 0.005), "computes, holding the GIL", "thread"),
        (
            costs(0.005, 0.005, speedup=1.0, transport=0.0001, cores=1),
            "computes, holding the GIL",
            "thread",
        ),
        (costs(0.01, 0.005, speedup=1.8, transport=0.0001), "mixed", "thread"),
        (costs(0.01, 0.005, speedup=1.1, transport=0.0001), "mixed", "process"),
        (costs(0.005, 0.005, free_threaded=True), "computes, releasing the GIL", "thread"),
    ],
)
def test_the_costs_decide(given: CallCosts, kind: str, lane: str) -> None:
    """Each kind of function is told from the others, and put where it gains most."""
    verdict = judge(given)
    assert (verdict.kind, verdict.lane) == (kind, lane)
    assert verdict.reason


@given(
    wall=st.floats(1e-7, 10),
    share=st.floats(0, 1),
    speedup=st.none() | st.floats(0.1, 4),
    transport=st.none() | st.floats(0, 1),
    cores=st.integers(1, 64),
    is_async=st.booleans(),
)
def test_a_process_is_only_advised_where_it_gains(
    wall: float,
    share: float,
    speedup: float | None,
    transport: float | None,
    cores: int,
    is_async: bool,
) -> None:
    """Whatever was measured, the verdict is sound: a plain function moves on evidence and for a gain only."""
    held = wall * share if is_async else 0.0
    found = CallCosts(wall, wall * share, cores, is_async, held, held, speedup, transport)
    verdict = judge(found)
    assert verdict.concurrency >= 1
    assert math.isfinite(verdict.gain)
    if verdict.lane == "process" and not is_async:
        assert cores > 1
        assert speedup is not None
        assert transport is not None
        assert verdict.gain >= 1.25
    assert found.gil_share is None or 0 <= found.gil_share <= 1


@pytest.mark.parametrize(
    ("computed", "elapsed", "cores", "advised"),
    [
        (9.0, 10.0, 4, True),
        (6.0, 10.0, 4, True),
        (3.0, 10.0, 4, False),  # it waits for most of the time
        (18.0, 10.0, 4, False),  # more than one core: the lock is no obstacle
        (0.5, 0.6, 4, False),  # too little to speak of
        (9.0, 10.0, 1, False),
        (0.0, 0.0, 4, False),
    ],
)
def test_threads_that_keep_one_core_busy_are_told_of(
    computed: float, elapsed: float, cores: int, advised: bool
) -> None:
    """A report advises where threads computed one at a time, and is silent elsewhere."""
    assert (advice_on_threads(computed, elapsed, cores) is not None) == advised


CACHE: dict[str, int] = {}
LIMIT = 7
PATTERN = re.compile("a+")
counted = 0


def plain(text: str) -> int:
    return len(json.loads(text)) + LIMIT + len(PATTERN.findall(text))


def calls_plain(text: str) -> int:
    return plain(text) + sum(n for n in range(3))


def counts(value: int) -> int:
    global counted
    counted += 1
    return value


def caches(text: str) -> int:
    CACHE[text] = 1
    return 1


def calls_caches(text: str) -> int:
    return caches(text)


def counts_inside(value: int) -> int:
    def inner() -> None:
        global counted
        counted += 1

    inner()
    return value


def collects(value: int, into: list[int] = []) -> int:  # noqa: B006 - the mistake that is looked for
    into.append(value)
    return value


class Counter:
    def method(self, value: int) -> int:
        return value

    @classmethod
    def of_class(cls, value: int) -> int:
        return value

    @staticmethod
    def static(value: int) -> int:
        return value

    def __call__(self, value: int) -> int:
        return value


def closing_over(value: Any) -> Callable[[int], Any]:
    def inner(number: int) -> Any:
        return value, number

    return inner


@pytest.mark.parametrize(
    "fn",
    [
        plain,
        calls_plain,
        json.loads,
        math.sqrt,
        len,
        int,
        lambda n: n * LIMIT,
        closing_over(3),
        closing_over(("a", 2)),
        closing_over(plain),
        functools.partial(operator.add, 2),
        Counter.static,
        Counter.of_class,
        "text".join,
    ],
)
def test_what_keeps_no_state_may_move(fn: Any) -> None:
    """Functions of values, constants and modules run anywhere."""
    assert why_not_movable(fn) is None


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (Counter().method, "method of a Counter"),
        (Counter(), "a Counter"),
        (closing_over([1]), "closes over 'value', a list"),
        (closing_over(Counter()), "closes over 'value', a Counter"),
        (closing_over(counts), "stores the global 'counted'"),
        (counts, "stores the global 'counted'"),
        (counts_inside, "stores the global 'counted'"),
        (caches, "uses the global 'CACHE', a dict"),
        (calls_caches, "uses the global 'CACHE', a dict"),
        (collects, "a list as a default"),
        (functools.partial(plain, text=[]), "given a list"),
        ([].append, "method of a list"),
    ],
)
def test_what_may_keep_state_stays(fn: Any, what: str) -> None:
    """Bound methods, closures over what can change, and functions that store globals are named with the reason."""
    assert what in (why_not_movable(fn) or "")
