"""The lines of a text file as a replayable source.

Rules:
1. The position of an item is the number of its line from 0: position 16 is line 17 of an editor. Blank lines and
   comments are void.
2. Memory is one block and the line under way, however long the file.
3. What is not text is refused before anything moves; one bad line later on is that item's trouble, and stops nothing.
4. Reads are small enough (256 KiB) to be done on the loop: each takes well under a millisecond from the page cache.
"""

from __future__ import annotations

import codecs
import os
import stat
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from headrace.errors import PlanError, SourceError
from headrace.files.sample import sample_prefix, verify_prefix
from headrace.ports import Bookmark, Chunk

__all__ = ["Lines", "LinesReader", "lines"]

_BLOCK = 256 << 10
_LONGEST_LINE = 16 << 20
_FIRST_LOOK = 64 << 10
_COUNTED = 16 << 20
_MOST_MARKS = 4096
_BOM = codecs.BOM_UTF8


def lines(path: str | os.PathLike[str], *, comment: str | None = None, encoding: str = "utf-8") -> Lines:
    """Give the lines of a text file, without their ends (LF or CR LF), one item each.

    Blank lines are passed over, and with `comment="#"` lines that begin with that (spaces before it allowed). A byte
    order mark is dropped. Bytes that the encoding does not know become U+FFFD in their line. The file may be of any size,
    and may grow between runs: later runs take the new lines. It is opened when the flow runs.

    Raises PlanError for an encoding that is unknown or whose line ends are not single bytes (UTF-16). Reading raises
    SourceError for a file that is missing, a directory, not readable, not text, or has a line of more than 16 MiB.
    """
    place: str | bytes = os.fspath(path)
    if isinstance(place, bytes) or not place or "\0" in place:
        raise PlanError(f"{place!r} cannot be a path; give a str such as 'urls.txt'")
    if comment is not None and not comment.strip():
        raise PlanError(f"comment={comment!r} would match every line or none; give text such as '#', or None")
    return Lines(place, comment, _checked(encoding))


class Lines:
    """A replayable source of lines. Made by `lines(...)`."""

    def __init__(self, path: str, comment: str | None, encoding: str) -> None:
        self.name = os.path.basename(path) or path
        self.path = path
        self._comment = comment
        self._encoding = encoding
        # Where lines begin, as far as readers came along: ascending positions and their byte offsets.
        self._marks: list[int] = [0]
        self._offsets: list[int] = [0]
        self._torn_at: int | None = None  # the byte where a last line without an end ended
        self._pieces: dict[int, str] = {}
        self._described: tuple[int, Mapping[str, Any]] | None = None
        self._opened: tuple[int, int] | None = None  # device and inode of the file that readers read

    def open(self, bookmark: Bookmark | None = None) -> LinesReader:
        """Begin a pass. SourceError for a file that is missing, a directory, not readable or not text."""
        descriptor = _open(self.path)
        try:
            _refuse_binary(self.path, os.pread(descriptor, _FIRST_LOOK, 0), self._encoding)
            self._opened = _identity(descriptor)
            position, offset = (0, 0) if bookmark is None else (bookmark.position, int(bookmark.token))
            os.lseek(descriptor, offset, os.SEEK_SET)
        except OSError as error:
            os.close(descriptor)
            raise _unreadable(self.path, error) from error
        except SourceError:
            os.close(descriptor)
            raise
        return LinesReader(self, descriptor, position, offset, self._comment, self._encoding)

    def fingerprint(self, end: int) -> Mapping[str, Any]:
        """Describe the file up to the last place at or before position `end` that a reader of this source came by.

        Takes constant time: the length, and hashes of the first and last 64 KiB and of some places between.
        """
        index = bisect_right(self._marks, end) - 1
        size = self._offsets[index]
        if self._described is not None and self._described[0] == size:
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
            "kind": "lines",
            "encoding": self._encoding,
            "comment": self._comment,
            "lines": self._marks[index],
            "torn": size == self._torn_at,
            **sample,
        }
        self._described = (size, found)
        return found

    def verify(self, fingerprint: Mapping[str, Any]) -> str | None:
        """Say how the part that an earlier fingerprint covers differs now; None if it does not. It may have grown.

        SourceError where the file cannot be read.
        """
        if fingerprint.get("kind") != "lines":
            return f"was of another kind ({fingerprint.get('kind')!r}), now the lines of {self.path}"
        for option, now in (("encoding", self._encoding), ("comment", self._comment)):
            if fingerprint.get(option) != now:
                return f"{self.path} was read with {option}={fingerprint.get(option)!r}, now with {now!r}"
        descriptor = _open(self.path)
        try:
            return verify_prefix(descriptor, self.path, fingerprint)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        finally:
            os.close(descriptor)

    def describe(self, position: int) -> str:
        """Name a position: «urls.txt, line 17»."""
        return f"{self.name}, line {position + 1}"

    def total(self) -> int | None:
        """Give the number of items of a file up to 16 MiB; None for larger ones and for those that cannot be read."""
        try:
            if os.path.getsize(self.path) > _COUNTED:
                return None
            # By a source of its own: what counting came by would hide from fingerprints what was really taken.
            reader = Lines(self.path, self._comment, self._encoding).open()
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

    def came_by(self, position: int, offset: int, *, torn: bool = False) -> None:
        """Remember where a line begins (or the file ends); for readers of this source."""
        if torn:
            self._torn_at = offset
        at = bisect_right(self._marks, position)
        if self._marks[at - 1] == position:
            return
        self._marks.insert(at, position)  # at the end, unless another reader was ahead
        self._offsets.insert(at, offset)
        if (
            len(self._marks) > _MOST_MARKS
        ):  # keep the recent ones, which are asked for, and some of the others
            half = _MOST_MARKS // 2
            self._marks[:half] = self._marks[:half:2]
            self._offsets[:half] = self._offsets[:half:2]


