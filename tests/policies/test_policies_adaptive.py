"""Adaptive concurrency: how the level moves, what moves it, what it remembers, and what never happens."""

from __future__ import annotations

import heapq
import math
import random
from typing import Any

import pytest
from foreign_errors import STATUS_MAKERS, shape
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from headrace.errors import CallError, Disposition, GiveUp, PlanError, RetryAfter, Skip, TimedOut, WorkerDied
from headrace.policies import limits
from headrace.policies.adaptive import KEPT, WINDOW, Adaptive, Aimd
from headrace.policies.classify import load_signal
from headrace.policies.limits import Claim, Limit, admit, blocked, cancel, claim, drop, learn, release
from headrace.policies.signals import Signal

# ------------------------------------------------------------------------------------------------- the value


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ((0, 4), ["min=0", "whole number"]),
        ((-1, 4), ["min=-1"]),
        ((1, 0), ["max=0"]),
        ((1.0, 4), ["min=1.0"]),
        ((1, True), ["max=True"]),
        ((1, "16"), ["max='16'"]),
        ((None, 2.5), ["min=None", "max=2.5"]),
        ((8, 2), ["min=8 is more than max=2", "write Adaptive(2, 8)"]),
    ],
)
def test_bounds_that_make_no_sense_are_refused(given_: tuple[Any, Any], words: list[str]) -> None:
    """The message has every bad value and the right form."""
    with pytest.raises(PlanError) as caught:
        Adaptive(*given_)
    assert all(word in str(caught.value) for word in words)


def test_it_is_a_value() -> None:
    """Equal bounds are equal, and a limit shows them."""
    assert Adaptive(1, 16) == Adaptive() == Adaptive(min=1, max=16)
    assert repr(Limit(concurrency=Adaptive(2, 8))) == "Limit(concurrency=Adaptive(2, 8))"
    with pytest.raises(PlanError, match=r"give an object, such as Adaptive\(1, 16\)"):
        Limit(concurrency=Adaptive)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- how it moves


class Key:
    """An Aimd, and whole round trips of a tenth of a second with as many calls as it lets run."""

    def __init__(self, least: int = 1, most: int = 64) -> None:
        self.aimd = Aimd(Adaptive(least, most))
        self.now = 1000.0

    def round(
        self,
        signal: Signal = "success",
        calls: int | None = None,
        latency: float = 0.1,
        bad: int | None = None,
    ) -> int:
        began, self.now = self.now, self.now + latency
        calls = self.aimd.admits if calls is None else calls
        for number in range(calls):
            said = signal if bad is None or number < bad else "success"
            self.aimd.learn(said, began, self.now, calls - number)
        self.now += 0.001
        return self.aimd.admits

    def rounds(self, count: int, **options: Any) -> list[int]:
        return [self.round(**options) for _ in range(count)]


def test_it_doubles_until_the_first_overload_and_climbs_by_one_after_it() -> None:
    """×2 a round trip, ×0.7 at the overload, then +1 a round trip."""
    key = Key()
    assert key.rounds(5) == [2, 4, 8, 16, 32]
    assert key.round("overload", bad=1) == 22
    assert key.rounds(9)[-1] in (30, 31)  # 1/L a success: a little less than one a round trip


def test_it_stops_at_its_bounds() -> None:
    """Neither more than max nor fewer than min, whatever comes."""
    key = Key(3, 10)
    assert key.rounds(5) == [6, 10, 10, 10, 10]
    assert key.rounds(6, signal="overload")[-1] == 3


def test_there_is_at_most_one_decrease_a_round_trip() -> None:
    """Eight refusals of calls that were under way together are one; those of the next round trip are another."""
    key = Key()
    key.rounds(4)
    assert key.round("overload", bad=8) == 11
    assert key.round("overload", bad=8) == 7


def test_the_ceiling_is_how_many_ran_when_one_was_refused() -> None:
    """Where fewer than the level ran, and more than were ever taken, that is the lowest that is known to be refused."""
    aimd = Aimd(Adaptive(8, 64))
    aimd.learn("success", 1.0, 1.1, 4, at_once=4)
    aimd.learn("throttled", 2.0, 2.1, 8, at_once=5)
    assert (aimd.borne, aimd.ceiling) == (4, 9.0)  # the level below a ceiling is never less than `min`
    aimd = Aimd(Adaptive(1, 64))
    for number in range(8):
        aimd.learn("success", 1.0, 1.1, 8, at_once=1 + min(number, 3))
    aimd.learn("throttled", 2.0, 2.1, 8, at_once=5)
    assert (aimd.borne, aimd.ceiling, aimd.admits) == (4, 5.0, 4)


