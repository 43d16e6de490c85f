"""What the engine asks of lanes, and what it tells a call of itself.

Rules:
1. A lane makes calls; whether and when one is made, repeated or ended is the engine's business.
2. What a lane cannot promise to all is a protocol of its own, and the name says what it adds.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from headrace.policies.limits import Claim, Limit
from headrace.policies.rate_headers import RateHint
from headrace.policies.retry import Retry

__all__ = [
    "Call",
    "ChoosingLane",
    "ChunkLane",
    "ChunkPlace",
    "Configured",
    "Effect",
    "Lane",
    "LaneChoice",
    "Raised",
    "Shared",
    "StageDefaults",
    "Stuck",
    "TakingAhead",
    "current_call",
]

T = TypeVar("T")
Effect = Literal["safe", "idempotent", "once"]


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

    @property
    def is_limited(self) -> bool:
        """Whether the attempt holds any limit now."""
        ...

    def covers(self, value: Any, item: Any = None) -> bool:
        """Say whether a request for `value` (a URL), made from `item`, may go out without `readmit`, and count it.

        True for the first request of the attempt, if its keys are those that the attempt holds; and where the attempt
        holds no limit.
        """
        ...

    async def readmit(
        self, value: Any, limits: Sequence[Limit] = (), *, is_answered: bool = False
    ) -> list[Claim]:
        """Wait until a request for `value` (a URL) may go out: the limits that the attempt holds are charged for it,
        at another key where it has one, and `limits` are taken besides, as far as the attempt does not hold them.

        Gives the claims on these, to be given back by the caller at the request's end. `is_answered`: the request
        before it was answered, as with a redirect. The attempt's own time limit does not run meanwhile. Raises
        CallError where a key or cost cannot be had, and LookupError where the attempt is over.
        """
        ...

    async def aside(self, waiting: Awaitable[T], *, rest: float = 0.0) -> T:
        """Wait for something that other calls bring about, with all limits given back meanwhile, and take them again.

        Nothing more starts with the attempt's keys for `rest` seconds: it would have to wait as well. What `waiting`
        raises comes out, and the limits stay given back.
        """
        ...

    def hint(self, hint: RateHint) -> None:
        """Tell what the last answer said of its server's rate; the attempt's keys may be held for it."""
        ...

    def space(self, value: Any, interval: float) -> bool:
        """Let starts be at least so many seconds apart, at the keys that the attempt's limits have for `value` (a URL).

        Says whether there are such keys.
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


class LaneChoice(NamedTuple):
    """Where a stage's function was found to belong, and by what.

    `wall` is what a call takes (seconds), `cpu_share` the processor's part of that; `speedup` is what two threads achieve
    over one, `transport` the way to a process and back (seconds), None where it was not looked at. `calls` is how many
    calls the choice rests on.
    """

    lane: str
    concurrency: int
    kind: str
    reason: str
    wall: float
    cpu_share: float
    speedup: float | None
    transport: float | None
    calls: int


@runtime_checkable
class ChoosingLane(Lane, Protocol):
    """A lane that watches its first calls, in few threads, and says whether the stage is to move to places of another."""

    @property
    def allows(self) -> int:
        """How many calls may run at once now."""
        ...

    def look(self) -> LaneChoice | None:
        """Say what was chosen, once, as soon as it can be told; None until then."""
        ...

    def moved_to(self) -> ChunkLane:
        """Give the lane that the stage was moved to, its function loaded."""
        ...


class Stuck(Protocol):
    """A call that was abandoned and still runs. `on_return` is called on the loop when it returns after all."""

    on_return: Callable[[], None] | None
