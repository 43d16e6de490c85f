"""What is sent with a request: bytes, text, a form, JSON, a file or a stream, and the header that says which.

Rules:
1. What is there already is sent as bytes. A file or an iterable is read while it is sent, a piece at a time.
2. A stream can be sent once; a file again.
3. Files are read in threads: the loop does not wait for a disk.
"""

from __future__ import annotations

import contextlib
import enum
import io
import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from headrace.aio.disk import Disk
from headrace.errors import PlanError

__all__ = ["UNSET", "Body", "Unset", "Upload", "encode"]

#: Bytes of a file that are read at a time.
PIECE: Final = 256 << 10


class Unset(enum.Enum):
    """Tells «not given» from None, which is a value."""

    UNSET = "not given"

    def __repr__(self) -> str:
        return "<not given>"


UNSET: Final = Unset.UNSET


class Upload:
    """A body that is read while it is sent: a file (its path), or an iterable of bytes, asynchronous or not.

    `size` in bytes is None where it is not known. Raises PlanError for a file that cannot be read.
    """

    __slots__ = ("_source", "repeatable", "size")

    def __init__(self, source: os.PathLike[str] | AsyncIterable[bytes] | Iterable[bytes]) -> None:
        self._source = source
        self.repeatable = isinstance(source, os.PathLike)
        self.size: int | None = None
        if isinstance(source, os.PathLike):
            try:
                descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise PlanError(f"body={os.fspath(source)!r} cannot be read: {error.strerror}") from error
            self.size = os.fstat(descriptor).st_size
            os.close(descriptor)

    async def chunks(self, disk: Disk) -> AsyncGenerator[bytes, None]:
        """Give the pieces of the body, from its beginning. Raises what the iterable does, PlanError for other than bytes."""
        source = self._source
        if isinstance(source, AsyncIterable):
            async for chunk in source:
                yield _checked(chunk)
        elif isinstance(source, os.PathLike):
            async with contextlib.aclosing(_pieces(source, self.size or 0, disk)) as pieces:
                async for piece in pieces:
                    yield piece
        else:
            for chunk in source:
                yield _checked(chunk)


async def _pieces(path: os.PathLike[str], size: int, disk: Disk) -> AsyncGenerator[bytes, None]:
    """Give `size` bytes of a file."""
    file = await disk.call(io.FileIO, os.fspath(path))
    try:
        while size and (piece := await disk.call(file.read, min(PIECE, size))):
            size -= len(piece)
            yield piece
    finally:
        file.close()
    if size:
        raise PlanError(
            f"body={os.fspath(path)!r} became shorter while it was sent: {size} bytes are missing"
        )


def _checked(chunk: Any) -> bytes:
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, bytearray | memoryview):
        return bytes(chunk)
    raise PlanError(f"a streamed body= must give bytes, not {type(chunk).__name__}")


Body = bytes | str | os.PathLike[str] | AsyncIterable[bytes] | Iterable[bytes]


def encode(
    body: Body | None = None, data: Mapping[str, Any] | None = None, json: Any = UNSET
) -> tuple[bytes | Upload | None, str | None]:
    """Give what to send and its content type; (None, None) for no body. Raises PlanError."""
    if (body is not None) + (data is not None) + (json is not UNSET) > 1:
        raise PlanError("give only one of body=, data= and json=")
    if body is not None:
        if isinstance(body, str):
            return body.encode(), "text/plain; charset=utf-8"
        if isinstance(body, bytes | bytearray | memoryview):
            return bytes(body), None
        if isinstance(body, os.PathLike | AsyncIterable) or (
            isinstance(body, Iterable) and not isinstance(body, Mapping)
        ):
            return Upload(body), None
        raise PlanError(f"body= takes bytes, text, a path or an iterable of bytes, not {type(body).__name__}")
    if data is not None:
        return urlencode(data, doseq=True).encode("ascii"), "application/x-www-form-urlencoded"
    if json is not UNSET:
        try:
            return msgspec.json.encode(json), "application/json"
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"json= cannot be written as JSON: {error}") from error
    return None, None
