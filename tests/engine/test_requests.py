"""What a call's requests take of limits in a run: each is charged, nothing is held twice, nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

import headrace as hr
from headrace.aio.gate import Gate
from headrace.events import KeyHeld
from headrace.policies.further import understands_urls
from headrace.policies.rate_headers import RateHint
from headrace.ports import current_call
from headrace.testing import cancel_everywhere, run


@understands_urls
def host(value: Any) -> str:
    """The key of «http://KEY/…», as an HTTP client's key function gives it."""
    url = value["url"] if isinstance(value, dict) else value
    if not url.startswith("http://"):
        raise ValueError(url)
    return url.split("/")[2]


class Web:
    """Requests as an adapter makes them: admitted by the call under way, and by limits of their own."""

    def __init__(self, limits: Sequence[hr.Limit] = (), takes: float = 0.0) -> None:
        self.limits = limits
        self.takes = takes
        self.starts: list[tuple[float, str]] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._gate = Gate()

    @contextlib.asynccontextmanager
    async def under(self, url: str, item: Any = None) -> AsyncIterator[None]:
        call = current_call.get()
        own = await call.readmit(url, self.limits) if self.limits or not call.covers(url, item) else []
        try:
            self.starts.append((asyncio.get_running_loop().time(), url))
            yield
        finally:
            self._gate.leave(own)

    async def get(self, url: str, item: Any = None) -> None:
        key = host(url)
        async with self.under(url, item):
            self.running[key] += 1
            self.most[key] = max(self.most[key], self.running[key])
            try:
                await asyncio.sleep(self.takes)
            finally:
                self.running[key] -= 1

    def times(self, key: str = "") -> list[float]:
        return [at for at, url in self.starts if not key or host(url) == key]


def spaced(times: Sequence[float], least: float) -> bool:
    return all(later - earlier >= least - 1e-6 for earlier, later in itertools.pairwise(times))


def idle(*limits: hr.Limit) -> bool:
    return all((limit.statistics().running, limit.statistics().waiting) == (0, 0) for limit in limits)


def test_each_request_of_a_call_is_charged() -> None:
    """A function that makes three requests keeps to the rate with all of them, its permit held once."""
    limit = hr.Limit(by=host, rate="10/s", concurrency=1)
    web = Web()

    async def call(url: str) -> None:
        for page in range(3):
            await web.get(f"{url}{page}")

    got = run(lambda: hr.map(call, [f"http://a/{n}" for n in range(20)], limits=[limit]))
    assert got.report.done == 20
    assert len(web.starts) == 60
    assert spaced(web.times(), 0.1)
    assert web.times()[-1] - web.times()[0] == pytest.approx(5.9, abs=0.01)
    # A short wait for the rate does not cost a call its place: its requests follow each other.
    assert [url for _, url in web.starts] == [f"http://a/{n}{page}" for n in range(20) for page in range(3)]
    assert idle(limit)


def test_one_request_a_call_costs_nothing_more() -> None:
    """The first request is covered by the start of its call."""
    limit = hr.Limit(by=host, rate="10/s")
    web = Web()
    urls = [f"http://a/{n}" for n in range(20)]
    run(lambda: hr.map(web.get, urls, limits=[limit]))
    assert web.times()[-1] - web.times()[0] == pytest.approx(1.9, abs=0.01)


def test_retried_attempts_are_covered_anew() -> None:
    """Each attempt was charged, so the first request of each is covered."""
    limit = hr.Limit(by=host, rate="10/s")
    web = Web()

    async def call(url: str) -> None:
        await web.get(url)
        raise OSError("of the moment")

    retry = hr.Retry(attempts=3, base=0.0)
    run(lambda: hr.map(call, ["http://a/1"], limits=[limit], retry=retry))
    assert len(web.times()) == 3
    assert web.times()[-1] - web.times()[0] == pytest.approx(0.2, abs=0.01)


def test_a_request_to_another_key_is_admitted_there() -> None:
    """Where the request goes elsewhere than the item says, the permit and the rate of that key count, and no other."""
    limit = hr.Limit(by=host, rate="10/s", concurrency=2)
    web = Web(takes=1.0)

    async def call(url: str) -> None:
        await web.get("http://b/x")

    run(lambda: hr.map(call, [f"http://a/{n}" for n in range(10)], limits=[limit]))
    assert web.most == {"b": 2}
    assert spaced(web.times("b"), 0.1)
    assert web.times()[-1] - web.times()[0] == pytest.approx(4.1, abs=0.2)
    assert idle(limit)


