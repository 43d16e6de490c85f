"""Simulated hosts for the tests of load control: what each takes, how long it takes, and when it is broken.

Rules:
1. Everything is drawn from a seed, each host's part from a seed of its own: without some hosts, the others are the same.
2. What is promised at every moment is looked at inside the calls; whatever breaks a promise is noted in `violations`.
3. A host is judged by what it could have done: how much of the limit that binds it was used while it had work.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any
from unittest import mock

import headrace as hr
from headrace.testing import run

__all__ = [
    "HostSpec",
    "Played",
    "Seeded",
    "Status",
    "World",
    "breaks_rate",
    "of_seed",
    "play",
    "set_of_hosts",
]

#: What `hr.Adaptive(1, 16)` allows at most, and how many seconds a host is given to be found out.
MOST = 16
SOME_SECONDS = 5.0
#: With fewer seconds of work after those, a share says nothing.
ENOUGH = 20.0
Item = tuple[int, int]


class Status(Exception):
    """What a client raises for an answer that is no success."""

    def __init__(self, status: int, retry_after: int | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


@dataclasses.dataclass(frozen=True)
class HostSpec:
    """One host. `rate` is what it takes a second, counted as `counts` says; `most` what it takes at once."""

    name: int
    items: int
    counts: str = "fixed"  #: "fixed": by the full second; "sliding": in any second; "bucket": refills, and holds a second
    rate: float | None = None
    most: int | None = None
    median: float = 0.05  #: seconds; latencies are log-normal
    sigma: float = 0.3
    says_when: bool = True  #: whether its 429 has a Retry-After
    faults: float = 0.0  #: the share of calls that end with a 500, whatever it has to do
    outage: str | None = None  #: "refused", "503" or "hangs", from `down` to `up`
    down: float = math.inf
    up: float = math.inf
    changes: tuple[float, float] | None = None  #: from when on it takes how many times as much

    @property
    def is_healthy(self) -> bool:
        """Whether it does what it is asked."""
        return self.outage is None and not self.faults


class Host:
    """A host while it is called."""

    def __init__(self, spec: HostSpec, seed: int) -> None:
        self.spec = spec
        self.rng = random.Random(seed * 1_000_003 + spec.name)
        self.running = 0
        self.starts: list[float] = []
        self.answers: list[tuple[float, float]] = []  # when a call that was answered began and ended
        self.refused: list[float] = []
        self.in_outage: list[float] = []  # the starts of the calls that met it down
        self.first_calls = 0
        self.last_first = 0.0  # when the last of its items was first called
        self._window, self._count = -1, 0
        self._times: deque[float] = deque()
        self._tokens, self._at = math.inf, 0.0

    async def serve(self) -> None:
        """Answer one call, or raise."""
        spec, rng, loop = self.spec, self.rng, asyncio.get_running_loop()
        began = loop.time()
        latency = spec.median * math.exp(spec.sigma * rng.gauss(0.0, 1.0))
        if spec.down <= began < spec.up:
            self.in_outage.append(began)
            if spec.outage == "hangs":
                await asyncio.sleep(86_400.0)
            await asyncio.sleep(0.1 * latency if spec.outage == "refused" else latency)
            raise ConnectionRefusedError if spec.outage == "refused" else Status(503)
        wait = self._refuses(began)
        if wait is not None:
            self.refused.append(began)
            await asyncio.sleep(min(latency, 0.02))
            raise Status(429, wait if spec.says_when else None)
        await asyncio.sleep(latency)
        self.answers.append((began, loop.time()))
        if spec.faults and rng.random() < spec.faults:
            raise Status(500)

    def takes(self, now: float) -> float:
        """Give what it takes a second at that time."""
        assert self.spec.rate is not None
        since, factor = self.spec.changes or (math.inf, 1.0)
        return self.spec.rate * (factor if now >= since else 1.0)

    def _refuses(self, now: float) -> int | None:
        """Give the Retry-After of a refusal, or None."""
        spec = self.spec
        if spec.most is not None and self.running > spec.most:
            return 1
        if spec.rate is None:
            return None
        rate = self.takes(now)
        if spec.counts == "fixed":
            if int(now) != self._window:
                self._window, self._count = int(now), 0
            if self._count >= rate:
                return max(1, math.ceil(self._window + 1 - now))
            self._count += 1
        elif spec.counts == "sliding":
            while self._times and self._times[0] <= now - 1.0:
                self._times.popleft()
            if len(self._times) >= rate:
                return 1
            self._times.append(now)
        else:
            self._tokens = min(max(1.0, rate), self._tokens + (now - self._at) * rate)
            self._at = now
            if self._tokens < 1.0:
                return 1
            self._tokens -= 1.0
        return None

    # ------------------------------------------------------------------ how it went

    def used(self, begin: float, end: float, most: float = MOST, rate: float = math.inf) -> float:
        """Give the share of the limit that binds it which was used in that time."""
        seconds = end - begin
        most = min(most, self.spec.most or math.inf)
        busy = sum(max(0.0, min(over, end) - max(began, begin)) for began, over in self.answers)
        share = busy / (most * seconds)
        if self.spec.rate is not None:
            since = self.spec.changes[0] if self.spec.changes else math.inf
            assert not begin < since < end
            rate = min(rate, self.takes(begin))
        if rate < math.inf:
            share = max(share, sum(begin <= began < end for began, _ in self.answers) / (rate * seconds))
        return share

    def share(self, rate: float = math.inf) -> float | None:
        """Give that from some seconds after its first call until it had no more work; None where that is too short."""
        begin, end = self.starts[0] + SOME_SECONDS, self.last_first
        return self.used(begin, end, rate=rate) if end - begin >= ENOUGH else None

    def refused_share(self, begin: float, end: float) -> float:
        """Give the share of its calls that it refused in that time."""
        refused = sum(begin <= at < end for at in self.refused)
        return refused / max(1, sum(begin <= at < end for at in self.starts))

    @property
    def finished(self) -> float:
        """When its last call was answered."""
        return max((over for _, over in self.answers), default=0.0)


class World:
    """All hosts of a run, and what is watched at every call."""

    def __init__(self, hosts: Iterable[HostSpec], seed: int, limit: hr.Limit, most: float = math.inf) -> None:
        self.hosts = {spec.name: Host(spec, seed) for spec in hosts}
        self.limit = limit
        self.most = most  # calls at once in all
        self.running = 0
        self.peak = 0
        self.starts: list[float] = []
        self.called: Counter[Item] = Counter()
        self.answered: Counter[Item] = Counter()
        self.violations: list[str] = []

    async def call(self, item: Item) -> Item:
        """Be the function of the stage."""
        host = self.hosts[item[0]]
        now = asyncio.get_running_loop().time()
        host.running += 1
        self.running += 1
        self._watch(host, now)
        host.starts.append(now)
        self.starts.append(now)
        self.called[item] += 1
        if self.called[item] == 1:
            host.last_first = now
        try:
            await host.serve()
        finally:
            host.running -= 1
            self.running -= 1
        self.answered[item] += 1
        return item

    def _watch(self, host: Host, now: float) -> None:
        state = self.limit._states[host.spec.name]
        if host.running > state.capacity or host.running > MOST:
            self.violations.append(f"host {host.spec.name} runs {host.running} of {state.capacity} at {now}")
        if state.held_until > now:
            self.violations.append(f"host {host.spec.name} is held until {state.held_until}, called at {now}")
        self.peak = max(self.peak, self.running)
        if self.running > self.most:
            self.violations.append(f"{self.running} calls of {self.most} at {now}")


@dataclasses.dataclass
class Played:
    """A run that is over."""

    world: World
    outcomes: hr.Outcomes[Any, Any]
    violations: list[str]

    def finish_of(self, names: Iterable[int]) -> float:
        """Give when these hosts were done, on the average."""
        ends = [self.world.hosts[name].finished for name in names]
        return sum(ends) / len(ends)

    def failed_at(self, names: Iterable[int]) -> int:
        """Count the failed items of these hosts."""
        some = set(names)
        return sum(each.item[0] in some for each in self.outcomes.failed)


def play(
    hosts: Sequence[HostSpec],
    seed: int,
    *,
    concurrency: int = 64,
    per_host_rate: tuple[int, int] | None = None,
    in_all: tuple[int, int, int] | None = None,
    attempts: int = 4,
    timeout: float = 2.0,
    window: int | None = None,
    in_turn: bool = False,
) -> Played:
    """Fetch everything of these hosts as `headrace fetch` would, and look whether each promise was kept.

    `per_host_rate` is a further limit by host, (starts a second, burst); `in_all` one over all: (starts a second, burst,
    calls at once). The window has room for all items unless it is given, so that no host's items keep others out.
    """
    limit = hr.Limit(by=host_of, concurrency=hr.Adaptive(1, MOST), breaker=hr.Breaker(), name="host")
    limits = [limit]
    if per_host_rate is not None:
        rate, burst = per_host_rate
        limits.append(hr.Limit(by=host_of, rate=f"{rate}/s", burst=burst, name="host rate"))
    if in_all is not None:
        rate, burst, most = in_all
        limits.append(hr.Limit(rate=f"{rate}/s", burst=burst, concurrency=most, name="all"))
    items = [(spec.name, number) for spec in hosts for number in range(spec.items)]
    if in_turn:
        items.sort(key=lambda item: item[1])
    else:
        places = {item: random.Random(f"{seed} {item}").random() for item in items}
        items.sort(key=places.__getitem__)
    most = min(concurrency, in_all[2] if in_all is not None else concurrency)
    world = World(hosts, seed, limit, most)
    # A run draws its jitter from a generator of its own, which nobody can seed from outside.
    with mock.patch("headrace.engine.run.Random", return_value=random.Random(seed)):
        outcomes = run(
            lambda: hr.map(
                world.call,
                items,
                concurrency=concurrency,
                limits=limits,
                timeout=timeout,
                retry=hr.Retry(attempts=attempts, budget=0.2),
                window=window or max(2048, len(items)),
            ),
            seed=seed,
        )
    violations = world.violations + list(_accounts(world, outcomes, items, attempts))
    for each in limits:
        now = each.statistics()
        if now.running or now.waiting:
            violations.append(f"limit {now.name}: {now.running} permits are out, {now.waiting} wait")
        if any(state.claims for state in each._all()):
            violations.append(f"limit {now.name}: claims are left")
    if per_host_rate is not None:
        for host in world.hosts.values():
            violations += breaks_rate(host.starts, *per_host_rate, what=f"host {host.spec.name}")
    if in_all is not None:
        violations += breaks_rate(world.starts, *in_all[:2], what="all hosts")
    return Played(world, outcomes, violations)


def host_of(item: Item) -> int:
    """Give the host of an item."""
    return item[0]


def _accounts(
    world: World, outcomes: hr.Outcomes[Any, Any], items: Sequence[Item], attempts: int
) -> Iterable[str]:
    report = outcomes.report
    if not report.balanced or report.taken != len(items) or report.returned:
        yield f"of {len(items)} items: {report.line()}"
    for name in {each.item[0] for each in outcomes.unfinished}:
        if world.hosts[name].spec.is_healthy:
            yield f"items of the healthy host {name} were parked"
    if [each.item for each in outcomes] != list(items):
        yield "the outcomes are not one for each item"
    if (len(outcomes.done), len(outcomes.failed)) != (report.done, report.failed):
        yield "the outcomes are not those of the report"
    if {each.item for each in outcomes.done} != set(world.answered):
        yield "what is done is not what was answered"
    for item, times in world.answered.items():
        if times != 1:
            yield f"{item} was done {times} times"
    for item, times in world.called.items():
        if times > attempts + 4 * (attempts - 1):  # those that were refused for load are counted apart
            yield f"{item} was called {times} times"


def breaks_rate(starts: Sequence[float], rate: float, burst: float, what: str = "") -> list[str]:
    """Look at every window between two of these starts, exactly: it holds at most rate x time + burst of them.

    That is what a bucket says that refills with `rate` and holds `burst`, told all starts one after the other.
    """
    per_call, slack = 1 / Fraction(rate), Fraction(burst) / Fraction(rate)
    paid = Fraction(0)
    for at in starts:
        now = Fraction(at)
        paid = max(paid, now) + per_call
        if paid - now > slack:
            return [f"{what}: a window that ends at {at} has more starts than {rate}/s and {burst} allow"]
    return []


# ------------------------------------------------------------------------------------------- seeded hosts


def set_of_hosts(seed: int, count: int = 200, *, sick: float = 0.1, long: float = 0.05) -> list[HostSpec]:
    """Draw hosts. `sick` is the share of those that are broken, `long` of those that have work for about a minute."""
    return [_draw(random.Random(f"{seed}/{name}"), name, sick, long) for name in range(count)]


def _draw(rng: random.Random, name: int, sick: float, long: float) -> HostSpec:
    kind = rng.choice(["fixed", "sliding", "bucket", "at once", "free"])
    median = math.exp(rng.uniform(math.log(0.005), math.log(0.3)))
    sigma = rng.uniform(0.1, 0.6)
    items = rng.randint(5, 25)
    rate: float | None = None
    most: int | None = None
    if kind == "at once":
        most, median = rng.randint(1, 4), max(median, 0.1)
    elif kind != "free":
        rate = float(rng.choice([2, 3, 4, 5, 6, 8, 10, 12]))
    mean = median * math.exp(sigma * sigma / 2)
    if rng.random() < long and kind != "free":
        items = int(rng.uniform(40.0, 60.0) * min(rate or math.inf, (most or MOST) / mean))
    spec = HostSpec(
        name, items, kind if rate else "fixed", rate, most, median, sigma, says_when=rng.random() < 0.6
    )
    if rng.random() >= sick:
        return spec
    manner = rng.choice(["refused", "503", "hangs", "faults", "gone"])
    if manner == "faults":
        return dataclasses.replace(spec, faults=rng.uniform(0.02, 0.2))
    if manner == "gone":  # from the first call on, for ever
        manner = rng.choice(["refused", "503", "hangs"])
        return dataclasses.replace(spec, items=min(items, 25), outage=manner, down=0.0)
    down = rng.uniform(0.0, 10.0)
    return dataclasses.replace(spec, outage=manner, down=down, up=down + rng.uniform(5.0, 30.0))


@dataclasses.dataclass
class Seeded:
    """What came of one seed: what was broken, and how well the hosts were used."""

    seed: int
    kind: str  #: the limits it ran under
    calls: int
    violations: list[str]
    shares: list[float]  #: of each host with enough work, or of the limit over all
    refused: float  #: of all calls to healthy hosts
    failed: int  #: items of healthy hosts
    slower: float | None  #: how much later the healthy hosts were done, on the average, because of the others
    last: float | None  #: the last one of them


KINDS = ("plain", "plain", "a rate by host", "limits over all", "few workers")


def of_seed(seed: int, count: int = 200, long: float = 0.05) -> Seeded:
    """Play one seed: hosts of which one in ten is sick, under limits that are drawn, too."""
    rng = random.Random(seed)
    hosts = set_of_hosts(seed, count, long=long)
    kind = KINDS[seed % len(KINDS)]
    options: dict[str, Any] = {"concurrency": 1024}
    if kind == "a rate by host":
        options["per_host_rate"] = (rng.randint(3, 20), rng.randint(1, 5))
    elif kind == "limits over all":
        options["in_all"] = (count * rng.randint(50, 120) // 200, rng.randint(1, 20), rng.randint(48, 128))
    elif kind == "few workers":
        options["concurrency"] = 64
    played = play(hosts, seed, **options)
    world, healthy = played.world, [spec for spec in hosts if spec.is_healthy]
    names = [spec.name for spec in healthy]
    shares: list[float] = []
    if kind == "limits over all":
        # As long as half of the healthy hosts have work: the few that are left later could not use it up.
        begin, end = SOME_SECONDS, sorted(world.hosts[name].last_first for name in names)[len(names) // 2]
        rate = options["in_all"][0]
        shares.append(sum(begin <= at < end for at in world.starts) / (rate * (end - begin)))
    elif kind != "few workers":
        rate = options.get("per_host_rate", (math.inf, 1))[0]
        for spec in healthy:
            share = world.hosts[spec.name].share(rate)
            if share is not None:
                shares.append(share)
    slower = last = None
    violations = played.violations
    if "in_all" not in options and kind != "few workers":
        alone = play(healthy, seed, **options)
        violations = violations + alone.violations
        slower = played.finish_of(names) / alone.finish_of(names) - 1.0
        ends = [max(one.world.hosts[name].finished for name in names) for one in (played, alone)]
        last = ends[0] / ends[1] - 1.0
    calls = sum(len(world.hosts[name].starts) for name in names)
    refused = sum(len(world.hosts[name].refused) for name in names)
    return Seeded(
        seed, kind, len(world.starts), violations, shares, refused / calls, played.failed_at(names), slower, last
    )  # fmt: skip
