"""The bytes of a file from some place on: as they are, or unpacked while they are read (.gz, .zst).

Rules:
1. Places are counted in unpacked bytes. To reach one in a packed file, all before it is unpacked again, a block at a time.
2. What comes out of a block is bounded, however well it was packed.
3. A packed file that ends too early, or is damaged, raises where that is found: what came before it is good.
"""

from __future__ import annotations

import io
import os
from importlib import import_module
from typing import Any, Final

from headrace.errors import PlanError, SourceError

__all__ = ["BLOCK", "Stream", "check_packing", "is_packed", "open_stream", "unpacked_name"]

BLOCK: Final = 256 << 10
#: A block of a packed file is smaller, as it costs more time.
_PACKED_BLOCK: Final = 64 << 10


class Stream:
    """The bytes of an open file, from `offset` on. It owns the descriptor."""

    def __init__(self, path: str, descriptor: int, offset: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor
        os.lseek(descriptor, offset, os.SEEK_SET)

    def raw_offset(self, offset: int) -> int:
        """Say how far the file itself was read when what is before `offset` had come."""
        return offset

    def skip(self) -> bool:
        """Come a block nearer to the beginning of what is to be read; False where it is reached. Raises SourceError."""
        return False

    def read(self) -> bytes:
        """Give the next block; empty at the end. Raises OSError, and SourceError once it is closed."""
        if self._descriptor is None:
            raise SourceError(f"{self._path} is closed; open the source again to read on")
        return os.read(self._descriptor, BLOCK)

    def close(self) -> None:
        """Close the file. Repeatable."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Packed(Stream):
    """The same of a packed file."""

    def __init__(self, path: str, descriptor: int, offset: int, unpack: Any) -> None:
        super().__init__(path, descriptor, 0)
        self._raw = io.FileIO(descriptor, closefd=False)
        self._file = unpack(self._raw)
        self._left = offset  # to be passed over

    def raw_offset(self, offset: int) -> int:
        return self._raw.tell()

    def skip(self) -> bool:
        if self._left <= 0:
            return False
        block = self._unpacked(min(self._left, _PACKED_BLOCK))
        self._left = self._left - len(block) if block else 0
        return self._left > 0

    def read(self) -> bytes:
        while self.skip():
            pass
        return self._unpacked(_PACKED_BLOCK)

    def close(self) -> None:
        if self._descriptor is not None:
            self._file.close()
            self._raw.close()
        super().close()

    def _unpacked(self, size: int) -> bytes:
        if self._descriptor is None:
            raise SourceError(f"{self._path} is closed; open the source again to read on")
        try:
            block: bytes = self._file.read1(size)
        except EOFError as error:
            raise SourceError(
                f"{self._path} ends in the middle of its packed data: it is cut off, or still being written"
            ) from error
        except Exception as error:
            raise SourceError(f"{self._path} cannot be unpacked: {error}; pack the file again") from error
        return block


def is_packed(path: str) -> bool:
    """Whether the name says that the file is packed."""
    return path.lower().endswith((".gz", ".zst"))


def unpacked_name(path: str) -> str:
    """Give the name without the ending that says how it is packed."""
    return os.path.splitext(path)[0] if is_packed(path) else path


def check_packing(path: str) -> None:
    """Raise PlanError where this Python cannot unpack such a file."""
    if path.lower().endswith(".zst"):
        _zstd(path)


def open_stream(path: str, descriptor: int, offset: int) -> Stream:
    """Give the bytes of an open file from `offset` on. Raises OSError, and PlanError as `check_packing`."""
    name = path.lower()
    if name.endswith(".gz"):
        gzip = import_module("gzip")
        return _Packed(path, descriptor, offset, lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"))
    if name.endswith(".zst"):
        return _Packed(path, descriptor, offset, _zstd(path).ZstdFile)
    return Stream(path, descriptor, offset)


def _zstd(path: str) -> Any:
    """Give the module that unpacks .zst: Python has one from 3.14 on."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise PlanError(
        f"{path}: this Python cannot unpack .zst files: pip install 'headrace[zstd]', or unpack it first: unzstd {path}"
    )
