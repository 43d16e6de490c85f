"""The limits of a client, taken around each of its requests.

Rules:
1. One Limit is one limit: within a flow, those that the running call holds already are not taken here.
2. At each hop what was taken is given back first, and then all that the next one needs is taken together: nothing
   waits for a permit while it holds one.
3. What an answer says of load or of a rate is told to the limits that it came under.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from headrace.aio.gate import Gate
from headrace.errors import CallError
from headrace.http.response import ResponseHead
from headrace.http.url import RequestUrl
from headrace.policies import limits as admission
from headrace.policies.backoff import spread
from headrace.policies.classify import load_signal
from headrace.policies.limits import Claim, Limit
from headrace.policies.rate_headers import RateHint, heed, parse_rate_headers
from headrace.policies.retry_after import parse_http_date
from headrace.policies.signals import Signal
from headrace.ports import Call

__all__ = ["Permits", "rate_hint"]


class Permits:
    """What the requests of one call hold of a client's limits; `call` is the attempt of a flow that they belong to."""

    __slots__ = ("_call", "_claims", "_gate", "_limits")

    def __init__(self, gate: Gate, limits: Sequence[Limit], call: Call | None) -> None:
        self._gate = gate
        self._limits = limits
        self._call = call
        self._claims: list[Claim] = []

    async def enter(self, url: str, *, is_answered: bool = False) -> None:
        """Give back what is held, and wait until all limits admit a request for `url`. Cancelled, it holds nothing.

        `is_answered`: the request before was, if only with a redirect.
        """
        self.leave("success" if is_answered else "ignore")
        if self._call is None:
            self._claims = await self._gate.enter(self._limits, RequestUrl(url))
        else:
            self._claims = await self._call.readmit(RequestUrl(url), self._limits, is_answered=is_answered)

    def hint(self, hint: RateHint, rng: Random) -> None:
        """Heed what an answer said of its server's rate."""
        if self._claims:
            heed(self._claims, hint, asyncio.get_running_loop().time(), rng)

    def fail(self, error: BaseException, rng: Random) -> None:
        """Give back what is held, and tell the limits what this end of the request says of load."""
        if not isinstance(error, CallError):
            self.leave("ignore")
            return
        if error.hold and error.retry_after and self._claims:
            seconds = spread(error.retry_after, rng)
            admission.hold(self._claims, asyncio.get_running_loop().time() + seconds)
        self.leave(load_signal(error))

    def leave(self, signal: Signal) -> None:
        """Give back what is held, with what the end of the request says of load."""
        claims, self._claims = self._claims, []
        if claims:
            self._gate.leave(claims, signal)


def rate_hint(response: ResponseHead) -> RateHint | None:
    """Give what an answer says of its server's rate; a look at its raw headers where it says nothing."""
    raw = b"".join(response.raw_head).lower()
    if b"limit" not in raw or not (b"ratelimit" in raw or b"rate-limit" in raw):
        return None
    fields: dict[str, str] = {}
    for name, value in response.headers.pairs():
        name = name.lower()
        if "limit" in name:
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    now = response.fetched_at
    if b"-reset" in raw:  # which may be a point in time: it counts from the other side's clock
        now = parse_http_date(response.headers.get("date", ""), now) or now
    return parse_rate_headers(fields, now)
