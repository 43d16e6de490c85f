"""Hedging in a run: the tail falls, nothing is exceeded, losers end, and whatever happens every item is settled once."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import headrace as hr
from headrace.engine.hedging import HedgingCaller
from headrace.engine.stage import PATIENCE, Caller
from headrace.ports import current_call
from headrace.testing import cancel_everywhere, run
from headrace.testing.cancel import Ending

QUICK = 0.1
WARM = 60
#: When a copy of a slow call starts: after the class of latencies that the quick ones are in.
SLOW_FROM, SLOW_TO = QUICK, QUICK * 1.1 + 1e-4

Special = Callable[[], Awaitable[Any]]


def now() -> float:
    return asyncio.get_running_loop().time()


async def sleeps(seconds: float, value: Any = None) -> Any:
    await asyncio.sleep(seconds)
    return value


async def fails(seconds: float, error: Exception) -> Any:
    await asyncio.sleep(seconds)
    raise error


async def never_ends(seconds: float) -> Any:
    """Take no notice of being cancelled, for so long."""
    until = now() + seconds
    while now() < until:
        try:
            await asyncio.sleep(until - now())
        except asyncio.CancelledError:
            continue
    return "late"


class Service:
    """Answers in a tenth of a second, but for `special[item, number]`, the number of the call for this item from 1.

    Its items are some warm ones, then a pause, then those of the test, all at once.
    """

    def __init__(self, special: dict[tuple[Any, int], Special] | None = None) -> None:
        self.special = special or {}
        self.calls: Counter[Any] = Counter()
        self.seen: list[tuple[Any, int, str, float]] = []
        self.running = self.most = 0

    async def call(self, item: Any) -> Any:
        self.calls[item] += 1
        number = self.calls[item]
        self._saw(item, number, "began")
        self.running += 1
        self.most = max(self.most, self.running)
        how = "cancelled"
        try:
            special = self.special.get((item, number))
            result = await (special() if special is not None else sleeps(QUICK, (item, number)))
            how = "done"
            return result
        except Exception:
            how = "failed"
            raise
        finally:
            self.running -= 1
            self._saw(item, number, how)

    def _saw(self, item: Any, number: int, what: str) -> None:
        self.seen.append((item, number, what, now()))

    def when(self, item: Any, number: int, what: str) -> float | None:
        """Say when that happened, after the pause; None where it did not."""
        found = [at for one, n, w, at in self.seen if (one, n, w) == (item, number, what)]
        return found[0] - 100.0 if found else None

    async def items(self, *items: Any) -> AsyncIterator[Any]:
        for number in range(WARM):
            yield f"warm {number}"
        await asyncio.sleep(100.0 - now())
        for item in items:
            yield item

    def map(self, *items: Any, **options: Any) -> hr.Outcomes[Any]:
        options = {"concurrency": 80, "effect": "safe", "hedge": 0.1, **options}
        got = run(lambda: hr.map(self.call, self.items(*items), **options))
        assert got.report.balanced
        assert self.running == 0, "a call outlived the run"
        return got


def stage(got: hr.Outcomes[Any]) -> Any:
    return got.report.stages[0]


# ---------------------------------------------------------------------------------------------- what it is for


def tail(hedge: float | None, seed: int) -> tuple[float, hr.Outcomes[Any], int]:
    """Call a service that answers one call in a hundred 50 times slower; give the p99.9, and the most calls at once."""
    rng = random.Random(seed)
    running = most = 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(rng.uniform(0.08, 0.12) * (50 if rng.random() < 0.01 else 1))
        finally:
            running -= 1
        return number

    async def items() -> AsyncIterator[int]:
        for number in range(10_000):
            await asyncio.sleep(rng.expovariate(200))
            yield number

    got = run(lambda: hr.map(call, items(), concurrency=60, effect="safe", hedge=hedge))
    assert got.report.done == 10_000
    took = sorted(outcome.elapsed for outcome in got.done)
    return took[9989], got, most


@pytest.mark.parametrize("seed", [1, 2])
def test_the_tail_falls(seed: int) -> None:
    """One call in a hundred is 50 times slower: the p99.9 falls to a tenth, for about one more call in a hundred."""
    without, plain, _ = tail(None, seed)
    with_it, got, most = tail(0.05, seed)
    assert stage(plain).copies == 0
    assert without > 5.0
    assert with_it < 0.5
    copies, won = stage(got).copies, stage(got).copies_won
    assert 0.005 * 10_000 < copies <= 0.02 * 10_000
    assert won >= 0.9 * copies
    assert stage(got).attempts == 10_000 + copies
    assert most <= 60
    assert f"{copies} slow calls" in str(got.report)


def test_few_items_are_helped_too() -> None:
    """Where all calls begin at once, the last few are watched when the others have ended."""
    service = Service({(3, 1): lambda: sleeps(300), (40, 1): lambda: sleeps(300)})
    got = run(lambda: hr.map(service.call, range(90), concurrency=100, effect="safe", hedge=0.05))
    assert got.report.elapsed < 3 * QUICK
    assert (stage(got).copies, stage(got).copies_won) == (2, 2)
    assert [got.values[3], got.values[40]] == [(3, 2), (40, 2)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
def test_the_extra_load_is_never_more_than_its_share(share: float) -> None:
    """A server that turns ten times slower all at once is not asked twice as much."""
    calls = copies = 0

    async def call(number: int) -> None:
        nonlocal calls, copies
        if current_call.get().position in begun:
            copies += 1
        else:
            calls += 1
            begun.add(number)
        assert copies <= share * calls + 1e-6
        await asyncio.sleep(QUICK * (10 if calls > 1000 else 1) * rng.uniform(0.9, 1.1))

    async def items() -> AsyncIterator[int]:
        for number in range(2000):
            await asyncio.sleep(0.005)
            yield number

    rng = random.Random(1)
    begun: set[int] = set()
    got = run(lambda: hr.map(call, items(), concurrency=1000, effect="safe", hedge=share))
    assert got.report.done == 2000
    assert stage(got).copies == copies > 0


def test_hosts_differ() -> None:
    """With a keyed limit what is slow is told for each key: a slow host's usual answer is not slow."""
    durations = {"quick": 0.05, "slow": 2.0}

    async def call(item: tuple[str, int]) -> None:
        await asyncio.sleep(durations[item[0]])

    async def items() -> AsyncIterator[tuple[str, int]]:
        for number in range(400):
            await asyncio.sleep(0.02)
            yield "slow" if number % 4 == 0 else "quick", number

    for limits, hedged in (([hr.Limit(by=lambda item: item[0], concurrency=150)], False), ([], True)):
        got = run(
            lambda limits=limits: hr.map(
                call, items(), concurrency=300, effect="safe", hedge=0.2, limits=limits
            )
        )
        assert (stage(got).copies > 0) is hedged


