"""Where parent and child of the process lane leave large pickles for each other: the shared file, behind the small results.

Rules:
1. It is written and read by system calls, and mapped by nobody: it counts against no limit of address space, no page of it
   can be missing when it is read, and a system that refuses memory says so with an error. Then the socket takes the pickle.
2. A value is copied twice on its way, into the file and out of it into its own memory; what a pickler would copy besides,
   and what a socket would, is most of the cost of large values.
3. Pages that were used are used again, since fresh ones cost as much as the copy. What is large is given back.
4. The child reads it as it starts: it imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Sequence
from typing import Any, Final

from headrace.lanes import wire

__all__ = ["KEEP", "LEAST", "LEAST_CHUNK", "MOST", "START", "Store", "length_of", "parts_of"]

#: Where large pickles begin in the file.
START: Final = wire.MEMORY
#: Pickles from this length on go by the file, in bytes: at 64 KB the way there takes as long as by the socket, at 128 KB a
#: third, at 1 MB and above a quarter to a half.
LEAST: Final = 1 << 17
#: The same for the values of a chunk, in the other direction: the parent, which sends them, has its loop to see to, and
#: below this a child that reads as it is written to is faster.
LEAST_CHUNK: Final = 1 << 21
#: Beside results that the parent has not read yet, no other goes to the file beyond this many bytes.
MOST: Final = 64 << 20
#: The bytes that a file keeps when the chunk that needed more of them is over. Values of 8 MB are a third slower without;
#: more than this made no difference that could be measured.
KEEP: Final = 16 << 20
#: The most buffers that every system takes in one call.
_BUFFERS: Final = 1024

_IS_THERE = hasattr(os, "memfd_create")  # a file that had to be written to a disk would be no gain


class Store:
    """One process's view of the file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = START

    def put(self, parts: Sequence[Any], at: int = START) -> bool:
        """Write a pickle at an offset; False where the system has no place for it."""
        if not _IS_THERE:
            return False
        left = [memoryview(part) for part in parts]
        left.reverse()
        end = at
        try:
            while left:
                count = os.pwritev(self._fd, left[: -_BUFFERS - 1 : -1], end)
                end += count
                while left and count >= len(left[-1]):
                    count -= len(left.pop())
                if count:
                    left[-1] = left[-1][count:]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, at)
            return False
        self._end = max(self._end, end)
        return True

    def load(self, at: int = START, length: int = 0) -> Any:
        """Load the pickle at an offset."""
        self._end = max(self._end, at + length)
        return pickle.Unpickler(_Reader(self._fd, at)).load()

    def trim(self) -> None:
        """Give back what is beyond KEEP. Only the parent may, and only while nothing is under way."""
        if self._end > START + KEEP:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, START + KEEP)
        self._end = START


class _Reader:
    """The file as an unpickler reads it: large values go from it into their own memory."""

    def __init__(self, fd: int, at: int) -> None:
        self._fd = fd
        self._at = at

    def read(self, count: int) -> bytes:
        data = os.pread(self._fd, count, self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while view:  # the system reads no more than 2 GiB at once
            count = os.preadv(self._fd, [view], self._at)
            if not count:
                break
            self._at += count
            view = view[count:]
        return len(buffer) - len(view)

    def readline(self) -> bytes:
        raise pickle.UnpicklingError("no pickle of this kind has lines")


class _Writer:
    __slots__ = ("write",)


def parts_of(value: Any) -> list[Any]:
    """Pickle a value in parts: large buffers in it are referred to, not copied."""
    parts: list[Any] = []
    writer: Any = _Writer()
    writer.write = parts.append
    pickle.Pickler(writer, 5).dump(value)
    return [part.raw() if type(part) is pickle.PickleBuffer else part for part in parts]


def length_of(parts: Sequence[Any]) -> int:
    """Give the bytes of all parts."""
    return sum(map(len, parts))
