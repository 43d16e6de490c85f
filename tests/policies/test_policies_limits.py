"""Limits: what is refused, what each step promises, keys, costs and holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import Disposition, EngineError, PlanError, Skip
from headrace.policies import limits
from headrace.policies.adaptive import Adaptive, Aimd
from headrace.policies.breaker import Breaker
from headrace.policies.limits import (
    Limit,
    LimitRefused,
    admit,
    blocked,
    cancel,
    claim,
    drop,
    hold,
    refund,
    release,
)
from headrace.policies.signals import Signal


def host(value: Any) -> str:
    return str(value).partition("/")[0]


def running(limit: Limit) -> int:
    return limit.statistics().running


# ------------------------------------------------------------------------------------------------- what is refused


async def async_key(value: Any) -> str:
    return "key"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "give concurrency=, rate= or breaker="),
        ({"breaker": Breaker}, "give a Breaker(), with brackets"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": -1}, "concurrency=-1"),
        ({"concurrency": 2.5}, "concurrency=2.5"),
        ({"concurrency": True}, "concurrency=True"),
        ({"rate": "fast"}, "rate='fast'"),
        ({"rate": 0}, "rate=0"),
        ({"rate": "5/s", "burst": 0}, "burst=0"),
        ({"rate": "5/s", "burst": 0.5}, "burst=0.5"),
        ({"rate": "5/s", "burst": math.inf}, "burst=inf"),
        ({"rate": "5/s", "burst": math.nan}, "burst=nan"),
        ({"rate": "5/s", "burst": "5"}, "burst='5'"),
        ({"concurrency": 1, "burst": 5}, "burst= counts against a rate"),
        ({"concurrency": 1, "cost": 5}, "cost= counts against a rate"),
        ({"rate": "5/s", "cost": 1}, "cost= needs burst="),
        ({"rate": "5/s", "cost": len}, "cost= needs burst="),
        ({"rate": "5/s", "cost": 6, "burst": 5}, "cost=6 can never fit into burst=5"),
        ({"rate": "5/s", "cost": 0, "burst": 5}, "cost=0"),
        ({"rate": "5/s", "cost": math.nan, "burst": 5}, "cost=nan"),
        ({"rate": "5/s", "cost": "1", "burst": 5}, "cost='1'"),
        ({"rate": "5/s", "actual": len}, "actual= corrects a cost"),
        ({"concurrency": 1, "by": "host"}, "by='host'"),
        ({"concurrency": 1, "by": async_key}, "give a plain function"),
        ({"rate": "5/s", "burst": 5, "cost": async_key}, "give a plain function"),
        ({"rate": "5/s", "burst": 5, "cost": 1, "actual": async_key}, "give a plain function"),
    ],
)
def test_a_bad_limit_is_refused_with_its_value(options: dict[str, Any], word: str) -> None:
    """What cannot be meant is refused when the limit is made."""
    with pytest.raises(PlanError) as caught:
        Limit(**options)
    assert word in str(caught.value)


def test_all_problems_come_at_once() -> None:
    """One error names every bad value."""
    with pytest.raises(PlanError) as caught:
        Limit(concurrency=0, rate="fast", burst=0)
    assert all(word in str(caught.value) for word in ("concurrency=0", "rate='fast'", "burst=0"))


@pytest.mark.parametrize(
    ("limit", "name", "text"),
    [
        (Limit(concurrency=8), "limit", "Limit(concurrency=8)"),
        (Limit(concurrency=8, by=host), "host", "Limit(concurrency=8, by=host)"),
        (Limit(concurrency=8, by=lambda value: value), "limit", "Limit(concurrency=8, by=<lambda>)"),
        (Limit(rate="5/s", burst=3, name="api"), "api", "Limit 'api' (rate='5/s', burst=3)"),
        (Limit(rate="5/s", burst=9, cost=len), "limit", "Limit(rate='5/s', burst=9, cost=len)"),
    ],
)
def test_a_limit_says_what_it_is(limit: Limit, name: str, text: str) -> None:
    """Its name and its repr read like what was written."""
    assert (limit.name, repr(limit)) == (name, text)


# ------------------------------------------------------------------------------------------------- permits


def test_a_taken_permit_is_waited_for_at_its_key() -> None:
    """Admission says inf, and `blocked` where; the release names the key that came free."""
    limit = Limit(concurrency=1, by=host)
    first, second, other = (claim([limit], value) for value in ("a/1", "a/2", "b/1"))
    assert admit(first, 0.0) == 0.0
    assert admit(second, 0.0) == math.inf
    assert blocked(second, 0.0) is first[0].state
    assert admit(other, 0.0) == 0.0
    assert release(first) == [second[0].state]
    assert second[0].state.free == 1
    assert blocked(second, 0.0) is None
    assert admit(second, 0.0) == 0.0


def test_all_are_taken_or_none() -> None:
    """A call that lacks one permit, or one rate, takes nothing of the others."""
    a, b, c = Limit(concurrency=5), Limit(rate="1/s"), Limit(concurrency=1)
    assert admit(claim([a, b, c], 1), 0.0) == 0.0
    blocked_by_permit, blocked_by_rate = claim([a, b, c], 2), claim([a, b], 3)
    assert admit(blocked_by_permit, 10.0) == math.inf
    assert admit(blocked_by_rate, 0.25) == 0.75
    assert [running(limit) for limit in (a, b, c)] == [1, 1, 1]
    assert admit(claim([b], 4), 10.0) == 0.0  # the refused one had taken nothing of the rate


def test_the_wait_is_the_longest_of_all() -> None:
    """Two rates and a hold: the wait is enough for all three."""
    slow, fast, held = Limit(rate="1/s"), Limit(rate="10/s"), Limit(concurrency=9)
    everything = [fast, slow, held]
    assert admit(claim(everything, 1), 0.0) == 0.0
    assert admit(claim(everything, 2), 0.0) == 1.0
    hold(claim([held], 3), 2.5)
    assert admit(claim(everything, 4), 0.0) == 2.5


def test_a_limit_is_taken_once_a_call() -> None:
    """One object listed twice, or held already, is not taken again: a call cannot block itself."""
    limit, other = Limit(concurrency=1), Limit(concurrency=1, by=host)
    first = claim([limit, limit, other], "a/1")
    assert len(first) == 2
    assert admit(first, 0.0) == 0.0
    assert claim([limit, other], "a/2", held=first) == []
    more = claim([limit, other], "b/1", held=first)
    assert [each.state.key for each in more] == ["b"]
    assert admit(more, 0.0) == 0.0


def test_claims_are_given_back_once() -> None:
    """A release or cancel of what is not taken, and a drop of what is, are faults of ours and change nothing."""
    limit = Limit(concurrency=2)
    claims = claim([limit], 1)
    with pytest.raises(EngineError, match="is not taken"):
        release(claims)
    admit(claims, 0.0)
    with pytest.raises(EngineError, match="is taken"):
        drop(claims)
    assert running(limit) == 1
    release(claims)
    for again in (release, cancel):
        with pytest.raises(EngineError, match="is not taken"):
            again(claims)
    assert running(limit) == 0


def test_a_cancelled_attempt_gives_back_permit_and_rate() -> None:
    """What was admitted and never started counts for nothing."""
    limit = Limit(concurrency=1, rate="1/min", burst=1)
    claims = claim([limit], 1)
    assert admit(claims, 5.0) == 0.0
    assert cancel(claims) == [claims[0].state]
    assert admit(claim([limit], 2), 5.0) == 0.0


def test_no_limits_admit_at_once() -> None:
    """An empty list of claims is admitted and released like any."""
    assert claim([], 1) == []
    assert admit([], 0.0) == 0.0
    assert blocked([], 0.0) is None
    assert release([]) == []


# ------------------------------------------------------------------------------------------------- rates and costs


def test_a_rate_is_for_each_key() -> None:
    """Each key has the whole rate for itself."""
    limit = Limit(rate="2/s", by=host)
    assert admit(claim([limit], "a/1"), 0.0) == 0.0
    assert admit(claim([limit], "b/1"), 0.0) == 0.0
    assert admit(claim([limit], "a/2"), 0.0) == 0.5


def test_costs_count_against_rate_and_burst() -> None:
    """A start of cost 30 takes as much as thirty; the constant cost works like the function."""
    limit = Limit(rate="10/s", burst=60, cost=lambda value: value)
    assert admit(claim([limit], 60), 0.0) == 0.0
    assert admit(claim([limit], 30), 0.0) == 3.0
    assert admit(claim([limit], 0), 0.0) == 0.0
    constant = Limit(rate="10/s", burst=60, cost=30)
    assert [admit(claim([constant], None), 0.0) for _ in range(3)] == [0.0, 0.0, 3.0]


def test_a_refund_corrects_by_the_result() -> None:
    """`actual` of the result replaces the estimate, before or after the release."""
    limit = Limit(rate="10/s", burst=100, cost=100, actual=lambda result: result["used"])
    claims = claim([limit], None)
    assert admit(claims, 0.0) == 0.0
    release(claims)
    refund(claims, {"used": 20})
    assert admit(claim([limit], None), 0.0) == 2.0


@pytest.mark.parametrize(
    "result", [None, {}, {"used": "x"}, {"used": -1}, {"used": math.nan}, {"used": math.inf}]
)
def test_a_failing_actual_leaves_the_estimate_and_is_counted(result: Any) -> None:
    """The call's result is good: the trouble with the accounting shows in the statistics, not as a failure."""
    limit = Limit(rate="10/s", burst=100, cost=100, actual=lambda result: result["used"])
    claims = claim([limit], None)
    admit(claims, 0.0)
    refund(claims, result)
    statistics = limit.statistics()
    assert statistics.unsettled == 1
    assert "actual= raised" in statistics.trouble
    assert admit(claim([limit], None), 0.0) == 10.0


