"""The limits of a bare client, taken around a call that no flow is running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.aio.gate import Gate
from headrace.policies.limits import Claim, Limit
from headrace.policies.signals import Signal

__all__ = ["Permits"]


class Permits:
    """What one call holds of a client's limits. It readmits as a flow's call does."""

    __slots__ = ("_claims", "_gate", "_limits")

    def __init__(self, gate: Gate, limits: Sequence[Limit]) -> None:
        self._gate = gate
        self._limits = limits
        self._claims: list[Claim] = []

    async def readmit(self, value: Any) -> None:
        """Give back what is held, for the request before was answered, and wait until the limits admit one for
        `value`. Cancelled, it holds nothing.
        """
        self.leave("success")
        self._claims = await self._gate.enter(self._limits, value)

    def leave(self, signal: Signal) -> None:
        """Give back what is held, with what the end of the call says of load."""
        claims, self._claims = self._claims, []
        if claims:
            self._gate.leave(claims, signal)
