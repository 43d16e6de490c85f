"""Server-sent events out of bytes, as the HTML standard has it (§9.2.6, "Interpreting an event stream").

Rules:
1. Lines end with LF, CR LF or CR. An event ends with an empty line; one that is broken off before it is none.
2. The last id holds until another comes, over reconnections too. `retry` is the server's wish for the wait before one.
3. An event of more than the cap is left out, and counted.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

__all__ = ["LARGEST_EVENT", "EventParser", "ServerSentEvent"]

#: Bytes of an event beyond which it is left out.
LARGEST_EVENT: Final = 16 << 20
_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"
#: The longest wait before a reconnection that a server may ask for, in seconds.
LONGEST_RETRY: Final = 3600.0


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One event: `event` is its type ("message" where none is named), `id` the last one that was sent."""

    data: str
    event: str = "message"
    id: str = ""
    url: str = ""


class EventParser:
    """Cut bytes into events, chunk by chunk; `last_id` and `retry` (seconds) are those that the server said last."""

    def __init__(self, url: str, largest: int = LARGEST_EVENT) -> None:
        self.url = url
        self.last_id = ""
        self.retry: float | None = None
        self.replaced = 0
        self.cut = 0
        self._largest = largest
        self.begin()

    def begin(self) -> None:
        """Begin a new connection: what was not ended is none."""
        self._parts: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._at_start = True
        self._id = self.last_id
        self._clear()

    def _clear(self) -> None:
        self._data: list[str] = []
        self._event = ""
        self._event_size = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Give the events that end in this chunk."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if not chunk:
            return []
        lines = _END.split(chunk)
        self._after_cr = chunk[-1:] == b"\r"
        if len(lines) == 1:
            self._keep(chunk)
            return []
        self._keep(lines[0])
        lines[0] = b"".join(self._parts)
        self._parts, self._size = [], 0
        self._keep(lines.pop())
        events: list[ServerSentEvent] = []
        for line in lines:
            if self._at_start:
                self._at_start = False
                line = line.removeprefix(_BOM)
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _keep(self, piece: bytes) -> None:
        room = self._largest + 1 - self._size
        if piece and room > 0:
            self._parts.append(piece[:room])
            self._size += len(piece)

    def _field(self, line: bytes) -> None:
        self._event_size += len(line)
        if self._event_size > self._largest:
            self._data.clear()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(self._decode(value))
        elif name == b"event":
            self._event = self._decode(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = self._decode(value)
        elif name == b"retry" and value.isdigit():
            self.retry = min(int(value[:9]) / 1000, LONGEST_RETRY)

    def _decode(self, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            text = value.decode(errors="replace")
            self.replaced += text.count("\ufffd")
            return text

    def _dispatch(self) -> ServerSentEvent | None:
        self.last_id = self._id
        too_large = self._event_size > self._largest
        self.cut += too_large
        event = None
        if self._data and not too_large:
            event = ServerSentEvent("\n".join(self._data), self._event or "message", self.last_id, self.url)
        self._clear()
        return event