# ---------------------------------------------------------------------------------------------- who wins


def test_a_call_that_lost_is_cancelled_at_once() -> None:
    """The copy's result is the item's; the call ends in that moment, and is one attempt."""
    service = Service({("x", 1): lambda: sleeps(50)})
    got = service.map("x")
    assert got.values[-1] == ("x", 2)
    assert got.done[-1].attempts == 1
    began, done = service.when("x", 2, "began"), service.when("x", 2, "done")
    assert began is not None
    assert SLOW_FROM <= began <= SLOW_TO
    assert service.when("x", 1, "cancelled") == done == pytest.approx(began + QUICK)
    assert (stage(got).copies, stage(got).copies_won, stage(got).attempts) == (1, 1, WARM + 2)
    assert stage(got).busy == pytest.approx(WARM * QUICK + began + 2 * QUICK)


def test_a_copy_that_lost_is_cancelled_at_once() -> None:
    """The call's own result counts when it is there first; the copy ends in that moment, and the run waits for it."""
    ended: list[float] = []

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(50)
        finally:
            await asyncio.sleep(2)
            ended.append(now() - 100.0)

    service = Service({("x", 1): lambda: sleeps(0.15, "own"), ("x", 2): cleans_up})
    got = service.map("x")
    assert got.values[-1] == "own"
    assert got.done[-1].elapsed == pytest.approx(0.15)
    assert ended == [pytest.approx(2.15)]
    assert (stage(got).copies, stage(got).copies_won, stage(got).attempts) == (1, 0, WARM + 2)
    assert got.report.abandoned == 0


def test_a_copy_that_fails_does_not_end_the_call() -> None:
    """The call goes on, and gives its result."""
    service = Service({("x", 1): lambda: sleeps(1, "own"), ("x", 2): lambda: fails(0.1, OSError("copy"))})
    got = service.map("x")
    assert got.values[-1] == "own"
    assert service.when("x", 1, "done") == pytest.approx(1)
    assert (stage(got).failures, stage(got).copies_won) == (1, 0)


