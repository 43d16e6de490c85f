"""What further requests take: charged exactly, all or nothing, and permits conserved under any order of steps."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.policies.further import Further, further, is_moved, settle, step_back, trade, understands_urls
from headrace.policies.limits import Claim, Limit, LimitRefused, admit, claim, drop, release

URLS = ["http://a/", "http://b/"]


@understands_urls
def host(value: Any) -> str:
    return value["url"][7] if isinstance(value, dict) else value[7]


def started(limits: list[Limit], value: Any, now: float = 100.0) -> list[Claim]:
    claims = claim(limits, value)
    assert admit(claims, now) == 0.0
    return claims


def again(
    held: list[Claim], value: Any, *limits: Limit, first: bool = False, of_urls: bool = True
) -> Further:
    return further(held, value, limits, is_first=first, of_urls=of_urls)


def test_what_is_held_is_charged_and_not_taken_twice() -> None:
    """The same key: no second permit, but the rate, and a hold is waited for."""
    limit = Limit(by=host, concurrency=1, rate=10)
    held = started([limit], URLS[0])
    plan = again(held, URLS[0])
    assert trade(plan, 100.0) == pytest.approx(0.1)
    assert (plan.kept, limit.statistics().running) == (held, 1)
    assert trade(plan, 100.2) == 0.0
    assert (plan.kept, limit.statistics().running) == (held, 1)
    assert again(held, URLS[0]).stays == held
    assert trade(again(held, URLS[0]), 100.2) == pytest.approx(0.1)
    held[0].state.held_until = 150.0
    assert trade(again(held, URLS[0]), 110.0) == 40.0
    release(held)


def test_a_first_request_is_charged_where_it_goes() -> None:
    """At the key that is held it costs nothing more; at another one the start that was charged here is given back."""
    limit = Limit(by=host, concurrency=1, rate=10)
    held = started([limit], URLS[0])
    assert trade(again(held, URLS[0], first=True), 100.0) == 0.0
    moved = again(held, URLS[1], first=True)
    assert trade(moved, 100.0) == 0.0
    assert [each.state.key for each in moved.kept] == ["b"]
    assert [each.key for each in limit.busiest(9) if each.running] == ["b"]
    assert admit(claim([limit], URLS[0]), 100.0) == 0.0
    assert admit(claim([limit], URLS[1]), 100.0) == math.inf


def test_nothing_changes_where_something_is_missing() -> None:
    """All or nothing: a permit that is taken elsewhere leaves rates, permits and claims as they were."""
    limit, own = Limit(by=host, concurrency=1, rate=10), Limit(concurrency=1)
    held, other = started([limit], URLS[0]), started([own], None)
    plan = again(held, URLS[1], own)
    assert trade(plan, 200.0) == math.inf
    assert [each.taken for each in (*held, *plan.comes)] == [True, False, False]
    assert (limit.statistics().running, own.statistics().running) == (1, 1)
    step_back(plan)
    assert limit.statistics().running == 0
    assert admit(plan.comes, 200.0) == math.inf
    release(other)
    assert admit(plan.comes, 200.0) == 0.0
    assert [each.state.key for each in plan.kept] == ["b"]
    assert [each.state.limit for each in plan.own] == [own]


def test_a_limit_that_is_held_is_not_the_requests_own() -> None:
    """One object is one limit: what the call holds of it counts, whatever key that is."""
    limit, rows = Limit(by=host, concurrency=1), Limit(by=len, concurrency=1)
    held = started([limit, rows], {"url": URLS[0]})
    plan = again(held, URLS[0], limit, rows, of_urls=False)
    assert (plan.own, plan.comes) == ([], [])
    with pytest.raises(LimitRefused):
        again(held, URLS[1], Limit(by=lambda value: value["no"], concurrency=1), of_urls=False)
    assert [state.claims for state in limit._states.values()] == [1, 0]


def test_a_cost_that_is_corrected_is_corrected_once() -> None:
    """What is taken again after stepping back counts as at first, so that `actual` gives back no more than was taken."""
    limit = Limit(concurrency=1, rate=10, burst=10, cost=5, actual=lambda result: result)
    held = started([limit], "x")
    plan = again(held, "x")
    assert plan.charges == [0.0]
    step_back(plan)
    assert admit(plan.comes, 100.0) == 0.0
    settle(plan)
    assert [each.cost for each in plan.kept] == [5.0]


def test_keys_that_cannot_be_had_stay() -> None:
    """A key function that raises, or is not one of URLs, leaves the call where it is."""
    tenants, hosts = Limit(by=lambda value: value["tenant"], concurrency=1), Limit(by=host, concurrency=1)
    held = started([tenants, hosts], {"tenant": "t", "url": URLS[0]})
    assert not is_moved(held, URLS[0], False)
    assert is_moved(held, URLS[1], False)
    assert not is_moved(held, "short", True)
    assert [each.state.key for each in again(held, URLS[1], of_urls=False).leaves] == ["a"]


class Calls(RuleBasedStateMachine):
    """Calls that start, go on to other keys with limits of their own, step back, wait, end and are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.keyed = Limit(by=host, concurrency=2, rate=50, burst=3)
        self.whole = Limit(concurrency=3)
        self.own = Limit(concurrency=1)
        self.now = 1000.0
        self.calls: list[list[Claim]] = []  # what each call holds
        self.owned: list[list[Claim]] = []  # what its request holds besides
        self.waiting: list[Further] = []

    @rule(seconds=st.floats(0.0, 0.1))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(url=st.sampled_from(URLS))
    def start(self, url: str) -> None:
        claims = claim([self.keyed, self.whole], url)
        if admit(claims, self.now):
            drop(claims)
        else:
            self.calls.append(claims)
            self.owned.append([])

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), url=st.sampled_from(URLS), own=st.booleans(), first=st.booleans())
    def go_on(self, data: st.DataObject, url: str, own: bool, first: bool) -> None:
        at = data.draw(st.integers(0, len(self.calls) - 1))
        release(self.owned[at])
        self.owned[at] = []
        plan = further(self.calls[at], url, [self.own] if own else [], is_first=first, of_urls=True)
        before = Counter(each.state for each in self.calls[at])
        if trade(plan, self.now) == 0.0:
            self.calls[at], self.owned[at] = plan.kept, plan.own
            assert all(each.taken for each in (*plan.kept, *plan.own))
            assert {each.state.key for each in plan.kept} == {host(url), None}
        elif data.draw(st.booleans()):
            drop(plan.comes)
            assert Counter(each.state for each in self.calls[at]) == before
        else:
            step_back(plan)
            self.calls.pop(at)
            self.owned.pop(at)
            self.waiting.append(plan)

    @precondition(lambda self: self.waiting)
    @rule(cancelled=st.booleans())
    def come_back(self, cancelled: bool) -> None:
        plan = self.waiting.pop(0)
        if cancelled:
            drop(plan.comes)
        elif admit(plan.comes, self.now):
            self.waiting.append(plan)
        else:
            settle(plan)
            self.calls.append(plan.kept)
            self.owned.append(plan.own)

    @precondition(lambda self: self.calls)
    @rule()
    def end(self) -> None:
        release([*self.calls.pop(), *self.owned.pop()])

    @invariant()
    def permits_are_conserved(self) -> None:
        out: Counter[Any] = Counter()
        for claims in (*self.calls, *self.owned):
            out.update(each.state for each in claims)
        claimed = out + Counter(each.state for plan in self.waiting for each in plan.comes)
        for limit in (self.keyed, self.whole, self.own):
            for state in limit._all():
                assert state.inflight == out[state] <= state.capacity
                assert state.claims == claimed[state]


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
