"""What the engine asks of sources, sinks, ledgers and lanes: protocols whose names are guarantees.

Rules:
1. A protocol says what it promises; an adapter that cannot promise it does not implement it.
2. Waiting is `async def`; what never waits is `def`.
3. Values that cross a port are defined here or below, never in an adapter.
"""

from __future__ import annotations

from headrace.ports.lanes import (
    Call,
    ChoosingLane,
    ChunkLane,
    ChunkPlace,
    Configured,
    Effect,
    Lane,
    LaneChoice,
    Raised,
    Shared,
    StageDefaults,
    Stuck,
    TakingAhead,
    current_call,
)
from headrace.ports.ledgers import (
    OUR_COLUMNS,
    AnyRow,
    Commit,
    DeadLetter,
    Intent,
    JobRequest,
    JobState,
    JobSummary,
    Keeping,
    Ledger,
    Parking,
    Row,
    Rowable,
    SingleRows,
    Sink,
    Transactional,
)
from headrace.ports.sources import Bookmark, Chunk, Reader, Replayable, Source, Unreadable
from headrace.ports.subscribers import Subscriber

__all__ = [
    "OUR_COLUMNS",
    "AnyRow",
    "Bookmark",
    "Call",
    "ChoosingLane",
    "Chunk",
    "ChunkLane",
    "ChunkPlace",
    "Commit",
    "Configured",
    "DeadLetter",
    "Effect",
    "Intent",
    "JobRequest",
    "JobState",
    "JobSummary",
    "Keeping",
    "Lane",
    "LaneChoice",
    "Ledger",
    "Parking",
    "Raised",
    "Reader",
    "Replayable",
    "Row",
    "Rowable",
    "Shared",
    "SingleRows",
    "Sink",
    "Source",
    "StageDefaults",
    "Stuck",
    "Subscriber",
    "TakingAhead",
    "Transactional",
    "Unreadable",
    "current_call",
]