def test_a_call_that_fails_waits_for_its_copy() -> None:
    """The copy's result counts, and the item has not failed."""
    service = Service({("x", 1): lambda: fails(0.2, OSError("own")), ("x", 2): lambda: sleeps(3, "copy")})
    got = service.map("x", retry=hr.Retry(attempts=3))
    assert got.values[-1] == "copy"
    assert got.done[-1].attempts == 1
    assert (stage(got).failures, stage(got).copies_won) == (1, 1)


@pytest.mark.parametrize("first", [0.2, 0.6])
def test_if_both_fail_the_calls_own_error_counts(first: float) -> None:
    """Whichever fails first, and it is one attempt."""
    own, copied = OSError("own"), OSError("copy")
    service = Service({("x", 1): lambda: fails(first, own), ("x", 2): lambda: fails(0.3, copied)})
    got = service.map("x")
    assert [failure.error for failure in got.failed] == [own]
    assert got.failed[0].attempts == 1
    assert (stage(got).failures, stage(got).copies, stage(got).attempts) == (2, 1, WARM + 2)


def test_an_attempt_is_repeated_with_a_copy_of_its_own() -> None:
    """A copy is no attempt: attempts=2 allows two calls, and each of them a copy."""
    service = Service(
        {
            ("x", 1): lambda: fails(0.2, OSError("1")),
            ("x", 2): lambda: fails(0.3, OSError("copy of 1")),
            ("x", 3): lambda: sleeps(50),
            ("x", 4): lambda: sleeps(0.3, "copy of 2"),
        }
    )
    got = service.map("x", retry=hr.Retry(attempts=2, on=OSError, base=0, cap=0))
    assert got.values[-1] == "copy of 2"
    assert got.done[-1].attempts == 2
    assert (stage(got).copies, stage(got).copies_won) == (2, 1)


@pytest.mark.parametrize("error", [hr.Skip("unwanted"), hr.GiveUp("hopeless")])
def test_a_function_that_decides_is_not_overruled(error: Exception) -> None:
    """Skip and GiveUp of the call itself end it, though its copy still runs."""
    service = Service({("x", 1): lambda: fails(0.2, error), ("x", 2): lambda: sleeps(50)})
    got = service.map("x")
    assert service.when("x", 2, "cancelled") == pytest.approx(0.2)
    assert (got.report.skipped, got.report.failed) == ((1, 0) if isinstance(error, hr.Skip) else (0, 1))


def test_a_copy_that_cancels_itself_has_failed() -> None:
    """As a function that does so anywhere; a call that does so has failed as well."""

    async def cancels_itself() -> None:
        await asyncio.sleep(0.15)
        raise asyncio.CancelledError

    service = Service({("x", 1): lambda: sleeps(1, "own"), ("x", 2): cancels_itself})
    assert service.map("x").values[-1] == "own"
    service = Service({("x", 1): cancels_itself, ("x", 2): lambda: sleeps(50)})
    got = service.map("x", "y")
    assert "cancelled itself" in str(got.failed[0].error)
    assert got.done[-1].value == ("y", 1)


def test_a_copy_that_ends_with_no_exception_costs_nothing() -> None:
    """What Rust's panics are: the call goes on, and the run too."""

    class Panic(BaseException):
        pass

    async def panics() -> None:
        await asyncio.sleep(0.1)
        raise Panic

    service = Service({("x", 1): lambda: sleeps(1, "own"), ("x", 2): panics})
    got = service.map("x")
    assert got.values[-1] == "own"
    assert stage(got).failures == 1


def test_a_call_that_panics_while_it_loses_costs_its_item_only() -> None:
    """Its worker is replaced, its permits and the copy's are back."""

    class Panic(BaseException):
        pass

    async def panics() -> None:
        try:
            await asyncio.sleep(50)
        finally:
            raise Panic

    service = Service({("x", 1): panics, ("y", 1): lambda: sleeps(1), ("z", 1): lambda: sleeps(1)})

    async def items() -> AsyncIterator[str]:
        async for item in service.items("x"):
            yield item
        await asyncio.sleep(10)
        yield "y"
        yield "z"

    limit = hr.Limit(concurrency=2)
    got = run(lambda: hr.map(service.call, items(), concurrency=2, effect="safe", hedge=0.1, limits=[limit]))
    assert "Panic" in str(got.failed[0].error)
    assert limit.statistics().running == 0
    assert service.when("y", 1, "began") == service.when("z", 1, "began")