def raising(value: Any) -> Any:
    raise RuntimeError("broken")


async def coroutine(value: Any) -> str:
    return "key"


@pytest.mark.parametrize(
    ("limit", "value", "word"),
    [
        (
            Limit(concurrency=1, by=raising, name="mine"),
            1,
            "limit 'mine': by= raised RuntimeError('broken') for 1",
        ),
        (Limit(concurrency=1, by=lambda value: value["host"]), {}, "KeyError('host')"),
        (Limit(concurrency=1, by=lambda value: []), 1, "the key [] cannot be hashed"),
        (Limit(concurrency=1, by=lambda value: (1, [])), 1, "cannot be hashed"),
        (Limit(concurrency=1, by=lambda value: math.nan), 1, "not equal to itself"),
        (Limit(concurrency=1, by=lambda value: coroutine(value)), 1, "awaitable"),
        (Limit(rate=1, burst=9, cost=raising), 1, "cost= raised RuntimeError('broken') for 1"),
        (Limit(rate=1, burst=9, cost=lambda value: None), 1, "cost= raised"),
        (Limit(rate=1, burst=9, cost=lambda value: -1), 1, "-1 is no cost"),
        (Limit(rate=1, burst=9, cost=lambda value: math.nan), 1, "nan is no cost"),
        (Limit(rate=1, burst=9, cost=lambda value: math.inf), 1, "inf is no cost"),
        (Limit(rate=1, burst=9, cost=lambda value: 10**400), 1, "cost= raised OverflowError"),
        (Limit(rate=1, burst=9, cost=lambda value: 9.5), 1, "a cost of 9.5 can never fit into burst=9"),
    ],
)
def test_a_function_that_fails_refuses_its_item(limit: Limit, value: Any, word: str) -> None:
    """The item fails for good, the message names limit and figure, and nothing stays claimed."""
    other = Limit(concurrency=1)
    with pytest.raises(LimitRefused) as caught:
        claim([other, limit], value)
    assert word in str(caught.value)
    assert caught.value.disposition is Disposition.PERMANENT
    assert claim([other], 1)[0].state.claims == 1


