"""The circuit breaker: when it opens, what it lets through meanwhile, and how it closes."""

from __future__ import annotations

import math
import sys
from collections import deque
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.errors import PlanError
from headrace.policies.breaker import PROBES, Breaker, Circuit
from headrace.policies.limits import Limit, admit, blocked, claim, learn, release
from headrace.policies.signals import Signal


def fail(circuit: Circuit, times: int, now: float, signal: Signal = "lost") -> bool:
    return max([circuit.learn(signal, now, now) for _ in range(times)])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 0}, "share=0"),
        ({"share": 1.5}, "share=1.5"),
        ({"share": math.nan}, "share=nan"),
        ({"calls": 0}, "calls=0"),
        ({"calls": 2.5}, "calls=2.5"),
        ({"window": 0}, "window=0"),
        ({"window": math.inf}, "window=inf"),
        ({"pause": -1}, "pause=-1"),
        ({"longest": "long"}, "longest='long'"),
        ({"pause": 60, "longest": 30}, "longest=30 is less than pause=60"),
    ],
)
def test_a_bad_breaker_is_refused_with_its_value(options: dict[str, Any], text: str) -> None:
    """Each value that makes no sense is named."""
    with pytest.raises(PlanError, match=text):
        Breaker(**options)


@pytest.mark.parametrize(
    ("signal", "opens"),
    [
        ("lost", True),
        ("overload", True),
        ("fault", True),
        ("throttled", False),
        ("success", False),
        ("ignore", False),
    ],
)
def test_only_what_the_other_side_is_to_blame_for_opens_it(signal: Signal, opens: bool) -> None:
    """No connection, no answer, 5xx; neither 429 nor 404 nor a mistake of the program."""
    circuit = Circuit(Breaker(calls=20))
    assert not fail(circuit, 19, 1.0, signal)
    assert fail(circuit, 1, 1.0, signal) == opens
    assert circuit.is_closed != opens


def test_it_takes_the_share_of_the_calls_of_the_window() -> None:
    """Twenty failures among forty-one calls are too few, among forty enough; what is older than the window is forgotten."""
    for successes, failures, opens in ((21, 19, False), (20, 19, True)):
        circuit = Circuit(Breaker())
        fail(circuit, 1, 0.5)  # so that it is not the twenty in a row that open it
        for _ in range(successes):
            circuit.learn("success", 0.5, 0.5)
        assert fail(circuit, failures, 1.0) == opens
    circuit = Circuit(Breaker())
    fail(circuit, 19, 1.0)
    assert not fail(circuit, 19, 40.0)
    assert fail(circuit, 1, 40.0)


def test_where_the_latest_calls_all_failed_it_opens_however_many_went_well_before() -> None:
    """A busy host that goes is not called for half a window more: twenty in a row are enough, one success between is not."""
    circuit = Circuit(Breaker())
    for number in range(3000):
        circuit.learn("success", number / 100, number / 100)
    assert not fail(circuit, 19, 30.0)
    circuit.learn("success", 30.0, 30.0)
    assert not fail(circuit, 19, 30.5)
    assert fail(circuit, 1, 30.5)


def test_it_probes_one_two_four_and_closes() -> None:
    """Half-open lets so many at once through as have proved themselves, and then all."""
    circuit = Circuit(Breaker(calls=1, pause=5.0))
    fail(circuit, 1, 10.0)
    assert circuit.open_until == 15.0
    seen = []
    for number in range(sum(PROBES)):
        seen.append(circuit.admits)
        assert not circuit.is_closed
        circuit.learn("success", 15.0 + number, 15.5 + number)
    assert seen == [1, 2, 2, 4, 4, 4, 4]
    assert circuit.is_closed
    assert circuit.admits == sys.maxsize


def test_a_probe_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    """5, 10, 20, 40 … 300 seconds, with at most a tenth more by chance; after a lasting recovery 5 again."""
    circuit, now, pauses = Circuit(Breaker(calls=1)), 1.0, []
    rng = Random(1)
    for _ in range(9):
        circuit.learn("lost", now, now, rng)
        pauses.append(circuit.open_until - now)
        now = circuit.open_until
    for pause, least in zip(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300], strict=True):
        assert least <= pause <= 1.1 * least
    assert circuit.failing_since == 1.0
    for _ in range(sum(PROBES)):
        circuit.learn("success", now, now)
    assert circuit.is_closed
    assert circuit.failing_since == math.inf
    circuit.learn("lost", now + 100.0, now + 100.0)
    assert circuit.open_until == now + 105.0


def test_calls_that_began_before_it_opened_say_nothing_after_it() -> None:
    """Late failures do not open it again, late successes do not close it."""
    circuit = Circuit(Breaker(calls=2, pause=5.0))
    fail(circuit, 2, 10.0)
    for signal in ("lost", "success", "success", "success"):
        circuit.learn(signal, 9.0, 11.0)  # type: ignore[arg-type]
    assert (circuit.open_until, circuit.admits) == (15.0, 1)


def test_in_a_limit_open_means_wait() -> None:
    """No call is admitted before the pause is over, then one, and its end decides; nothing is ever refused."""
    limit = Limit(by=lambda value: value, breaker=Breaker(calls=2, pause=5.0))
    for _ in range(2):
        claims = claim([limit], "a")
        assert admit(claims, 10.0) == 0.0
        opened = learn(claims, "lost", 10.0)
        release(claims)
    assert [state.key for state in opened] == ["a"]
    first, second, other = claim([limit], "a"), claim([limit], "a"), claim([limit], "b")
    assert admit(first, 12.0) == 3.0
    assert admit(other, 12.0) == 0.0
    assert admit(first, 15.0) == 0.0
    assert admit(second, 15.0) == math.inf
    assert blocked(second, 15.0) is second[0].state
    learn(first, "success", 16.0)
    release(first)
    assert admit(second, 16.0) == 0.0


class Machine(RuleBasedStateMachine):
    """Any order of calls and ends, against the rules: never more probes than allowed, never a start while open."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = Limit(concurrency=8, breaker=Breaker(calls=4, window=10.0, pause=2.0, longest=16.0))
        self.state = claim([self.limit], None)[0].state
        self.state.claims = 0
        self.now = 100.0
        self.running: deque[Any] = deque()

    @rule()
    def start(self) -> None:
        claims = claim([self.limit], None)
        circuit = self.state.circuit
        assert circuit is not None
        wait = admit(claims, self.now)
        if wait == 0.0:
            assert self.now >= circuit.open_until
            self.running.append(claims)
            return
        assert claims[0].taken is False
        release_later = self.state.inflight >= self.state.capacity
        assert math.isinf(wait) == release_later
        claims[0].state.claims -= 1

    @precondition(lambda self: self.running)
    @rule(signal=st.sampled_from(["success", "lost", "fault", "throttled", "ignore"]), last=st.booleans())
    def end(self, signal: Signal, last: bool) -> None:
        claims = self.running.pop() if last else self.running.popleft()
        learn(claims, signal, self.now, Random(0))
        release(claims)

    @rule(seconds=st.floats(0.0, 20.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_numbers_agree(self) -> None:
        circuit = self.state.circuit
        assert circuit is not None
        assert self.state.inflight == len(self.running)
        if circuit.is_closed:
            assert self.state.capacity == 8
        else:
            assert self.state.capacity == min(8, circuit.admits)
            assert circuit.admits in PROBES
            assert circuit.open_until - self.now <= 16.0 * 1.1
            assert circuit.failing_since <= self.now


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