def test_keys_of_rows_are_not_asked_for_urls() -> None:
    """A function that makes keys of rows would make nothing sensible of a URL: the row's key stays."""
    asked: list[Any] = []

    def tenant(row: Any) -> Any:
        asked.append(row)
        return row[0]

    limit = hr.Limit(by=tenant, rate="10/s", concurrency=1)
    web = Web()

    async def call(row: tuple[str, str]) -> None:
        await web.get("http://a/1")
        await web.get("http://b/1")

    rows = [("red", "1"), ("red", "2"), ("blue", "1")]
    assert len(run(lambda: hr.map(call, rows, limits=[limit])).done) == 3
    assert not [row for row in asked if isinstance(row, str)]
    assert len(web.starts) == 6


def test_rows_with_urls_are_told_apart_too() -> None:
    """A key function that understands URLs is asked whatever the items are, but not where the item is what is requested."""
    limit = hr.Limit(by=host, concurrency=1)
    web = Web(takes=1.0)

    async def call(row: dict[str, str]) -> None:
        await web.get(row["url"], row)
        await web.get("http://b/2", row)

    rows = [{"url": f"http://a/{n}"} for n in range(4)]
    run(lambda: hr.map(call, rows, limits=[limit]))
    assert web.most == {"a": 1, "b": 1}
    assert idle(limit)


def test_a_cost_of_the_whole_call_is_charged_once() -> None:
    """A cost that a function gives, and one that is corrected by the result, is the call's and not a request's."""
    web = Web()

    async def call(item: str) -> int:
        for page in range(3):
            await web.get(f"{item}{page}")
        return 2

    estimated = hr.Limit(rate="10/s", burst=10, cost=lambda item: 5)
    corrected = hr.Limit(rate="10/s", burst=10, cost=5, actual=lambda result: result)
    for limit, seconds in ((estimated, 4.0), (corrected, 2.0)):
        web.starts.clear()
        run(lambda limit=limit: hr.map(call, [f"http://a/{n}" for n in range(10)], limits=[limit]))
        assert web.times()[-1] - web.times()[0] == pytest.approx(seconds, abs=0.1)


def test_limits_of_a_request_hold_across_stages() -> None:
    """A client's limit that the stage does not have is taken for each request, and one that it has is not taken twice."""
    shared, own = hr.Limit(by=host, concurrency=2), hr.Limit(concurrency=1)
    web = Web([shared, own], takes=1.0)

    async def call(url: str) -> str:
        await web.get(url)
        return url

    async def main() -> hr.Report:
        flow = hr.Flow([f"http://a/{n}" for n in range(10)])
        return await flow.map(call, limits=[shared]).map(call, concurrency=7).run()

    assert run(main).done == 10
    assert web.most == {"a": 1}
    assert idle(shared, own)


def test_limits_in_the_opposite_order_do_not_lock() -> None:
    """Two stages whose calls hold one limit and whose requests need the other's get through."""
    left, right = hr.Limit(concurrency=1, name="left"), hr.Limit(concurrency=1, name="right")
    a, b = Web([right], takes=0.1), Web([left], takes=0.1)

    async def first(url: str) -> str:
        await asyncio.sleep(0.01)
        await a.get(url)
        await a.get(url)
        return url

    async def second(url: str) -> str:
        await asyncio.sleep(0.01)
        await b.get(url)
        await b.get(url)
        return url

    async def main() -> list[hr.Report]:
        urls = [f"http://a/{n}" for n in range(20)]
        return await asyncio.gather(
            hr.Flow(urls).map(first, limits=[left]).run(), hr.Flow(urls).map(second, limits=[right]).run()
        )

    assert [report.done for report in run(main)] == [20, 20]
    assert idle(left, right)


def test_keys_in_the_opposite_order_do_not_lock() -> None:
    """Calls at A that go on to B, and at B that go on to A, with one place each, get through."""
    limit = hr.Limit(by=host, concurrency=1)
    web = Web(takes=0.1)

    async def call(url: str) -> None:
        await web.get(url)
        await web.get(url.replace("//a", "//c").replace("//b", "//a").replace("//c", "//b"))

    urls = [f"http://{'ab'[n % 2]}/{n}" for n in range(20)]
    assert len(run(lambda: hr.map(call, urls, limits=[limit], concurrency=8)).done) == 20
    assert web.most == {"a": 1, "b": 1}
    assert idle(limit)


