"""Small bodies that unpack to very large ones."""

from __future__ import annotations

import functools
import importlib
import zlib
from typing import Any

__all__ = ["ENCODINGS", "bomb"]

ENCODINGS = ("gzip", "deflate", "br")
_BLOCK = bytes(1 << 20)


@functools.lru_cache(maxsize=16)
def bomb(encoding: str, megabytes: int) -> bytes:
    """Give so many megabytes of zeros, packed. `encoding` may name several, as "gzip, gzip": the last is applied last."""
    first, *more = [each.strip() for each in encoding.split(",")]
    packed = _pack_zeros(first, megabytes)
    for each in more:
        packed = _pack(each, packed)
    return packed


def _pack_zeros(encoding: str, megabytes: int) -> bytes:
    if encoding == "br":
        packer = _brotli().Compressor(quality=5)
        return b"".join([*(packer.process(_BLOCK) for _ in range(megabytes)), packer.finish()])
    deflater = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return b"".join([*(deflater.compress(_BLOCK) for _ in range(megabytes)), deflater.flush()])


def _pack(encoding: str, data: bytes) -> bytes:
    if encoding == "br":
        packed: bytes = _brotli().compress(data)
        return packed
    return zlib.compress(data, 9, wbits=31 if encoding == "gzip" else 15)


def _brotli() -> Any:
    try:
        return importlib.import_module("brotli")
    except ImportError as error:
        raise RuntimeError("a bomb in br needs a packer: pip install brotli") from error
