"""`follow`: the lines of files that grow, as `tail -F` gives them.

Rules:
1. A file in whose place another one stands, or that became shorter, is read from its beginning; what was left of the old one
   is read first. Both are told.
2. What was read last is compared before reading goes on, so that a file that was emptied and has grown again is noticed.
3. The loop does not wait for the disk: files are read in threads.
"""

from __future__ import annotations

import asyncio
import math
import os
import stat
from collections.abc import AsyncGenerator
from typing import Any, Final, Literal, NamedTuple

from headrace.aio.disk import Disk
from headrace.aio.tasks import uninterrupted
from headrace.errors import PlanError, SourceError
from headrace.logs.lines import Line, LineSplitter
from headrace.logs.notices import Notice, OnNotice, StreamStatistics, log_notice
from headrace.logs.stream import LogStream, OnLogFailure

__all__ = ["FileLog", "Start", "follow"]

Start = Literal["start", "end"] | int
BLOCK: Final = 1 << 20  # bytes read at a time
OVERLAP: Final = 1024  # bytes that are compared
POLL: Final = 0.2  # seconds between two looks at a file that has come to its end


def follow(
    *paths: str | os.PathLike[str],
    start: Start = "start",
    follow: bool | float = True,
    on_failure: OnLogFailure = "stop",
    on_notice: OnNotice | None = None,
) -> LogStream[Line]:
    """Read files line by line while they grow: `async with hr.files.follow("app.log") as log:`, then `async for` over it.

    A rotated file is followed by name: the rest of the old one, then the new one from its beginning. A file that is missing
    for a while is waited for, once it was there.

    Args:
        paths: One or more; a line says which one it is from, as its `url`.
        start: "start", "end" (only what is written from now on), an offset in bytes, or a negative number of bytes before
            the end. What is left of a line there is passed over.
        follow: Look for more five times a second (or every so many seconds); False ends at the end.
        on_failure: "stop" raises what a file fails with; with "record" the others go on, and `.failures` has it.
        on_notice: Called with each Notice; by default they go to the logger `headrace.logs`.

    Raises PlanError for what cannot work; iterating raises SourceError for a file that cannot be read.
    """
    if not paths:
        raise PlanError("give at least one file")
    names = [os.fspath(path) for path in paths]
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            raise PlanError(f"{name!r} cannot be a path; give a str such as 'app.log'")
    if len(set(names)) < len(names):
        raise PlanError("a file is given twice: each is read once")
    tell = on_notice or log_notice
    disk = Disk()
    logs = {name: FileLog(name, start=start, follow=follow, disk=disk, on_notice=tell) for name in names}

    async def close() -> None:
        disk.close()

    return LogStream(logs, on_failure, tell, close)


class _Step(NamedTuple):
    """What one look at a file brought: bytes, or how it changed."""

    chunk: bytes = b""
    rotated: str = ""


