"""What all sources over text files share: how a file is opened, read in lines, described and recognised again.

Rules:
1. Positions ascend with the places in the file, and readers remember where some of them begin: that is what bookmarks and
   fingerprints are made of.
2. Memory is one block and what is under way of the line, however long the file.
3. What is not text is refused before anything moves.
4. Reads are small enough (256 KiB) to be done on the loop: each takes well under a millisecond from the page cache.
5. A fingerprint of a packed file covers its bytes as they are: it may grow by packed parts that are appended.
"""

from __future__ import annotations

import abc
import asyncio
import codecs
import os
import stat
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final

from headrace.errors import PlanError, SourceError
from headrace.files.packed import Stream, check_packing, is_packed, open_stream
from headrace.files.sample import sample_prefix, verify_prefix
from headrace.ports import Bookmark, Chunk

__all__ = [
    "BEGINNING",
    "BOM",
    "LONGEST",
    "TextFile",
    "TextReader",
    "checked_encoding",
    "checked_path",
    "shown",
]

LONGEST: Final = 16 << 20  #: bytes of a line or a record
BEGINNING: Final = 4000  #: bytes of a broken line or record that are kept for people
BOM: Final = codecs.BOM_UTF8
_FIRST_LOOK = 64 << 10
_COUNTED = 16 << 20
_MOST_MARKS = 4096


class TextFile(abc.ABC):
    """A replayable source over a text file."""

    kind: str  #: in fingerprints
    unit: str  #: what a position numbers, for people

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        check_packing(path)
        self.name = os.path.basename(path) or path
        self.path = path
        self.encoding: str = options["encoding"]
        self._options = options  # those that decide what the items are
        # Where items begin, as far as readers came along: ascending positions, their offsets, and how much of the file
        # itself had been read by then.
        self._marks: list[int] = [0]
        self._offsets: list[int] = [0]
        self._raw: list[int] = [0]
        self._torn_at: int | None = None  # the offset where a last line without an end ended
        self._pieces: dict[int, str] = {}
        self._described: tuple[int, Mapping[str, Any]] | None = None
        self._opened: tuple[int, int] | None = None  # device and inode of the file that readers read

    @abc.abstractmethod
    def reader(self, stream: Stream, position: int, offset: int) -> TextReader:
        """Give a reader of what `stream` gives, of which the first item is at `position`."""

    @abc.abstractmethod
    def again(self) -> TextFile:
        """Give another source over the same file."""

    def open(self, bookmark: Bookmark | None = None) -> TextReader:
        """Begin a pass. SourceError for a file that is missing, a directory, not readable or not text."""
        position, offset = (0, 0) if bookmark is None else (bookmark.position, int(bookmark.token))
        self._refuse_binary()
        return self.reader(self.stream(offset), position, offset)

    def stream(self, offset: int) -> Stream:
        """Give the file's bytes from `offset` on. Raises SourceError."""
        descriptor = _open(self.path)
        try:
            self._opened = _identity(descriptor)
            return open_stream(self.path, descriptor, offset)
        except OSError as error:
            os.close(descriptor)
            raise _unreadable(self.path, error) from error

    def fingerprint(self, end: int) -> Mapping[str, Any]:
        """Describe the file up to the last place at or before position `end` that a reader of this source came by.

        Takes constant time: the length, and hashes of the first and last 64 KiB and of some places between.
        """
        index = bisect_right(self._marks, end) - 1
        size = self._raw[index]
        if self._described is not None and self._described[0] == self._offsets[index]:
            return self._described[1]
        descriptor = _open(self.path)
        try:
            if self._opened is not None and _identity(descriptor) != self._opened:
                raise SourceError(
                    f"{self.path} was replaced by another file while it was read; run again, and it is compared with what "
                    "was read of the old one"
                )
            sample = sample_prefix(descriptor, size, self._pieces)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        finally:
            os.close(descriptor)
        found: Mapping[str, Any] = {
            "kind": self.kind,
            **self._options,
            "lines": self._marks[index],
            "offset": self._offsets[index],
            "torn": self._offsets[index] == self._torn_at,
            **sample,
        }
        self._described = (self._offsets[index], found)
        return found

    def verify(self, fingerprint: Mapping[str, Any]) -> str | None:
        """Say how the part that an earlier fingerprint covers differs now; None if it does not. It may have grown.

        SourceError where the file cannot be read.
        """
        if fingerprint.get("kind") != self.kind:
            return f"was of another kind ({fingerprint.get('kind')!r}), now the {self.kind} of {self.path}"
        for option, now in self._options.items():
            if fingerprint.get(option) != now:
                return f"{self.path} was read with {option}={fingerprint.get(option)!r}, now with {now!r}"
        packed = is_packed(self.path)
        descriptor = _open(self.path)
        try:
            size = os.fstat(descriptor).st_size
            differs = verify_prefix(descriptor, self.path, fingerprint, in_lines=not packed)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        finally:
            os.close(descriptor)
        if differs is None and fingerprint["torn"] and size > int(fingerprint["size"]):
            following = self._bytes_at(int(fingerprint["offset"]), 2)
            if following and not following.startswith((b"\n", b"\r\n")):
                number = int(fingerprint["lines"])
                return (
                    f"{self.path}, {self.unit} {number} has grown: when it was read, it was the last one and had no line "
                    "end"
                )
        return differs

    def describe(self, position: int) -> str:
        """Name a position: «urls.txt, line 17»."""
        return f"{self.name}, {self.unit} {position + 1}"

    def total(self) -> int | None:
        """Give the number of items; None for files larger than 16 MiB, packed ones and those that cannot be read."""
        try:
            if is_packed(self.path) or os.path.getsize(self.path) > _COUNTED:
                return None
            # By a source of its own: what counting came by would hide from fingerprints what was really taken.
            reader = self.again().open()
        except (OSError, SourceError):
            return None
        try:
            count = 0
            while (chunk := reader.read_now(1 << 20)) is not None:
                count += len(chunk.payloads)
        except SourceError:
            return None
        finally:
            reader.close_now()
        return count

    def came_by(self, position: int, offset: int, raw: int, *, torn: bool = False) -> None:
        """Remember where an item begins (or the file ends); for readers of this source."""
        if torn:
            self._torn_at = offset
        at = bisect_right(self._marks, position)
        if self._marks[at - 1] == position:
            return
        self._marks.insert(at, position)  # at the end, unless another reader was ahead
        self._offsets.insert(at, offset)
        self._raw.insert(at, raw)
        if len(self._marks) > _MOST_MARKS:
            # keep the recent ones, which are asked for, and some of the others
            half = _MOST_MARKS // 2
            for column in (self._marks, self._offsets, self._raw):
                column[:half] = column[:half:2]

    def _bytes_at(self, offset: int, size: int) -> bytes:
        stream = self.stream(offset)
        found = b""
        try:
            while len(found) < size and (block := stream.read()):
                found += block
        except OSError as error:
            raise _unreadable(self.path, error) from error
        finally:
            stream.close()
        return found[:size]

    def _refuse_binary(self) -> None:
        _refuse_binary(self.path, self._bytes_at(0, _FIRST_LOOK), self.encoding)


