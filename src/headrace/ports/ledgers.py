"""What the engine asks of sinks and ledgers, and the values that it gives them.

Rules:
1. A commit is recorded as a whole or not at all, durably, before it is answered.
2. Rows and settlements that belong together are one commit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, overload, runtime_checkable

from headrace.ports.sources import Bookmark

__all__ = [
    "OUR_COLUMNS",
    "AnyRow",
    "Commit",
    "DeadLetter",
    "Intent",
    "JobRequest",
    "JobState",
    "JobSummary",
    "Keeping",
    "Ledger",
    "Parking",
    "Row",
    "Rowable",
    "SingleRows",
    "Sink",
    "Transactional",
]


#: What headrace adds to each row of a result table: the job's name, the position of the item in its source, and the number
#: of the row among those of its item, from 0. No other column may be called so.
OUR_COLUMNS = ("_job", "_position", "_child")


@runtime_checkable
class Rowable(Protocol):
    """A value that knows its own columns."""

    def as_row(self) -> Mapping[str, Any]:
        """Give the columns in order; None, bool, int, float, str, bytes, or what JSON can hold."""
        ...


class Row(NamedTuple):
    """One value on its way into a sink. `child` numbers the rows of one root, from 0."""

    position: int
    child: int
    value: Any


#: A row, or a plain tuple of the same three, which is quicker to make.
AnyRow = tuple[int, int, Any]


class SingleRows(Sequence[AnyRow]):
    """The rows of items that have one each, kept as two columns, which is quicker still."""

    __slots__ = ("positions", "values")

    def __init__(self, positions: Sequence[int], values: Sequence[Any]) -> None:
        self.positions = positions
        self.values = values

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> AnyRow: ...
    @overload
    def __getitem__(self, index: slice) -> SingleRows: ...
    def __getitem__(self, index: int | slice) -> AnyRow | SingleRows:
        if isinstance(index, slice):
            return SingleRows(self.positions[index], self.values[index])
        return self.positions[index], 0, self.values[index]


@dataclasses.dataclass(slots=True)
class DeadLetter:
    """An item settled as Failed, as the ledger keeps it.

    `error` is the class, `cause` one line; `detail` the chain of exceptions; `body` up to 4 KiB of what the other side
    answered. `in_doubt`: a *once* call went out and its end is unknown. `effect_sent`: one went out, whatever it ended.
    """

    position: int
    item: str
    stage: str
    attempts: int
    error: str
    cause: str
    detail: str = ""
    status: int | None = None
    body: bytes | None = None
    in_doubt: bool = False
    effect_sent: bool = False
    elapsed: float = 0.0
    at: float = 0.0
    where: str = ""


class Parking(NamedTuple):
    """An item put aside until `due` (epoch seconds), with the attempts made so far."""

    position: int
    due: float
    attempts: int
    reason: str


class Intent(NamedTuple):
    """A *once* call of `stage` for this item is about to go out."""

    position: int
    stage: str


@dataclasses.dataclass(slots=True)
class Commit:
    """What one transaction records: all of it or nothing.

    Settling an item clears its intents and its parking. `cleared` are intents whose call never went out.
    """

    rows: Sequence[AnyRow] = ()
    done: Sequence[int] = ()
    skipped: Sequence[int] = ()
    void: Sequence[tuple[int, int]] = ()  #: ranges [start, end) that carry no item
    failed: Sequence[DeadLetter] = ()
    parked: Sequence[Parking] = ()
    intents: Sequence[Intent] = ()
    cleared: Sequence[int] = ()
    bookmarks: Sequence[Bookmark] = ()
    fingerprint: Mapping[str, Any] | None = None  #: of the source, up to what has been taken


@dataclasses.dataclass(frozen=True, slots=True)
class JobRequest:
    """What a run wants from the ledger when it opens it.

    `identity` maps the parts that must not change between runs (stages, request, columns …) to JSON-able values, and
    `code` the parts whose change only warns. `verify_source` compares the recorded fingerprint with the source as it is
    now and returns what differs, or None.
    """

    name: str
    identity: Mapping[str, Any]
    verify_source: Callable[[Mapping[str, Any]], str | None]
    code: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  #: kept for `resume`; never a secret
    fresh: bool = False
    max_age: float | None = None
    accept_changes: bool = False


@dataclasses.dataclass(slots=True)
class JobState:
    """What the ledger knows of a job when a run opens it.

    `settled` is the list of ranges [start, end), ascending, of positions that are dealt with: done, skipped, failed or
    void. `bookmark` is the best place to read on from. `finished_at` (epoch seconds) is set where the last run ended
    with everything settled. `intents` are positions whose *once* call may have gone out in a run that died.
    """

    name: str
    generation: str
    settled: Sequence[tuple[int, int]] = ()
    bookmark: Bookmark | None = None
    done: int = 0
    failed: int = 0
    skipped: int = 0
    parked: Mapping[int, Parking] = dataclasses.field(default_factory=dict)
    intents: Sequence[Intent] = ()
    finished_at: float | None = None
    warnings: Sequence[str] = ()


@dataclasses.dataclass(slots=True)
class JobSummary:
    """A job as `status` and `jobs` show it. Times are epoch seconds."""

    name: str
    place: str
    state: str  #: running, unfinished, finished, failed
    done: int
    failed: int
    skipped: int
    parked: int
    created_at: float
    updated_at: float
    finished_at: float | None = None
    exit_code: int | None = None
    holder: int | None = None  #: the pid of the process that runs it now
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    table: str | None = None
    total: int | None = None
    next_due: float | None = None
    in_doubt: int = 0


class Ledger(Protocol):
    """The durable record of one job, together with the sink whose database it shares.

    One at a time: all methods are called from one task, in turn. Foreign errors come out as LedgerError or SinkError.
    """

    async def open(self, request: JobRequest) -> JobState:
        """Take the place (LedgerBusy if another process has it), find or make the job, give its state.

        Raises IdentityChanged where the recorded identity or the source's covered part differs (unless
        `accept_changes`). With `fresh`, begins a new generation, which replaces the old one in `finish` with exit code 0;
        if such a new generation is already under way, it is gone on with. With `max_age`, items done longer ago than
        that many seconds count as not settled, and their new rows replace the old ones.
        """
        ...

    async def commit(self, commit: Commit) -> None:
        """Record it, in one transaction, durably: when this returns, a power cut does not undo it.

        A poisonous row raises SinkError and nothing of the commit is recorded.
        """
        ...

    async def finish(self, exit_code: int, *, complete: bool, report: Mapping[str, Any]) -> None:
        """Note how the run ended; `complete` when nothing is left to take."""
        ...

    async def close(self) -> None:
        """Let go of the place. Repeatable; called also when `open` failed."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """A ledger whose rows can be read back, for `map(out=)`."""

    async def values(self) -> Mapping[int, Any]:
        """Give the decoded value of every done item, by position."""
        ...

    async def dead_letters(self) -> Sequence[DeadLetter]:
        """Give the items that failed, those of earlier runs too, by position."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Where results go."""

    name: str


@runtime_checkable
class Transactional(Sink, Protocol):
    """A sink that keeps its ledger in its own database: results and settlements commit together."""

    place: str  #: names the output for people and for `resume`

    def ledger(self) -> Ledger:
        """Make the ledger of one run. Nothing is opened yet."""
        ...

    def columns(self) -> Sequence[str] | None:
        """The declared columns, part of the job's identity; None where they come from the first rows."""
        ...