def test_requests_of_one_call_at_the_same_time() -> None:
    """They are let through one after the other, charged, and lose no permit."""
    limit = hr.Limit(by=host, rate="10/s", concurrency=2)
    own = hr.Limit(concurrency=2)
    web = Web([own], takes=1.0)

    async def call(url: str) -> None:
        await asyncio.gather(*(web.get(f"http://{key}/{n}") for n in range(3) for key in "abc"))

    assert len(run(lambda: hr.map(call, [f"http://a/{n}" for n in range(3)], limits=[limit])).done) == 3
    for key in "abc":
        assert spaced(web.times(key), 0.1)
    assert idle(limit, own)


def test_a_time_limit_stands_still_while_a_request_waits() -> None:
    """Waiting for a rate is no part of an attempt; of the item's time it is."""
    web = Web()

    async def call(url: str) -> None:
        await web.get(url)
        await web.get(url)

    async def main(**options: Any) -> Any:
        limit = hr.Limit(by=host, rate="1/min")
        got = await hr.map(call, ["http://a/1"], limits=[limit], **options)
        assert idle(limit)
        return got

    assert len(run(lambda: main(timeout=1.0)).done) == 1
    (failed,) = run(lambda: main(within=30.0)).failed
    assert "within=30" in str(failed.error)
    assert len(run(lambda: main(timeout=1.0, within=90.0)).done) == 1


def test_cancelled_anywhere_permits_come_back() -> None:
    """Whatever a request of a call waits for, a cancellation there leaves every permit and every waiter settled."""
    limits: list[hr.Limit] = []

    async def job() -> None:
        keyed = hr.Limit(by=host, rate="2/s", burst=1, concurrency=1)
        whole, own = hr.Limit(concurrency=2), hr.Limit(concurrency=1)
        limits[:] = [keyed, whole, own]
        web = Web([own], takes=0.1)

        async def call(url: str) -> None:
            await web.get(url)
            await web.get(url)
            await web.get("http://b/1")

        await hr.map(call, ["http://a/1", "http://b/2", "http://a/3"], limits=[keyed, whole], concurrency=3)

    def check(ending: Any) -> None:
        assert idle(*limits)

    for times in (1, 2):
        assert cancel_everywhere(job, check, times=times) > 20


def test_cancelled_while_it_steps_aside() -> None:
    """What waits for another call, and is cancelled before, in or after it, loses no permit either."""
    limits: list[hr.Limit] = []

    async def job() -> None:
        limits[:] = [hr.Limit(by=host, concurrency=1, rate="5/s"), hr.Limit(concurrency=2)]
        web = Web(takes=0.1)
        told = asyncio.Event()

        async def call(url: str) -> None:
            await web.get(url)
            if url.endswith("/1"):
                await current_call.get().aside(told.wait(), rest=0.1)
            else:
                told.set()
            await web.get(url)

        await hr.map(call, ["http://a/1", "http://a/2", "http://b/1"], limits=limits, timeout=5.0)

    for times in (1, 2):
        assert cancel_everywhere(job, lambda ending: _assert_idle(limits), times=times) > 10


def _assert_idle(limits: Sequence[hr.Limit]) -> None:
    assert idle(*limits)


