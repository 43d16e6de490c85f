"""What the tests of this room share: collecting a flow's outcomes in virtual time, and spies on calls and sources.

Rules:
1. Everything here watches through the public surface; nothing reaches into a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import headrace as hr
from headrace.testing import run


def collect(flow: hr.Flow[Any], **options: Any) -> tuple[list[Any], hr.Report]:
    """Stream a flow to its end in virtual time; give its outcomes as they came, and the report."""

    async def main() -> tuple[list[Any], hr.Report]:
        async with flow.stream(**options) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert outcomes.report is not None
        assert outcomes.report.balanced
        return found, outcomes.report

    return run(main)


def values(flow: hr.Flow[Any], **options: Any) -> list[Any]:
    """Stream a flow whose items are all done; give their values as they came."""
    found, report = collect(flow, **options)
    assert report.ok, report
    return [outcome.value for outcome in found]


async def same(value: Any) -> Any:
    """Give back what came."""
    return value


def same_blocking(value: Any) -> Any:
    """Give back what came, from a thread."""
    return value


class Counted:
    """A source that counts how far it was read; `items` is fresh for each iteration."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.read += 1
            yield number


class Spy:
    """An async function that sleeps, and notes when it was called and how many calls ran at once."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.starts: list[float] = []
        self.running = 0
        self.most = 0
        self.ended = 0
        self.cancelled = 0

    async def __call__(self, value: Any) -> Any:
        """Sleep and give the value back."""
        self.starts.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        self.ended += 1
        return value
