"""Items, deliveries and outcomes, and the life cycle that they follow.

Rules:
1. A delivery is in one state; `LIFE_CYCLE` holds every legal move, and an illegal one raises and changes nothing.
2. A delivery reaches a final state exactly once.
3. Nothing here knows a loop, a clock or a stage.

    QUEUED ─► RUNNING ─► DECIDED ─► DONE | FAILED | SKIPPED     settled
      ▲         │  │        ├─────► PARKED                      put aside until it is due
      │         │  │        └─────► RETURNED                    its commit did not happen
      └ WAITING ◄  └─► SPREAD ─► DECIDED                        its children, or its batch, are under way

    QUEUED, WAITING, RUNNING, SPREAD ─► PARKED | RETURNED       the run ends without settling it
"""

from __future__ import annotations

from typing import Any, Final, Generic, NamedTuple, TypeVar

__all__ = [
    "LIFE_CYCLE",
    "Delivery",
    "Done",
    "Failed",
    "Item",
    "Outcome",
    "Parked",
    "Returned",
    "Skipped",
    "state_name",
]

T = TypeVar("T")

# States are plain integers in module constants: a move is one index and one comparison in the hottest loop.
QUEUED: Final = 0
RUNNING: Final = 1
WAITING: Final = 2
SPREAD: Final = 3
DECIDED: Final = 4
DONE: Final = 5
FAILED: Final = 6
SKIPPED: Final = 7
PARKED: Final = 8
RETURNED: Final = 9

STATE_NAMES: Final = (
    "QUEUED",
    "RUNNING",
    "WAITING",
    "SPREAD",
    "DECIDED",
    "DONE",
    "FAILED",
    "SKIPPED",
    "PARKED",
    "RETURNED",
)

#: `LIFE_CYCLE[state]` is the set of the states that may follow it.
LIFE_CYCLE: Final[tuple[frozenset[int], ...]] = (
    frozenset({RUNNING, WAITING, SPREAD, DECIDED, PARKED, RETURNED}),  # QUEUED
    frozenset({QUEUED, WAITING, SPREAD, DECIDED, PARKED, RETURNED}),  # RUNNING
    frozenset({QUEUED, DECIDED, PARKED, RETURNED}),  # WAITING
    frozenset({DECIDED, PARKED, RETURNED}),  # SPREAD
    frozenset({DONE, FAILED, SKIPPED, PARKED, RETURNED}),  # DECIDED
    frozenset(),  # DONE
    frozenset(),  # FAILED
    frozenset(),  # SKIPPED
    frozenset(),  # PARKED
    frozenset(),  # RETURNED
)

SETTLED: Final = frozenset({DONE, FAILED, SKIPPED})
FINAL: Final = frozenset({DONE, FAILED, SKIPPED, PARKED, RETURNED})


def state_name(state: int) -> str:
    """Give the word for a state."""
    return STATE_NAMES[state]


class Item(NamedTuple):
    """What the source gave: where it stood there, what it was, and its key where the source has one."""

    position: int
    payload: Any
    key: Any = None


class Outcome(Generic[T]):
    """What became of one item: Done, Failed, Skipped, Parked or Returned.

    `item` is what the source gave and `position` where it stood; `attempts` counts the calls made for it, and `elapsed`
    (seconds) runs from its first admission to its end, waiting for a retry included.
    """

    __slots__ = ("attempts", "elapsed", "item", "position")
    __match_args__: tuple[str, ...] = ("item",)

    item: Any
    position: int
    attempts: int
    elapsed: float

    def __init__(self, item: Any, position: int = 0, attempts: int = 0, elapsed: float = 0.0) -> None:
        self.item = item
        self.position = position
        self.attempts = attempts
        self.elapsed = elapsed

    @property
    def ok(self) -> bool:
        """Whether the item is done."""
        return False


