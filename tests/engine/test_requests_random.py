"""Calls that do anything with limits, at random: all of them end, and nothing stays behind at any limit."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from test_requests import Web, host, idle

import headrace as hr
from headrace.policies.rate_headers import RateHint
from headrace.ports import current_call
from headrace.testing import run


class World:
    """A few limits, clients with some of them, and flows with others, made from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.limits = [self.limit(host), self.limit(host), self.limit(None), self.limit(None)]
        self.webs = [Web(self.some(0.3), self.rng.choice([0.0, 0.01, 0.5])) for _ in range(2)]

    def some(self, share: float) -> list[hr.Limit]:
        return [limit for limit in self.limits if self.rng.random() < share]

    def limit(self, by: Any) -> hr.Limit:
        at_once = self.rng.choice([None, 1, 1, 2, 3, hr.Adaptive(1, 4)])
        rate = self.rng.choice([None, "2/s", "10/s", "100/s"])
        return hr.Limit(by=by, concurrency=at_once if at_once or rate else 1, rate=rate)

    def url(self) -> str:
        return f"http://{self.rng.choice('abc')}/{self.rng.randrange(9)}"

    async def step(self, web: Web, depth: int = 0) -> None:
        """Do one thing that a call can do."""
        rng, call = self.rng, current_call.get()
        match rng.choice("rrrrgtahsw"):
            case "g" if depth < 2:
                await asyncio.gather(*(self.step(web, depth + 1) for _ in range(rng.randrange(1, 4))))
            case "t":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rng.choice([0.005, 0.3, 2.0])):
                        await web.get(self.url())
            case "a":
                await call.aside(asyncio.sleep(rng.choice([0.0, 0.2, 3.0])), rest=rng.choice([0.0, 0.2]))
            case "h":
                call.hint(RateHint(rng.randrange(3), rng.choice([0.1, 1.0, 20.0])))
            case "s":
                call.space(self.url(), rng.choice([0.01, 0.3]))
            case "w":
                await asyncio.sleep(0.05)
            case _:
                await web.get(self.url())

    async def call(self, item: str) -> str:
        web = self.rng.choice(self.webs)
        for _ in range(self.rng.randrange(1, 4)):
            await self.step(web)
        if self.rng.random() < 0.1:
            raise OSError("of the moment")
        return item

    def flow(self) -> hr.Flow[Any]:
        rng = self.rng
        return hr.Flow([self.url() for _ in range(rng.randrange(5, 25))]).map(
            self.call,
            limits=self.some(0.5),
            concurrency=rng.choice([1, 3, 8]),
            retry=hr.Retry(attempts=2),
            timeout=rng.choice([None, None, 0.3, 5.0]),
            within=rng.choice([None, None, None, 1.0, 20.0]),
        )

    async def go(self) -> None:
        """Run some flows at once, and cut some of them short."""
        runs = [asyncio.create_task(self.flow().run()) for _ in range(self.rng.randrange(1, 4))]
        if self.rng.random() < 0.2:
            await asyncio.sleep(self.rng.random() * 3)
            for task in runs:
                if self.rng.random() < 0.6:
                    task.cancel()
        for report in await asyncio.gather(*runs, return_exceptions=True):
            if not isinstance(report, asyncio.CancelledError):
                assert report.taken == report.done + report.failed  # type: ignore[union-attr]


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_calls_that_do_anything_all_end(first: int) -> None:
    """No order of requests, waits, time limits and cancellations locks, and permits, claims and waiters come to 0."""
    for seed in range(first, first + 50):
        world = World(seed)
        try:
            run(world.go)
            assert idle(*world.limits)
            for limit in world.limits:
                assert [state.claims for state in limit._all()] == [0] * len(limit._all())
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
