"""The objects of a JSON lines file as a replayable source of rows.

Rules:
1. The position of an item is the number of its line from 0. Blank lines are void.
2. A line that is no JSON object is an item that fails, with what is wrong about it; the lines after it come as they are.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from headrace.files.packed import Stream
from headrace.files.text import BOM, TextFile, TextReader, checked_path, shown
from headrace.ports import Bookmark, Chunk, Unreadable

__all__ = ["JsonLines", "JsonLinesReader", "jsonl"]

_decode = msgspec.json.Decoder().decode


def jsonl(path: str | os.PathLike[str]) -> JsonLines:
    """Give the objects of a JSON lines file (one JSON object a line, UTF-8) as dicts, one item each.

    Blank lines are passed over, a byte order mark is dropped. A line that is not a JSON object fails as an item
    (`headrace.errors.ItemUnreadable`), with its line number; the run goes on. The file may be of any size, and may grow
    between runs: later runs take the new lines. One whose name ends in .gz or .zst is unpacked while it is read.

    Raises PlanError for .zst where nothing can unpack it. Reading raises SourceError for a file that is missing, a
    directory, not readable, not text, or has a line of more than 16 MiB.
    """
    return JsonLines(checked_path(path, "users.jsonl"))


class JsonLines(TextFile):
    """A replayable source of objects. Made by `jsonl(...)`."""

    kind = "jsonl"
    unit = "line"

    def __init__(self, path: str) -> None:
        super().__init__(path, {"encoding": "utf-8"})

    def reader(self, stream: Stream, position: int, offset: int) -> JsonLinesReader:
        """Give a reader of what `stream` gives."""
        return JsonLinesReader(self, stream, position, offset)

    def again(self) -> JsonLines:
        """Give another source over the same file."""
        return JsonLines(self.path)


class JsonLinesReader(TextReader):
    """One pass over the objects of a file."""

    def read_now(self, limit: int) -> Chunk | None:
        """Give the next objects."""
        start, offset = self._position, self._offset
        raw = self._take_lines(limit)
        if not raw:
            return None
        if start == 0 and raw[0].startswith(BOM):
            raw = [raw[0][len(BOM) :], *raw[1:]]
        payloads: list[Any] = []
        positions: list[int] = []
        for position, line in enumerate(raw, start):
            try:
                value = _decode(line)
            except (ValueError, RecursionError) as error:
                if not line or line.isspace():
                    continue
                value = Unreadable(shown(line), f"this line is not JSON: {error}")
            if type(value) is not dict and type(value) is not Unreadable:
                value = Unreadable(shown(line), f"this line is {_kind(value)}, not a JSON object")
            payloads.append(value)
            positions.append(position)
        consecutive = len(payloads) == len(raw)
        return Chunk(
            start, self._position, payloads, None if consecutive else positions, Bookmark(start, offset)
        )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {list: "an array", str: "a string", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