def test_a_function_may_steer_its_item() -> None:
    """Skip, GiveUp and the errors of adapters pass through as they are."""

    def skipping(value: Any) -> str:
        raise Skip("not this one")

    with pytest.raises(Skip):
        claim([Limit(concurrency=1, by=skipping)], 1)
    with pytest.raises(Skip):
        claim([Limit(rate=1, burst=1, cost=skipping)], 1)  # type: ignore[arg-type]


def test_a_message_survives_a_value_without_repr() -> None:
    """A value whose repr raises is described all the same; a long one is cut."""

    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("mute")

    with pytest.raises(LimitRefused, match="Mute whose repr raised RuntimeError"):
        claim([Limit(concurrency=1, by=raising)], Mute())
    with pytest.raises(LimitRefused) as caught:
        claim([Limit(concurrency=1, by=raising)], "x" * 10**6)
    assert len(str(caught.value)) < 300


# ------------------------------------------------------------------------------------------------- holds


def test_a_hold_stops_its_key_and_no_other() -> None:
    """Retry-After of one host leaves the others and the global limit alone."""
    everything, by_host = Limit(concurrency=9), Limit(concurrency=9, by=host)
    claims = claim([everything, by_host], "a/1")
    admit(claims, 0.0)
    assert [state.key for state in hold(claims, 7.0)] == ["a"]
    assert admit(claim([everything, by_host], "a/2"), 3.0) == 4.0
    assert admit(claim([everything, by_host], "b/1"), 3.0) == 0.0
    assert admit(claim([everything, by_host], "a/2"), 7.0) == 0.0


