"""Load control as a whole, in simulation: hosts with limits, outages and moods, called as `headrace fetch` calls them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
import statistics
from itertools import pairwise
from typing import Any

import pytest
from load_world import (
    SOME_SECONDS,
    HostSpec,
    Played,
    Seeded,
    Status,
    breaks_rate,
    of_seed,
    play,
    set_of_hosts,
)

import headrace as hr
from headrace.testing import run

#: Seeds and numbers of hosts: few of 200, many of 40. `python -m bench load --long` plays a thousand of 200.
SEEDS = [*((seed, 200) for seed in range(5)), *((seed, 40) for seed in range(100, 130))]


@functools.cache
def seeded(seed: int, count: int) -> Seeded:
    return of_seed(seed, count, 0.05 if count == 200 else 0.15)


# ------------------------------------------------------------------------------------------- 200 hosts


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count"), SEEDS)
def test_every_promise_is_kept_at_every_call(seed: int, count: int) -> None:
    """No limit is passed, held keys rest, each item has one outcome and was done once, and all permits come back."""
    assert seeded(seed, count).violations == []


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count"), SEEDS)
def test_hosts_are_used(seed: int, count: int) -> None:
    """At least nine tenths of what the hosts' limits allow are used, on the average of those with work for a time."""
    shares = seeded(seed, count).shares
    assert sum(shares) >= 0.9 * len(shares)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count"), SEEDS)
def test_no_item_of_a_healthy_host_fails(seed: int, count: int) -> None:
    """Whatever the others do."""
    assert seeded(seed, count).failed == 0


@pytest.mark.slow
def test_healthy_hosts_do_not_pay_for_sick_ones() -> None:
    """On the average of the runs they are done as early as without them, and so is the last of them, within 5 %.

    A single run differs by more, either way: the jitter of its waits is drawn anew.
    """
    found = [seeded(*seed) for seed in SEEDS]
    slower = [each.slower for each in found if each.slower is not None]
    last = [each.last for each in found if each.last is not None]
    assert abs(statistics.mean(slower)) <= 0.02
    assert statistics.mean(last) <= 0.05
    assert max(slower) <= 0.15


def test_the_kit_sees_a_rate_that_is_passed() -> None:
    """The check of windows tells the last start that fits from the first that does not."""
    assert breaks_rate([0.0, 0.0, 0.25, 0.5], 4, 2) == []
    assert breaks_rate([0.0, 0.0, 0.24], 4, 2) != []
    assert breaks_rate([0.0, 0.0, 0.0], 4, 2) != []


# ------------------------------------------------------------------------------------------- hosts that hang, and outages


def busy_hosts(count: int, items: int, **last: Any) -> list[HostSpec]:
    """Give hosts that take whatever comes, the last of them with options of its own."""
    hosts = [HostSpec(name, items, median=0.1, sigma=0.3) for name in range(count)]
    return [*hosts[:-1], dataclasses.replace(hosts[-1], **last)]


@pytest.mark.parametrize("concurrency", [64, 256])
def test_one_of_50_hosts_hangs_every_call(concurrency: int) -> None:
    """The other 49 are done within 5 % of the time that they need without it."""
    hosts = busy_hosts(50, 60, outage="hangs", down=0.0)
    both = play(hosts, 1, concurrency=concurrency, in_turn=True)
    alone = play(hosts[:-1], 1, concurrency=concurrency, in_turn=True)
    assert both.violations == alone.violations == []
    ends = [max(one.world.hosts[name].finished for name in range(49)) for one in (both, alone)]
    assert ends[0] <= 1.05 * ends[1]
    assert both.finish_of(range(49)) <= 1.05 * alone.finish_of(range(49))
    assert both.failed_at(range(49)) == 0


@functools.cache
def with_outage(outage: str | None, seed: int) -> Played:
    """Call six hosts that take 20 calls a second; one of them is down from second 40 to 70, if at all."""
    hosts = busy_hosts(6, 1500, outage=outage, down=40.0, up=70.0)
    hosts = [dataclasses.replace(spec, rate=20.0, counts="bucket") for spec in hosts]
    return play(hosts, seed, concurrency=128, attempts=4)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("outage", ["refused", "503", "hangs"])
def test_an_outage_costs_no_item_and_few_calls(outage: str, seed: int) -> None:
    """While a host is down for 30 s it gets at most a twentieth of its calls; afterwards all are done, and none failed."""
    played = with_outage(outage, seed)
    host = played.world.hosts[5]
    before = sum(10.0 <= at < 40.0 for at in host.starts)
    assert played.violations == []
    assert before > 500
    assert len(played.outcomes.failed) == 0
    assert len(host.in_outage) <= 0.05 * before


@pytest.mark.parametrize("outage", ["refused", "hangs"])
def test_an_outage_harms_no_other_host(outage: str) -> None:
    """The others are done within 5 % of the time that they need when it is not down."""
    down, well = with_outage(outage, 1), with_outage(None, 1)
    assert down.finish_of(range(5)) <= 1.05 * well.finish_of(range(5))
    ends = [max(one.world.hosts[name].finished for name in range(5)) for one in (down, well)]
    assert ends[0] <= 1.05 * ends[1]


