"""Lines out of bytes: the records of a log, and the splitter that makes them.

Rules:
1. A line ends with LF, or CR LF. What stands after the last end is a line too, once it is known that no more comes.
2. A line of any length up to the cap is whole; a longer one is given cut, and counted.
3. Bytes that are not UTF-8 become U+FFFD, and are counted. Offsets count bytes as they came.
"""

from __future__ import annotations

from itertools import accumulate, count, repeat
from operator import add
from typing import Final

import msgspec

__all__ = ["LONGEST_LINE", "Line", "LineSplitter"]

#: Bytes of a line beyond which it is cut.
LONGEST_LINE: Final = 16 << 20
_BOM: Final = b"\xef\xbb\xbf"
_REPLACED: Final = "\ufffd"
_REPLACED_BYTES: Final = _REPLACED.encode()


class Line(msgspec.Struct, frozen=True, gc=False):
    """A line of a log, without its end: `url` says which log (a path for a file), `offset` is that of its first byte."""

    text: str
    url: str
    offset: int


class LineSplitter:
    """Cut bytes into lines, chunk by chunk.

    `offset` is that of the first byte of the line under way; `replaced` counts characters that took the place of bytes that
    are not UTF-8, `cut` lines that were longer than the cap.
    """

    def __init__(self, url: str, offset: int = 0, longest: int = LONGEST_LINE) -> None:
        self.url = url
        self.offset = offset
        self.replaced = 0
        self.cut = 0
        self._longest = longest
        self._parts: list[bytes] = []  # of the line under way
        self._size = 0  # bytes of it that came, those beyond the cap too

    @property
    def pending(self) -> int:
        """Bytes of the line under way that have come."""
        return self._size

    def feed(self, chunk: bytes) -> list[Line]:
        """Give the lines that end in this chunk."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep(chunk)
            return []
        if not self._parts:
            lines = self._lines(chunk[:end])
        elif self._size + end <= self._longest:
            lines = self._lines(b"".join((*self._parts, chunk[:end])))
        else:
            first = chunk.index(b"\n")
            self._keep(chunk[:first])
            lines = self._finish()
            if first < end:
                lines += self._lines(chunk[first + 1 : end])
        self._parts.clear()
        self._size = 0
        if end + 1 < len(chunk):
            self._keep(chunk[end + 1 :])
        return lines

    def end(self) -> list[Line]:
        """Give the line under way: no more comes."""
        return self._finish(ended=False) if self._size else []

    def begin(self, offset: int) -> None:
        """Go on at another place of the log, with nothing under way."""
        self._parts.clear()
        self._size = 0
        self.offset = offset

    def _keep(self, piece: bytes) -> None:
        room = self._longest - self._size
        if room > 0:
            self._parts.append(piece[:room])
        self._size += len(piece)

    def _finish(self, *, ended: bool = True) -> list[Line]:
        """Give the line under way, cut where it is too long."""
        size, start = self._size, self.offset
        lines = self._lines(b"".join(self._parts))
        self._parts.clear()
        self._size = 0
        self.offset = start + size + ended
        self.cut += size > self._longest
        return lines

    def _lines(self, block: bytes) -> list[Line]:
        """Make lines of a block that ends where a line does, its last end left out."""
        start = self.offset
        self.offset = start + len(block) + 1
        if start == 0 and block.startswith(_BOM):
            # Its place counts in offsets, and it is in no line.
            first, newline, rest = block[3:].partition(b"\n")
            self.offset = 3
            lines = self._lines(first)
            lines[0] = Line(lines[0].text, self.url, 0)
            return lines + self._lines(rest) if newline else lines
        if block.isascii():
            raw: list[str] | list[bytes]
            raw = texts = block.decode("ascii").split("\n")
        else:
            raw = block.split(b"\n")
            texts = self._decode(block).split("\n")
        offsets = map(add, accumulate(map(len, raw), initial=start), count())
        if b"\r" in block:
            texts = [text[:-1] if text.endswith("\r") else text for text in texts]
        return list(map(Line, texts, repeat(self.url), offsets))

    def _decode(self, block: bytes) -> str:
        try:
            return block.decode()
        except UnicodeDecodeError:
            text = block.decode(errors="replace")
            self.replaced += text.count(_REPLACED) - block.count(_REPLACED_BYTES)
            return text