def test_what_a_losing_call_raises_counts_for_nothing() -> None:
    """A library may make another error of being cancelled, or a result: the copy's result stands."""

    async def translates(end: Callable[[], Any]) -> Any:
        try:
            await asyncio.sleep(50)
        except asyncio.CancelledError:
            return end()

    def raises() -> None:
        raise OSError("aborted")

    for end in (raises, lambda: "own"):
        service = Service({("x", 1): lambda end=end: translates(end)})
        assert service.map("x", "y").values[-2:] == [("x", 2), ("y", 1)]


# ---------------------------------------------------------------------------------------------- places and limits


def test_a_copy_waits_for_no_place_and_takes_none_from_an_item() -> None:
    """While every place is taken no copy starts; at the end, when places are idle, it does."""
    service = Service({(100, 1): lambda: sleeps(500)})
    got = run(lambda: hr.map(service.call, range(400), concurrency=4, effect="safe", hedge=1.0))
    assert service.most == 4
    began = [at for item, number, what, at in service.seen if (number, what) == (2, "began")]
    others = [at for item, number, what, at in service.seen if item != 100 and what == "began"]
    assert len(began) == stage(got).copies == 1
    assert began[0] > max(others)
    assert got.report.elapsed < 30


def test_a_copy_counts_against_the_places() -> None:
    """With one idle place one copy runs, and an item that comes meanwhile waits for a place."""
    special: dict[tuple[Any, int], Special] = {(name, 1): lambda: sleeps(5, "own") for name in "abc"}
    special |= {(name, 2): lambda: sleeps(50) for name in "abc"}
    service = Service(special)

    async def items() -> AsyncIterator[str]:
        async for item in service.items("a", "b", "c"):
            yield item
        await asyncio.sleep(1)
        yield "d"

    got = run(lambda: hr.map(service.call, items(), concurrency=4, effect="safe", hedge=1.0))
    assert service.most == 4
    assert stage(got).copies == 1
    assert service.when("d", 1, "began") == pytest.approx(5)
    assert got.report.done == WARM + 4


def test_a_copy_has_permits_of_its_own_or_does_not_start() -> None:
    """A limit of one call at once is never exceeded, and one of two takes the copy in."""
    for concurrency, copies in ((1, 0), (2, 1)):
        service = Service({("x", 1): lambda: sleeps(5, "own")})
        limit = hr.Limit(by=lambda item: item[0], concurrency=concurrency)

        async def items(service: Service = service) -> AsyncIterator[str]:
            async for item in service.items():
                yield f"x{item}"
            yield "x"

        got = run(
            lambda items=items, service=service, limit=limit: hr.map(
                service.call, items(), concurrency=80, effect="safe", hedge=1.0, limits=[limit]
            )
        )
        assert service.most <= concurrency
        assert stage(got).copies == copies
        assert (limit.statistics().running, limit.statistics().waiting) == (0, 0)


def test_no_rate_is_exceeded() -> None:
    """Copies count as starts: no second holds more starts than the rate allows, and slow calls are helped all the same."""
    starts: list[float] = []
    rng = random.Random(5)

    async def call(number: int) -> None:
        starts.append(now())
        await asyncio.sleep(rng.uniform(0.08, 0.12) * (100 if rng.random() < 0.02 else 1))

    async def items() -> AsyncIterator[int]:
        for number in range(2000):
            await asyncio.sleep(0.025)
            yield number

    got = run(
        lambda: hr.map(
            call,
            items(),
            concurrency=100,
            effect="safe",
            hedge=0.1,
            limits=[hr.Limit(rate="50/s"), hr.Limit(rate="45/s", burst=5, by=lambda number: 0)],
        )
    )
    assert len(starts) == 2000 + stage(got).copies
    assert stage(got).copies_won > 20
    for limit, burst in ((50, 1), (45, 5)):
        for first, at in enumerate(starts):
            within = [other for other in starts[first : first + limit + burst + 1] if other < at + 1 - 1e-6]
            assert len(within) <= limit + burst


def test_what_a_copy_cost_is_corrected() -> None:
    """actual= is asked of each result that came: of the copy that won, not of the call that was cancelled."""
    asked: list[Any] = []

    def actual(result: Any) -> float:
        asked.append(result)
        return 1

    service = Service({("x", 1): lambda: sleeps(50)})
    limit = hr.Limit(rate=1000, burst=1000, cost=2, actual=actual)
    service.map("x", limits=[limit])
    assert len(asked) == WARM + 1
    assert asked[-1] == ("x", 2)


