"""When the fuse of a run blows: where its first items all failed alike and for good, and only then."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import CallError, GiveUp, TimedOut
from headrace.policies.classify import transient
from headrace.policies.fuse import Fuse


class Answer(CallError):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Foreign(Exception):
    def __init__(self, status: int) -> None:
        self.response = type("Response", (), {"status_code": status})()


def blown_at(fuse: Fuse, failures: list[tuple[str, BaseException, bool, int]]) -> list[int]:
    """Give the numbers, from 1, of the failures at which it blew."""
    return [
        number
        for number, (stage, error, doubt, others) in enumerate(failures, 1)
        if fuse.blows(stage, error, in_doubt=doubt, others=others)
    ]


def test_it_blows_once_at_the_nth_like_failure() -> None:
    """Neither before nor again."""
    assert blown_at(Fuse(5), [("fetch", Answer(401), False, 0)] * 20) == [5]


@pytest.mark.parametrize(
    "other",
    [
        ("parse", Answer(401), False, 0),
        ("fetch", Answer(404), False, 0),
        ("fetch", ValueError(), False, 0),
        ("fetch", Answer(401), True, 0),
        ("fetch", Answer(401), False, 1),
        ("fetch", TimedOut(), False, 0),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
def test_one_different_outcome_disarms_it(other: Any, at: int) -> None:
    """Another stage, status, error or ending: then it is not the run that is at fault."""
    failures = [("fetch", Answer(401), False, 0)] * 20
    failures.insert(at, other)
    fuse = Fuse(5)
    assert blown_at(fuse, failures) == []
    assert fuse.left == float("inf")


@pytest.mark.parametrize(
    "error", [TimedOut(), ConnectionResetError(), Answer(401), Foreign(503), Foreign(429)]
)
def test_what_is_of_the_moment_never_blows_it(error: Exception) -> None:
    """Only what classify calls permanent counts."""
    blown = blown_at(Fuse(3), [("fetch", error, False, 0)] * 10)
    assert blown == ([] if transient(error) else [3])


def test_statuses_of_foreign_errors_tell_them_apart() -> None:
    """Errors of one class with different answers are different."""
    assert blown_at(Fuse(2), [("f", Foreign(401), False, 0), ("f", Foreign(404), False, 0)]) == []
    assert blown_at(Fuse(2), [("f", Foreign(401), False, 0)] * 2) == [2]


def test_what_is_disarmed_or_off_never_blows() -> None:
    """Earlier runs of the job that went well, or fuse=None."""
    failures = [("f", GiveUp(), False, 0)] * 100
    assert blown_at(Fuse(None), failures) == []
    assert blown_at(Fuse(5, disarmed=True), failures) == []


OUTCOMES = st.tuples(
    st.sampled_from(["a", "b"]),
    st.sampled_from([Answer(401), Answer(404), ValueError("x"), TimedOut("t"), GiveUp("g")]),
    st.booleans(),
    st.booleans(),
)


@given(st.integers(1, 6), st.lists(OUTCOMES, max_size=30), OUTCOMES, st.integers(0, 8))
def test_it_blows_exactly_where_the_first_n_are_alike(
    items: int, more: list[Any], first: Any, repeated: int
) -> None:
    """Against the definition, for any sequence of failures."""
    raw = [first] * repeated + more
    others, failures = 0, []
    for stage, error, doubt, another in raw:
        others += another
        failures.append((stage, error, doubt, others))
    head = failures[:items]
    alike = len(head) == items and all(
        (stage, type(error), getattr(error, "status", None))
        == (head[0][0], type(head[0][1]), getattr(head[0][1], "status", None))
        and not doubt
        and not seen
        and not transient(error)
        for stage, error, doubt, seen in head
    )
    assert blown_at(Fuse(items), failures) == ([items] if alike else [])
