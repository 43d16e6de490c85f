"""Adaptive limits in a run: the level follows the server, neighbours are left alone, only telling ends teach."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import headrace as hr
from headrace.testing import cancel_everywhere, run, run_real


class TooMany(Exception):
    """What a client raises for a 429."""

    status = 429


class Seen(NamedTuple):
    """One request as the server saw it: when it was over, whether it was refused, and the level then."""

    at: float
    refused: bool
    level: int


class Server:
    """Allows so many calls at once, and answers 429 beyond. `bears` may change with the time."""

    def __init__(self, bears: Callable[[float], int], seed: int) -> None:
        self.bears = bears
        self.rng = random.Random(seed)
        self.seen: list[Seen] = []
        self.running = 0
        self.limit = hr.Limit(concurrency=hr.Adaptive(1, 64), by=lambda item: "host")

    async def call(self, number: int) -> int:
        loop = asyncio.get_running_loop()
        if self.running >= self.bears(loop.time()):
            await asyncio.sleep(self.rng.uniform(0.005, 0.02))
            self._note(loop.time(), refused=True)
            raise TooMany
        self.running += 1
        await asyncio.sleep(self.rng.uniform(0.05, 0.15))
        self.running -= 1
        self._note(loop.time(), refused=False)
        return number

    def _note(self, at: float, *, refused: bool) -> None:
        self.seen.append(Seen(at, refused, self.limit.busiest(1)[0].level or 0))

    def serve(self, items: int) -> hr.Report:
        got = run(
            lambda: hr.map(
                self.call, range(items), concurrency=100, limits=[self.limit], retry=hr.Retry(attempts=20)
            ),
            seed=7,
        )
        assert got.values == list(range(items))
        return got.report

    def between(self, begin: float, end: float) -> list[Seen]:
        return [seen for seen in self.seen if begin <= seen.at < end]


def figures(seen: list[Seen], seconds: float, bears: int) -> tuple[float, float, float]:
    """Give the share refused, the share used of what the server bears, and the mean level."""
    refused = sum(each.refused for each in seen)
    return (
        refused / len(seen),
        (len(seen) - refused) * 0.1 / seconds / bears,
        sum(each.level for each in seen) / len(seen),
    )


@pytest.mark.parametrize("bears", [1, 4, 10, 24])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_level_finds_what_the_server_bears(bears: int, seed: int) -> None:
    """From the fifth second on: near the server's limit, under 2 % refused, 90 % of what it bears is used."""
    server = Server(lambda now: bears, seed)
    server.serve(300 * bears)
    refused, used, level = figures(server.between(5, 25), 20, bears)
    assert refused < 0.02
    assert used >= 0.9
    assert 0.85 * bears <= level <= bears + 0.5
    assert figures(server.seen, 30, bears)[0] < 0.02


@pytest.mark.parametrize("seed", [1, 2])
def test_the_level_follows_a_server_that_bears_half(seed: int) -> None:
    """Ten seconds after the limit was halved, and from then on, the same holds for the new one."""
    server = Server(lambda now: 20 if now < 20 else 10, seed)
    server.serve(7500)
    refused, used, level = figures(server.between(10, 20), 10, 20)
    assert (refused < 0.02, used >= 0.9, 17 <= level <= 20.5) == (True, True, True)
    refused, used, level = figures(server.between(30, 50), 20, 10)
    assert (refused < 0.02, used >= 0.9, 8.5 <= level <= 10.5) == (True, True, True)
    assert figures(server.between(20, 30), 10, 10)[0] < 0.05


def test_the_level_follows_a_server_that_bears_more() -> None:
    """Within half a minute after the limit was doubled it is used, though the old one was known well."""
    server = Server(lambda now: 8 if now < 60 else 16, 3)
    server.serve(13_000)
    assert 7 <= figures(server.between(40, 60), 20, 8)[2] <= 8.5
    refused, used, _ = figures(server.between(95, 105), 10, 16)
    assert (refused < 0.02, used >= 0.9) == (True, True)


def hosts_of(hangs: bool) -> float:
    """Call 49 hosts, and a fiftieth that hangs or is not there; give when the 49 were done."""
    ended: dict[int, float] = {}
    items = [(host, number) for number in range(40) for host in range(50 if hangs else 49)]

    async def call(item: tuple[int, int]) -> None:
        host, number = item
        await asyncio.sleep(3600 if host == 49 else random.Random(host * 1000 + number).uniform(0.05, 0.15))
        ended[host] = asyncio.get_running_loop().time()

    limit = hr.Limit(by=lambda item: item[0], concurrency=hr.Adaptive(1, 16))
    run(lambda: hr.map(call, items, concurrency=64, limits=[limit], timeout=10))
    assert 49 not in ended
    if hangs:
        assert {key.key: key.level for key in limit.busiest(100)}[49] == 1
    return max(ended.values())


def test_a_host_that_hangs_does_not_slow_the_others() -> None:
    """One of 50 hosts never answers: the other 49 are done within 5 % of the time that they need without it."""
    assert hosts_of(hangs=True) <= 1.05 * hosts_of(hangs=False)


def level_after(
    call: Callable[[int], Any], items: int = 60, *, least: int = 8, **options: Any
) -> tuple[int, hr.Outcomes[Any, Any]]:
    """Give the level of the only key after a map."""
    limit = hr.Limit(concurrency=hr.Adaptive(least, 16))
    got = run(lambda: hr.map(call, range(items), concurrency=32, limits=[limit], **options))
    now = limit.statistics()
    assert (now.running, now.waiting) == (0, 0)
    assert now.level is not None
    return now.level, got


def failing(error: Exception) -> Callable[[int], Any]:
    async def call(number: int) -> None:
        await asyncio.sleep(0.1)
        if number >= 20:
            raise error

    return call


