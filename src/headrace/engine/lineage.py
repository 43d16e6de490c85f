"""Roots and what becomes of them: children of a fan-out, batches, and the one settlement of each source item.

Rules:
1. The source item (the root) is the unit of durability: it settles once, when everything made of it has ended.
2. One failed child fails its root, else one parked child parks it; the rows of its other children are then dropped, not
   recorded.
3. The members of a batch end together, in one synchronous step, so that they commit together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from headrace.item import DECIDED, FINAL, SPREAD, Delivery

__all__ = [
    "Batch",
    "Child",
    "Ending",
    "Family",
    "Parking",
    "begin_family",
    "child_path",
    "close_if_over",
    "complete",
    "count_sent",
    "is_doomed",
    "is_sent",
    "root_age",
    "root_of",
    "roots_of",
    "row_order",
]


class Ending:
    """How a delivery ended, if not with a value: `kind` is "failed", "skipped", "parked" or "returned"."""

    __slots__ = ("error", "in_doubt", "kind", "reason", "stage")

    def __init__(
        self,
        kind: str,
        stage: str = "",
        error: Exception | None = None,
        reason: str = "",
        in_doubt: bool = False,
    ) -> None:
        self.kind = kind
        self.stage = stage
        self.error = error
        self.reason = reason
        self.in_doubt = in_doubt


class Parking(Ending):
    """A delivery was put aside until `at` (on the run's clock) or `due` (seconds since the epoch), which is the same moment.

    `attempts` are the calls that failed for it, in earlier times that it was taken up too, and `refused` those of them
    that this run knows to have been refused for load; `node` numbers the stage where
    it parks, -1 for what an earlier run parked. `for_room`: it was put aside so that others could go on.
    """

    __slots__ = ("at", "attempts", "due", "for_room", "key", "node", "refused")

    def __init__(
        self,
        stage: str,
        at: float,
        due: float,
        reason: str,
        *,
        attempts: int = 0,
        refused: int = 0,
        node: int = -1,
        key: str = "",
        for_room: bool = False,
    ) -> None:
        super().__init__("parked", stage, reason=reason)
        self.at = at
        self.due = due
        self.attempts = attempts
        self.refused = refused
        self.node = node
        self.key = key
        self.for_room = for_room


class Child(Delivery):
    """A delivery that a fan-out made. `index` numbers it among its siblings."""

    __slots__ = ("index",)

    def __init__(self, parent: Delivery, index: int, value: Any, seq: int) -> None:
        super().__init__(parent.position, parent.item, seq, parent)
        self.index = index
        self.value = value
        self.sent = parent.sent


class Batch(Delivery):
    """A delivery that stands for several, its `members`; its value is the list of theirs."""

    __slots__ = ("members",)

    def __init__(self, members: list[Delivery], seq: int) -> None:
        first = min(members, key=root_age)  # the one whose root is oldest, so that the window lets it go on
        super().__init__(first.position, [member.item for member in members], seq, first)
        self.members = members
        self.value = [member.value for member in members]
        self.sent = sum(member.sent for member in members)


class Family:
    """The children of one delivery: how many are under way, what they gave, and how the first bad one ended."""

    __slots__ = ("bad", "closed", "pending", "rows")

    def __init__(self) -> None:
        self.pending = 0
        self.closed = False
        self.rows: list[Delivery] = []
        self.bad: Ending | None = None


Settle = Callable[[Delivery, "Ending | None", list[Delivery]], None]


def begin_family(parent: Delivery) -> Family:
    """Make `parent` wait for its children."""
    parent.move(SPREAD)
    parent.more = family = Family()
    return family


def is_doomed(delivery: Delivery) -> bool:
    """Whether a sibling of this delivery, or of one it descends from, has failed: calling on is pointless."""
    while delivery.origin is not None:
        parent = delivery.origin
        if type(delivery) is Child and parent.more is not None and parent.more.bad is not None:
            return True
        delivery = parent
    return False


def complete(delivery: Delivery, ending: Ending | None, rows: list[Delivery], settle: Settle) -> None:
    """End a delivery and, with the last of a family or a batch, what it was made of. `settle` gets each root."""
    if type(delivery) is Batch:
        delivery.move(DECIDED)
        for member in delivery.members:
            complete(member, ending, rows, settle)
            rows = []
        return
    if type(delivery) is not Child:
        settle(delivery, ending, rows)
        return
    delivery.move(DECIDED)
    parent = delivery.origin
    assert parent is not None
    family: Family = parent.more
    family.rows += rows
    if ending is not None and ending.kind != "skipped" and _outweighs(ending, family.bad):
        family.bad = ending
    family.pending -= 1
    close_if_over(parent, settle)


def _outweighs(ending: Ending, other: Ending | None) -> bool:
    """Whether a family ends as `ending` says rather than as `other`: in doubt before failed, then parked, then returned.

    Of two that are parked, the one that is due later counts: by then all may go on.
    """
    return other is None or _weight(ending) > _weight(other)


def _weight(ending: Ending) -> tuple[bool, bool, float]:
    return ending.in_doubt, ending.kind == "failed", ending.at if isinstance(ending, Parking) else -math.inf


def close_if_over(parent: Delivery, settle: Settle) -> None:
    """End `parent` if all its children have."""
    family: Family | None = parent.more
    if family is not None and family.closed and family.pending == 0 and parent.state not in FINAL:
        parent.more = (
            None  # parent and children hold each other: all would stay until the garbage collector comes
        )
        complete(parent, family.bad, [] if family.bad else family.rows, settle)


def root_of(delivery: Delivery) -> Delivery:
    """Give the source item's delivery that this one descends from; of a batch, the oldest member's."""
    while delivery.origin is not None:
        delivery = delivery.origin
    return delivery


def roots_of(delivery: Delivery) -> list[Delivery]:
    """Give the roots of all that a delivery stands for: its own, or of a batch those of its members."""
    if type(delivery) is Batch:
        return [root for member in delivery.members for root in roots_of(member)]
    return [delivery] if delivery.origin is None else roots_of(delivery.origin)


def is_sent(delivery: Delivery) -> bool:
    """Whether a *once* call went out of this delivery, or of another one that settles with it."""
    return any(root.sent for root in roots_of(delivery))


def count_sent(delivery: Delivery, number: int) -> None:
    """Count a *once* call that goes out, or (-1) one that certainly did nothing, for all that it was made of."""
    delivery.sent += number
    if type(delivery) is Batch:
        for member in delivery.members:
            count_sent(member, number)
    elif delivery.origin is not None:
        count_sent(delivery.origin, number)


def root_age(delivery: Delivery) -> int:
    """Give the number of a delivery's root: the smaller, the older."""
    return root_of(delivery).seq


def row_order(row: Delivery) -> tuple[int, ...]:
    """Order the rows of one root as its fan-outs gave them."""
    order: list[int] = []
    delivery: Delivery | None = row
    while delivery is not None:
        if type(delivery) is Child:
            order.append(delivery.index)
        delivery = delivery.origin
    return tuple(reversed(order))


def child_path(delivery: Delivery) -> str:
    """Name a delivery among what its root was fanned out into: "" for the root, else "3" or "3.1"."""
    return ".".join(map(str, row_order(delivery)))