class FileLog:
    """One file that grows."""

    def __init__(
        self, path: str, *, start: Start, follow: bool | float, disk: Disk, on_notice: OnNotice
    ) -> None:
        if isinstance(start, bool) or not (start in ("start", "end") or isinstance(start, int)):
            raise PlanError(
                f'start={start!r}: use "start", "end", or an offset in bytes (negative: before the end)'
            )
        if not isinstance(follow, bool) and not (
            isinstance(follow, int | float) and 0.001 <= follow < math.inf
        ):
            raise PlanError(
                f"follow={follow!r}: give True, False, or the seconds between looks (0.001 or more)"
            )
        self.url = path
        self.statistics = StreamStatistics()
        self._start = start
        self._poll = (POLL if follow else None) if isinstance(follow, bool) else float(follow)
        self._disk = disk
        self._on_notice = on_notice
        self._splitter = LineSplitter(path)
        self._descriptor = -1
        self._read = 0
        self._tail = b""
        self._in_part = False
        self._was_short = False  # the last read came to the end

    async def batches(self) -> AsyncGenerator[list[Line], None]:
        """Give the lines as they are written. Raises SourceError where the file cannot be read."""
        statistics = self.statistics
        try:
            await self._call(self._open, True)
            statistics.state = "reading"
            while True:
                step = await self._call(self._look)
                lines = self._take(step)
                if lines:
                    statistics.records += len(lines)
                    yield lines
                elif not step.chunk and not step.rotated:
                    if self._poll is None:
                        break
                    statistics.state = "waiting"
                    await asyncio.sleep(self._poll)
            if last := self._splitter.end():
                statistics.records += len(last)
                yield last
            statistics.state = "ended"
            self._on_notice(Notice("ended", self.url, self._read, "it has come to its end"))
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    async def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            # Not left before it has ended: the descriptor is closed then.
            return await uninterrupted(self._disk.start(function, *arguments))
        except OSError as error:
            raise SourceError(f"{self.url} cannot be read: {error.strerror or error}") from error

    def _take(self, step: _Step) -> list[Line]:
        """Make lines of what was read."""
        lines: list[Line] = []
        statistics = self.statistics
        if step.rotated:
            lines = self._splitter.end()
            self._splitter.begin(0)
            self._in_part = False
            statistics.rotations += 1
            self._on_notice(Notice("rotated", self.url, 0, f"{step.rotated}: read from its beginning"))
        chunk = step.chunk
        if not chunk:
            return lines
        statistics.state = "reading"
        statistics.bytes += len(chunk)
        statistics.offset = self._read
        if self._in_part:
            end = chunk.find(b"\n") + 1
            self._in_part = not end
            self._splitter.begin(self._read - (len(chunk) - end if end else 0))
            chunk = chunk[end:] if end else b""
        cut = self._splitter.cut
        lines += self._splitter.feed(chunk)
        statistics.replaced, statistics.cut = self._splitter.replaced, self._splitter.cut
        if statistics.cut > cut:
            text = f"{statistics.cut - cut} lines were longer than the cap, and are cut"
            self._on_notice(Notice("cut", self.url, self._read, text))
        return lines

    # ------------------------------------------------------------------------------------------ in a thread

    def _open(self, first: bool) -> None:
        descriptor = os.open(self.url, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "it is not a regular file")
            self._read, self._tail = 0, b""
            if first:
                self._begin(status.st_size)
        except OSError:
            os.close(descriptor)
            raise
        old, self._descriptor = self._descriptor, descriptor
        if old >= 0:
            os.close(old)
        self.statistics.connections += 1

    def _begin(self, size: int) -> None:
        start = self._start
        if start == "end":
            place = max(0, size - 1)
            self._in_part = size > 0
        else:
            place = (
                0 if start == "start" else start - 1 if start > 0 else max(0, size + start) if start else 0
            )
            self._in_part = place > 0 or (isinstance(start, int) and start == 1)
            if place > size:
                raise OSError(0, f"it has {size} bytes, and is to be read from byte {place + 1}")
        self._read = place
        self._splitter.begin(place)

    def _look(self) -> _Step:
        """Read on; at the end, see whether another file stands in this one's place."""
        status = os.fstat(self._descriptor)
        if status.st_size < self._read:
            return self._anew("it became shorter")
        if status.st_size > self._read:
            if self._was_short and self._tail:
                again = os.pread(self._descriptor, len(self._tail), self._read - len(self._tail))
                if again != self._tail:
                    return self._anew("it was written anew")
            chunk = os.pread(self._descriptor, BLOCK, self._read)
            if chunk:
                self._was_short = len(chunk) < BLOCK
                self._read += len(chunk)
                self._tail = chunk[-OVERLAP:] if len(chunk) >= OVERLAP else (self._tail + chunk)[-OVERLAP:]
                return _Step(chunk)
        try:
            found = os.stat(self.url)
        except FileNotFoundError:
            return _Step()
        if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
            return _Step()
        if os.fstat(self._descriptor).st_size > self._read:
            return self._look()  # the last lines were written meanwhile
        try:
            self._open(False)
        except FileNotFoundError:
            return _Step()
        return _Step(rotated="another file stands in its place")

    def _anew(self, why: str) -> _Step:
        self._read, self._tail = 0, b""
        return _Step(rotated=why)
