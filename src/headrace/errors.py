"""The one tree of errors. The branch says whose fault it is.

HeadraceError
├── PlanError          yours: refused before anything moves
├── SourceError        the world's: what gives the items
├── SinkError          the world's: what takes the results
├── LedgerError        the world's: the durable record (LedgerBusy, IdentityChanged)
├── CallError          one item's: TimedOut, InDoubt, WorkerDied, BreakerOpen, ItemUnreadable, and those of the adapters
├── LaneError          a lane can run no more calls
├── ItemsFailed        what `.values` and `check()` raise: an ExceptionGroup with the items
└── EngineError        ours: please report

Rules:
1. The errors of a call are data: they become the outcome of an item. All others stop the run.
2. A `CallError` carries the next action: its disposition, whether the call may have taken effect, and how long to wait.
3. `RetryAfter`, `GiveUp` and `Skip` are raised by users' functions to steer the fate of their item.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

__all__ = [
    "BreakerOpen",
    "CallError",
    "Disposition",
    "EngineError",
    "GiveUp",
    "HeadraceError",
    "IdentityChanged",
    "InDoubt",
    "ItemUnreadable",
    "ItemsFailed",
    "LaneError",
    "LedgerBusy",
    "LedgerError",
    "PlanError",
    "RetryAfter",
    "SinkError",
    "Skip",
    "SourceError",
    "TimedOut",
    "WorkerDied",
]


class Disposition(enum.Enum):
    """What kind of failure it was, which decides whether and when a call is repeated."""

    PERMANENT = "permanent"  #: would fail the same way again
    TRANSIENT = "transient"  #: of the moment: backoff from 0.2 s
    OVERLOAD = "overload"  #: the other side asks for less: backoff from 1 s


class HeadraceError(Exception):
    """The root of every error that headrace raises."""


class PlanError(HeadraceError, ValueError):
    """What you asked for cannot be done. Raised before anything moves, with all problems at once."""


class SourceError(HeadraceError):
    """A source could not be read on; the run stops, resumable."""


class SinkError(HeadraceError):
    """A sink could not take results; the run stops, resumable.

    `position` is set where one row is to blame (the rest of its commit would have gone through without it).
    """

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class LedgerError(HeadraceError):
    """The durable record could not be read or written; the run stops, resumable."""


class LedgerBusy(LedgerError):
    """Another process holds this output. `pid` is that process, where known."""

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class IdentityChanged(LedgerError):
    """The job in this place is another one: its source, stages, request or columns differ.

    `changes` holds one line for each part that differs.
    """

    def __init__(self, message: str, *, changes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.changes = tuple(changes)


class CallError(HeadraceError):
    """One call failed. The item carries it; the run goes on.

    `disposition` says whether a repetition may help; `ambiguous` that the call may have taken effect all the same, so
    that only safe or idempotent calls may be repeated; `retry_after` (seconds) what the other side asked for; `hold`
    that this concerns its whole key (host), not only this item.
    """

    disposition: Disposition = Disposition.PERMANENT
    ambiguous: bool = False
    retry_after: float | None = None
    hold: bool = False


class ItemUnreadable(CallError):
    """The source holds something at this item's place that is no item: a broken record, bytes that are no text. No call
    was made.
    """


class TimedOut(CallError, TimeoutError):
    """An attempt passed its `timeout=`, or an item its `within=`."""

    disposition = Disposition.TRANSIENT
    ambiguous = True


class InDoubt(CallError):
    """A *once* call went out and its end is unknown: it may have taken effect. It is never repeated by itself."""

    ambiguous = True


class WorkerDied(CallError):
    """The child process that made the call died of it; the message says how. Whether the call took effect is unknown."""

    disposition = Disposition.TRANSIENT
    ambiguous = True


class BreakerOpen(CallError):
    """A bare client's circuit breaker is open. Inside a flow the key is paused instead."""

    disposition = Disposition.OVERLOAD


class LaneError(HeadraceError):
    """A lane cannot run any more calls, as when too many threads were abandoned; the run stops, resumable."""


class EngineError(HeadraceError):
    """A fault of headrace's own. Please report it, with the traceback."""


class ItemsFailed(ExceptionGroup[Exception], HeadraceError):
    """Not all items are done. The exceptions are the items' own, each with a note that names its item.

    `failures` are the failed outcomes; `unfinished` counts the items that were parked or returned.
    """

    failures: Sequence[Any]
    unfinished: int

    def __new__(
        cls, message: str, exceptions: Sequence[Exception], failures: Sequence[Any] = (), unfinished: int = 0
    ) -> ItemsFailed:
        self = super().__new__(cls, message, exceptions)
        self.failures = failures
        self.unfinished = unfinished
        return self

    def derive(self, excs: Sequence[Exception]) -> ItemsFailed:  # type: ignore[override]  # one kind of group
        """Keep type and counts where the group is split."""
        return ItemsFailed(self.message, excs, self.failures, self.unfinished)


class RetryAfter(HeadraceError):
    """Raise it in a stage function: this call is to be repeated after `seconds`.

    It uses up an attempt like any failure, and works on stages without `retry=` too (then with 4 attempts).
    With `hold=True` everything of the same key waits, and this item may be asked to wait more often than it has
    attempts, as `Retry` says of calls that were refused for load. What would wait longer than the run's `wait=` is
    parked. Raises ValueError for a negative or not finite number.
    """

    def __init__(self, seconds: float, reason: str = "", *, hold: bool = False) -> None:
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"RetryAfter({seconds!r}): seconds must be a finite number, 0 or more")
        super().__init__(reason or f"asked to be repeated after {seconds:g} s")
        self.seconds = seconds
        self.hold = hold


class GiveUp(HeadraceError):
    """Raise it in a stage function: this item fails, with this reason, whatever the retry policy says."""

    def __init__(self, reason: str = "given up by the function") -> None:
        super().__init__(reason)


class Skip(HeadraceError):
    """Raise it in a stage function: this item is settled as Skipped, with this reason."""

    def __init__(self, reason: str = "skipped by the function") -> None:
        super().__init__(reason)
        self.reason = reason