def test_a_hold_without_keys_stops_all() -> None:
    """Where no limit has a key, all of them are held."""
    limit = Limit(concurrency=9)
    hold(claim([limit], 1), 7.0)
    assert admit(claim([limit], 1), 3.0) == 4.0


def test_a_hold_is_never_shortened() -> None:
    """Eight answers of 429 at once are one hold, as long as the longest of them asks."""
    limit = Limit(concurrency=9, by=host)
    claims = claim([limit], "a/1")
    for until in (5.0, 9.0, 2.0):
        hold(claims, until)
    hold(claims[0].state, 4.0)
    assert admit(claims, 1.0) == 8.0


def test_a_hold_outlives_its_call() -> None:
    """A hold that comes after the release, when the idle key was forgotten already, still counts."""
    limit = Limit(concurrency=9, by=host)
    claims = claim([limit], "a/1")
    admit(claims, 0.0)
    release(claims)
    for number in range(3000):
        release_at_once(limit, f"{number}/")
    assert "a" not in {each.key for each in limit.busiest(10_000)}
    hold(claims, 50.0)
    assert admit(claim([limit], "a/2"), 10.0) == 40.0


def test_hold_and_rate_wait_for_the_later_one() -> None:
    """A hold does not add to the wait for the rate."""
    limit = Limit(rate="1/s", by=host)
    claims = claim([limit], "a/1")
    admit(claims, 0.0)
    hold(claims, 0.5)
    assert admit(claim([limit], "a/2"), 0.0) == 1.0
    hold(claims, 3.0)
    assert admit(claim([limit], "a/2"), 0.0) == 3.0


# ------------------------------------------------------------------------------------------------- keys


def release_at_once(limit: Limit, value: Any, now: float = 0.0) -> None:
    claims = claim([limit], value)
    assert admit(claims, now) == 0.0
    release(claims)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limit(concurrency=1, by=host),
        lambda: Limit(concurrency=1, rate="1000/s", by=host),
    ],
)
def test_idle_keys_are_forgotten(make: Callable[[], Limit]) -> None:
    """A run over ever new keys keeps no more of them than a fixed number and those in use."""
    limit = make()
    most = 0
    busy = [claim([limit], f"busy{number}/") for number in range(100)]
    for claims in busy:
        admit(claims, 0.0)
    for number in range(20_000):
        release_at_once(limit, f"{number}/", now=number * 0.001)
        most = max(most, len(limit._states))
    assert most <= limits.KEYS_KEPT + 2 * 100
    assert running(limit) == 100
    for claims in busy:
        assert claim([limit], f"{claims[0].state.key}/")[0].state is claims[0].state


@pytest.mark.parametrize("kind", ["running", "claimed", "waiting", "held", "not recovered"])
def test_a_key_in_use_is_not_forgotten(kind: str) -> None:
    """Forgetting a key that matters would double its limit: running, claimed, waited for, held, or owing."""
    limit = Limit(concurrency=1, rate="1/h", by=host)
    claims = claim([limit], "a/1")
    state = claims[0].state
    if kind == "claimed":
        pass
    elif kind == "waiting":
        drop(claims)
        state.waiters.append("somebody")
    elif kind == "held":
        drop(claims)
        hold(claims, 1e9)
    else:
        admit(claims, 0.0)
        if kind == "not recovered":
            release(claims)
    for number in range(2000):
        release_at_once(limit, f"{number}/", now=1.0 if kind == "not recovered" else 1e5)
    fresh = claim([limit], "a/2")
    assert fresh[0].state is state


def test_of_very_many_keys_those_that_refuse_nothing_are_forgotten_soon() -> None:
    """Past 10 000 keys a level that was never lowered is kept for a second; one that was, and a failure, for longer."""
    limit = Limit(concurrency=Adaptive(1, 16), breaker=Breaker(), by=host)

    def call(key: str, signal: Signal, now: float) -> None:
        claims = claim([limit], f"{key}/")
        assert admit(claims, now) == 0.0
        limits.learn(claims, signal, now)
        release(claims)

    for number in range(2):
        call("lowered", "success", 100.0 + number)
    call("lowered", "overload", 102.0)
    call("often", "success", 102.0)
    call("often", "success", 102.1)
    for number in range(30_000):
        call(f"{number}", "success", 102.2 + number * 0.0002)
    kept = {each.key for each in limit.busiest(100_000)}
    assert "lowered" in kept
    assert "often" not in kept
    assert len(kept) < 16_000


