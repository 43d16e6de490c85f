"""Reading one log over HTTP, and again where it breaks off.

    ask ─► head ─► chunks ─► records            ┌─ broken off: wait longer each time, ask again from the place
     ▲                          └─► the end ────┼─ nothing new yet (follow): wait, ask again from the place
     └──────────────────────────────────────────┘   another file in its place: ask again at once, from its beginning

Rules:
1. What is decided of places is decided in `log_position` and `event_position`; here it is waited.
2. Attempts count failures in a row in which nothing new was read. What would fail the same way again is raised at once, but
   for a log that was there and is missing: another may be on its way.
3. Leaving closes the connection at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from random import Random
from typing import Any, Final, Generic, Protocol, TypeVar

from headrace.errors import Disposition
from headrace.http.client import Client
from headrace.http.errors import BadResponse, HttpError, Stalled, StatusError
from headrace.http.log_position import Begun, Restarted
from headrace.http.profile import Timeouts
from headrace.http.streaming import StreamedResponse
from headrace.http.url import host, mask
from headrace.logs.notices import Notice, NoticeKind, OnNotice, StreamStatistics, reason_of
from headrace.policies.backoff import full_jitter
from headrace.policies.retry import Retry

__all__ = ["Follower", "Position"]

T = TypeVar("T")
#: How often in a row a log may be asked for anew at once.
MOST_AGAIN: Final = 3
#: Bytes that are made into records at a time: what is made of them stays in the processor's cache.
PIECE: Final = 64 << 10
_MISSING: Final = frozenset({404, 410})


class Position(Protocol[T]):
    """How far a log was read, and what its bytes mean."""

    accept: str
    read: int
    notices: list[tuple[NoticeKind, str]]

    def request_headers(self) -> dict[str, str]:
        """Give the headers of the next request."""
        ...

    def begin(self, status: int, headers: Mapping[str, str]) -> Begun:
        """Take the head of an answer."""
        ...

    def feed(self, chunk: bytes) -> list[T]:
        """Take a chunk of the body; give the records that end in it."""
        ...

    def check_end(self) -> None:
        """The body has come to its end. Raises Restarted where that cannot be."""
        ...

    def finish(self) -> list[T]:
        """Give what is left: no more comes."""
        ...

    def count(self, statistics: StreamStatistics) -> None:
        """Write down the counts."""
        ...

    def wait_after_end(self) -> float | None:
        """Give the seconds after which what has ended is asked for again; None where nobody says."""
        ...


class Follower(Generic[T]):
    """One log over HTTP. `follow`: at its end, ask for more every so many seconds (None: the end is the end)."""

    def __init__(
        self,
        url: str,
        position: Position[T],
        client: Client,
        *,
        headers: Mapping[str, Any],
        follow: float | None,
        idle: float | None,
        retry: Retry,
        on_notice: OnNotice,
    ) -> None:
        self.url = mask(url)
        self.statistics = StreamStatistics()
        self._target = url
        self._position = position
        self._client = client
        self._headers = headers
        self._follow = follow
        self._idle = idle
        self._retry = retry
        self._on_notice = on_notice
        self._timeouts = Timeouts(stall=None, total=None)
        self._rng = Random()
        self._has_been_there = False

    async def batches(self) -> AsyncGenerator[list[T], None]:
        """Give the records as they come, until the log ends. Raises HttpError where it cannot be had any more."""
        position, failures, again = self._position, 0, 0
        while True:
            before, wait = self.statistics.bytes, 0.0
            try:
                async with self._client.stream(
                    "GET",
                    self._target,
                    headers={**self._headers, **position.request_headers()},
                    accept=position.accept,
                    timeouts=self._timeouts,
                ) as response:
                    self.statistics.connections += 1
                    self._has_been_there = True
                    begun = position.begin(response.status, response.headers)
                    self._tell()
                    if begun is Begun.OVER:
                        break
                    if begun is Begun.AGAIN:
                        raise Restarted
                    self.statistics.state = "reading"
                    while chunks := await self._some(response):
                        for piece in _pieces(chunks):
                            records = position.feed(piece)
                            self._count(records)
                            if records:
                                yield records
                    position.check_end()
                failures = again = 0
                asked = position.wait_after_end()
                if asked is None and self._follow is None:
                    break
                wait = asked if asked is not None else self._follow or 0.0
            except Restarted:
                again = 1 if self.statistics.bytes > before else again + 1
                if again > MOST_AGAIN:
                    raise self._inconsistent() from None
            except HttpError as error:
                failures = 1 if self.statistics.bytes > before else failures + 1
                wait = self._wait_after(error, failures)
            self._tell()
            self.statistics.state = "waiting"
            await asyncio.sleep(wait)
        last = position.finish()
        self._count(last)
        if last:
            yield last
        self.statistics.state = "ended"
        self._on_notice(Notice("ended", self.url, position.read, "it has come to its end"))

    async def _some(self, response: StreamedResponse) -> list[bytes]:
        """Give the chunks that have come. Raises Stalled where none does in time."""
        if self._idle is None:
            return await response.some()
        try:
            async with asyncio.timeout(self._idle):
                return await response.some()
        except TimeoutError as error:
            raise Stalled(
                f"GET {self.url}: not a byte in {self._idle:g} s", url=self.url, host=host(self._target)
            ) from error

    def _wait_after(self, error: HttpError, failures: int) -> float:
        """Give the seconds to wait; raises the error where there is no point in trying again."""
        missing = isinstance(error, StatusError) and error.status in _MISSING and self._has_been_there
        if error.disposition is Disposition.PERMANENT and not missing:
            raise error
        if failures >= self._retry.attempts:
            raise error
        wait = full_jitter(failures, self._retry.base, self._retry.cap, self._rng)
        asked = self._position.wait_after_end()
        wait = max(wait, asked or 0.0, getattr(error, "retry_after", None) or 0.0)
        text = f"{reason_of(error, self.url)}; asked for again in {wait:.1f} s"
        self._on_notice(Notice("broken off", self.url, self._position.read, text))
        return wait

    def _inconsistent(self) -> BadResponse:
        return BadResponse(
            f"GET {self.url}: the server's answers to ranges contradict each other",
            url=self.url,
            host=host(self._target),
        )

    def _count(self, records: list[T]) -> None:
        statistics, position = self.statistics, self._position
        statistics.records += len(records)
        cut = statistics.cut
        position.count(statistics)
        if statistics.cut > cut:
            position.notices.append(
                ("cut", f"{statistics.cut - cut} records were longer than the cap, and are cut")
            )
        if position.notices:
            self._tell()

    def _tell(self) -> None:
        notices, statistics = self._position.notices, self.statistics
        for kind, text in notices:
            statistics.rotations += kind == "rotated"
            statistics.gaps += kind == "gap"
            self._on_notice(Notice(kind, self.url, self._position.read, text))
        notices.clear()


def _pieces(chunks: list[bytes]) -> Iterator[bytes]:
    """Put small chunks together."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= PIECE:
            yield b"".join(held)
            held.clear()
            size = 0
    if held:
        yield held[0] if len(held) == 1 else b"".join(held)