class TooMany(Exception):
    """What a client raises for a 429."""

    status = 429


@pytest.mark.parametrize(
    ("own", "copied", "falls"),
    [
        (lambda: sleeps(5, "own"), lambda: fails(0.1, TooMany()), True),
        (lambda: fails(0.2, TooMany()), lambda: sleeps(1, "copy"), True),
        (lambda: sleeps(0.3, "own"), lambda: sleeps(50), False),
        (lambda: sleeps(50), lambda: sleeps(0.3, "copy"), False),
    ],
)
def test_levels_learn_of_both(own: Special, copied: Special, falls: bool) -> None:
    """A level falls where either was refused; one that was cancelled because it lost says nothing."""
    limit = hr.Limit(concurrency=hr.Adaptive(64, 128))
    service = Service({("x", 1): own, ("x", 2): copied})
    got = service.map("x", limits=[limit])
    assert got.report.failed == 0
    assert stage(got).copies == 1
    level = limit.statistics().level
    assert level is not None
    assert (level < 100) is falls


def test_a_copy_that_is_told_to_wait_holds_its_key() -> None:
    """RetryAfter(hold=True) of a copy holds the key for others, though the call goes on."""
    service = Service(
        {("x", 1): lambda: sleeps(5, "own"), ("x", 2): lambda: fails(0.1, hr.RetryAfter(30, hold=True))}
    )

    async def items() -> AsyncIterator[str]:
        async for item in service.items("x"):
            yield item
        await asyncio.sleep(1)
        yield "y"

    limit = hr.Limit(concurrency=80)
    got = run(lambda: hr.map(service.call, items(), effect="safe", hedge=0.1, limits=[limit]))
    assert got.report.failed == 0
    assert (service.when("y", 1, "began") or 0.0) >= 30


def test_a_copy_that_goes_on_to_another_key_changes_its_own_permits() -> None:
    """`readmit` of a copy leaves the call's permits alone, and all are back in the end."""
    held: list[tuple[int, int]] = []
    limit = hr.Limit(by=lambda item: item if item in "xz" else "x", concurrency=70)

    def running(key: str) -> int:
        return sum(each.running for each in limit.busiest(10) if each.key == key)

    async def moves() -> Any:
        await asyncio.sleep(0.15)
        await current_call.get().readmit("z")
        held.append((running("x"), running("z")))
        return await sleeps(1, "copy")

    service = Service({("x", 1): lambda: sleeps(50), ("x", 2): moves})
    assert service.map("x", limits=[limit], timeout=20).values[-1] == "copy"
    assert held == [(1, 1)]
    assert limit.statistics().running == 0


# ---------------------------------------------------------------------------------------------- time limits and stops


@pytest.mark.parametrize("options", [{"timeout": 2}, {"within": 2}])
def test_a_time_limit_ends_both(options: dict[str, Any]) -> None:
    """The attempt has one time limit, the copy's own included."""
    service = Service({("x", 1): lambda: sleeps(50), ("x", 2): lambda: sleeps(50)})
    got = service.map("x", "y", **options)
    assert isinstance(got.failed[0].error, hr.TimedOut)
    assert service.when("x", 1, "cancelled") == service.when("x", 2, "cancelled") == pytest.approx(2)
    assert (got.done[-1].value, stage(got).copies) == (("y", 1), 1)


def test_a_failed_call_has_failed_with_its_own_error_when_time_is_up_for_its_copy() -> None:
    """The time limit ends the copy that it waited for."""
    service = Service({("x", 1): lambda: fails(0.2, OSError("own")), ("x", 2): lambda: sleeps(50)})
    got = service.map("x", timeout=2)
    assert str(got.failed[0].error) == "own"
    assert service.when("x", 2, "cancelled") == pytest.approx(2)


def test_a_result_counts_though_the_loser_takes_its_time() -> None:
    """A call that lost, and cleans up beyond the time limit, has not timed out."""

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(50)
        finally:
            await asyncio.sleep(3)

    service = Service({("x", 1): cleans_up})
    got = service.map("x", "y", timeout=2)
    assert got.values[-2:] == [("x", 2), ("y", 1)]