@pytest.mark.parametrize("inflight", [1, 3])
@pytest.mark.parametrize("bounds", [(1, 1), (1, 16), (2, 4), (7, 9)])
def test_the_first_success_counts_although_what_learns_is_made_later(
    bounds: tuple[int, int], inflight: int
) -> None:
    """The level after it is the one that it will be when more ends; breaker and rate know of it too."""
    limit = Limit(concurrency=Adaptive(*bounds), breaker=Breaker(calls=2), by=host)
    state = claim([limit], "a/")[0].state
    state.inflight = inflight
    assert not state.learn("success", 1.0, 1.5)
    capacity = state.capacity
    expected = Aimd(Adaptive(*bounds))
    expected.learn("success", 1.0, 1.5, inflight)
    assert capacity == expected.admits
    assert state.adaptive is not None
    assert state.adaptive.admits == capacity
    assert state.learn("lost", 1.0, 2.0)  # half of two


def test_who_asks_for_a_wait_counts_calls_or_starts() -> None:
    """Refused beyond what was ever taken at once, only the level falls; refused as many as were taken, there is a rate."""
    limit = Limit(concurrency=Adaptive(1, 16), by=host)

    def call(at: float, running: int, signal: Signal) -> float | None:
        claims = [claim([limit], "a/") for _ in range(running)]
        for each in claims:
            assert admit(each, at) == 0.0
        if signal == "throttled":
            limits.hold(claims[-1], at + 1.0)
        for number, each in enumerate(reversed(claims)):
            limits.learn(each, "success" if number else signal, at + 0.1)
            release(each)
        return limit.busiest(1)[0].found_rate

    for number in range(8):
        call(float(number), min(number + 1, 4), "success")
    assert call(10.0, 5, "throttled") is None
    assert limit.busiest(1)[0].level == 4
    call(20.0, 4, "success")
    found = call(30.0, 3, "throttled")
    assert found is not None


def test_forgetting_takes_constant_work_for_each_key() -> None:
    """The number of looks at states grows with the number of keys, however many of them are in use."""
    looks = 0

    class Counting(limits.KeyState):
        __slots__ = ()

        def is_idle(self, now: float, crowded: bool = False) -> bool:
            nonlocal looks
            looks += 1
            return super().is_idle(now, crowded)

    original = limits.KeyState
    limits.KeyState = Counting  # type: ignore[misc]
    try:
        limit = Limit(concurrency=1, by=host)
        for number in range(5000):
            admit(claim([limit], f"{number}/"), 0.0)
    finally:
        limits.KeyState = original  # type: ignore[misc]
    assert looks <= 2 * 5000


def test_another_clock_does_not_freeze_a_limit() -> None:
    """A Limit used again under a loop whose clock shows less keeps its waits, and not the difference of the clocks."""
    limit = Limit(concurrency=9, rate="1/s", by=host)
    claims = claim([limit], "a/1")
    admit(claims, 5e5)
    hold(claims, 5e5 + 3.0)
    release(claims)
    wait = admit(claim([limit], "a/2"), 10.0)
    assert wait == pytest.approx(3.0, abs=1e-6)


def test_a_caller_a_moment_late_moves_no_clock() -> None:
    """A `now` read a little earlier than the last one does not give time back: the promise of the rate stands."""
    limit = Limit(rate="10/s")
    assert admit(claim([limit], 1), 100.0) == 0.0
    assert admit(claim([limit], 1), 99.5) == pytest.approx(0.6)
    assert admit(claim([limit], 1), 100.05) == pytest.approx(0.05)


def test_statistics_count_what_is() -> None:
    """Keys, running, waiting and held, and the busiest keys first."""
    limit = Limit(concurrency=2, rate="100/s", burst=9, by=host, name="hosts")
    taken = [claim([limit], value) for value in ("a/1", "a/2", "b/1", "c/1")]
    for claims in taken:
        assert admit(claims, 1.0) == 0.0
    taken[0][0].state.waiters.append("somebody")
    hold(taken[2], 5.0)
    release(taken[3])
    statistics = limit.statistics()
    assert statistics == limits.LimitStatistics(
        name="hosts", keys=3, running=3, waiting=1, held=1, concurrency=2, rate=100.0
    )
    busiest = limit.busiest(2)
    assert [(each.key, each.running, each.waiting) for each in busiest] == [("a", 2, 1), ("b", 1, 0)]
    assert busiest[1].held_until == 5.0
