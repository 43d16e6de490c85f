"""Bad neighbours: names that never resolve and a host that never answers hold nobody else up.

Each run is compared with one without them, by the seconds in which its good items were done.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.demo.origin import Origin
from headrace.events import ItemSettled
from headrace.testing import run_real

GOOD = 100
EACH = 10  # requests to each good name
HANG = 100  # how many times longer than the good part the bad one would take
PATIENCE = hr.http.Timeouts(resolve=30, connect=30, first_byte=30, total=60)


class Lookup:
    """Resolves every name to the loopback, but for those that begin with «dead»: these hang until `over`."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.hanging = 0

    def __call__(self, name: str) -> Sequence[str]:
        if name.startswith("dead"):
            self.hanging += 1
            self.over.wait(30)
            raise OSError("no answer")
        time.sleep(0.005)  # as a resolver nearby takes
        return ["127.0.0.1"]


@pytest.fixture
def silent() -> Iterator[int]:
    """Give a port that takes connections and requests, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        yield server.getsockname()[1]


class Clock:
    """Listens to a run and notes when the last good item was done."""

    def __init__(self, good: int) -> None:
        self.left = good
        self.began = time.monotonic()
        self.took = 0.0

    def __call__(self, events: Sequence[Any]) -> None:
        for event in events:
            if isinstance(event, ItemSettled) and event.outcome == "done":
                self.left -= 1
                self.took = time.monotonic() - self.began


def seconds_of_the_good(
    urls: Sequence[str], good: int, lookup: Lookup, place: Path, stop_when_good: bool, **stage: Any
) -> float:
    """Fetch all; when the good ones are done, stop the run. Give the seconds that the good ones took."""

    async def main() -> float:
        resolver = hr.http.Resolver(lookup)
        client = hr.http.Client(resolver=resolver, timeouts=PATIENCE)
        clock = Clock(good)
        flow = hr.Flow(urls).map(hr.http.fetch(client=client), **stage).into(hr.sqlite.table(place))
        async with client, flow.start(grace=0.1) as job:
            job.subscribe(clock)

            def watch(events: Sequence[Any]) -> None:
                if clock.left == 0:
                    job.cancel()

            if stop_when_good:
                job.subscribe(watch)
            report = await job.wait()
        lookup.over.set()
        await resolver.aclose()
        assert report.done == good, str(report)
        return clock.took

    took: float = run_real(main)
    return took


def names(origin: Origin) -> list[str]:
    """Give ten requests to each of a hundred names of the origin."""
    return [f"http://good{n}.test:{origin.port}/n/{n}" for _ in range(EACH) for n in range(GOOD)]


def mixed(good: list[str], bad: list[str]) -> list[str]:
    """Put the bad ones in front and between: where they would do the most harm."""
    step = max(1, len(good) // len(bad))
    urls = list(bad)
    for at, url in enumerate(good):
        urls.append(url)
        if at % step == 0:
            urls.append(bad[at // step % len(bad)])
    return urls


def faster_of_two(measure: Callable[[], float]) -> float:
    """Measure twice: the machine may have been busy with something else."""
    return min(measure(), measure())


@pytest.mark.slow
def test_names_that_hang_hold_up_nobody(origin: Origin, tmp_path: Path) -> None:
    """Ten names whose resolution hangs, ten times each, among a hundred good ones: these finish as if alone."""
    number = iter(range(100))
    good = names(origin)
    dead = [f"http://dead{n % 10}.test:{origin.port}/n/1" for n in range(100)]
    by_host = [hr.Limit(by=hr.http.host, concurrency=4)]

    def alone() -> float:
        place = tmp_path / f"{next(number)}.db"
        return seconds_of_the_good(good, len(good), Lookup(), place, False, concurrency=100, limits=by_host)

    def together() -> float:
        lookup, place = Lookup(), tmp_path / f"{next(number)}.db"
        urls = mixed(good, dead)
        took = seconds_of_the_good(urls, len(good), lookup, place, True, concurrency=100, limits=by_host)
        assert lookup.hanging == 10  # each name once, however many ask
        return took

    expected, took = faster_of_two(alone), faster_of_two(together)
    print(f"alone {expected:.2f} s, with names that hang {took:.2f} s")
    assert took < max(3 * expected, expected + 1.0)
    assert took < 30 / 5, "the good ones waited for the end of a look-up"


@pytest.mark.slow
def test_a_host_that_hangs_holds_up_nobody(origin: Origin, silent: int, tmp_path: Path) -> None:
    """One host that never answers, behind a limit by host: it has its few calls, and the others finish as if alone."""
    number = iter(range(100))
    good = [origin.url(f"/n/{n}") for n in range(2000)]
    hung = [f"http://127.0.0.1:{silent}/{n}" for n in range(200)]

    def by_host() -> list[hr.Limit]:
        return [hr.Limit(by=hr.http.host, concurrency=8)]

    def alone() -> float:
        place = tmp_path / f"{next(number)}.db"
        return seconds_of_the_good(good, len(good), Lookup(), place, False, concurrency=32, limits=by_host())

    def together() -> float:
        place = tmp_path / f"{next(number)}.db"
        return seconds_of_the_good(
            mixed(good, hung), len(good), Lookup(), place, True, concurrency=32, limits=by_host()
        )

    expected, took = faster_of_two(alone), faster_of_two(together)
    print(f"alone {expected:.2f} s, beside a host that hangs {took:.2f} s")
    assert took < max(3 * expected, expected + 1.0)
