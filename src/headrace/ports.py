"""What the engine asks of sources, sinks, ledgers and lanes: protocols whose names are guarantees.

Rules:
1. A protocol says what it promises; an adapter that cannot promise it does not implement it.
2. Waiting is `async def`; what never waits is `def`.
3. Values that cross a port are defined here or below, never in an adapter.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, overload, runtime_checkable

from headrace.events import Event
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry

__all__ = [
    "AnyRow",
    "Bookmark",
    "Call",
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
    "current_call",
]

Effect = Literal["safe", "idempotent", "once"]

# ---------------------------------------------------------------------------------------------------- sources


class Bookmark(NamedTuple):
    """Where reading may start again: `position` is the next one, `token` (JSON-able) is the source's own business."""

    position: int
    token: Any


@dataclasses.dataclass(slots=True)
class Chunk:
    """Some items in the order of the source: the positions from `start` up to, not including, `end`.

    `positions` has one for each payload; None means that they are consecutive from `start`. Positions in between that
    carry no item (blank lines, comments) are void: they count as dealt with and are never read again.
    """

    start: int
    end: int
    payloads: Sequence[Any]
    positions: Sequence[int] | None = None
    bookmark: Bookmark | None = None  #: restarts reading at `start`


class Reader(Protocol):
    """One pass over a source."""

    async def read(self, limit: int) -> Chunk | None:
        """Give the next chunk of 1 to `limit` items as soon as there is at least one; None at the end.

        A chunk may hold no items but void positions. May be cancelled while it waits; nothing may be lost by that.
        """
        ...

    async def close(self) -> None:
        """Let go of files and connections. Called once, also after an error or a cancellation."""
        ...


@runtime_checkable
class Source(Protocol):
    """What gives the items."""

    name: str

    def open(self, bookmark: Bookmark | None = None) -> Reader:
        """Begin a pass, at `bookmark` (one of its own) or at the start."""
        ...


@runtime_checkable
class Replayable(Source, Protocol):
    """A source that gives the same items at the same positions again. Only these may be jobs."""

    def fingerprint(self, end: int) -> Mapping[str, Any]:
        """Describe (JSON-able) the source's kind and its content up to position `end`, in time independent of `end`."""
        ...

    def verify(self, fingerprint: Mapping[str, Any]) -> str | None:
        """Say how the part that an earlier `fingerprint` covers differs now; None if it does not. It may have grown."""
        ...

    def describe(self, position: int) -> str:
        """Name a position for people: «urls.txt, line 17»."""
        ...

    def total(self) -> int | None:
        """Give the number of items if that costs nothing to know."""
        ...


# ---------------------------------------------------------------------------------------------------- calls


class Call(Protocol):
    """The attempt under way, as an adapter's function sees it through `current_call`.

    The object belongs to a worker and changes from attempt to attempt: read it when you need it, do not keep it.
    """

    @property
    def position(self) -> int:
        """The position of the root item."""
        ...

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        ...

    @property
    def deadline(self) -> float | None:
        """When the engine will end this attempt, in the loop's time."""
        ...

    stuck: Stuck | None  #: set by a lane when it gives this attempt's call up and the call still runs

    @property
    def idempotency_key(self) -> str:
        """A key that is the same for every attempt of this call, in later runs too."""
        ...

    async def readmit(self, value: Any) -> None:
        """Give back the permits of keyed limits and take those of `value` instead (a redirect's next hop).

        Waits as long as its limits say; the attempt's own time limit does not run meanwhile.
        """
        ...


current_call: contextvars.ContextVar[Call] = contextvars.ContextVar("headrace_current_call")
"""The call under way in this context; LookupError outside a flow."""


@dataclasses.dataclass(frozen=True, slots=True)
class StageDefaults:
    """What a configured function (as `hr.http.fetch`) brings along for its stage; what the user gives wins."""

    name: str
    effect: Effect = "idempotent"
    retry: Retry | None = None
    limits: Sequence[Limit] = ()
    timeout: float | None = None
    uses: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    shape: Mapping[str, Any] = dataclasses.field(default_factory=dict)  #: JSON-able; part of a job's identity
    columns: Sequence[str] = ()  #: of the rows that its values make, where they are known


