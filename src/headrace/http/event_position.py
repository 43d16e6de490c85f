"""How far a stream of server-sent events was read: the last id, which the server is told when it is asked again.

Rules:
1. The end of a stream is no end: it is asked for again after the wait that the server wished for, unless it says 204.
2. Where the server gives no ids, what it sent meanwhile is lost, which is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.errors import Disposition
from headrace.http.errors import BadResponse
from headrace.http.log_position import Begun
from headrace.http.url import mask
from headrace.logs.events import EventParser, ServerSentEvent
from headrace.logs.notices import NoticeKind, StreamStatistics

__all__ = ["EventPosition"]

#: Seconds before a reconnection where the server wishes for none.
DEFAULT_WAIT: Final = 3.0


class EventPosition:
    """The place in one stream of events. `last_id` is what the server is told first."""

    accept: str = "200,204"

    def __init__(self, url: str, last_id: str = "") -> None:
        self.parser = EventParser(url)
        self.parser.last_id = last_id
        self.read = 0
        self.notices: list[tuple[NoticeKind, str]] = []
        self._has_begun = False

    def request_headers(self) -> dict[str, str]:
        """Give the headers of the next request."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self.parser.last_id:
            headers["Last-Event-ID"] = self.parser.last_id
        return headers

    def begin(self, status: int, headers: Mapping[str, str]) -> Begun:
        """Take the head of an answer. Raises BadResponse, permanent, for one that is no stream of events."""
        if status == 204:
            return Begun.OVER
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            shown = mask(self.parser.url)
            raise BadResponse(
                f"GET {shown}: it sends {kind[:100] or 'no content type'!r}, not text/event-stream",
                url=shown,
                disposition=Disposition.PERMANENT,
                ambiguous=False,
            )
        if self._has_begun and self.read and not self.parser.last_id:
            self.notices.append(("gap", "the server gives no ids: what it sent meanwhile is lost"))
        self._has_begun = True
        self.parser.begin()
        return Begun.READ

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take a chunk of the body; give the events that end in it."""
        self.read += len(chunk)
        return self.parser.feed(chunk)

    def check_end(self) -> None:
        """Any end is right."""

    def finish(self) -> list[ServerSentEvent]:
        """An event that did not end is none."""
        return []

    def count(self, statistics: StreamStatistics) -> None:
        """Write down the counts."""
        statistics.bytes = statistics.offset = self.read
        statistics.replaced, statistics.cut = self.parser.replaced, self.parser.cut

    def wait_after_end(self) -> float | None:
        """Give the seconds to wait before the stream is asked for again."""
        return DEFAULT_WAIT if self.parser.retry is None else self.parser.retry
