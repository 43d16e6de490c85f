"""What parent and child of the process lane say to each other: frames on a socket pair, words and results in shared memory.

    parent ─► child   SETUP, then CHUNK or SINGLY, one at a time; QUIT
    child ─► parent   READY or BROKEN; WRITTEN, STORED, LARGE, RECALLED; then OVER or UNREADABLE

Rules:
1. A result is in shared memory, or whole in the socket, before the next call begins: a death takes no finished call along.
2. Results follow each other as parts of one pickled list, so that the parent reads a thousand of them in one step. What a
   part of a list cannot hold safely (it may fail to load, or refer to itself) is a pickle of its own, carried as bytes.
3. What is large goes by the store, the shared file behind the small results (`store.py`): the values of a chunk, then, when
   these are loaded, results. Where the store cannot take it, it goes whole by the socket.
4. This file is read by the child as it starts: it imports nothing that takes time.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final

__all__ = [
    "AREA",
    "AREA_END",
    "BEGAN",
    "BROKEN",
    "BYTES",
    "CHUNK",
    "DONE",
    "ERROR",
    "HEAD",
    "LARGE",
    "LOADING",
    "MEMORY",
    "OVER",
    "PLACE",
    "PLAIN",
    "QUIT",
    "READY",
    "RECALLED",
    "RECORD_MOST",
    "SETUP",
    "SINGLY",
    "SPENT",
    "STARTED",
    "STOP",
    "STORED",
    "TAKEN",
    "TEXT_MOST",
    "UNREADABLE",
    "VALUE",
    "WRITTEN",
    "Remade",
    "plain_part",
    "read_parts",
    "wrapped_part",
]

#: Before each payload: the kind of the frame, a number that belongs to it, the length of the payload.
HEAD: Final = struct.Struct("=BQQ")
#: The payload of OVER: seconds spent on the chunk, bytes of memory that the child holds (0: not asked for).
SPENT: Final = struct.Struct("=dQ")
#: The payload of STORED begins with the offset of a pickle in the store, and its length.
PLACE: Final = struct.Struct("=QQ")

# Frames to the child.
SETUP: Final = 1  #: the function, and how to live
CHUNK: Final = 2  #: a pickled list of values: the payload, or `number` bytes in the store
SINGLY: Final = 3  #: the same, each value pickled for itself
QUIT: Final = 4

# Frames to the parent.
READY: Final = 10
BROKEN: Final = 11  #: the function or a resource could not be had; the payload says why
WRITTEN: Final = 12  #: results are in shared memory up to the offset `number`
LARGE: Final = 13  #: a result that does not go there; those before it reach up to the offset `number`
RECALLED: Final = 14  #: only the first `number` calls of the chunk are made here
OVER: Final = 15  #: nothing more of this chunk is made; results reach up to the offset `number`
UNREADABLE: Final = 16  #: the values could not be loaded together; nothing was called
STORED: Final = 17  #: as LARGE, with the pickle in the store

# Words of 8 bytes at the start of the shared memory.
STARTED: Final = 0  #: calls of this chunk that have begun
DONE: Final = 1  #: calls of this chunk that are over
BYTES: Final = 2  #: results reach up to this offset
STOP: Final = 3  #: set by the parent: begin no more calls
LOADING: Final = 4  #: the values of the chunk are being loaded
BEGAN: Final = 5  #: a float: when the latest call began, on the machine's monotonic clock
TAKEN: Final = 6  #: set by the parent: results of this chunk that it has read from the store

AREA: Final = 64  #: where results begin
MEMORY: Final = 1 << 20
AREA_END: Final = MEMORY
#: The longest part that goes to shared memory, in bytes.
RECORD_MOST: Final = 1 << 17

# The first byte of a wrapped part.
VALUE: Final = b"v"
ERROR: Final = b"e"

#: Types whose pickles hold no reference to anything before them and cannot fail to load.
PLAIN: Final = frozenset({int, float, bool, type(None)})
#: The longest text that goes as a plain part.
TEXT_MOST: Final = 4096

_BEGIN: Final = b"\x80\x05("
_END: Final = b"l."
_FRAME: Final = 0x95
_BYTES_LENGTH: Final = struct.Struct("<BI")
_BYTES_OPCODE: Final = ord("B")


class Remade:
    """An exception that cannot be made again as pickle would: it is loaded without its `__init__`."""

    def __init__(self, kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> None:
        self._parts = (kind, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, self._parts


def _remake(kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error


def plain_part(value: Any) -> bytes:
    """Give the part that stands for a value of a PLAIN type, or for a short text."""
    data = pickle.dumps(value, 5)
    return data[11:-1] if len(data) > 11 and data[2] == _FRAME else data[2:-1]


def wrapped_part(content: bytes) -> bytes:
    """Give the part that carries a pickle of its own."""
    return _BYTES_LENGTH.pack(_BYTES_OPCODE, len(content)) + content


def read_parts(parts: bytes) -> list[Any]:
    """Give what the parts stand for; those that carry a pickle come as bytes."""
    found: list[Any] = pickle.loads(_BEGIN + parts + _END)
    return found