def at_the_ceiling(waits: bool) -> Aimd:
    """Make a level that tries its ceiling of 5, which was refused twice."""
    aimd, now = Aimd(Adaptive(1, 64)), 1.0
    for refusals in range(3):
        while aimd.admits < 5:
            aimd.learn("success", now, now + 0.1, 4, at_once=4)
            now += 0.2
        if refusals < 2:
            aimd.learn("throttled", now, now + 0.1, 5, at_once=5, waits=waits)
            now += 0.2
    assert aimd.ceiling == 5.0
    return aimd


def test_a_ceiling_that_no_calls_have_reached_is_not_borne() -> None:
    """Where a rate keeps fewer calls under way, successes say nothing of it; with as many at once they do."""
    aimd = at_the_ceiling(waits=False)
    for number in range(100):
        aimd.learn("success", 1000.0 + number, 1000.1 + number, 4, at_once=4)
    assert (aimd.ceiling, aimd.admits) == (5.0, 5)
    for number in range(10):
        aimd.learn("success", 2000.0 + number, 2000.1 + number, 5, at_once=5)
    assert aimd.ceiling == math.inf


def test_a_try_that_costs_a_wait_is_repeated_more_seldom() -> None:
    """Four times as many successes are wanted before the next one, and not twice as many."""
    assert [at_the_ceiling(waits)._patience for waits in (False, True)] == [32, 64]


def test_what_ran_beside_a_refused_call_does_not_count_as_borne() -> None:
    """One of twelve was taken since two of them were refused: that says nothing of twelve."""
    aimd = Aimd(Adaptive(1, 64))
    aimd.learn("throttled", 1.0, 1.2, 12, at_once=11)
    aimd.learn("success", 1.1, 1.3, 10, at_once=12)
    assert aimd.borne == 0
    aimd.learn("success", 1.25, 1.4, 10, at_once=10)
    assert aimd.borne == 10


def test_refusals_of_what_was_taken_before_are_no_limit_of_calls_at_once_the_second_time() -> None:
    """The first time the limit may have become another one; what was refused together counts once, and so does what lies far
    apart.
    """
    aimd = Aimd(Adaptive(1, 64))

    def taken(at: float) -> None:
        aimd.learn("success", at, at + 0.1, 8, at_once=8)

    def refused(began: float, now: float, at_once: int) -> bool:
        said = aimd.is_no_limit(at_once, began, now)
        aimd.learn("throttled", began, now, 8, at_once=at_once)
        return said

    taken(1.0)
    assert not refused(2.0, 2.1, 9)  # more than ever
    assert not refused(3.0, 3.1, 8)  # the first time
    assert not refused(4.0, 4.1, 8)  # nothing was taken since
    taken(5.0)
    assert refused(6.0, 6.1, 8)
    assert not refused(6.05, 6.2, 7)  # that was under way then
    taken(100.0)
    assert not refused(101.0, 101.1, 8)


def test_calls_from_before_the_decrease_do_not_undo_it() -> None:
    """What began before the level fell ends well without raising it."""
    key = Key()
    key.rounds(4)
    began = key.now
    key.aimd.learn("overload", began, began + 0.1, 16)
    for number in range(15):
        key.aimd.learn("success", began, began + 0.1 + number / 100, 15 - number)
    assert key.aimd.level == pytest.approx(0.7 * 16)


def test_a_level_that_is_not_used_does_not_grow() -> None:
    """With fewer than half of it in flight, successes say nothing of what more the other side would bear."""
    key = Key()
    key.rounds(4)
    assert key.rounds(20, calls=7)[-1] == 16
    assert key.round(calls=9) > 16


def test_what_says_nothing_of_load_teaches_nothing() -> None:
    """An ignored end changes neither level nor latencies."""
    key = Key()
    key.rounds(3)
    before = repr(key.aimd), key.aimd._recent, key.aimd._samples
    key.rounds(50, signal="ignore", latency=9.0)
    assert (repr(key.aimd), key.aimd._recent, key.aimd._samples) == before


