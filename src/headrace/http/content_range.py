"""Ranges of a body: what is asked for, and what an answer says that it brings (RFC 9110 §14).

Rules:
1. A Content-Range that is not of the form of the standard, or contradicts itself, is None: it is not guessed at.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["ContentRange", "parse_content_range"]

_FORM: Final = re.compile(r"bytes[ \t]+(?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.IGNORECASE)


class ContentRange(NamedTuple):
    """The bytes from `start` up to, not including, `end`, of `size` in all (None: not said).

    Where a range could not be served (status 416), start and end are None.
    """

    start: int | None
    end: int | None
    size: int | None


def parse_content_range(value: str | None) -> ContentRange | None:
    """Read a Content-Range; None for one that is missing, malformed or impossible."""
    found = _FORM.fullmatch((value or "").strip(" \t"))
    if found is None or not (value or "").isascii():
        return None
    first, last, size_text = found.groups()
    size = None if size_text == "*" else int(size_text)
    if first is None:
        return None if size is None else ContentRange(None, None, size)
    start, end = int(first), int(last) + 1
    if end <= start or (size is not None and end > size):
        return None
    return ContentRange(start, end, size)
