"""The adaptive rate: it finds what servers take that count per time, follows them, and slows nobody else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import FixedWindow, Server, SlidingWindow, TokenBucket, figures, serve

from headrace.policies.adaptive import Adaptive
from headrace.policies.adaptive_rate import BURST, SLOWEST, AdaptiveRate
from headrace.policies.limits import Limit


def limit() -> Limit:
    return Limit(concurrency=Adaptive(1, 16), by=lambda value: value)


KINDS: dict[str, Callable[[Callable[[float], float], float], Server]] = {
    "fixed window": lambda allows, rate: FixedWindow(allows),
    "sliding window": lambda allows, rate: SlidingWindow(allows),
    "bucket of a second": lambda allows, rate: TokenBucket(allows, rate),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [20, 200])
@pytest.mark.parametrize("latency", [0.005, 0.05])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_finds_what_the_server_takes(kind: str, rate: int, latency: float, seed: int) -> None:
    """From the fifth second on at least nine tenths are used and under 2 % refused, without any number given."""
    seen = serve(KINDS[kind](lambda now: rate, rate), limit(), latency, 65, seed)
    used, refused = figures(seen, 5, 65, rate)
    assert used >= 0.9
    assert refused < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [3, 5, 10])
@pytest.mark.parametrize("latency", [0.005, 0.05])
def test_few_calls_a_second_are_found_too(kind: str, rate: int, latency: float) -> None:
    """Where one call more is a fifth of all, the same holds on the average: a refusal costs a wait, and there are few."""
    shares = [
        figures(serve(KINDS[kind](lambda now: rate, rate), limit(), latency, 125, seed), 5, 125, rate)
        for seed in range(1, 6)
    ]
    assert sum(used for used, _ in shares) / 5 >= 0.9
    assert sum(refused for _, refused in shares) / 5 < 0.025


def test_asked_again_before_anything_was_answered_it_halves() -> None:
    """That nothing was taken in a moment is no limit of nothing: the rate halves, and there it goes on."""
    rate = AdaptiveRate()
    for number in range(10):
        rate.answered(0.0, 1.0 + number / 10)
    rate.asked(1.8, 2.0, 3.0)
    before = rate.rate
    rate.asked(3.1, 3.2, 4.2)
    assert 0.4 * before <= rate.rate <= 0.5 * before


def test_a_refusal_for_too_many_at_once_that_was_none_tells_what_was_taken_before_it() -> None:
    """Asked for a wait soon afterwards, what was counted then is the ceiling, with those that were under way; later not."""
    for later, ceiling in ((1.5, 6.0), (30.0, 9.0)):
        rate = AdaptiveRate()
        for number in range(5):
            rate.answered(0.0, 1.0 + number / 10)
        rate.refused(1.45, 1.5)
        rate.refused(1.46, 1.6)  # the same once more
        rate.answered(1.4, 1.7)
        for number in range(9):
            rate.answered(1.6 + later, 1.7 + later + number / 10)
        assert rate.rate == math.inf
        rate.asked(2.5 + later, 2.55 + later, 3.5 + later)
        assert rate.rate == pytest.approx(0.97 * ceiling)


def test_ten_seconds_after_the_limit_was_halved_the_rate_is_near_it() -> None:
    """Asked again and again it closes in: in the next thirteen seconds nine tenths are used, whenever it was halved."""
    shares = []
    for phase in range(10):
        halved = 30.0 + phase / 10

        def allows(now: float, halved: float = halved) -> float:
            return 200 if now < halved else 100

        seen = serve(FixedWindow(allows), limit(), 0.005, halved + 24.0, phase)
        used, refused = figures(seen, halved + 10.0, halved + 23.0, 100)
        assert refused < 0.02
        shares.append(used)
    assert min(shares) >= 0.85
    assert sum(shares) / 10 >= 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latency", [0.005, 0.05])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_follows_a_server_that_takes_half(kind: str, latency: float, seed: int) -> None:
    """Ten seconds after the limit was halved the same holds for the new one."""
    seen = serve(KINDS[kind](lambda now: 200 if now < 30 else 100, 200), limit(), latency, 100, seed)
    assert figures(seen, 5, 30, 200)[0] >= 0.9
    used, refused = figures(seen, 40, 100, 100)
    assert used >= 0.9
    assert refused < 0.02


def test_it_finds_a_server_that_takes_twice_as_much() -> None:
    """Within a minute and a half after the limit was doubled it is used."""
    seen = serve(FixedWindow(lambda now: 50 if now < 60 else 100), limit(), 0.02, 240, 3)
    assert figures(seen, 150, 240, 100)[0] >= 0.9


def test_a_limit_of_a_minute_is_kept_by_its_first_wait() -> None:
    """Sixty a minute, asked for with a wait to the end of the minute: from then on nearly none are refused."""
    seen = serve(FixedWindow(lambda now: 1, 60.0), limit(), 0.02, 600, 1)
    used, refused = figures(seen, 60, 600, 1)
    assert used >= 0.85
    assert refused < 0.02


def test_a_bucket_that_holds_little_is_found_in_the_end() -> None:
    """The answers of the first second say too little of it: the rate grows from there, faster and faster."""
    seen = serve(TokenBucket(lambda now: 20, 2), limit(), 0.02, 180, 1)
    used, refused = figures(seen, 60, 180, 20)
    assert used >= 0.85
    assert refused < 0.02


def test_without_a_wait_it_is_found_too_where_one_call_at_a_time_is_too_much() -> None:
    """429 without Retry-After lowers the number of calls first; refused at the lowest, it is a rate that is wanted."""
    seen = serve(SlidingWindow(lambda now: 50), limit(), 0.004, 120, 1, holds=False)
    used, refused = figures(seen, 20, 120, 50)
    assert used >= 0.85
    assert refused < 0.05


def test_who_does_not_ask_is_not_slowed() -> None:
    """A server that refuses nothing gets as many calls as the level allows."""
    seen = serve(TokenBucket(lambda now: 1e9, 1e9), limit(), 0.01, 10, 1)
    assert figures(seen, 1, 10, 1600)[0] > 0.9


def test_starts_keep_the_rate_over_any_time() -> None:
    """With a rate, the starts of any window are at most rate x window, and a burst of a fiftieth of a second."""
    rate = AdaptiveRate()
    for number in range(100):
        rate.answered(0.5, 1.0 + number / 100)
    rate.asked(1.9, 2.0, 2.0)
    now, starts = 2.0, []
    while now < 12.0:
        wait = rate.wait(now)
        if wait == 0.0:
            rate.take(now)
            starts.append(now)
        else:
            now += wait
    for first in range(0, len(starts), 7):
        inside = sum(starts[first] <= at < starts[first] + 1.0 for at in starts)
        assert inside <= rate.rate + max(1.0, BURST * rate.rate) + 1.0
    assert len(starts) >= 9.9 * rate.rate


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["answered", "asked", "start"]), st.floats(0.0, 100.0), st.floats(0.0, 4000.0)
        ),
        max_size=60,
    )
)
@settings(max_examples=300)
def test_it_survives_any_order_of_ends(steps: list[tuple[str, float, float]]) -> None:
    """The rate is a number above the slowest, a wait is finite, and nothing raises."""
    rate, now = AdaptiveRate(), 1000.0
    for what, passed, seconds in steps:
        now += passed
        before = rate.rate
        if what == "answered":
            rate.answered(now - min(passed, 1.0), now)
        elif what == "asked":
            rate.asked(now - min(passed, 1.0), now, now + seconds)
            assert rate.rate <= before
        else:
            if rate.rate < math.inf:
                wait = rate.wait(now)
                assert 0.0 <= wait < math.inf
                rate.take(now + wait)
        assert rate.rate >= 0.9 * SLOWEST
