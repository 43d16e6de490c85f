"""Hedging with everything at once: whatever a mixture does, items, places and permits are accounted for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import headrace as hr
from headrace.ports import current_call
from headrace.testing import run


class TooMany(Exception):
    """What a client raises for a 429."""

    status = 429


class Mixture:
    """Calls that are slow, fail, are refused, clean up slowly, hold keys and change them, under drawn options."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.running = self.most = 0
        self.limits: list[hr.Limit] = []
        self.concurrency = self.rng.choice([2, 5, 20, 60])

    async def call(self, number: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._answer(self.rng.random(), number)
        finally:
            self.running -= 1
        return number

    async def _answer(self, drawn: float, number: int) -> None:
        rng = self.rng
        await asyncio.sleep(rng.uniform(0.08, 0.12))
        if drawn < 0.06:
            await asyncio.sleep(rng.uniform(1, 20))
        elif drawn < 0.09:
            await asyncio.sleep(rng.uniform(0, 3))
            raise rng.choice([OSError("lost"), TooMany(), hr.RetryAfter(0.5, hold=True), hr.Skip("no")])
        elif drawn < 0.11:
            try:
                await asyncio.sleep(rng.uniform(1, 20))
            finally:
                await asyncio.sleep(rng.uniform(0.1, 3))
        elif drawn < 0.13:
            await current_call.get().readmit(number + 1)
            await asyncio.sleep(1)

    async def items(self) -> AsyncIterator[int]:
        gap = self.rng.choice([0.0, 0.01, 0.05])
        for number in range(self.rng.choice([50, 300, 500])):
            if gap:
                await asyncio.sleep(self.rng.expovariate(1 / gap))
            yield number

    def options(self) -> dict[str, Any]:
        rng = self.rng
        most = rng.choice([1, 3, 10, 50])
        if rng.random() < 0.7:
            level = rng.choice([most, hr.Adaptive(1, most)])
            self.limits.append(hr.Limit(by=lambda number: number % 3, concurrency=level))
        if rng.random() < 0.5:
            self.limits.append(hr.Limit(rate=rng.choice([20, 100]), burst=rng.choice([1, 5])))
        return {
            "concurrency": self.concurrency,
            "hedge": rng.choice([0.05, 0.5, 1.0]),
            "limits": self.limits,
            "timeout": rng.choice([None, 0.5, 3]),
            "retry": rng.choice([None, hr.Retry(attempts=4)]),
            "ordered": rng.random() < 0.3,
        }

    async def main(self) -> hr.Report:
        rng = self.rng
        flow: hr.Flow[Any] = hr.Flow(self.items()).map(self.call, effect="safe", **self.options())
        if rng.random() < 0.3:
            flow = flow.batch(7)
        async with flow.start(grace=rng.choice([0.5, 8.0])) as job:
            if rng.random() < 0.5:
                await asyncio.sleep(rng.uniform(0, 10))
                job.pause()
                await asyncio.sleep(1)
                job.resume()
                await asyncio.sleep(rng.uniform(0, 2))
                job.stop()
                await asyncio.sleep(rng.uniform(0, 2))
                job.stop()
            return await job.wait()


@pytest.mark.parametrize("seed", range(40))
def test_every_mixture_adds_up(seed: int) -> None:
    """Each item has one end, no call outlives the run, no place or permit is used twice or lost."""
    mixture = Mixture(seed)
    report = run(mixture.main)
    assert report.balanced
    assert report.trouble is None
    assert mixture.running == 0
    assert mixture.most <= mixture.concurrency
    for limit in mixture.limits:
        known = limit.statistics()
        assert (known.running, known.waiting) == (0, 0)
        assert all(state.claims == 0 for state in limit._all())
