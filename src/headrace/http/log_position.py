"""How far a log over HTTP was read, and how reading goes on where it broke off.

    request_headers ─► a request ─► begin(status, headers) ─► feed(chunk) … ─► end
         ▲                                   │ the bytes before the place are asked for again, and must be the same
         └───────────────────────────────────┘ where they are not, another file stands there: from its beginning

Rules:
1. A growing log changes its ETag, so that If-Range would never hold: an overlap of bytes is compared instead.
2. No line is given twice: what is read again is compared and passed over, not given.
3. Where a server knows no ranges, what it sends is compared with the beginning that was read; what differs is a stream at
   its live end (a gap, which is told) or another file (which is told, too).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Literal

from headrace.errors import PlanError
from headrace.http.content_range import parse_content_range
from headrace.logs.lines import Line, LineSplitter
from headrace.logs.notices import NoticeKind, StreamStatistics

__all__ = ["Begun", "LogPosition", "Restarted", "Start"]

#: Bytes before the place that are compared with those that were read.
OVERLAP: Final = 1024
_LIVE_END: Final = "the server cannot go on where it broke off: read from its live end"

Start = Literal["start", "end"] | int


class Begun(enum.Enum):
    """What an answer is for: its body is read, or the log is asked for anew at once, or it is over for good."""

    READ = enum.auto()
    AGAIN = enum.auto()
    OVER = enum.auto()


class Restarted(Exception):
    """What came does not continue what was read: the log is to be asked for again, from its beginning."""


class LogPosition:
    """The place in one log; pure.

    `start` is where reading begins: "start", "end" (what is there already is passed over), an offset in bytes, or a negative
    number of bytes before the end; what is then left of the line under way is passed over. `read` is the offset of the next
    byte. Raises PlanError for another `start`.
    """

    accept: str = "200,206,416"

    def __init__(self, url: str, start: Start = "start") -> None:
        if isinstance(start, bool) or not (start in ("start", "end") or isinstance(start, int)):
            raise PlanError(
                f'start={start!r}: use "start", "end", or an offset in bytes (negative: before the end)'
            )
        self.splitter = LineSplitter(url)
        self.read = self.received = 0
        self.has_begun = False
        self.notices: list[tuple[NoticeKind, str]] = []
        self._at_end = start == "end"
        self._start: Start = 0 if start == "start" else -1 if start == "end" else start
        self._head = b""  # the first bytes of the log
        self._tail = b""  # the last bytes that were read
        self._from_zero = False  # `_head` is known
        self._no_ranges = False
        self._in_part = False  # what comes belongs to a line whose beginning is not given
        self._left: list[Line] = []  # of a log in whose place another one stands
        self._reset()

    def _reset(self) -> None:
        """Forget what belongs to one answer."""
        self._skip = 0  # bytes to pass over
        self._expected = b""  # what the last of them must be
        self._passed = b""
        self._matching: bytes | None = None  # what is compared with the beginning, so far
        self._is_file = False

    # ------------------------------------------------------------------------------------------ asking

    def request_headers(self) -> dict[str, str]:
        """Give the headers of the next request."""
        headers = {"Accept-Encoding": "identity"}
        if self._no_ranges:
            return headers
        if not self.has_begun:
            if isinstance(self._start, int) and self._start < 0:
                headers["Range"] = f"bytes={self._start}"
            elif self._start:
                headers["Range"] = f"bytes={int(self._start) - 1}-"
        elif self.read:
            headers["Range"] = f"bytes={self.read - len(self._tail)}-"
        return headers

    def begin(self, status: int, headers: Mapping[str, str]) -> Begun:
        """Take the head of an answer."""
        self._reset()
        encoded = headers.get("content-encoding", "identity").lower() != "identity"
        found = parse_content_range(headers.get("content-range"))
        if status == 416:
            return self._out_of_range(None if found is None else found.size)
        if status == 206:
            if found is None or found.start is None or encoded:
                self._no_ranges = True
                return Begun.AGAIN
            return self._begin_range(found.start)
        length = headers.get("content-length", "")
        size = int(length[:18]) if length.isascii() and length.isdigit() and not encoded else None
        self._begin_whole(size)
        return Begun.READ

    def _out_of_range(self, size: int | None) -> Begun:
        if not self.has_begun:
            # It is shorter than the place to begin at, or empty.
            self.has_begun = self._from_zero = True
            self._start = 0
            if size:
                self.notices.append(("gap", f"it has {size} bytes only: read from its beginning"))
            return Begun.AGAIN
        self.restart(f"it is shorter than what was read ({self.read} bytes)")
        return Begun.AGAIN

    def _begin_range(self, start: int) -> Begun:
        if not self.has_begun:
            self.has_begun = True
            self._from_zero = start == 0
            self._in_part = start > 0 or self._at_end
            self.read = start
            self.splitter.begin(start)
        elif start > self.read:
            self._jump(start, f"the server gives nothing between {self.read} and {start}")
        else:
            self._pass_over(self.read - start)
        return Begun.READ

    def _begin_whole(self, size: int | None) -> None:
        """An answer from the beginning, or from the live end of a stream: that is found out."""
        self._is_file = size is not None
        if not self.has_begun:
            self.has_begun = True
            start = int(self._start)
            if start < 0:
                start = 0 if size is None else max(0, size + start)
            elif start:
                start -= 1
            self._from_zero = start == 0
            self._in_part = start > 0 or (self._at_end and bool(size))
            self.read = start
            self.splitter.begin(start)
            self._skip = start
        elif size is not None and size < self.read:
            self._renew("rotated", f"it is shorter than what was read ({self.read} bytes)")
        elif self._from_zero and self.read:
            self._matching = b""
        elif self.read and size is not None:
            self._pass_over(self.read)
        elif self.read:
            self._renew("gap", _LIVE_END)

    def _pass_over(self, count: int) -> None:
        self._skip = count
        self._expected = self._tail[-count:] if count else b""

    # ------------------------------------------------------------------------------------------ reading

    def feed(self, chunk: bytes) -> list[Line]:
        """Take a chunk of the body; give the lines that end in it. Raises Restarted where it is not what was read before."""
        if self._matching is not None:
            chunk = self._matching + chunk
            compared = min(len(chunk), len(self._head))
            if chunk[:compared] != self._head[:compared]:
                self._matching = None
                if self._is_file:
                    self._renew("rotated", "another file stands in its place: read from its beginning")
                else:
                    self._renew("gap", _LIVE_END)
            elif compared < len(self._head):
                self._matching = chunk
                return []
            else:
                self._matching = None
                self._pass_over(self.read)
        if self._skip:
            passed, chunk = chunk[: self._skip], chunk[self._skip :]
            self._skip -= len(passed)
            if self._expected:
                self._passed = (self._passed + passed)[-len(self._expected) :]
                if not self._skip and self._passed != self._expected:
                    self.restart("another file stands in its place")
                    raise Restarted
        self._note(chunk)
        if self._in_part:
            end = chunk.find(b"\n") + 1
            self._in_part = not end
            self.splitter.begin(self.read - (len(chunk) - end if end else 0))
            chunk = chunk[end:] if end else b""
        return self.take_left() + self.splitter.feed(chunk) if self._left else self.splitter.feed(chunk)

    def take_left(self) -> list[Line]:
        """Give what was under way of a log in whose place another one stands now."""
        left, self._left = self._left, []
        return left

    def _note(self, chunk: bytes) -> None:
        """Keep what is compared later."""
        if self._from_zero and len(self._head) < OVERLAP:
            self._head += chunk[: OVERLAP - len(self._head)]
        self._tail = chunk[-OVERLAP:] if len(chunk) >= OVERLAP else (self._tail + chunk)[-OVERLAP:]
        self.read += len(chunk)
        self.received += len(chunk)

    def check_end(self) -> None:
        """The body has come to its end. Raises Restarted where that is before what was read already."""
        if self._matching is not None or (self._skip and self._expected):
            self.restart(f"it is shorter than what was read ({self.read} bytes)")
            raise Restarted

    def finish(self) -> list[Line]:
        """Give what stands after the last line end: no more comes."""
        return self.take_left() + self.splitter.end()

    def count(self, statistics: StreamStatistics) -> None:
        """Write down the counts."""
        statistics.bytes, statistics.offset = self.received, self.read
        statistics.replaced, statistics.cut = self.splitter.replaced, self.splitter.cut

    def wait_after_end(self) -> float | None:
        """A log wishes for no wait."""
        return None

    # ------------------------------------------------------------------------------------------ elsewhere

    def _jump(self, offset: int, why: str) -> None:
        self.notices.append(("gap", why))
        self._left += self.splitter.end()
        self.splitter.begin(offset)
        self.read, self._tail, self._in_part = offset, b"", True

    def _renew(self, kind: NoticeKind, why: str) -> None:
        """Take what comes from now on as another log, from offset 0."""
        self.notices.append((kind, why))
        self._left += self.splitter.end()
        self.splitter.begin(0)
        self.read, self._head, self._tail, self._from_zero, self._in_part = 0, b"", b"", True, False

    def restart(self, why: str) -> None:
        """Read another file in the log's place, from its beginning."""
        self._renew("rotated", f"{why}: read from its beginning")
        self._reset()
