"""Keyed dispatch under any order of steps: nothing is lost, forgotten or passed over, whatever else goes on."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import headrace as hr
from headrace.aio.gate import wake_waiters
from headrace.engine.dispatch import KeyedDispatch
from headrace.item import DECIDED, QUEUED, RUNNING, Delivery
from headrace.policies import limits as admission

Value = tuple[str, str]
VALUES = [(host, path) for host in "abcd" for path in "xyz"]


class Handle:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeLoop:
    """A clock that is moved by hand, and its timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: Callable[[], None]) -> Handle:
        self._count += 1
        handle = Handle(callback)
        heapq.heappush(self._timers, (at, self._count, handle))
        return handle

    def advance(self, until: float) -> None:
        """Go there, timer by timer."""
        while self._timers and self._timers[0][0] <= until:
            at, _, handle = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            if handle.callback is not None:
                handle.callback()
        self.now = until

    def next_at(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None


def limits_of(names: frozenset[str]) -> list[hr.Limit]:
    every = {
        "all": hr.Limit(concurrency=3, name="all"),
        "host": hr.Limit(by=lambda value: value[0], concurrency=2, name="host"),
        "path": hr.Limit(by=lambda value: value[1], concurrency=2, rate=8, burst=2, name="path"),
        "host rate": hr.Limit(by=lambda value: value[0], rate=4, burst=2, name="host rate"),
        "rate": hr.Limit(rate=10, burst=4, cost=lambda value: 1 + VALUES.index(value) % 4, name="rate"),
    }
    return [limit for name, limit in every.items() if name in names]


class Dispatching(RuleBasedStateMachine):
    """Two stages that share their limits, with deliveries that come, start, end, are held, settled and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeLoop()
        self.limits: list[hr.Limit] = []
        self.stages: list[KeyedDispatch] = []
        self.queued: list[set[Delivery]] = [set(), set()]
        self.running: list[Delivery] = []
        self.positions = 0

    @precondition(lambda self: not self.stages)
    @rule(names=st.frozensets(st.sampled_from(["all", "host", "path", "host rate", "rate"]), min_size=1))
    def begin(self, names: frozenset[str]) -> None:
        self.limits = limits_of(names)
        self.stages = [
            KeyedDispatch(self.loop, 0, lambda: None, self.limits, self.refuse)  # type: ignore[arg-type]
            for _ in range(2)
        ]

    @staticmethod
    def refuse(delivery: Delivery, error: Exception) -> None:
        raise AssertionError(f"{delivery.value} was refused: {error}")

    @precondition(lambda self: self.stages)
    @rule(stage=st.integers(0, 1), values=st.lists(st.sampled_from(VALUES), max_size=6))
    def accept(self, stage: int, values: list[Value]) -> None:
        for value in values:
            delivery = Delivery(self.positions, value)
            self.positions += 1
            self.queued[stage].add(delivery)
            self.stages[stage].accept(delivery)

    @precondition(lambda self: self.stages)
    @rule(stage=st.integers(0, 1), times=st.integers(1, 6))
    def take(self, stage: int, times: int) -> None:
        for _ in range(times):
            self.take_one(stage)

    def take_one(self, stage: int) -> Delivery | None:
        delivery = self.stages[stage].take(self.loop.now)
        if delivery is not None:
            assert self.stages[stage].is_open
            assert delivery.state == QUEUED
            self.queued[stage].remove(delivery)  # it was there, and is taken once
            delivery.state = RUNNING
            self.running.append(delivery)
            for claim in delivery.claims:
                assert claim.taken
                assert claim.state.held_until <= self.loop.now
        return delivery

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100), started=st.booleans())
    def end(self, which: int, started: bool) -> None:
        delivery = self.running.pop(which % len(self.running))
        claims, delivery.claims = delivery.claims, None
        wake_waiters(admission.release(claims) if started else admission.cancel(claims))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 100), seconds=st.floats(0.01, 20.0))
    def hold(self, which: int, seconds: float) -> None:
        admission.hold(self.running[which % len(self.running)].claims, self.loop.now + seconds)

    @precondition(lambda self: any(self.queued))
    @rule(stage=st.integers(0, 1), which=st.integers(0, 100))
    def settle_in_the_queue(self, stage: int, which: int) -> None:
        some = sorted(self.queued[stage], key=lambda delivery: delivery.position)
        if some:
            delivery = some[which % len(some)]
            self.queued[stage].remove(delivery)
            delivery.state = DECIDED

    @precondition(lambda self: self.stages)
    @rule(seconds=st.floats(0.0, 3.0))
    def advance(self, seconds: float) -> None:
        self.loop.advance(self.loop.now + seconds)

    @precondition(lambda self: self.stages)
    @rule(stage=st.integers(0, 1))
    def pause(self, stage: int) -> None:
        self.stages[stage].close()

    @precondition(lambda self: self.stages)
    @rule(stage=st.integers(0, 1))
    def resume(self, stage: int) -> None:
        self.stages[stage].open()

    @precondition(lambda self: self.stages)
    @rule(stage=st.integers(0, 1))
    def drain(self, stage: int) -> None:
        left = self.stages[stage].drain()
        assert set(left) == self.queued[stage]
        assert len(left) == len(self.queued[stage])
        assert len(self.stages[stage]) == 0
        self.queued[stage].clear()

    @precondition(lambda self: self.stages)
    @rule()
    def nothing_is_forgotten(self) -> None:
        """With all permits given back and time going on, everything that queues is taken."""
        for stage in self.stages:
            stage.open()
        while self.running:
            self.end(0, True)
        while any(self.queued):
            taken = [self.take_one(number) for number in range(2)]
            if any(taken):
                while self.running:
                    self.end(0, True)
                continue
            following = self.loop.next_at()
            assert following is not None, f"{sum(map(len, self.queued))} deliveries wait for nothing"
            self.loop.advance(following)

    @invariant()
    def permits_are_those_of_the_calls_that_run(self) -> None:
        out: Counter[Any] = Counter(claim.state for each in self.running for claim in each.claims)
        for limit in self.limits:
            for state in limit._all():
                assert state.inflight == out[state]
                assert state.inflight <= state.capacity
        for number, stage in enumerate(self.stages):
            assert len(stage) >= len(self.queued[number])

    def teardown(self) -> None:
        if not self.stages:
            return
        self.nothing_is_forgotten()
        for stage in self.stages:
            stage.drain()
        for limit in self.limits:
            assert all(
                (state.inflight, state.claims, len(state.waiters)) == (0, 0, 0) for state in limit._all()
            )


TestDispatching = Dispatching.TestCase
TestDispatching.settings = settings(max_examples=300, stateful_step_count=60)


@given(
    keys=st.integers(2, 8),
    bound=st.sampled_from(["nothing", "a rate", "a rate and costs", "permits", "both"]),
    ends=st.lists(st.integers(0, 100), min_size=1, max_size=30),
)
@settings(max_examples=200)
def test_keys_that_are_always_ready_take_turns(keys: int, bound: str, ends: list[int]) -> None:
    """Between two starts of a key each other key has had its turn, whatever lies over all of them."""
    loop = FakeLoop()
    every = {
        "nothing": [],
        "a rate": [hr.Limit(rate=10, burst=3)],
        "a rate and costs": [hr.Limit(rate=10, burst=8, cost=lambda key: 1 + key)],
        "permits": [hr.Limit(concurrency=2)],
        "both": [hr.Limit(rate=10, burst=3, concurrency=2)],
    }
    limits = [hr.Limit(by=lambda key: key, concurrency=1000), *every[bound]]
    stage = KeyedDispatch(loop, 0, lambda: None, limits, Dispatching.refuse)  # type: ignore[arg-type]
    for number in range(30 * keys):
        stage.accept(Delivery(number, number % keys))
    turns: list[int] = []
    running: list[Delivery] = []
    while len(turns) < 10 * keys:
        delivery = stage.take(loop.now)
        if delivery is not None:
            turns.append(delivery.value)
            running.append(delivery)
        elif running:
            ended = running.pop(ends[len(turns) % len(ends)] % len(running))
            wake_waiters(admission.release(ended.claims))
        else:
            following = loop.next_at()
            assert following is not None
            loop.advance(following)
    for first in range(len(turns) - keys):
        assert len(set(turns[first : first + keys])) == keys, turns[: first + keys]


@pytest.mark.parametrize("hosts", [10, 1000])
def test_a_start_costs_the_same_however_many_keys_wait_for_the_rate(
    hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate over all, and keys: each start asks for admission a few times, and not once for each key that waits."""
    asked = 0
    admit = admission.admit

    def counting(claims: Any, now: float) -> float:
        nonlocal asked
        asked += 1
        return admit(claims, now)

    monkeypatch.setattr(admission, "admit", counting)
    loop = FakeLoop()
    limits = [hr.Limit(by=lambda key: key, concurrency=4), hr.Limit(rate=100)]
    stage = KeyedDispatch(loop, 0, lambda: None, limits, Dispatching.refuse)  # type: ignore[arg-type]
    for number in range(2000):
        stage.accept(Delivery(number, number % hosts))
    started = 0
    while started < 2000:
        delivery = stage.take(loop.now)
        if delivery is None:
            following = loop.next_at()
            assert following is not None
            loop.advance(following)
            continue
        started += 1
        wake_waiters(admission.release(delivery.claims))
    assert asked <= 4 * started