def test_growth_halts_while_calls_take_twice_as_long_as_at_best() -> None:
    """It halts, lowers nothing, and goes on when calls are fast again."""
    key = Key(1, 1000)
    key.rounds(4)
    key.rounds(3, calls=4)  # not used enough to grow: only latencies are learned
    key.rounds(20, latency=0.3, calls=4)
    assert key.aimd.is_slow
    assert key.rounds(5, latency=0.3) == [16] * 5
    key.rounds(20, calls=4)
    assert key.round() > 16


def test_the_best_latency_is_learned_anew() -> None:
    """A server that has become three times slower for good is believed after some minutes, and not at once."""
    key = Key(1, 1000)
    key.rounds(4)
    key.rounds(10, calls=4)
    slow_since = key.now
    while not key.aimd.is_slow:
        key.round(latency=0.3, calls=4)
    level = key.aimd.admits
    while key.aimd.admits == level:
        key.round(latency=0.3)
        assert key.now < slow_since + 8 * WINDOW
    assert key.now > slow_since + WINDOW


def test_answers_of_all_sizes_do_not_halt_growth() -> None:
    """Latencies that differ by a factor of a hundred, always in the same way, are no sign of load."""
    rng = random.Random(5)
    aimd = Aimd(Adaptive(1, 100))
    aimd.learn("overload", 0.5, 1.0, 1)  # no slow start: the climb takes thousands of calls
    now, slow = 10.0, 0
    for _ in range(30_000):
        now += 0.01
        aimd.learn("success", now - 0.1 * 10 ** rng.uniform(-1, 1), now, 100)
        slow += aimd.is_slow
    assert aimd.admits == 100
    assert slow < 10_000


def test_times_of_another_clock_do_not_stop_it() -> None:
    """A limit that goes on in another loop, whose clock shows less, still learns."""
    key = Key()
    key.rounds(4)
    key.round("overload", bad=1)
    key.now = 5.0
    assert key.round("overload", bad=1) == 7
    assert key.rounds(3)[-1] in (9, 10)


# ------------------------------------------------------------------------------------------------- where it ends


def simulate(
    bears: int, calls: int, *, seed: int, most: int = 64, noise: float = 0.0
) -> tuple[float, float, list[int]]:
    """Call a server that bears so many calls at once; give the shares refused and used, and the levels."""
    rng = random.Random(seed)
    aimd = Aimd(Adaptive(1, most))
    now, inside, flying = 0.0, 0, 0
    ends: list[tuple[float, int, float, bool]] = []
    levels, refused, used, done = [], 0, 0.0, 0
    for number in range(calls):
        while flying >= aimd.admits:
            end, _, began, served = heapq.heappop(ends)
            used += inside * (end - now)
            now = end
            good = served and rng.random() >= noise
            aimd.learn("success" if good else "overload", began, now, flying)
            flying -= 1
            inside -= served
            refused += not served
            done += 1
            levels.append(aimd.admits)
        served = inside < bears
        inside += served
        flying += 1
        heapq.heappush(ends, (now + rng.uniform(0.05, 0.15) * (1 if served else 0.2), number, now, served))
    return refused / done, used / now / bears, levels