class LinesReader:
    """One pass over the lines of a file."""

    def __init__(
        self, source: Lines, descriptor: int, position: int, offset: int, comment: str | None, encoding: str
    ) -> None:
        self._source = source
        self._descriptor: int | None = descriptor
        self._position = position  # of the next line to give
        self._offset = offset  # where it begins
        self._comment = comment
        self._encoding = encoding
        self._lines: list[bytes] = []  # complete lines, without their LF
        self._next = 0
        self._tail: list[bytes] = []  # the beginning of the line under way
        self._tail_bytes = 0
        self._ended = False

    async def read(self, limit: int) -> Chunk | None:
        """Give the next 1 to `limit` lines; None at the end. Never waits, so a cancellation loses nothing.

        SourceError where the file cannot be read on, or has a line of more than 16 MiB.
        """
        return self.read_now(limit)

    async def close(self) -> None:
        """Close the file. Repeatable."""
        self.close_now()

    def read_now(self, limit: int) -> Chunk | None:
        """Do what `read` does."""
        torn = False
        while self._next >= len(self._lines):
            if self._ended:
                return None
            torn = self._fill()
        raw = self._lines[self._next : self._next + limit]
        self._next += len(raw)
        start, offset = self._position, self._offset
        self._position += len(raw)
        self._offset += sum(map(len, raw)) + len(raw) - torn
        self._source.came_by(self._position, self._offset, torn=torn)
        texts, commented = _decoded(raw, self._encoding, self._comment, first=start == 0)
        payloads, positions = _without_void(texts, start, commented)
        return Chunk(start, self._position, payloads, positions, Bookmark(start, offset))

    def close_now(self) -> None:
        """Do what `close` does."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _fill(self) -> bool:
        """Read one block; say whether what came is the last line and has no end."""
        if self._descriptor is None:
            raise SourceError(f"{self._source.path} is closed; open the source again to read on")
        try:
            block = os.read(self._descriptor, _BLOCK)
        except OSError as error:
            raise _unreadable(self._source.path, error) from error
        self._next = 0
        if not block:
            self._ended = True
            self._lines = [b"".join(self._tail)] if self._tail_bytes else []
            self._tail.clear()
            return bool(self._lines)
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
            self._check_length()
        return False

    def _check_length(self) -> None:
        if self._tail_bytes > _LONGEST_LINE:
            number = self._position + len(self._lines) + 1
            raise SourceError(
                f"{self._source.path}, line {number} is longer than {_LONGEST_LINE >> 20} MiB; "
                "check that it is a text file with one item a line"
            )


def _decoded(
    raw: list[bytes], encoding: str, comment: str | None, *, first: bool
) -> tuple[list[str], str | None]:
    """Decode lines; give the comment mark along only where it occurs at all, as looking at each line costs."""
    if first and raw[0].startswith(_BOM) and encoding == "utf-8":
        raw = [raw[0][len(_BOM) :], *raw[1:]]
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


# ---------------------------------------------------------------------------------------------------- refusals


def _checked(encoding: str) -> str:
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
    return SourceError(
        f"{path} cannot be read: {error.strerror or error}; check the file and its permissions"
    )


def _refuse_binary(path: str, head: bytes, encoding: str) -> None:
    zero = head.find(b"\0")
    if zero >= 0:
        raise SourceError(
            f"{path} is not a text file (it has a NUL byte at {zero}); give a text file with one item a line, "
            "and if it is UTF-16, convert it: iconv -f utf-16 -t utf-8"
        )
    whole = head[: head.rfind(b"\n") + 1] or head
    found = whole.split(b"\n")
    bad = sum("\ufffd" in line.decode(encoding, errors="replace") for line in found) if found else 0
    if len(head) == _FIRST_LOOK and whole is head:
        return  # one very long line: its cut end says nothing
    if bad * 10 > len(found):
        raise SourceError(
            f"{path} is not text in {encoding} ({bad} of its first {len(found)} lines have bytes that it does not know); "
            "name its encoding, as encoding='latin-1', or give a text file"
        )