@pytest.mark.parametrize(
    ("error", "falls"),
    [
        (TooMany(), True),
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
        (hr.RetryAfter(1), True),
        (ValueError("rubbish"), False),
        (hr.Skip("not wanted"), False),
        (hr.GiveUp("no use"), False),
    ],
)
def test_the_ends_of_calls_teach_what_they_say(error: Exception, falls: bool) -> None:
    """Overload lowers the level that twenty good calls had raised; what says nothing of load leaves it there."""
    level, _ = level_after(failing(error))
    assert (level < 16) == falls


def test_a_call_that_passes_its_time_limit_is_overload() -> None:
    """`timeout=` lowers the level."""

    async def call(number: int) -> None:
        await asyncio.sleep(0.1 if number < 20 else 100)

    level, got = level_after(call, timeout=5)
    assert level < 16
    assert len(got.failed) == 40


def test_the_end_of_an_items_time_says_nothing_of_load() -> None:
    """A call that is cut short because its item's `within=` is over teaches nothing."""

    async def call(number: int) -> None:
        await asyncio.sleep(0.1 if number < 20 else 100)

    assert level_after(call, within=5)[0] == 16


def test_cancelled_calls_teach_nothing() -> None:
    """A run that is stopped returns its calls, and the level is what the calls that ended had made of it."""
    limit = hr.Limit(concurrency=hr.Adaptive(4, 16))

    async def call(number: int) -> None:
        await asyncio.sleep(0.1 if number < 8 else 100)

    async def main() -> None:
        async with hr.Flow(range(100)).map(call, concurrency=32, limits=[limit]).start() as job:
            await asyncio.sleep(1)
            level = limit.statistics().level
            job.stop()
            await job.wait()
            assert limit.statistics().level == level

    run(main)
    assert limit.statistics().running == 0


def test_a_hanging_thread_teaches_once_and_keeps_its_permit(loop_kind: str) -> None:
    """A thread call that is given up lowers the level at its time limit; its permit comes back when it returns."""
    limit = hr.Limit(concurrency=hr.Adaptive(1, 4))
    lowered: list[int | None] = []
    hangs, let_go = threading.Event(), threading.Event()

    def call(number: int) -> None:
        if number == 30:
            hangs.set()
            let_go.wait(20)

    async def main() -> None:
        async with hr.Flow(range(31)).map(call, concurrency=4, limits=[limit], timeout=0.2).start() as job:
            while job.statistics().failed < 1:
                await asyncio.sleep(0.01)
            lowered.append(limit.statistics().level)
            assert limit.statistics().running == 1
            let_go.set()
            report = await job.wait()
            assert (report.done, report.failed) == (30, 1)
            while limit.statistics().running:
                await asyncio.sleep(0.01)

    run_real(main, kind=loop_kind)  # type: ignore[arg-type]
    assert lowered == [limit.statistics().level]
    assert (lowered[0] or 0) < 4


def refused_from_20_on(number: int) -> int:
    """A call for a child process."""
    if number >= 20:
        raise ConnectionRefusedError
    return number


def test_calls_in_processes_teach_too(loop_kind: str) -> None:
    """What a child's function returned or raised moves the level as on any lane."""
    limit = hr.Limit(concurrency=hr.Adaptive(1, 4))
    levels: list[Any] = []

    async def main() -> None:
        for end in (20, 21):
            await hr.map(refused_from_20_on, range(end), lane="process", concurrency=2, limits=[limit])
            levels.append(limit.statistics().level)

    run_real(main, kind=loop_kind)  # type: ignore[arg-type]
    assert levels == [4, 2]
    assert limit.statistics().running == 0


def test_a_stage_says_where_an_adaptive_number_goes() -> None:
    """`concurrency=hr.Adaptive(…)` of a stage is refused with the limit that is meant."""
    with pytest.raises(hr.PlanError, match=r"limits=\[hr\.Limit\(concurrency=hr\.Adaptive\(1, 4\)\)\]"):
        hr.map_sync(failing(TooMany()), range(3), concurrency=hr.Adaptive(1, 4))  # type: ignore[call-overload]


def test_statistics_of_a_run_show_the_levels() -> None:
    """The busiest keys come with their level, where the limit finds it, and without where it is fixed."""
    finding = hr.Limit(by=lambda number: "a", concurrency=hr.Adaptive(2, 5), name="finding")
    fixed = hr.Limit(by=lambda number: "a", concurrency=9, name="fixed")

    async def call(number: int) -> None:
        await asyncio.sleep(1)

    async def main() -> dict[str, Any]:
        async with hr.Flow(range(50)).map(call, limits=[finding, fixed]).start() as job:
            await asyncio.sleep(3.5)
            keys = {key["limit"]: key for key in job.statistics().keys}
            await job.wait()
            return keys

    keys = run(main)
    assert (keys["finding"]["running"], keys["finding"]["level"]) == (5, 5)
    assert keys["fixed"]["level"] is None


def test_no_permit_is_lost_wherever_a_run_is_cancelled() -> None:
    """Cancelled at any await, the permits of an adaptive limit are all back."""
    made: list[hr.Limit] = []

    async def call(number: int) -> None:
        await asyncio.sleep(0.1)
        if number % 3 == 0:
            raise TooMany

    async def main() -> None:
        limit = hr.Limit(concurrency=hr.Adaptive(1, 3), by=lambda number: number % 2)
        made.append(limit)
        await hr.map(call, range(8), limits=[limit], retry=hr.Retry(attempts=2))

    cancel_everywhere(main)
    assert len(made) > 5
    assert all(limit.statistics().running == limit.statistics().waiting == 0 for limit in made)
