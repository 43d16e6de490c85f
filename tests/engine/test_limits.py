"""What limits promise in a run: never above, never idle where they need not be, neighbours left alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

import headrace as hr
from headrace.testing import run


def test_a_rate_holds_in_every_window() -> None:
    """No window holds more starts than limit + burst - 1; the rate is used to the full."""
    starts: list[float] = []

    async def call(number: int) -> None:
        starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(random.Random(number).random())

    limit = hr.Limit(rate="50/s", burst=5)
    run(lambda: hr.map(call, range(500), limits=[limit]))
    for index, start in enumerate(starts):
        assert sum(1 for other in starts[index:] if other < start + 1.0 - 1e-6) <= 50 + 5 - 1
    assert starts[-1] - starts[0] <= 500 / 50 + 0.1


def test_a_saturated_key_does_not_hold_up_others() -> None:
    """With host A saturated, host B goes on at its own limit."""
    ended: dict[str, float] = {}
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def call(item: tuple[str, int]) -> None:
        host = item[0]
        running[host] += 1
        most[host] = max(most[host], running[host])
        await asyncio.sleep(100 if host == "slow" else 1)
        running[host] -= 1
        ended[host] = asyncio.get_running_loop().time()

    items = [(host, n) for n in range(40) for host in ("slow", "fast")]
    limit = hr.Limit(by=lambda item: item[0], concurrency=4)

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        await hr.map(call, items, concurrency=50, limits=[limit])
        return began

    began = run(main)
    assert ended["fast"] - began == pytest.approx(10, abs=0.5)
    assert most == {"slow": 4, "fast": 4}


def test_one_limit_in_two_stages_is_one_limit() -> None:
    """The same Limit object on two stages admits their calls together."""
    running = most = 0

    async def call(value: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(random.Random(value).random())
        running -= 1
        return value

    limit = hr.Limit(concurrency=3)

    async def main() -> hr.Report:
        flow = hr.Flow(range(60)).map(call, limits=[limit]).map(call, limits=[limit])
        return await flow.run()

    assert run(main).done == 60
    assert most == 3


def test_several_limits_are_admitted_together() -> None:
    """A global limit, a keyed one and a rate hold at once, and nobody waits for ever."""
    running: Counter[Any] = Counter()
    most: Counter[Any] = Counter()

    async def call(number: int) -> None:
        for key in ("all", number % 7):
            running[key] += 1
            most[key] = max(most[key], running[key])
        await asyncio.sleep(random.Random(number).random())
        for key in ("all", number % 7):
            running[key] -= 1

    limits = [
        hr.Limit(concurrency=5),
        hr.Limit(by=lambda number: number % 7, concurrency=2),
        hr.Limit(by=lambda number: number % 3, rate="20/s"),
    ]
    got = run(lambda: hr.map(call, range(300), limits=limits))
    assert got.report.done == 300
    assert most["all"] == 5
    assert max(most[key] for key in range(7)) == 2


def test_a_hold_concerns_the_whole_key() -> None:
    """RetryAfter with hold=True keeps everything of its key back until it is over, and others not at all."""
    calls: list[tuple[str, float]] = []

    async def call(item: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        calls.append((item[0], loop.time()))
        await asyncio.sleep(0.1)
        if item == ("a", 0) and len([host for host, _ in calls if host == "a"]) <= 2:
            raise hr.RetryAfter(30, hold=True)

    items = [(host, n) for n in range(20) for host in ("a", "b")]
    limit = hr.Limit(by=lambda item: item[0], concurrency=2)

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        got = await hr.map(call, items, limits=[limit])
        assert got.report.done == 40
        return began

    began = run(main)
    late = [at - began for host, at in calls if host == "a"]
    assert sum(at < 1 for at in late) <= 3
    assert all(at >= 30 for at in late[3:])
    assert max(at - began for host, at in calls if host == "b") < 2


def test_a_key_function_that_raises_fails_its_item() -> None:
    """Rubbish from by= or cost= is that item's failure, with the limit's name."""

    def by(number: int) -> Any:
        if number == 3:
            raise ZeroDivisionError
        if number == 4:
            return []
        return number

    async def call(number: int) -> int:
        return number

    got = run(lambda: hr.map(call, range(6), limits=[hr.Limit(by=by, concurrency=1)]))
    assert [failure.item for failure in got.failed] == [3, 4]
    assert all("limit 'by'" in str(failure.error) for failure in got.failed)


def test_costs_are_charged_and_corrected() -> None:
    """cost= is charged at the start and corrected by actual=; the window is kept in cost."""
    began: list[float] = []

    async def call(tokens: int) -> int:
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        return tokens // 2

    limit = hr.Limit(rate="100/s", burst=100, cost=lambda tokens: tokens, actual=lambda used: used)
    run(lambda: hr.map(call, [50] * 100, concurrency=1, limits=[limit]))
    spent = 100 * 25
    assert (spent - 100) / 100 - 1 <= began[-1] - began[0] <= spent / 100 + 1


@pytest.mark.parametrize("limits", [[], [hr.Limit(by=lambda number: number % 3, concurrency=2)]])
def test_a_paused_stage_with_work_at_hand_sleeps(limits: list[hr.Limit]) -> None:
    """Its workers do not wake each other while nothing may start: the loop has nothing to do until it goes on."""

    async def slow(number: int) -> int:
        await asyncio.sleep(1 + number % 7 / 10)
        return number

    async def main() -> int:
        async with hr.Flow(range(100)).map(slow, concurrency=10, limits=limits).start() as job:
            await asyncio.sleep(2.5)
            job.pause()
            await asyncio.sleep(2)  # on a loop that never sleeps, virtual time does not go on
            job.resume()
            return (await job.wait()).done

    assert run(main) == 100


def test_keys_that_come_and_go_keep_their_limits() -> None:
    """Thousands of keys, of which some return: none runs twice at once, and no item is lost."""
    running: Counter[int] = Counter()
    most: Counter[int] = Counter()

    async def call(number: int) -> int:
        key = number % 3000
        running[key] += 1
        most[key] = max(most[key], running[key])
        await asyncio.sleep(random.Random(number).random() if number % 7 else 0)
        running[key] -= 1
        return number

    limit = hr.Limit(by=lambda number: number % 3000, concurrency=1)
    order = [*range(9000), *[key + 3000 * turn for key in range(50) for turn in range(3, 9)]]
    got = run(lambda: hr.map(call, order, concurrency=200, limits=[limit]))
    assert sorted(got.values) == sorted(order)
    assert set(most.values()) == {1}
    assert limit.statistics().running == limit.statistics().waiting == 0