# ------------------------------------------------------------------------------------------- tokens


@dataclasses.dataclass
class Prompt:
    """One request: what is thought that it costs, and what it does."""

    estimate: float
    tokens: float


class Api:
    """Counts requests and tokens, as they start, and answers after a second or so."""

    def __init__(self, mean: float, items: int, seed: int) -> None:
        rng = random.Random(seed)
        self.rng = rng
        self.starts: list[tuple[float, float]] = []
        self.prompts = []
        for _ in range(items):
            tokens = float(int(mean * rng.uniform(0.3, 1.7)))
            self.prompts.append(Prompt(tokens * rng.uniform(0.5, 1.5), tokens))
        self.tokens = hr.Limit(
            rate="90000/min",
            burst=3000,
            cost=lambda prompt: prompt.estimate,
            actual=lambda tokens: tokens,
            name="tokens",
        )
        self.requests = hr.Limit(rate="3500/min", burst=20, name="requests")

    async def call(self, prompt: Prompt) -> float:
        self.starts.append((asyncio.get_running_loop().time(), prompt.estimate))
        await asyncio.sleep(self.rng.uniform(0.2, 3.0))
        return prompt.tokens

    def play(self) -> hr.Outcomes[Any, Any]:
        limits = [self.tokens, self.requests]
        got = run(lambda: hr.map(self.call, self.prompts, concurrency=400, limits=limits))
        assert len(got.done) == len(self.prompts)
        assert self.tokens.statistics().running == self.requests.statistics().running == 0
        return got

    def most_in_a_minute(self, cost: bool) -> float:
        """Give the most requests, or estimated tokens, of any minute."""
        most = inside = 0.0
        first = 0
        for at, estimate in self.starts:
            inside += estimate if cost else 1
            while self.starts[first][0] <= at - 60.0:
                inside -= self.starts[first][1] if cost else 1
                first += 1
            most = max(most, inside)
        return most


@pytest.mark.parametrize("seed", [1, 2])
def test_tokens_bind(seed: int) -> None:
    """Uneven requests, wrongly estimated: 95 % of the tokens are used, and no minute has more than limit and burst."""
    api = Api(400.0, 1800, seed)
    api.play()
    last = api.starts[-1][0]
    spent = sum(prompt.tokens for prompt in api.prompts)
    assert spent >= 0.95 * 90_000 * last / 60.0
    # What was estimated too high is given back, and may be used again: that much more may start than the limit says.
    estimated = sum(prompt.estimate for prompt in api.prompts)
    returned = sum(max(0.0, prompt.estimate - prompt.tokens) for prompt in api.prompts)
    assert estimated <= 90_000 * last / 60.0 + 3000 + returned
    assert api.most_in_a_minute(cost=False) <= 3500 + 20 - 1


@pytest.mark.parametrize("seed", [1, 2])
def test_tokens_without_correction_keep_every_minute(seed: int) -> None:
    """Counted at what was estimated, which nothing corrects: 95 % are used, and no minute has more than limit and burst."""
    api = Api(400.0, 1800, seed)
    api.tokens = hr.Limit(rate="90000/min", burst=3000, cost=lambda prompt: prompt.estimate)
    api.play()
    assert sum(cost for _, cost in api.starts) >= 0.95 * 90_000 * api.starts[-1][0] / 60.0
    assert api.most_in_a_minute(cost=True) < 90_000 + 3000


@pytest.mark.parametrize("seed", [1, 2])
def test_requests_bind(seed: int) -> None:
    """Small requests: 95 % of 3500 a minute are used, and no minute has more than those and the burst."""
    api = Api(10.0, 10_000, seed)
    api.play()
    assert len(api.starts) >= 0.95 * 3500 * api.starts[-1][0] / 60.0
    assert api.most_in_a_minute(cost=False) <= 3500 + 20 - 1
    assert api.most_in_a_minute(cost=True) < 90_000 + 3000


# ------------------------------------------------------------------------------------------- refusals


def test_eight_refusals_in_flight_are_one_event() -> None:
    """The level falls once, the key is held once for as long as was asked, and one rate is found."""
    limit = hr.Limit(by=lambda item: "host", concurrency=hr.Adaptive(8, 16))
    seen: list[tuple[float, int | None, float]] = []
    starts: list[float] = []

    async def call(number: int) -> None:
        at = asyncio.get_running_loop().time()
        starts.append(at)
        await asyncio.sleep(0.1 + 0.001 * number)
        if at == 0.0:
            key = limit.busiest(1)[0]
            seen.append((at, key.level, key.held_until))
            raise Status(429, 2)

    got = run(lambda: hr.map(call, range(8), concurrency=8, limits=[limit], retry=hr.Retry(attempts=3)))
    levels = [level for _, level, _ in seen]
    assert levels == [8] * 8  # `min` is 8
    held = [until for _, _, until in seen[1:]]
    assert 2.1 <= min(held) <= max(held) <= 2.1 + 0.21
    assert min(at for at in starts if at) >= max(held)
    assert len(got.done) == 8