@pytest.mark.parametrize("bears", [1, 2, 3, 5, 8, 13, 21, 40])
def test_it_stays_at_what_the_server_bears(bears: int) -> None:
    """Over the whole run fewer than 2 % of calls are refused, and 90 % of what the server bears is used."""
    for seed in range(5):
        refused, used, levels = simulate(bears, 300 * bears + 2000, seed=seed)
        assert refused < 0.02
        assert used > 0.9
        later = levels[len(levels) // 2 :]
        assert 0.85 * bears <= sum(later) / len(later) <= bears + 0.5


@pytest.mark.parametrize("noise", [0.002, 0.01, 0.02])
def test_failures_now_and_then_do_not_pin_it_to_the_ground(noise: float) -> None:
    """Errors that have nothing to do with load cost some of the level, as with every AIMD, and not all of it."""
    _, _, levels = simulate(40, 20_000, seed=3, noise=noise)
    later = levels[len(levels) // 2 :]
    assert sum(later) / len(later) > 0.5 / noise**0.5


@given(st.integers(1, 30), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_it_converges_whatever_the_seed(bears: int, seed: int) -> None:
    """For any server and any chance, the level of the second half is near what the server bears."""
    _, _, levels = simulate(bears, 3000 + 100 * bears, seed=seed)
    later = levels[len(levels) // 2 :]
    assert 0.75 * bears <= sum(later) / len(later) <= bears + 1


# ------------------------------------------------------------------------------------------------- whatever comes


@given(
    least=st.integers(1, 20),
    more=st.integers(0, 50),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["success", "ignore", "overload"]),
            st.floats(0.0, 5.0),  # how long the call took
            st.floats(
                -3.0, 60.0
            ),  # how much later than the one before it ended; back, where the clock changed
            st.integers(1, 60),
        ),
        max_size=200,
    ),
)
@settings(max_examples=200, deadline=None)
def test_the_level_never_leaves_its_bounds(least: int, more: int, steps: list[Any]) -> None:
    """Any order of ends, times and clocks: min ≤ level ≤ max, and a call lowers it only if it began later than that."""
    aimd = Aimd(Adaptive(least, least + more))
    now, decreased_at = 100.0, -1e9
    for signal, took, passed, inflight in steps:
        if passed < -1.0:
            decreased_at = -1e9  # of what another clock showed nothing is believed
        now += passed
        before = aimd.level
        aimd.learn(signal, now - took, now, inflight)
        assert least <= aimd.level <= least + more
        assert aimd.admits >= 1
        if aimd.level < before:
            assert signal == "overload"
            assert now - took > decreased_at
            assert aimd.level >= min(0.7 * before, int(before) - 1) - 1e-9 or aimd.level == least
            decreased_at = now
        if signal == "ignore":
            assert aimd.level == before
        assert aimd.level <= before + 1


class Admission(RuleBasedStateMachine):
    """Calls of a limit that finds its level, in any order and with any end, against a count of permits."""

    waiting = Bundle("waiting")
    admitted = Bundle("admitted")

    def __init__(self) -> None:
        super().__init__()
        self.limit = Limit(concurrency=Adaptive(2, 6), by=lambda value: value, name="host")
        self.fixed = Limit(concurrency=5, name="all")
        self.now = 50.0
        self.out: dict[str, int] = {"a": 0, "b": 0, "c": 0}

    @rule(target=waiting, value=st.sampled_from("abc"))
    def ask(self, value: str) -> list[Claim]:
        return claim([self.limit, self.fixed], value)

    @rule(target=admitted, claims=consumes(waiting))
    def start(self, claims: list[Claim]) -> list[Claim]:
        key = str(claims[0].state.key)
        level = claims[0].state.capacity
        full = self.out[key] >= level or sum(self.out.values()) >= 5
        wait = admit(claims, self.now)
        assert (wait != 0.0) == full
        if full:
            assert blocked(claims, self.now) is not None
            drop(claims)
            return []
        self.out[key] += 1
        return claims

    @rule(claims=consumes(admitted), signal=st.sampled_from(["success", "ignore", "lost", "fault"]))
    def end(self, claims: list[Claim], signal: Signal) -> None:
        if claims:
            self.out[str(claims[0].state.key)] -= 1
        learn(claims, signal, self.now)
        assert release(claims) == [each.state for each in claims]

    @rule(claims=consumes(admitted))
    def never_start(self, claims: list[Claim]) -> None:
        levels = [each.state.capacity for each in claims]
        if claims:
            self.out[str(claims[0].state.key)] -= 1
        assert levels == [state.capacity for state in cancel(claims)]

    @rule(claims=admitted, signal=st.sampled_from(["success", "lost"]))
    def hang(self, claims: list[Claim], signal: Signal) -> None:
        """A call that is given up teaches at once, and keeps its permits."""
        learn(claims, signal, self.now)

    @rule(seconds=st.floats(0.0, 20.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def permits_are_conserved(self) -> None:
        for state in self.limit._all():
            assert state.inflight == self.out[str(state.key)]
            assert 2 <= state.capacity <= 6
        assert self.fixed.statistics().running == sum(self.out.values())


TestAdmission = Admission.TestCase
TestAdmission.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_lowered_level_admits_nothing_until_enough_have_ended() -> None:
    """Calls under way go on; as many end as are above the level before the next one starts."""
    limit = Limit(concurrency=Adaptive(8, 8 + 1))
    running = [claim([limit], None) for _ in range(8)]
    assert all(admit(claims, 1.0) == 0.0 for claims in running)
    limit._only.capacity = 5  # type: ignore[union-attr]  # as a decrease leaves it
    waits = claim([limit], None)
    for count in (7, 6, 5):
        release(running.pop())
        assert limit.statistics().running == count
        assert admit(waits, 2.0) != 0.0
    release(running.pop())
    assert admit(waits, 2.0) == 0.0


def test_statistics_have_the_levels() -> None:
    """The level by key, and of all keys together; a fixed limit has none."""
    limit = Limit(concurrency=Adaptive(1, 16), by=lambda value: value)
    for number in range(6):
        claims = claim([limit], "a")
        admit(claims, 1.0 + number)
        learn(claims, "success", 1.5 + number)
        release(claims)
    other = claim([limit], "b")
    admit(other, 9.0)
    now = limit.statistics()
    assert (now.level, now.running, now.concurrency) == (3 + 1, 1, Adaptive(1, 16))
    assert {key.key: key.level for key in limit.busiest(5)} == {"a": 3, "b": 1}
    assert Limit(concurrency=3).statistics().level is None
    assert Limit(concurrency=3).busiest(1)[0].level is None


def test_a_key_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned of a key outlives short pauses, and is forgotten after longer ones."""
    monkeypatch.setattr(limits, "KEYS_KEPT", 2)
    limit = Limit(concurrency=Adaptive(1, 16), by=lambda value: value)

    def call(key: str, now: float) -> None:
        claims = claim([limit], key)
        assert admit(claims, now) == 0.0
        learn(claims, "success", now)
        release(claims)

    def levels() -> dict[Any, int | None]:
        return {key.key: key.level for key in limit.busiest(1000)}

    call("a", 1.0)
    for number in range(20):
        call(f"soon{number}", 1.0 + KEPT / 2)
    assert levels()["a"] == 2
    for number in range(60):
        call(f"later{number}", 2.0 + 2 * KEPT)
    assert "a" not in levels()


# ------------------------------------------------------------------------------------------------- what teaches it


class Refused(CallError):
    disposition = Disposition.OVERLOAD


class Lost(CallError):
    disposition = Disposition.TRANSIENT
    ambiguous = True

    def __init__(self, phase: str, status: int | None = None) -> None:
        super().__init__(phase)
        self.phase = phase
        if status is not None:
            self.status = status


SAYS = [
    (Refused("too much"), "throttled"),
    (TimedOut("no result within 5 s"), "lost"),
    (TimeoutError(), "lost"),
    (ConnectionRefusedError(), "lost"),
    (ConnectionResetError(), "lost"),
    (RetryAfter(3), "throttled"),
    (Lost("connect"), "lost"),
    (Lost("first byte"), "lost"),
    (shape("httpx", "ReadTimeout", shape("httpx", "TimeoutException"))("slow"), "lost"),
    (ExceptionGroup("two", [ValueError("x"), TimeoutError()]), "lost"),
    (Lost("resolve"), "ignore"),
    (Lost(""), "ignore"),
    (Lost("body", 502), "fault"),
    (ExceptionGroup("two", [Lost("body", 502), RetryAfter(3)]), "throttled"),
    (shape("socket", "gaierror", OSError)("no address"), "ignore"),
    (WorkerDied("killed"), "ignore"),
    (CallError("permanent"), "ignore"),
    (ValueError("rubbish"), "ignore"),
    (KeyError("data"), "ignore"),
    (FileNotFoundError(2, "none"), "ignore"),
    (GiveUp(), "ignore"),
    (Skip(), "ignore"),
    (ExceptionGroup("two", [ValueError("x"), KeyError("y")]), "ignore"),
]


@pytest.mark.parametrize(("error", "signal"), SAYS, ids=lambda value: repr(value)[:40])
def test_what_a_failure_says_of_load(error: Exception, signal: str) -> None:
    """Refusals, what got no answer and what is broken are told apart; a mistake of the program is nothing."""
    assert load_signal(error) == signal


@pytest.mark.parametrize("make", STATUS_MAKERS)
@pytest.mark.parametrize(
    ("status", "signal"),
    [(429, "throttled"), (503, "overload"), (529, "overload"), (408, "ignore"), (425, "ignore")]
    + [(status, "success") for status in (400, 401, 403, 404, 410, 422, 501)]
    + [(status, "fault") for status in (500, 502, 504, 520)],
)
def test_a_status_says_the_same_of_load_on_every_client(make: Any, status: int, signal: str) -> None:
    """What asks for less, has too much, is broken, or refuses this one item only."""
    assert load_signal(make(status)) == signal