@dataclasses.dataclass(frozen=True, slots=True)
class Shared:
    """A factory whose resource is opened once a run and used by all threads: `uses={"db": hr.shared(open_db)}`.

    What it opens must be safe to use from several threads. A process cannot share it: that is a PlanError.
    """

    factory: Callable[[], Any]

    def __call__(self) -> Any:
        """Open it."""
        return self.factory()


@runtime_checkable
class Configured(Protocol):
    """A stage function that brings its own defaults."""

    stage_defaults: StageDefaults


class Lane(Protocol):
    """Where a stage's function runs."""

    name: str

    def bind(
        self,
        fn: Callable[..., Any],
        shared: Mapping[str, Any],
        factories: Mapping[str, Callable[[], Any]],
    ) -> Callable[[Any], Awaitable[Any]]:
        """Make the async callable that runs `fn(value, **resources)` here, once for each call of it.

        `shared` are opened resources, `factories` what the lane opens itself, once a thread or process of its own.
        """
        ...

    @property
    def abandoned(self) -> int:
        """How many calls were given up and still run."""
        ...

    async def close(self, grace: float) -> int:
        """Stop; give the number of calls that could not be stopped within `grace` seconds."""
        ...


@runtime_checkable
class TakingAhead(Lane, Protocol):
    """A lane that may be handed more calls than it has places for, so that no place waits for its next call.

    `on_quick` is called once, when calls prove to be short, with the number of calls that the lane would have at hand.
    """

    on_quick: Callable[[int], None] | None
    busy: float  #: seconds that calls took, from where they began here

    @property
    def queued(self) -> int:
        """How many calls were handed over and have not begun."""
        ...

    def waited(self, call: Call) -> float:
        """Give the seconds that an attempt waited before it began; infinite while it waits, and when it is over."""
        ...

    def withdraw(self, call: Call) -> bool:
        """Take an attempt back that has not begun, and say whether it was so; its waiter is to be cancelled."""
        ...


class Raised:
    """The answer of a call that raised. `died`: the process that made the call died of it."""

    __slots__ = ("died", "error")

    def __init__(self, error: Exception, *, died: bool = False) -> None:
        self.error = error
        self.died = died


class ChunkPlace(Protocol):
    """Makes calls in chunks, one call after the other, and answers for each by itself, in order.

    A call that is answered was made; what the end of a chunk leaves without an answer was not begun.
    """

    length: int  #: the calls of the chunk that are made here; falls when some are taken back

    def room(self) -> int:
        """How many calls to give it at a time, 1 or more."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether the chunk is over, and another one may start."""
        ...

    def start(self, values: Sequence[Any]) -> None:
        """Begin a chunk: a call for each of the values. Never waits."""
        ...

    async def answers(self) -> Sequence[Any]:
        """Wait for news, and give the answers that have come: values, and `Raised` for calls that raised.

        Gives none where `length` has fallen, or where the chunk is over. May be cancelled.
        """
        ...

    def running(self) -> tuple[int, float] | None:
        """Give the number of the call that runs and for how long it has, in seconds; None between calls."""
        ...

    def recall(self) -> None:
        """Take back the calls that have not begun, as soon as may be; `length` says which these are."""
        ...

    def kill(self, number: int, error: Exception) -> None:
        """End call `number` with `error`, if it still runs; its answer says so."""
        ...

    def kill_now(self) -> None:
        """End whatever runs. The answer of the call that ran is `Raised` with `died`."""
        ...


@runtime_checkable
class ChunkLane(Protocol):
    """A lane whose places take several calls at once, answer for each, and can end any of them."""

    name: str

    def load(self, fn: Callable[..., Any], factories: Mapping[str, Callable[[], Any]]) -> None:
        """Take the function, and what opens its resources, once for each place. Raises PlanError where it cannot."""
        ...

    def place(self) -> ChunkPlace:
        """Make one more place for calls."""
        ...

    @property
    def abandoned(self) -> int:
        """How many calls were given up and still run."""
        ...

    async def close(self, grace: float) -> int:
        """Stop; give the number of places that could not be stopped."""
        ...


class Stuck(Protocol):
    """A call that was abandoned and still runs. `on_return` is called on the loop when it returns after all."""

    on_return: Callable[[], None] | None


# ---------------------------------------------------------------------------------------------------- sinks and ledgers


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


class Subscriber(Protocol):
    """Anyone who listens to a run."""

    def __call__(self, events: Sequence[Event]) -> None:
        """Take a batch of events, on the loop; must not wait. One that raises is dropped, and the report says so."""
        ...
