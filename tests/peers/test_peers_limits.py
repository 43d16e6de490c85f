"""How many at once and how fast: watched from inside the calls, in virtual time, so that the figures are exact."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from peers_kit import Spy

import headrace as hr
from headrace.testing import run


@pytest.mark.parametrize("concurrency", [1, 2, 10, 100])
def test_calls_at_once_reach_the_limit_and_never_pass_it(concurrency: int) -> None:
    """The most that ran at once is exactly `concurrency`, and the time is that of full use."""
    spy = Spy(1.0)

    async def main() -> float:
        await hr.map(spy, range(200), concurrency=concurrency)
        return asyncio.get_running_loop().time()

    assert run(main) == pytest.approx(200 / concurrency)
    assert spy.most == concurrency


def test_without_being_asked_it_is_bounded() -> None:
    """No option given: a hundred at once, not one task for each of ten thousand items."""
    spy = Spy(1.0)
    run(lambda: hr.map(spy, range(10_000)))
    assert spy.most == 100


def test_a_failing_call_gives_its_place_back() -> None:
    """Failures, retries and time limits leak no place: the last item still finds all of them."""

    class Failing(Spy):
        async def __call__(self, value: Any) -> Any:
            await super().__call__(value)
            if value % 3 == 0:
                raise OSError("again")
            if value % 3 == 1:
                await asyncio.sleep(60)
            return value

    spy = Failing(0.5)
    got = run(
        lambda: hr.map(spy, range(60), concurrency=4, timeout=1, retry=hr.Retry(attempts=2, on=OSError))
    )
    assert (len(got.done), len(got.failed)) == (20, 40)
    assert (spy.most, spy.running) == (4, 0)


@pytest.mark.parametrize("rate", [5, 10, 20, 50, 100])
def test_starts_keep_their_distance(rate: int) -> None:
    """Any two starts are 1/rate apart, and the whole takes no longer than the rate needs."""
    spy = Spy(0.0)
    run(lambda: hr.map(spy, range(50), rate=f"{rate}/s"))
    gaps = [later - earlier for earlier, later in pairwise(spy.starts)]
    assert min(gaps) >= 1 / rate - 1e-9
    assert spy.starts[-1] == pytest.approx(49 / rate, abs=1e-4)


@pytest.mark.parametrize("burst", [1, 3, 10])
def test_no_window_of_the_rate_holds_more_than_limit_and_burst(burst: int) -> None:
    """In any second, at most rate + burst − 1 starts, also when calls end unevenly."""
    limit = hr.Limit(rate="20/s", burst=burst)

    class Uneven(Spy):
        async def __call__(self, value: Any) -> Any:
            self.seconds = (value * 7 % 11) / 10
            return await super().__call__(value)

    spy = Uneven()
    run(lambda: hr.map(spy, range(150), limits=[limit], concurrency=30))
    for first, start in enumerate(spy.starts):
        inside = sum(start <= other < start + 1 - 1e-9 for other in spy.starts[first:])
        assert inside <= 20 + burst - 1


def test_a_rate_counts_retries_too() -> None:
    """A repeated call is a call: the distance holds between attempts of all items."""
    starts: list[float] = []

    async def fails_once(number: int) -> int:
        starts.append(asyncio.get_running_loop().time())
        if starts.count(starts[-1]) and len(starts) <= 20:
            raise OSError("first attempt")
        return number

    got = run(lambda: hr.map(fails_once, range(20), rate="10/s", retry=hr.Retry(attempts=5)))
    assert got.report.done == 20
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert len(starts) == 40
    assert min(gaps) >= 0.1 - 1e-9


def test_a_limit_holds_over_all_stages_that_name_it() -> None:
    """One object is one limit: two stages together never run more than it allows."""
    limit, running, most = hr.Limit(concurrency=3), 0, 0

    async def watched(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return number

    flow = hr.Flow(range(30)).map(watched, limits=[limit]).map(watched, limits=[limit])
    assert run(flow.run).done == 30
    assert most == 3


def test_a_saturated_key_holds_no_other_key_up() -> None:
    """A hundred items of a slow key come first; those of the other key run as if they were alone."""
    ended: dict[str, float] = {}

    async def call(item: tuple[str, int]) -> None:
        await asyncio.sleep(10 if item[0] == "slow" else 0.1)
        ended[item[0]] = asyncio.get_running_loop().time()

    items = [("slow", number) for number in range(100)] + [("quick", number) for number in range(10)]
    limit = hr.Limit(by=lambda item: item[0], concurrency=1)
    run(lambda: hr.map(call, items, limits=[limit], concurrency=10))
    assert ended["quick"] == pytest.approx(1.0)
    assert ended["slow"] == pytest.approx(1000.0)
