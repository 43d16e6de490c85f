"""Growth halts where this program itself is at its limits."""

from __future__ import annotations

import asyncio
import os
import resource
import time

import headrace as hr
from headrace.aio.strain import Strain, descriptors_run_out
from headrace.testing import run_real


def test_a_loop_that_comes_round_late_is_under_strain(loop_kind: str) -> None:
    """A callback that holds the loop is noticed at the next look, and forgotten when it is over."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        strain = Strain(loop)
        assert not strain.is_on(loop.time())
        await asyncio.sleep(0)
        assert not strain.is_on(loop.time() + 1.0)
        loop.call_soon(time.sleep, 0.15)
        strain = Strain(loop)
        strain.is_on(loop.time())
        await asyncio.sleep(0.01)
        assert strain.is_on(loop.time())
        await asyncio.sleep(0.3)
        strain.is_on(loop.time())
        await asyncio.sleep(0.01)
        assert not strain.is_on(loop.time())

    run_real(main, kind=loop_kind)  # type: ignore[arg-type]


def test_descriptors_that_run_out_are_noticed() -> None:
    """Nine tenths in use are too many; with room they are not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(2)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
        assert descriptors_run_out()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        assert descriptors_run_out()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors_run_out() == (lowest >= 0.9 * soft)


def test_a_level_does_not_grow_under_strain() -> None:
    """Calls that go well raise no level while descriptors run out, and do so again afterwards."""
    limit = hr.Limit(concurrency=hr.Adaptive(1, 16))

    async def call(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        lowest = os.dup(2)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
        try:
            await hr.map(call, range(20), limits=[limit])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert limit.statistics().level == 1
        await hr.map(call, range(60), limits=[limit])
        assert (limit.statistics().level or 0) > 4

    asyncio.run(main())