def test_eight_refusals_in_flight_lower_the_level_once() -> None:
    """From sixteen the level falls to seven tenths, and not to seven tenths of that for each of them."""
    limit = hr.Limit(by=lambda item: "host", concurrency=hr.Adaptive(1, 16))
    levels: list[int | None] = []

    refused: set[int] = set()

    async def call(number: int) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        await asyncio.sleep(0.1 + 0.001 * (number % 8))
        levels.append(limit.busiest(1)[0].level)
        if at <= 3.0 < loop.time():
            refused.add(number)
            raise Status(429, 1)

    got = run(lambda: hr.map(call, range(300), concurrency=8, limits=[limit], retry=hr.Retry(attempts=3)))
    falls = [(before, after) for before, after in pairwise(levels) if after < before]  # type: ignore[operator]
    assert len(refused) == 8
    assert len(falls) == 1
    assert falls[0][1] == int(0.7 * falls[0][0])  # type: ignore[operator]
    assert len(got.done) == 300


def test_a_wait_holds_only_its_own_key() -> None:
    """While one host has asked for a minute, the other goes on as if it were alone."""
    limit = hr.Limit(by=lambda item: item[0], concurrency=hr.Adaptive(1, 16))
    starts: dict[str, list[float]] = {"a": [], "b": []}

    async def call(item: tuple[str, int]) -> None:
        starts[item[0]].append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)
        if item[0] == "a" and len(starts["a"]) == 1:
            raise Status(429, 60)

    items = [(key, number) for number in range(100) for key in "ab"]
    got = run(lambda: hr.map(call, items, concurrency=64, limits=[limit], retry=hr.Retry(attempts=3)))
    assert len(got.done) == 200
    assert starts["b"][-1] < 2.0
    assert starts["a"][1] >= 60.1


@pytest.mark.parametrize("counts", ["fixed", "sliding", "bucket"])
@pytest.mark.parametrize("halves", [False, True])
def test_a_server_that_takes_200_a_second(counts: str, halves: bool) -> None:
    """Nothing is given: from second 5 on 90 % are used and under 2 % refused; if it halves, ten seconds later again."""
    spec = HostSpec(0, 9000 if halves else 6000, counts, 200.0, median=0.04, sigma=0.2)
    if halves:
        spec = dataclasses.replace(spec, changes=(25.0, 0.5))
    played = play([spec], 5, concurrency=128)
    host = played.world.hosts[0]
    assert (played.violations, len(played.outcomes.failed)) == ([], 0)
    spans = [(SOME_SECONDS, 24.0), (35.0, host.last_first)] if halves else [(SOME_SECONDS, host.last_first)]
    for begin, end in spans:
        assert host.used(begin, end) >= 0.9
        assert host.refused_share(begin, end) < 0.02


@pytest.mark.parametrize("most", [1, 2, 3, 4])
@pytest.mark.parametrize(("median", "sigma"), [(0.1, 0.1), (0.1, 0.3), (0.25, 0.5)])
def test_a_host_that_counts_calls_at_once_and_asks_for_a_wait(most: int, median: float, sigma: float) -> None:
    """A 429 with Retry-After beyond so many at once is no rate: nine tenths of them are used, and under 2 % refused."""
    for seed in (1, 2, 3):
        host = play(
            [HostSpec(0, int(45 * most / median), most=most, median=median, sigma=sigma)], seed
        ).world.hosts[0]
        share = host.share()
        assert share is not None
        assert share >= 0.9
        assert host.refused_share(SOME_SECONDS, host.last_first) < 0.02


@pytest.mark.parametrize("counts", ["fixed", "sliding", "bucket"])
@pytest.mark.parametrize(("rate", "median"), [(3.0, 0.05), (6.0, 0.26), (12.0, 0.12)])
def test_a_host_that_counts_starts_and_does_not_say_when(counts: str, rate: float, median: float) -> None:
    """A 429 without Retry-After though as many at once were taken before is a rate: nine tenths of it are used."""
    shares, refused = [], []
    for seed in (1, 2, 3):
        spec = HostSpec(0, int(50 * rate), counts, rate, median=median, says_when=False)
        host = play([spec], seed).world.hosts[0]
        shares.append(host.share() or 0.0)
        refused.append(host.refused_share(SOME_SECONDS, host.last_first))
    assert min(shares) >= 0.85
    assert statistics.mean(shares) >= 0.9
    assert statistics.mean(refused) < 0.05


@pytest.mark.parametrize("says_when", [False, True])
def test_no_rate_is_found_where_calls_at_once_are_counted(says_when: bool) -> None:
    """What a host takes at once is kept by the level alone, which then needs no try of a rate."""
    played = play([HostSpec(0, 2000, most=4, median=0.1, says_when=says_when)], 1)
    assert played.world.limit.busiest(1)[0].found_rate is None


def test_hosts_are_drawn_alike() -> None:
    """A seed gives the same hosts each time, and the same run."""
    assert set_of_hosts(3, 20) == set_of_hosts(3, 20)
    runs = [play(set_of_hosts(3, 20), 3).world.starts for _ in range(2)]
    assert runs[0] == runs[1]