def test_a_call_that_lost_and_will_not_end_is_given_up() -> None:
    """The copy's result is handed on all the same, permits stay with the call, and it is counted."""
    limit = hr.Limit(concurrency=80)
    service = Service({("x", 1): lambda: never_ends(60)})

    async def main() -> Any:
        async with (
            hr.Flow(service.items("x", "y"))
            .map(service.call, concurrency=80, effect="safe", hedge=0.1, limits=[limit], ordered=True)
            .stream() as outcomes
        ):
            values = [outcome.value async for outcome in outcomes]
        then = limit.statistics().running
        await asyncio.sleep(100)
        return values, outcomes.report, then

    values, report, then = run(main)
    assert values[-2:] == [("x", 2), ("y", 1)]
    assert report.abandoned == report.stages[0].abandoned == 1
    assert (then, limit.statistics().running) == (1, 0)
    assert report.elapsed < 100 + PATIENCE + 2


def test_a_copy_that_lost_and_will_not_end_is_given_up() -> None:
    """Its item goes on at once; the run ends without it, and counts it."""
    limit = hr.Limit(concurrency=80)
    service = Service({("x", 1): lambda: sleeps(0.2, "own"), ("x", 2): lambda: never_ends(60)})

    async def main() -> Any:
        got = await hr.map(
            service.call, service.items("x"), concurrency=80, effect="safe", hedge=0.1, limits=[limit]
        )
        then = limit.statistics().running
        await asyncio.sleep(100)
        return got, then

    got, then = run(main)
    assert got.values[-1] == "own"
    assert got.done[-1].elapsed == pytest.approx(0.2)
    assert got.report.abandoned == stage(got).abandoned == 1
    assert (then, limit.statistics().running) == (1, 0)
    assert got.report.elapsed < 100 + 2 * PATIENCE


@pytest.mark.parametrize("which", [1, 2])
def test_a_stop_gives_up_what_will_not_end(which: int) -> None:
    """Cancelled in the middle of a race, with one of the two swallowing that: nothing hangs, all is accounted for."""
    service = Service({("x", 1): lambda: sleeps(500), ("x", 2): lambda: sleeps(500)})
    service.special["x", which] = lambda: never_ends(60)

    async def main() -> hr.Report:
        flow = hr.Flow(service.items("x")).map(service.call, concurrency=80, effect="safe", hedge=0.1)
        async with flow.start(grace=2) as job:
            await asyncio.sleep(101)
            job.stop()
            report = await job.wait()
        await asyncio.sleep(100)
        return report

    report = run(main)
    assert (report.balanced, report.returned, report.abandoned) == (True, 1, 1)


def test_a_drain_lets_a_race_end_and_begins_none() -> None:
    """A copy under way may win; a call that turns slow during the drain gets none."""
    service = Service(
        {
            ("x", 1): lambda: sleeps(50),
            ("x", 2): lambda: sleeps(3, "copy"),
            ("y", 1): lambda: sleeps(6, "own"),
        }
    )

    async def items() -> AsyncIterator[str]:
        async for item in service.items("x"):
            yield item
        await asyncio.sleep(0.95)
        yield "y"
        await asyncio.sleep(50)

    async def main() -> hr.Report:
        flow = hr.Flow(items()).map(service.call, concurrency=80, effect="safe", hedge=1.0)
        async with flow.start() as job:
            await asyncio.sleep(101)
            job.stop()
            return await job.wait()

    report = run(main)
    assert (report.done, report.returned, report.balanced) == (WARM + 2, 0, True)
    assert report.stages[0].copies == 1
    assert service.calls["y"] == 1


def test_a_pause_begins_no_copy() -> None:
    """Paused, nothing starts; resumed, the call that is still slow gets its copy."""
    service = Service({("x", 1): lambda: sleeps(50)})

    async def main() -> hr.Report:
        flow = hr.Flow(service.items("x")).map(service.call, concurrency=80, effect="safe", hedge=0.1)
        async with flow.start() as job:
            await asyncio.sleep(100.05)
            job.pause()
            await asyncio.sleep(4)
            assert service.calls["x"] == 1
            job.resume()
            return await job.wait()

    report = run(main)
    assert report.elapsed < 110
    assert report.stages[0].copies_won == 1