def test_cancelled_within_the_call_it_goes_on() -> None:
    """A request that the function itself cancels while it waits leaves the call with nothing that is lost."""
    limit, own = hr.Limit(by=host, concurrency=1), hr.Limit(concurrency=1)
    web, other = Web([own], takes=5.0), Web(takes=5.0)

    async def call(url: str) -> None:
        if "/1" in url:
            await web.get(url)
            return
        await asyncio.sleep(1.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await web.get(url)  # it gives its place at the host back, to wait for the other limit
        await other.get(url)

    urls = ["http://a/1", "http://b/2", "http://b/3", "http://b/4"]
    assert len(run(lambda: hr.map(call, urls, limits=[limit])).done) == 4
    assert set(web.most.values()) == set(other.most.values()) == {1}
    assert idle(limit, own)


def test_a_place_is_not_offered_to_those_who_cannot_begin() -> None:
    """A call under way goes before deliveries that have no worker to begin with, which would keep the place idle."""
    limit = hr.Limit(by=host, concurrency=1)
    web = Web(takes=1.0)

    async def there(url: str) -> None:
        await web.get(url)
        await web.get("http://b/0")

    async def main() -> list[hr.Report]:
        one = hr.Flow(["http://a/1", "http://b/2", "http://b/3"]).map(there, limits=[limit], concurrency=1)
        two = hr.Flow([f"http://b/{n}" for n in range(9)]).map(web.get, limits=[limit], concurrency=9)
        return await asyncio.gather(one.run(), two.run())

    assert [report.done for report in run(main)] == [3, 9]
    assert web.most == {"a": 1, "b": 1}
    assert idle(limit)


def test_what_ends_late_leaves_nothing_in_line() -> None:
    """An item that is repeated, queues for its rate and fails by its `within=` is gone from its limit with the run."""
    limit = hr.Limit(rate="1/min")

    async def call(item: int) -> None:
        raise OSError("of the moment")

    got = run(lambda: hr.map(call, [1], limits=[limit], within=5.0, retry=hr.Retry(attempts=2)))
    assert got.report.failed == 1
    assert [state.claims for state in limit._all()] == [0]


def test_an_offer_that_cannot_be_used_goes_on() -> None:
    """A call outside of a run that is offered a place and has to wait for a rate lets the next in line have it."""
    place, slow = hr.Limit(concurrency=1), hr.Limit(rate="1/min")
    gate = Gate()
    order: list[str] = []

    async def hold(name: str, limits: list[hr.Limit], seconds: float) -> None:
        claims = await gate.enter(limits, None)
        order.append(name)
        await asyncio.sleep(seconds)
        gate.leave(claims)

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        await hold("rate", [slow], 0.0)
        calls = [hold("first", [place], 1.0), hold("slow", [place, slow], 1.0), hold("quick", [place], 1.0)]
        await asyncio.gather(*calls)
        return asyncio.get_running_loop().time() - began

    assert run(main) == pytest.approx(61.0, abs=0.1)
    assert order == ["rate", "first", "quick", "slow"]
    assert idle(place, slow)


def test_requests_beside_one_that_steps_aside() -> None:
    """Other requests of the same call go on, under its limits, and no permit is lost or held twice."""
    limit = hr.Limit(by=host, concurrency=1, rate="10/s")
    web = Web(takes=0.05)

    async def call(url: str) -> None:
        told = asyncio.Event()

        async def waits() -> None:
            await current_call.get().aside(told.wait())
            await web.get(url)

        async def tells() -> None:
            for _ in range(3):
                await web.get(url)
            told.set()

        await asyncio.gather(tells(), waits(), waits())

    assert len(run(lambda: hr.map(call, [f"http://a/{n}" for n in range(3)], limits=[limit])).done) == 3
    assert len(web.starts) == 15
    assert spaced(web.times()[3:], 0.1)
    assert idle(limit)


def test_a_hint_holds_its_key() -> None:
    """What an answer says is left, and is used up by the calls under way, makes the key wait; others go on."""
    limit = hr.Limit(by=host, concurrency=4)
    web = Web(takes=1.0)
    held: list[KeyHeld] = []

    async def call(url: str) -> None:
        await web.get(url)
        if url == "http://a/0":
            current_call.get().hint(RateHint(5, 60.0))
            current_call.get().hint(RateHint(3, 60.0))
            current_call.get().hint(RateHint(0, 30.0))

    async def main() -> float:
        urls = [f"http://{key}/{n}" for n in range(8) for key in "ab"]
        flow = hr.Flow(urls).map(call, limits=[limit], concurrency=20)
        began = asyncio.get_running_loop().time()
        async with flow.start() as job:
            job.subscribe(lambda events: held.extend(each for each in events if isinstance(each, KeyHeld)))
            await job.wait()
        return began

    began = run(main)
    assert [event.key for event in held] == ["a"]
    assert "3 calls left" in held[0].reason
    assert 61.0 <= web.times("a")[4] - began <= 67.0
    assert web.times("b")[-1] - began == pytest.approx(1.0, abs=0.01)


def test_a_call_that_steps_aside_makes_room() -> None:
    """What waits for another call holds no permit meanwhile, and its key may be given a rest."""
    limit = hr.Limit(by=host, concurrency=1)
    web = Web(takes=1.0)
    ready: list[asyncio.Future[str]] = []

    async def call(url: str) -> str:
        loop = asyncio.get_running_loop()
        if url == "http://a/0":
            ready.append(loop.create_future())
            got = await current_call.get().aside(ready[0], rest=2.0)
            await web.get(url)
            return got
        await web.get(url)
        if not ready[0].done():
            ready[0].set_result("told")
        return url

    urls = [f"http://a/{n}" for n in range(3)]
    got = run(lambda: hr.map(call, urls, limits=[limit], concurrency=3))
    assert got.values == ["told", "http://a/1", "http://a/2"]
    assert web.most == {"a": 1}
    assert web.times()[0] >= 2.0
    assert idle(limit)
