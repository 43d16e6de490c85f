"""A worker's place and the attempt in it, as adapters see it through `ports.current_call`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.engine.lineage import child_path
from headrace.item import Delivery
from headrace.policies.limits import Claim, Limit
from headrace.policies.rate_headers import RateHint
from headrace.ports import Stuck

if TYPE_CHECKING:
    from headrace.engine.permits import Waits
    from headrace.engine.stage import Caller

__all__ = ["Held", "Slot"]

T = TypeVar("T")


class Slot:
    """A worker's place, and the attempt in it. Adapters see it as `ports.Call`."""

    __slots__ = (
        "began", "busy", "calls", "charged", "deadline", "delivery", "ending", "stage", "stuck", "task", "waits",
    )  # fmt: skip

    def __init__(self, stage: Caller) -> None:
        self.stage = stage
        self.task: asyncio.Task[None] | None = None
        self.delivery: Delivery | None = None
        self.began = 0.0
        self.calls = 0
        self.busy = 0.0
        self.deadline: float | None = None
        self.ending: str | None = None  # why the engine cancelled it: "timeout", "stop" or "given up"
        self.stuck: Stuck | None = None
        self.charged: list[Claim] | None = None  # the claims whose charge a request has used up
        self.waits: Waits | None = None

    def _current(self) -> Delivery:
        if self.delivery is None:
            raise LookupError("no call is under way here any more")
        return self.delivery

    @property
    def position(self) -> int:
        """The position of the root item."""
        return self._current().position

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._current().tried

    @property
    def attempts(self) -> int:
        """The calls made for this item so far, those of earlier stages included."""
        return self._current().attempts + self._current().tried

    @property
    def idempotency_key(self) -> str:
        """A key that is the same for every attempt of this call, in later runs too."""
        run, delivery = self.stage.run, self._current()
        parts = (
            run.options.job,
            self.stage.spec.name,
            delivery.position,
            child_path(delivery),
            run.generation,
        )
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]

    @property
    def is_limited(self) -> bool:
        """Whether the attempt holds any limit now."""
        return self.delivery is not None and bool(self.delivery.claims)

    def covers(self, value: Any, item: Any = None) -> bool:
        """Say whether the attempt may make a request for `value` as it is."""
        delivery = self.delivery
        if self.waits is not None and self.waits.is_waiting:
            return False
        if delivery is None:
            return True
        if not delivery.claims:
            return not self.stage.permits.limits  # else a request that was broken off has given them back
        return self.stage.permits.covers(self, delivery.claims, value, item)

    async def readmit(
        self, value: Any, limits: Sequence[Limit] = (), *, is_answered: bool = False
    ) -> list[Claim]:
        """Wait until the attempt may make a request for `value`, with `limits` besides; give the claims on these."""
        return await self.stage.permits.readmit(self, value, limits, is_answered)

    async def aside(self, waiting: Awaitable[T], *, rest: float = 0.0) -> T:
        """Wait with all limits given back, and take them again."""
        return await self.stage.permits.aside(self, waiting, rest)

    def hint(self, hint: RateHint) -> None:
        """Heed what an answer said of a rate."""
        self.stage.permits.hint(self, hint)

    def space(self, value: Any, interval: float) -> bool:
        """Keep starts with the keys of `value` so many seconds apart; say whether there are such keys."""
        return self.stage.permits.space(self, value, interval)


class Held:
    """The permits of a call that was given up."""

    __slots__ = ("claims", "on_return")

    def __init__(self, claims: Any) -> None:
        self.claims = claims
        self.on_return: Callable[[], None] | None = None