def test_whatever_is_cancelled_whenever_permits_are_conserved() -> None:
    """Cancelled at each point, once and twice: no task is left, no permit is held, nobody waits, claims are dropped."""
    limits: list[hr.Limit] = []
    services: list[Service] = []

    async def job() -> None:
        limits[:] = [
            hr.Limit(concurrency=hr.Adaptive(40, 80), by=lambda item: "host"),
            hr.Limit(concurrency=50, rate=10_000, burst=100),
        ]
        service = Service(
            {
                ("a", 1): lambda: sleeps(5),
                ("b", 1): lambda: sleeps(0.16),
                ("b", 2): lambda: sleeps(5),
                ("c", 1): lambda: fails(0.15, OSError("own")),
                ("c", 2): lambda: sleeps(0.3),
                ("d", 1): lambda: fails(0.15, OSError("own")),
                ("d", 2): lambda: fails(0.3, OSError("copy")),
            }
        )
        services[:] = [service]
        items = [f"warm {number}" for number in range(22)]

        async def source() -> AsyncIterator[str]:
            for item in items:
                yield item
            await asyncio.sleep(0.5)
            for item in "abcd":
                yield item

        got = await hr.map(service.call, source(), concurrency=40, effect="safe", hedge=1.0, limits=limits)
        assert stage(got).copies == 4

    def check(ending: Ending) -> None:
        assert services[0].running == 0
        for limit in limits:
            known = limit.statistics()
            assert (known.running, known.waiting) == (0, 0)
            assert all(state.claims == 0 for state in limit._all())

    for times in (1, 2):
        assert cancel_everywhere(job, check, times=times) > 40


@pytest.mark.parametrize("after", [0.05, 0.15, 0.25, 0.31, 0.5, 1.5, 2.5])
def test_a_loop_that_ends_takes_a_race_with_it(after: float) -> None:
    """All tasks are cancelled by the loop's owner, at any stage of a race: nothing hangs, permits are back."""

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(50)
        finally:
            await asyncio.sleep(2)

    service = Service(
        {
            ("x", 1): cleans_up,
            ("x", 2): lambda: sleeps(0.2),
            ("y", 1): lambda: fails(0.2, OSError("own")),
            ("y", 2): lambda: sleeps(1),
            ("z", 1): lambda: sleeps(0.2),
            ("z", 2): cleans_up,
        }
    )
    limit = hr.Limit(concurrency=80)
    tasks: list[asyncio.Task[Any]] = []

    async def main() -> None:
        items = service.items("x", "y", "z")
        mapping = hr.map(
            service.call, items, concurrency=80, effect="safe", hedge=0.5, limits=[limit], timeout=9
        )
        tasks.append(asyncio.get_running_loop().create_task(mapping))
        await asyncio.sleep(100 + after)

    run(main)
    assert tasks[0].done()
    assert service.running == 0
    assert (limit.statistics().running, limit.statistics().waiting) == (0, 0)


# ---------------------------------------------------------------------------------------------- what a call sees


def test_a_copy_is_the_same_call_in_a_context_of_its_own() -> None:
    """Position, attempt and key are the call's; what a call leaves in its context is not seen in the copy."""
    seen: list[tuple[Any, ...]] = []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def call(number: int) -> int:
        mine = current_call.get()
        seen.append((number, mine.position, mine.attempt, mine.idempotency_key, variable.get(), id(mine)))
        variable.set("set by a call")
        is_first = len([1 for each in seen if each[0] == number]) == 1
        await asyncio.sleep(50 if number == WARM and is_first else QUICK)
        assert current_call.get() is mine
        assert mine.position == number
        assert mine.deadline is not None
        return number

    async def items() -> AsyncIterator[int]:
        for number in range(WARM):
            yield number
        await asyncio.sleep(10)
        yield WARM

    async def main() -> Any:
        variable.set("outside")
        return await hr.map(call, items(), concurrency=80, effect="safe", hedge=0.1, timeout=100)

    got = run(main)
    assert got.report.done == WARM + 1
    own, copied = [each for each in seen if each[0] == WARM]
    assert own[:4] == copied[:4]
    assert own[5] != copied[5]
    assert copied[4] == "outside"


def test_a_stage_without_hedge_is_as_it_was() -> None:
    """Its caller is the plain one, and calls the function itself."""
    from headrace.engine.run import Run

    callers: list[Caller] = []
    build = Run._build

    def spy(self: Run) -> None:
        build(self)
        callers.extend(self.callers)

    async def call(number: int) -> int:
        return number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_build", spy)
        run(lambda: hr.map(call, [1], effect="safe"))
        run(lambda: hr.map(call, [1], effect="safe", hedge=0.1))
    assert [type(caller) for caller in callers] == [Caller, HedgingCaller]
    assert callers[0]._call is call


