"""What a client asks of the transport that carries its requests, and the endings that all transports say in one way.

Rules:
1. Everything that is decided (limits, hops, redirects, statuses, retries) is above this line; a transport carries one
   request at a time.
2. libcurl is the transport. Another one takes its place for tests, given as `Client(transport=…)` or for a block.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from headrace.http.errors import ClientClosed, ConnectionLost, TotalTimedOut
from headrace.http.url import mask

if TYPE_CHECKING:
    from headrace.http.profile import Profile
    from headrace.http.redirects import Hop
    from headrace.http.response import Response
    from headrace.http.streaming import StreamedResponse
    from headrace.http.transfer import Handle

__all__ = [
    "Connector",
    "Pool",
    "Transport",
    "closed",
    "head_cut",
    "stand_in",
    "standing_in",
    "time_left",
]

Pool = list["Handle"]


class Transport(Protocol):
    """What carries the requests of one client in one event loop.

    `clock` gives the seconds that `began` and the limits of a call count in. `requests`, `connects`, `received` (bytes of
    bodies) and `rebuilt` are counts so far.
    """

    loop: asyncio.AbstractEventLoop
    requests: int
    connects: int
    received: int
    rebuilt: int

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        ...

    def clock(self) -> float:
        """Give the time in seconds, from any start."""
        ...

    def pool(self, profile: Profile, method: str, has_body: bool) -> Pool:
        """Give the idle handles of one kind; empty for a transport that has none."""
        ...

    async def exchange(
        self, profile: Profile, pool: Pool, hop: Hop, max_body: int | None, began: float, cut: bool = False, /
    ) -> Response:
        """Send one request and give its answer, whatever the status. `began` is when the call did. With `cut`, a body
        that is too large ends at `max_body`.

        Raises HttpError. Cancelling closes the connection at once.
        """
        ...

    async def open(
        self, profile: Profile, pool: Pool, hop: Hop, max_body: int | None, began: float, cut: bool = False, /
    ) -> StreamedResponse:
        """Send one request and give its answer when the headers are there, whatever the status; who takes it closes it.

        Raises HttpError, or what reading the body of the request raised. Cancelling closes the connection at once.
        """
        ...

    async def aclose(self) -> None:
        """End all that is under way with ClientClosed and close every connection. Repeatable."""
        ...


class Connector(Protocol):
    """Makes the transport of each client that opens: `Client(transport=connector)`."""

    def connect(self, loop: asyncio.AbstractEventLoop) -> Transport:
        """Make a transport for a client whose first request is made in `loop`."""
        ...


_standing_in: list[Connector] = []


def stand_in() -> Connector | None:
    """Give what takes libcurl's place in clients that open now."""
    return _standing_in[-1] if _standing_in else None


@contextlib.contextmanager
def standing_in(connector: Connector) -> Iterator[None]:
    """Let clients that open in this block, in any thread of this process, use `connector`, unless they have their own."""
    _standing_in.append(connector)
    try:
        yield
    finally:
        _standing_in.remove(connector)


def closed(hop: Hop) -> ClientClosed:
    """Say that the client was closed."""
    shown = mask(hop.url.text)
    return ClientClosed(f"{hop.method} {shown}: the client was closed", url=shown, host=hop.url.key)


def head_cut(hop: Hop, elapsed: float) -> ConnectionLost:
    """Say that an answer ended within its headers."""
    shown = mask(hop.url.text)
    return ConnectionLost(
        f"{hop.method} {shown}: the connection ended within the headers of the answer, after {elapsed:.3g} s",
        url=shown,
        host=hop.url.key,
        elapsed=elapsed,
    )


def time_left(hop: Hop, profile: Profile, gone: float) -> float | None:
    """Give what the call has left of its total limit, after a resolve or a redirect. Raises TotalTimedOut."""
    total = profile.timeouts.total
    if total is None:
        return None
    if gone >= total:
        shown = mask(hop.url.text)
        raise TotalTimedOut(
            f"{hop.method} {shown}: not finished within its total time limit of {total:g} s",
            url=shown,
            host=hop.url.key,
            phase="redirect",
            elapsed=gone,
        )
    return total - gone
