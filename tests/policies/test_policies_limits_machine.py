"""Limits under any order of steps: permits conserved, never above a limit, all or none, rates kept exactly."""

from __future__ import annotations

import copy
import math
from collections import Counter
from fractions import Fraction
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from headrace.policies import limits
from headrace.policies.limits import Claim, Limit, admit, blocked, cancel, claim, drop, hold, release

HOSTS = ["a", "b", "c", "d", "e"]
RATE, BURST = 4, 2


def host(value: str) -> str:
    return value[0]


def snapshot(claims: list[Claim]) -> list[Any]:
    return [
        (
            each.state.inflight,
            each.state.held_until,
            copy.copy(each.state.gcra and each.state.gcra._tat),
            each.taken,
        )
        for each in claims
    ]


class Admission(RuleBasedStateMachine):
    """Calls that are claimed, admitted, released, cancelled and dropped in any order, against a model of sets."""

    waiting = Bundle("waiting")
    admitted = Bundle("admitted")

    def __init__(self) -> None:
        super().__init__()
        self.limits = {
            "all": Limit(concurrency=3, name="all"),
            "host": Limit(concurrency=2, by=host, name="host"),
            "rate": Limit(rate=RATE, burst=BURST, by=host, name="rate"),
            "both": Limit(concurrency=2, rate=RATE, burst=BURST, name="both"),
        }
        self.now = 1000.0
        self.held: Counter[tuple[str, Any]] = Counter()  # the permits that are out, as the model counts them
        self.claimed: Counter[tuple[str, Any]] = Counter()
        self.starts: dict[tuple[str, Any], list[float]] = {}
        self.holds: dict[tuple[str, Any], float] = {}

    @staticmethod
    def key(each: Claim) -> tuple[str, Any]:
        return each.state.limit.name, each.state.key

    @rule(
        target=waiting,
        names=st.lists(st.sampled_from(["all", "host", "rate", "both"])),
        value=st.sampled_from(HOSTS),
    )
    def ask(self, names: list[str], value: str) -> list[Claim]:
        claims = claim([self.limits[name] for name in names], value)
        assert [each.state.limit.name for each in claims] == list(dict.fromkeys(names))
        self.claimed.update(map(self.key, claims))
        return claims

    @rule(target=waiting, base=admitted, names=st.lists(st.sampled_from(["all", "host", "rate"])))
    def ask_for_more(self, base: list[Claim], names: list[str]) -> list[Claim]:
        value = next((each.state.key for each in base if each.state.key), "e")
        claims = claim([self.limits[name] for name in names], value, held=base)
        assert not {id(each.state) for each in claims} & {id(each.state) for each in base}
        self.claimed.update(map(self.key, claims))
        return claims

    @rule(claims=waiting)
    def try_without_consuming(self, claims: list[Claim]) -> None:
        """A refused admission changes nothing, however often it is tried."""
        if not any(each.taken for each in claims) and self.wait_of(claims) != 0.0:
            before = snapshot(claims)
            assert admit(claims, self.now) == self.wait_of(claims)
            assert snapshot(claims) == before

    def wait_of(self, claims: list[Claim]) -> float:
        """What the model says: inf for a missing permit, else the longest wait over holds and rates."""
        if any(self.held[self.key(each)] >= (each.state.limit.concurrency or math.inf) for each in claims):
            return math.inf
        waits = [0.0]
        for each in claims:
            waits.append(self.holds.get(self.key(each), 0.0) - self.now)
            if each.state.gcra is not None:
                waits.append(each.state.gcra.wait(self.now))
        return max(waits)

    @rule(target=admitted, claims=consumes(waiting))
    def try_to_start(self, claims: list[Claim]) -> list[Claim]:
        expected = self.wait_of(claims)
        wait = admit(claims, self.now)
        assert wait == expected
        if wait == math.inf:
            state = blocked(claims, self.now)
            assert state is not None
            assert state.free == 0
        elif wait > 0.0:
            assert blocked(claims, self.now) is None
        if wait > 0.0:
            assert not any(each.taken for each in claims)
            drop(claims)
            self.claimed.subtract(map(self.key, claims))
            return []
        for each in claims:
            self.held[self.key(each)] += 1
            if each.state.gcra is not None:
                self.starts.setdefault(self.key(each), []).append(self.now)
        return claims

    @rule(claims=consumes(admitted))
    def end(self, claims: list[Claim]) -> None:
        assert release(claims) == [each.state for each in claims]
        self.held.subtract(map(self.key, claims))
        self.claimed.subtract(map(self.key, claims))

    @rule(claims=consumes(admitted))
    def never_start(self, claims: list[Claim]) -> None:
        """Cancelling right after the admission leaves the rate as it was before."""
        if any(self.starts.get(self.key(each), [self.now])[-1] != self.now for each in claims):
            self.end(claims)
            return
        cancel(claims)
        for each in claims:
            self.held[self.key(each)] -= 1
            self.claimed[self.key(each)] -= 1
            if each.state.gcra is not None:
                self.starts[self.key(each)].pop()

    @rule(claims=consumes(waiting))
    def give_up(self, claims: list[Claim]) -> None:
        drop(claims)
        self.claimed.subtract(map(self.key, claims))

    @rule(claims=admitted, seconds=st.floats(0.0, 2.0))
    def hold_keys(self, claims: list[Claim], seconds: float) -> None:
        until = self.now + seconds
        keyed = [each for each in claims if each.state.limit.by is not None] or claims
        assert hold(claims, until) == [each.state for each in keyed]
        for each in keyed:
            self.holds[self.key(each)] = max(until, self.holds.get(self.key(each), 0.0))

    @rule(seconds=st.one_of(st.sampled_from([0.25, 0.5, 1.0]), st.floats(0.0, 2.0)))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def permits_are_conserved(self) -> None:
        """What is out, as the limits count it, is what the model says, key by key, and never above a limit."""
        for limit in self.limits.values():
            for state in limit._all():
                out = self.held[limit.name, state.key]
                assert state.inflight == out
                assert state.claims == self.claimed[limit.name, state.key]
                assert limit.concurrency is None or out <= limit.concurrency
            known = {state.key for state in limit._all()}
            lost = [
                key
                for (name, key), out in self.held.items()
                if name == limit.name and out and key not in known
            ]
            assert not lost, f"keys forgotten while in use: {lost}"

    @invariant()
    def rates_are_kept(self) -> None:
        """Any window of the starts of a key holds no more than rate and burst allow, counted exactly."""
        for starts in self.starts.values():
            worst, previous = Fraction(0), Fraction(0)
            for at in map(Fraction, starts):
                worst = max(Fraction(0), worst - RATE * (at - previous)) + 1
                previous = at
                assert worst <= BURST


class ForgetfulAdmission(Admission):
    """The same where idle keys are forgotten almost as soon as others come."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = limits.KEYS_KEPT
        limits.KEYS_KEPT = 2  # type: ignore[misc]

    def teardown(self) -> None:
        limits.KEYS_KEPT = self._kept  # type: ignore[misc]


TestAdmission = Admission.TestCase
TestAdmission.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestForgetfulAdmission = ForgetfulAdmission.TestCase
TestForgetfulAdmission.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