class TextReader(abc.ABC):
    """One pass over the items of a text file."""

    def __init__(self, source: TextFile, stream: Stream, position: int, offset: int) -> None:
        self._source = source
        self._stream = stream
        self._position = position  # of the next item to give
        self._offset = offset  # where it begins
        self._lines: list[bytes] = []  # complete lines, without their LF
        self._next = 0
        self._tail: list[bytes] = []  # the beginning of the line under way
        self._tail_bytes = 0
        self._ended = False
        self._is_torn = False  # the last line is in `_lines`, and has no end

    async def read(self, limit: int) -> Chunk | None:
        """Give the next 1 to `limit` items; None at the end. Waits only to let others run, so a cancellation loses nothing.

        SourceError where the file cannot be read on, or has a line or record of more than 16 MiB.
        """
        while self._stream.skip():  # noqa: ASYNC110 - nobody is waited for: others are let run
            await asyncio.sleep(0)
        return self.read_now(limit)

    async def close(self) -> None:
        """Close the file. Repeatable."""
        self.close_now()

    @abc.abstractmethod
    def read_now(self, limit: int) -> Chunk | None:
        """Do what `read` does."""

    def close_now(self) -> None:
        """Do what `close` does."""
        self._stream.close()

    def _fill(self) -> bool:
        """Read one block, once all lines are taken; False at the end of the file, where nothing more comes."""
        if self._ended:
            return False
        try:
            block = self._stream.read()
        except OSError as error:
            raise _unreadable(self._source.path, error) from error
        self._next = 0
        if not block:
            self._ended = True
            self._lines = [b"".join(self._tail)] if self._tail_bytes else []
            self._tail.clear()
            self._is_torn = bool(self._lines)
            return self._is_torn
        self._lines = block.split(b"\n")
        rest = self._lines.pop()
        if self._lines:
            if self._tail:
                self._lines[0] = b"".join([*self._tail, self._lines[0]])
                self._tail.clear()
            self._tail_bytes = 0
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            if self._tail_bytes > LONGEST:
                raise self._too_long()
        return True

    def _too_long(self) -> SourceError:
        number = self._position + len(self._lines) + 1
        return SourceError(
            f"{self._source.path}, line {number} is longer than {LONGEST >> 20} MiB; "
            "check that it is a text file with one item a line"
        )

    def _take_lines(self, limit: int) -> list[bytes]:
        """Give up to `limit` lines, one at least unless the file is at its end, and go on behind them."""
        while self._next >= len(self._lines):
            if not self._fill():
                return []
        raw = self._lines[self._next : self._next + limit]
        self._next += len(raw)
        torn = self._is_torn and self._next >= len(self._lines)
        self._position += len(raw)
        self._offset += sum(map(len, raw)) + len(raw) - torn
        self._source.came_by(self._position, self._offset, self._stream.raw_offset(self._offset), torn=torn)
        return raw