class Done(Outcome[T]):
    """The item is done; `value` is what the last stage returned for it."""

    __slots__ = ("value",)
    __match_args__ = ("item", "value")

    value: T

    def __init__(
        self, item: Any, value: T, position: int = 0, attempts: int = 1, elapsed: float = 0.0
    ) -> None:
        self.item = item
        self.value = value
        self.position = position
        self.attempts = attempts
        self.elapsed = elapsed

    @property
    def ok(self) -> bool:
        """Whether the item is done."""
        return True

    def __repr__(self) -> str:
        return f"Done(item={self.item!r}, value={self.value!r}, attempts={self.attempts})"


class Failed(Outcome[T]):
    """The item failed for good; `error` is the last exception and `stage` the stage that raised it."""

    __slots__ = ("error", "stage")
    __match_args__ = ("item", "error")

    error: Exception
    stage: str

    def __init__(
        self,
        item: Any,
        error: Exception,
        position: int = 0,
        attempts: int = 1,
        elapsed: float = 0.0,
        stage: str = "",
    ) -> None:
        super().__init__(item, position, attempts, elapsed)
        self.error = error
        self.stage = stage

    def __repr__(self) -> str:
        return f"Failed(item={self.item!r}, error={self.error!r}, stage={self.stage!r}, attempts={self.attempts})"


class Skipped(Outcome[T]):
    """The item was left out, by a filter or by `Skip`; `reason` says why."""

    __slots__ = ("reason",)
    __match_args__ = ("item", "reason")

    reason: str

    def __init__(
        self, item: Any, reason: str = "", position: int = 0, attempts: int = 1, elapsed: float = 0.0
    ) -> None:
        super().__init__(item, position, attempts, elapsed)
        self.reason = reason

    def __repr__(self) -> str:
        return f"Skipped(item={self.item!r}, reason={self.reason!r})"


class Parked(Outcome[T]):
    """The item was put aside until `due` (seconds since the epoch); a later run takes it up again."""

    __slots__ = ("due",)
    __match_args__ = ("item", "due")

    due: float

    def __init__(
        self, item: Any, due: float, position: int = 0, attempts: int = 0, elapsed: float = 0.0
    ) -> None:
        super().__init__(item, position, attempts, elapsed)
        self.due = due

    def __repr__(self) -> str:
        return f"Parked(item={self.item!r}, due={self.due!r})"


class Returned(Outcome[T]):
    """The run ended before the item did; a later run takes it from the source again."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Returned(item={self.item!r})"


class Delivery:
    """An item in flight, from being taken to its one final state.

    `item` is the payload that the source gave, `value` what the latest stage made of it. `origin` is None for a root;
    for a child it is the delivery that was fanned out, and for a batch it is the first of its members.
    """

    __slots__ = (
        "attempts",
        "began",
        "claims",
        "item",
        "more",
        "origin",
        "position",
        "refused",
        "sent",
        "seq",
        "state",
        "tried",
        "until",
        "value",
        "weight",
    )

    def __init__(self, position: int, item: Any, seq: int = 0, origin: Delivery | None = None) -> None:
        self.position = position
        self.item = item
        self.value = item
        self.state = QUEUED
        self.attempts = 0  # calls made for it by the stages that it has left
        self.tried = 0  # calls made for it by the stage where it is
        self.refused = 0  # those of them that were refused for load
        self.began = 0.0  # when its first call was admitted
        self.until: float | None = None  # the end of its stage's `within=`
        self.origin = origin
        self.seq = seq  # the order in which its level was entered
        self.sent = 0  # how many *once* calls of it, and of what it was made into, went out
        self.weight = 0  # bytes that its value holds, as far as the window counts them
        self.claims: Any = None  # on limits, while it queues for them or holds their permits
        self.more: Any = None  # its fan-out or its batch

    def move(self, state: int) -> None:
        """Go to `state`; raise ValueError, changing nothing, where the life cycle has no such move."""
        if state not in LIFE_CYCLE[self.state]:
            raise ValueError(
                f"delivery at position {self.position} cannot go from {STATE_NAMES[self.state]} to {STATE_NAMES[state]}"
            )
        self.state = state

    def __repr__(self) -> str:
        return f"<Delivery {self.position} {STATE_NAMES[self.state]} attempts={self.attempts}>"
