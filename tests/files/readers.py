"""What the tests of sources over files share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from headrace.ports import Source


def read(source: Source, limit: int = 1000, **bookmark: Any) -> list[tuple[int, Any]]:
    """Give all items with their positions."""

    async def main() -> list[tuple[int, Any]]:
        reader = source.open(**bookmark)
        found: list[tuple[int, Any]] = []
        try:
            while (chunk := await reader.read(limit)) is not None:
                positions = chunk.positions or range(chunk.start, chunk.start + len(chunk.payloads))
                found += zip(positions, chunk.payloads, strict=True)
        finally:
            await reader.close()
        return found

    return asyncio.run(main())


def write(path: Path, data: bytes) -> Path:
    """Write a file."""
    path.write_bytes(data)
    return path
