"""What is told of a log besides its records.

Rules:
1. What a reader must know so as not to be misled (a gap, another file, a cut line) is told; nothing is told of every chunk.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Final, Literal

__all__ = ["Notice", "NoticeKind", "OnNotice", "StreamStatistics", "log_notice", "reason_of"]

NoticeKind = Literal["broken off", "gap", "rotated", "cut", "ended", "failed"]
OnNotice = Callable[["Notice"], None]
_logger: Final = logging.getLogger("headrace.logs")


@dataclasses.dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to a log.

    `kind` is "broken off" (and what is tried next), "gap" (records between may be lost), "rotated" (another file stands in
    its place, read from its beginning), "cut" (a line longer than the cap), "ended", or "failed" (it is given up). `offset`
    is how far the log was read, in bytes.
    """

    kind: NoticeKind
    url: str
    offset: int
    text: str

    def __str__(self) -> str:
        return f"{self.url}: {self.text}"


def reason_of(error: Exception, url: str) -> str:
    """Give what an error says, without the URL that stands before it already."""
    return str(error).removeprefix(f"GET {url}: ")


def log_notice(notice: Notice) -> None:
    """Write a notice to the log of the program (logger `headrace.logs`): what may mislead as a warning."""
    level = logging.INFO if notice.kind in ("broken off", "ended") else logging.WARNING
    _logger.log(level, "%s: %s", notice.url, notice.text)


@dataclasses.dataclass(slots=True)
class StreamStatistics:
    """One log at one moment. `records` are lines or events, `bytes` those read, `connections` how often it was opened.

    `replaced` counts characters that were not UTF-8, `cut` lines longer than the cap, `offset` is how far it was read.
    """

    records: int = 0
    bytes: int = 0
    connections: int = 0
    rotations: int = 0
    gaps: int = 0
    replaced: int = 0
    cut: int = 0
    offset: int = 0
    state: Literal["opening", "reading", "waiting", "ended", "failed"] = "opening"