def test_order_and_batches_come_after_races() -> None:
    """Ordered values leave in order, and a batch does not wait for a loser."""

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(50)
        finally:
            await asyncio.sleep(2)

    service = Service({("x", 1): lambda: sleeps(0.2, "own"), ("x", 2): cleans_up})
    batches: list[tuple[float, list[Any]]] = []

    async def keep(values: list[Any]) -> None:
        batches.append((now() - 100, values))

    flow = (
        hr.Flow(service.items("x", "y"))
        .map(service.call, concurrency=80, effect="safe", hedge=0.1, ordered=True)
        .batch(1000)
        .map(keep)
    )
    report = run(flow.run)
    assert report.done == WARM + 2
    ((at, values),) = batches
    assert at == pytest.approx(0.2)
    assert values[-2:] == ["own", ("y", 1)]


def test_no_copy_is_made_for_what_has_failed_already() -> None:
    """A slow child whose sibling failed gets none; another one does."""
    calls: Counter[Any] = Counter()

    async def spread(item: int) -> list[tuple[int, str]]:
        if item < WARM:
            return [(item, "quick")]
        return [(item, "bad"), (item, "slow")] if item == WARM else [(item, "slow")]

    async def call(child: tuple[int, str]) -> None:
        calls[child] += 1
        if child[1] == "bad":
            await asyncio.sleep(QUICK / 2)
            raise OSError("bad")
        await asyncio.sleep(3 if child[1] == "slow" else QUICK)

    async def items() -> AsyncIterator[int]:
        for number in range(WARM):
            yield number
        await asyncio.sleep(10)
        yield WARM
        yield WARM + 1

    flow = hr.Flow(items()).flat_map(spread).map(call, concurrency=80, effect="safe", hedge=1.0)
    report = run(flow.run)
    assert (report.failed, report.done) == (1, WARM + 1)
    assert (calls[WARM, "slow"], calls[WARM + 1, "slow"]) == (1, 2)


def test_screens_and_listeners_see_copies() -> None:
    """Statistics count copies that were started and that came first; a running copy is a call in flight."""
    service = Service({("x", 1): lambda: sleeps(50), ("x", 2): lambda: sleeps(5)})

    async def main() -> tuple[Any, Any]:
        flow = hr.Flow(service.items("x")).map(service.call, concurrency=80, effect="safe", hedge=0.1)
        async with flow.start() as job:
            await asyncio.sleep(101)
            during = job.statistics().stages[0]
            await job.wait()
        return during, job.statistics().stages[0]

    during, after = run(main)
    assert (during.running, during.copies, during.copies_won) == (2, 1, 0)
    assert (after.running, after.copies, after.copies_won) == (0, 1, 1)


async def a_call(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda flow: flow.map(a_call, effect="safe", hedge=5), "hedge=5: give the share"),
        (lambda flow: flow.map(a_call, hedge=0.05), 'effect="safe"'),
        (lambda flow: flow.map(a_call, hedge=0.05, effect="once"), 'effect="safe"'),
        (lambda flow: flow.map(len, hedge=0.05, effect="safe"), "needs an async function"),
        (lambda flow: flow.map(len, lane="loop", hedge=0.05, effect="safe"), "needs an async function"),
        (lambda flow: flow.map(len, lane="auto", hedge=0.05, effect="safe"), "needs an async function"),
        (lambda flow: flow.map(len, lane="process", hedge=0.05, effect="safe"), "needs an async function"),
        (lambda flow: flow.map(a_call, concurrency=1, hedge=0.05, effect="safe"), "concurrency=2"),
        (lambda flow: flow.filter(a_call, hedge=0.05, effect="safe"), "is for map()"),
        (lambda flow: flow.map(hr.http.fetch(method="POST"), hedge=0.05), 'effect="safe"'),
    ],
)
def test_what_cannot_hedge_is_refused(build: Any, words: str) -> None:
    """Before anything moves, with the form that works."""
    with pytest.raises(hr.PlanError) as caught:
        run(lambda: build(hr.Flow(["x"])).run())
    assert words in str(caught.value)


def test_a_get_may_hedge_and_a_plan_says_so() -> None:
    """hr.http.fetch() is safe by itself."""
    text = hr.Flow(["x"]).map(hr.http.fetch(), hedge=0.05).explain()
    assert "a second copy of a call slower than 95 % of the others; at most 5 % more calls" in text
    assert "hedge" not in hr.Flow(["x"]).map(hr.http.fetch()).explain()