# ---------------------------------------------------------------------------------------------------- refusals


def shown(raw: bytes) -> str:
    """Give the beginning of a broken line or record as text, for its dead letter."""
    text = raw[:BEGINNING].decode("utf-8", errors="replace").rstrip("\r\n")
    most = BEGINNING // 4
    return text if len(text) <= most else text[:most] + "…"


def checked_path(path: str | os.PathLike[str], example: str) -> str:
    """Give a path as text. Raises PlanError for what cannot be one."""
    place: str | bytes = os.fspath(path)
    if isinstance(place, bytes) or not place or "\0" in place:
        raise PlanError(f"{place!r} cannot be a path; give a str such as {example!r}")
    return place


def checked_encoding(encoding: str) -> str:
    """Give the usual name of an encoding. Raises PlanError for one that is unknown or has no line ends of single bytes."""
    try:
        name = codecs.lookup(encoding).name
        plain = bytes(range(128)).decode(name) == "".join(map(chr, range(128)))
    except (LookupError, UnicodeError):
        plain, name = False, ""
    if not name:
        raise PlanError(
            f"encoding={encoding!r} is unknown to Python, or holds no plain text; 'utf-8' is the usual one"
        )
    if not plain:
        raise PlanError(
            f"encoding={encoding!r} does not write ASCII as single bytes, so its lines cannot be found; "
            f"convert the file: iconv -f {encoding} -t utf-8"
        )
    return "utf-8" if name == "utf-8-sig" else name


def _open(path: str) -> int:
    """Open for reading; a pipe or a device is refused, as it cannot be read again (and could block right here)."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist (looked in {os.getcwd()}); check the name") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise SourceError(f"{path} is a directory; give a text file with one item a line")
    if not stat.S_ISREG(mode):
        raise SourceError(
            f"{path} is a pipe or a device, which cannot be read a second time; write it to a file first"
        )
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _unreadable(path: str, error: OSError) -> SourceError:
    """Translate what the system says of a file."""
    return SourceError(
        f"{path} cannot be read: {error.strerror or error}; check the file and its permissions"
    )


def _is_in(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _refuse_binary(path: str, head: bytes, encoding: str) -> None:
    zero = head.find(b"\0")
    if zero >= 0:
        raise SourceError(
            f"{path} is not a text file (it has a NUL byte at {zero}); give a text file with one item a line, "
            "and if it is UTF-16, convert it: iconv -f utf-16 -t utf-8"
        )
    whole = head[: head.rfind(b"\n") + 1] or head
    found = whole.split(b"\n")
    bad = sum(not _is_in(line, encoding) for line in found)
    if len(head) == _FIRST_LOOK and whole is head:
        return  # one very long line: its cut end says nothing
    if bad * 10 > len(found):
        raise SourceError(
            f"{path} is not text in {encoding} ({bad} of its first {len(found)} lines have bytes that it does not know); "
            "name its encoding, as encoding='latin-1', or give a text file"
        )
