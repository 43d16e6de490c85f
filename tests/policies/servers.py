"""Servers that count requests per time, and calls to one of them through a limit: an event simulation without a loop."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple, Protocol

from headrace.policies import limits as admission
from headrace.policies.limits import Limit

Allows = Callable[[float], float]


class Server(Protocol):
    """Answers each request at once: None, or the Retry-After (seconds) of a 429."""

    def ask(self, now: float) -> float | None: ...


class FixedWindow:
    """Counts anew with each window."""

    def __init__(self, allows: Allows, window: float = 1.0) -> None:
        self.allows, self.window = allows, window
        self._number, self._count = -1, 0

    def ask(self, now: float) -> float | None:
        number = int(now / self.window)
        if number != self._number:
            self._number, self._count = number, 0
        if self._count >= self.allows(now) * self.window:
            return math.ceil((number + 1) * self.window - now)
        self._count += 1
        return None


class SlidingWindow:
    """Counts what came in the last second."""

    def __init__(self, allows: Allows) -> None:
        self.allows = allows
        self._times: deque[float] = deque()

    def ask(self, now: float) -> float | None:
        while self._times and self._times[0] <= now - 1.0:
            self._times.popleft()
        if len(self._times) >= self.allows(now):
            return 1.0
        self._times.append(now)
        return None


class TokenBucket:
    """Refills all the time, and holds `burst`."""

    def __init__(self, allows: Allows, burst: float) -> None:
        self.allows, self.burst = allows, burst
        self._tokens, self._at = burst, 0.0

    def ask(self, now: float) -> float | None:
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.allows(now))
        self._at = now
        if self._tokens < 1.0:
            return 1.0
        self._tokens -= 1.0
        return None


class Seen(NamedTuple):
    """One request as the server saw it."""

    at: float
    refused: bool


def serve(
    server: Server,
    limit: Limit,
    latency: float,
    seconds: float,
    seed: int,
    *,
    workers: int = 64,
    holds: bool = True,
) -> list[Seen]:
    """Call the server as fast as `limit` lets `workers` do, for so long; timers are up to a millisecond late."""
    rng, seen, waiting, running, timer = Random(seed), [], None, 0, False
    events: list[tuple[float, int, str, Any]] = [(0.0, 0, "timer", None)]
    number = 0

    def later(at: float, what: str, value: Any) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (at, number, what, value))

    while events and events[0][0] < seconds:
        now, _, what, value = heapq.heappop(events)
        if what == "arrives":
            asked = server.ask(now)
            seen.append(Seen(now, asked is not None))
            later(now + 0.5 * latency * rng.uniform(0.6, 1.6), "ends", (value, asked))
            continue
        if what == "ends":
            claims, asked = value
            running -= 1
            if asked is not None and holds:
                admission.hold(claims, now + asked * (1.0 + 0.1 * rng.random()))
            admission.learn(claims, "success" if asked is None else "throttled", now)
            admission.release(claims)
        else:
            timer = False
        while running < workers:
            waiting = waiting or admission.claim([limit], "host")
            wait = admission.admit(waiting, now)
            if wait:
                if math.isfinite(wait) and not timer:
                    timer = True
                    later(now + max(wait, 1e-6) + rng.uniform(0.0, 0.001), "timer", None)
                break
            running += 1
            later(now + 0.5 * latency * rng.uniform(0.6, 1.6), "arrives", waiting)
            waiting = None
    return seen


def figures(seen: list[Seen], begin: float, end: float, allowed: float) -> tuple[float, float]:
    """Give the share used of what was allowed, and the share refused."""
    some = [each for each in seen if begin <= each.at < end]
    refused = sum(each.refused for each in some)
    return (len(some) - refused) / (end - begin) / allowed, refused / max(1, len(some))
