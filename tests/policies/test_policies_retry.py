"""Whether a failed call is repeated, and when."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from foreign_errors import httpx_status
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import CallError, Disposition, GiveUp, InDoubt, PlanError, RetryAfter, Skip, TimedOut
from headrace.policies.retry import Decision, Retry, decide


class Highest(Random):
    """Draws the largest number below 1 that there is."""

    def random(self) -> float:
        return 1.0 - 2.0**-53


def decided(
    error: Exception,
    retry: Retry | None = Retry(),  # noqa: B008  frozen
    *,
    attempt: int = 1,
    effect: str = "idempotent",
    sent: bool = True,
    rng: Random | None = None,
    now: float = 1000.0,
    deadline: float | None = None,
    refused: int = 0,
) -> Decision:
    return decide(retry, error, attempt, effect, sent, rng or Random(1), now, deadline, refused)


BUSY = httpx_status(429, retry_after="7")

# error, effect, sent, kind
FATES: list[tuple[Exception, str, bool, str]] = [
    # nothing happened: every effect is repeated
    (ConnectionRefusedError(), "safe", True, "again"),
    (ConnectionRefusedError(), "idempotent", True, "again"),
    (ConnectionRefusedError(), "once", True, "again"),
    (BUSY, "once", True, "again"),
    (httpx_status(503, retry_after="7"), "once", True, "again"),
    (httpx_status(408), "once", True, "again"),
    (httpx_status(425), "once", True, "again"),
    # it may have happened: once calls are in doubt, others are repeated
    (ConnectionResetError(), "safe", True, "again"),
    (ConnectionResetError(), "idempotent", True, "again"),
    (ConnectionResetError(), "once", True, "in_doubt"),
    (TimedOut("t"), "idempotent", True, "again"),
    (TimedOut("t"), "once", True, "in_doubt"),
    (httpx_status(500), "idempotent", True, "again"),
    (httpx_status(500), "once", True, "in_doubt"),
    (httpx_status(502), "once", True, "in_doubt"),
    (httpx_status(503), "once", True, "in_doubt"),
    (httpx_status(504), "once", True, "in_doubt"),
    (InDoubt("d"), "once", True, "in_doubt"),
    # the caller knows that nothing went out
    (ConnectionResetError(), "once", False, "again"),
    (TimedOut("t"), "once", False, "again"),
    (RuntimeError(), "once", False, "fail"),
    # an answer is an answer
    (httpx_status(404), "safe", True, "fail"),
    (httpx_status(404), "once", True, "fail"),
    (httpx_status(409), "once", True, "fail"),
    (CallError("refused"), "once", True, "fail"),
    # nobody knows
    (RuntimeError(), "safe", True, "fail"),
    (RuntimeError(), "idempotent", True, "fail"),
    (RuntimeError(), "once", True, "in_doubt"),
    (TypeError(), "once", True, "in_doubt"),
    (ExceptionGroup("g", [ConnectionRefusedError(), ConnectionResetError()]), "once", True, "in_doubt"),
    # the function has the last word
    (GiveUp(), "safe", True, "fail"),
    (GiveUp(), "once", True, "fail"),
    (Skip(), "safe", True, "skip"),
    (Skip(), "once", True, "skip"),
    (RetryAfter(1), "safe", True, "again"),
    (RetryAfter(1), "once", True, "again"),
]


@pytest.mark.parametrize(("error", "effect", "sent", "kind"), FATES)
def test_fates(error: Exception, effect: str, sent: bool, kind: str) -> None:
    """What a failure means for an item, by the effect of its call and whether it went out."""
    assert decided(error, effect=effect, sent=sent).kind == kind


@pytest.mark.parametrize(("error", "effect", "sent", "kind"), FATES)
def test_without_a_policy_only_the_function_can_ask_for_more(
    error: Exception, effect: str, sent: bool, kind: str
) -> None:
    """No `retry=`, no repetition, unless RetryAfter was raised; doubt stays doubt."""
    again = isinstance(error, RetryAfter)
    expected = "fail" if kind == "again" and not again else kind
    assert decided(error, None, effect=effect, sent=sent).kind == expected


@pytest.mark.parametrize("effect", ["safe", "idempotent", "once"])
@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_attempts_counts_all_calls(attempts: int, effect: str) -> None:
    """With attempts=4 the fourth failure is final, and with 1 the first."""
    kinds = [
        decided(ConnectionRefusedError(), Retry(attempts), attempt=n, effect=effect).kind
        for n in range(1, attempts + 2)
    ]
    assert kinds == ["again"] * (attempts - 1) + ["fail"] * 2


REFUSALS = [httpx_status(429), BUSY, httpx_status(503, retry_after="7"), RetryAfter(1, hold=True)]
FAILURES = [
    httpx_status(503), httpx_status(529), httpx_status(502, retry_after="7"), OSError(), TimedOut("t"), RetryAfter(1),
]  # fmt: skip


@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize(("attempts", "most"), [(1, 0), (2, 4), (4, 12)])
def test_what_was_refused_for_load_is_counted_apart(error: Exception, attempts: int, most: int) -> None:
    """It may be refused four times for each repetition, whatever else failed; with one attempt nothing is repeated."""
    for failed in range(attempts):
        kinds = [
            decided(error, Retry(attempts), attempt=failed + n + 1, refused=n).kind for n in range(most + 2)
        ]
        assert kinds == ["again"] * most + ["fail"] * 2
    assert decided(error, Retry(attempts)).refused


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("refused", [0, 5, 12])
def test_what_failed_otherwise_uses_up_attempts(error: Exception, refused: int) -> None:
    """Four failures are final, however often it was refused for load besides."""
    decisions = [decided(error, attempt=refused + n, refused=refused) for n in range(1, 6)]
    assert [decision.kind for decision in decisions] == ["again"] * 3 + ["fail"] * 2
    assert not any(decision.refused for decision in decisions)


def test_waits_count_each_kind_by_itself() -> None:
    """The first failure after many refusals waits as a first one does, and the other way round."""
    assert decided(OSError(), attempt=9, refused=8, rng=Highest()).after == pytest.approx(0.2)
    assert decided(httpx_status(429), attempt=4, refused=0, rng=Highest()).after == pytest.approx(1.0)


def test_a_function_may_ask_four_times_without_a_policy() -> None:
    """RetryAfter on a stage without retry= ends too; with a policy, its number of attempts counts."""
    assert [decided(RetryAfter(1), None, attempt=n).kind for n in range(1, 6)] == ["again"] * 3 + ["fail"] * 2
    assert decided(RetryAfter(1), Retry(2), attempt=2).kind == "fail"
    assert decided(RetryAfter(1), Retry(9), attempt=8).kind == "again"


def test_on_may_be_a_class_a_tuple_or_a_function() -> None:
    """`on` replaces the default; what it leaves out fails."""
    assert decided(KeyError(), Retry(on=LookupError)).kind == "again"
    assert decided(ConnectionResetError(), Retry(on=LookupError)).kind == "fail"
    assert decided(OSError(), Retry(on=(KeyError, OSError))).kind == "again"
    assert decided(KeyError("x"), Retry(on=lambda error: "x" in error.args)).kind == "again"
    assert decided(KeyError("y"), Retry(on=lambda error: "x" in error.args)).kind == "fail"


def test_on_cannot_make_a_once_call_happen_twice() -> None:
    """Whatever `on` says, doubt is not repeated."""
    assert decided(KeyError(), Retry(on=Exception), effect="once").kind == "in_doubt"


def test_an_on_that_raises_fails_the_item_with_its_own_error() -> None:
    """The failure of the call is not lost to the failure of the judge; a note tells of that."""

    def broken(error: BaseException) -> bool:
        raise RuntimeError("broken judge")

    error = KeyError("the real one")
    assert decided(error, Retry(on=broken)).kind == "fail"
    assert "broken judge" in error.__notes__[0]


def test_waits_grow_by_class() -> None:
    """Transient failures wait from base, those of overload from overload_base, each up to its cap."""
    overload = CallError("busy")
    overload.disposition = Disposition.OVERLOAD
    policy = Retry(100)
    transient_waits = [decided(OSError(), policy, attempt=n, rng=Highest()).after for n in (1, 2, 3, 50)]
    overload_waits = [
        decided(overload, policy, attempt=n, refused=n - 1, rng=Highest()).after for n in (1, 2, 3, 50)
    ]
    assert transient_waits == pytest.approx([0.2, 0.4, 0.8, 30.0])
    assert overload_waits == pytest.approx([1.0, 2.0, 4.0, 300.0])


@given(seconds=st.integers(0, 3600), seed=st.integers(0, 50), attempt=st.integers(1, 3))
def test_a_wait_is_never_shorter_than_asked(seconds: int, seed: int, attempt: int) -> None:
    """Retry-After is a least wait, spread by up to a tenth; Retry-After: 0 leaves the backoff as it is."""
    error = httpx_status(503, retry_after=str(seconds))
    decision = decided(error, attempt=attempt, rng=Random(seed))
    assert decision.kind == "again"
    assert seconds <= decision.after <= max(seconds * 1.1, 2.0 ** (attempt - 1))
    asked = decided(RetryAfter(seconds), attempt=attempt, rng=Random(seed))
    assert seconds <= asked.after <= seconds * 1.1


def test_many_asked_to_wait_do_not_come_back_together() -> None:
    """The tenth on top differs from item to item, and from hold to hold."""
    rng = Random(1)
    decisions = [decided(BUSY, rng=rng) for _ in range(100)]
    assert len({decision.after for decision in decisions}) > 90
    assert len({decision.hold for decision in decisions}) > 90


def test_a_hold_concerns_the_key_whatever_becomes_of_the_item() -> None:
    """429 and 503 with Retry-After hold the key also on the last attempt and without a policy."""
    for options in ({}, {"attempt": 13, "refused": 12}, {"retry": None}, {"deadline": 1000.5}):
        decision = decided(BUSY, **options)
        assert decision.hold is not None
        assert 7.0 <= decision.hold <= 7.7
        assert options == {} or decision == Decision("fail", 0.0, decision.hold, True)
    assert decided(httpx_status(429)).hold is None
    assert decided(httpx_status(429, retry_after="0")).hold is None
    assert decided(httpx_status(502, retry_after="7")).hold is None


def test_retry_after_holds_only_if_asked() -> None:
    """RetryAfter(hold=True) holds the key, RetryAfter alone only its item."""
    assert decided(RetryAfter(5)).hold is None
    asked = decided(RetryAfter(5, hold=True))
    assert asked.hold == asked.after
    assert 5 <= asked.after <= 5.5
    assert decided(RetryAfter(0, hold=True)).hold is None


@pytest.mark.parametrize("error", [OSError(), RetryAfter(5), BUSY])
def test_what_could_not_start_in_time_fails_now(error: Exception) -> None:
    """A wait past `within=` is not waited for."""
    wait = decided(error, rng=Random(3)).after
    assert decided(error, rng=Random(3), deadline=1000.0 + wait * 1.01).kind == "again"
    assert decided(error, rng=Random(3), deadline=1000.0 + wait).kind == "fail"
    assert decided(error, rng=Random(3), deadline=1000.0).kind == "fail"
    assert decided(error, rng=Random(3), deadline=1.0).kind == "fail"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": -1}, "attempts=-1"),
        ({"attempts": 2.5}, "attempts=2.5"),
        ({"attempts": True}, "attempts=True"),
        ({"attempts": "4"}, "attempts='4'"),
        ({"base": -0.1}, "base=-0.1"),
        ({"base": math.nan}, "base=nan"),
        ({"cap": math.inf}, "cap=inf"),
        ({"overload_base": "1"}, "overload_base='1'"),
        ({"overload_cap": None}, "overload_cap=None"),
        ({"on": None}, "on=None"),
        ({"on": ()}, "on=()"),
        ({"on": "OSError"}, "on='OSError'"),
        ({"on": int}, "not a subclass of Exception"),
        ({"on": (OSError, KeyboardInterrupt)}, "not a subclass of Exception"),
        ({"on": BaseException}, "not a subclass of Exception"),
    ],
)
def test_a_bad_policy_is_refused_with_its_value(options: dict[str, Any], word: str) -> None:
    """Values that make no sense are refused when the policy is made, with the value."""
    with pytest.raises(PlanError) as caught:
        Retry(**options)
    assert word in str(caught.value)


def test_an_async_on_is_refused() -> None:
    """A coroutine is always true: every failure would be repeated."""

    async def judge(error: BaseException) -> bool:
        return False

    with pytest.raises(PlanError, match="this one is async"):
        Retry(on=judge)  # type: ignore[arg-type]


def test_all_problems_come_at_once() -> None:
    """One error names every bad value."""
    with pytest.raises(PlanError) as caught:
        Retry(0, base=-1, on=int)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in ("attempts=0", "base=-1", "on=<class 'int'>"))


@given(
    error=st.sampled_from([error for error, *_ in FATES]),
    attempt=st.integers(1, 10**6),
    share=st.floats(0.0, 1.0),
    effect=st.sampled_from(["safe", "idempotent", "once"]),
    sent=st.booleans(),
    seed=st.integers(0, 9),
    deadline=st.one_of(st.none(), st.floats(0.0, 1e4)),
    policy=st.sampled_from([None, Retry(), Retry(10**7), Retry(1)]),
)
def test_every_decision_is_sound(
    error: Exception,
    attempt: int,
    share: float,
    effect: str,
    sent: bool,
    seed: int,
    deadline: float | None,
    policy: Retry | None,
) -> None:
    """A repetition starts before the deadline, within the attempts, and never repeats a once call in doubt."""
    refused = int(share * (attempt - 1))
    decision = decide(policy, error, attempt, effect, sent, Random(seed), 1000.0, deadline, refused)
    assert decision.hold is None or decision.hold > 0.0
    if decision.kind != "again":
        assert decision.after == 0.0
        return
    attempts = policy.attempts if policy else 4
    assert attempt - refused < attempts or decision.refused
    assert refused < 4 * (attempts - 1) or not decision.refused
    assert 0.0 <= decision.after < math.inf
    assert deadline is None or 1000.0 + decision.after < deadline
    assert (
        effect != "once"
        or not sent
        or decide(None, error, 1, effect, True, Random(0), 0.0, None).kind != "in_doubt"
    )
