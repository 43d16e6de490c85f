"""The lines of a text file as a replayable source.

Rules:
1. The position of an item is the number of its line from 0: position 16 is line 17 of an editor. Blank lines and
   comments are void.
2. One bad line is that item's trouble, and stops nothing.
"""

from __future__ import annotations

import os

from headrace.errors import PlanError
from headrace.files.packed import Stream
from headrace.files.text import BOM, TextFile, TextReader, checked_encoding, checked_path
from headrace.ports import Bookmark, Chunk

__all__ = ["Lines", "LinesReader", "lines"]


def lines(path: str | os.PathLike[str], *, comment: str | None = None, encoding: str = "utf-8") -> Lines:
    """Give the lines of a text file, without their ends (LF or CR LF), one item each.

    Blank lines are passed over, and with `comment="#"` lines that begin with that (spaces before it allowed). A byte
    order mark is dropped. Bytes that the encoding does not know become U+FFFD in their line. The file may be of any size,
    and may grow between runs: later runs take the new lines. It is opened when the flow runs. One whose name ends in .gz or
    .zst is unpacked while it is read.

    Raises PlanError for an encoding that is unknown or whose line ends are not single bytes (UTF-16), and for .zst where
    nothing can unpack it. Reading raises SourceError for a file that is missing, a directory, not readable, not text, or
    has a line of more than 16 MiB.
    """
    place = checked_path(path, "urls.txt")
    if comment is not None and not comment.strip():
        raise PlanError(f"comment={comment!r} would match every line or none; give text such as '#', or None")
    return Lines(place, comment, checked_encoding(encoding))


class Lines(TextFile):
    """A replayable source of lines. Made by `lines(...)`."""

    kind = "lines"
    unit = "line"

    def __init__(self, path: str, comment: str | None, encoding: str) -> None:
        super().__init__(path, {"encoding": encoding, "comment": comment})
        self._comment = comment

    def reader(self, stream: Stream, position: int, offset: int) -> LinesReader:
        """Give a reader of what `stream` gives."""
        return LinesReader(self, stream, position, offset, self._comment)

    def again(self) -> Lines:
        """Give another source over the same file."""
        return Lines(self.path, self._comment, self.encoding)


class LinesReader(TextReader):
    """One pass over the lines of a file."""

    def __init__(
        self, source: Lines, stream: Stream, position: int, offset: int, comment: str | None
    ) -> None:
        super().__init__(source, stream, position, offset)
        self._comment = comment

    def read_now(self, limit: int) -> Chunk | None:
        """Give the next lines."""
        start, offset = self._position, self._offset
        raw = self._take_lines(limit)
        if not raw:
            return None
        texts, commented = _decoded(raw, self._source.encoding, self._comment, first=start == 0)
        payloads, positions = _without_void(texts, start, commented)
        return Chunk(start, self._position, payloads, positions, Bookmark(start, offset))


def _decoded(
    raw: list[bytes], encoding: str, comment: str | None, *, first: bool
) -> tuple[list[str], str | None]:
    """Decode lines; give the comment mark along only where it occurs at all, as looking at each line costs."""
    if first and raw[0].startswith(BOM) and encoding == "utf-8":
        raw = [raw[0][len(BOM) :], *raw[1:]]
    joined = (b"\n".join(raw) + b"\n").replace(b"\r\n", b"\n").decode(encoding, errors="replace")
    texts = joined.split("\n")
    texts.pop()
    if len(texts) != len(raw):
        # an encoding of several bytes swallowed a line end after a broken character: line by line, then
        texts = [line.removesuffix(b"\r").decode(encoding, errors="replace") for line in raw]
    return texts, comment if comment is not None and comment in joined else None


def _without_void(texts: list[str], start: int, comment: str | None) -> tuple[list[str], list[int] | None]:
    if comment is None:
        payloads = [text for text in texts if text and not text.isspace()]
        if len(payloads) == len(texts):
            return payloads, None
    kept = [(start + index, text) for index, text in enumerate(texts) if not _is_void(text, comment)]
    return [text for _, text in kept], [position for position, _ in kept]


def _is_void(text: str, comment: str | None) -> bool:
    return not text or text.isspace() or (comment is not None and text.lstrip().startswith(comment))
