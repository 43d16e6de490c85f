"""Parking: what has long to wait is put aside, recorded by its position, and taken up again when it is due.

Rules:
1. Nothing waits in a run for longer than its `wait=`: neither for a repetition nor for a key that is held. A rate, or a
   permit that others have, parks nobody.
2. What may not be called again is never parked: an item whose *once* call went out waits on in the run.
3. Where a ledger keeps them, a window full of what waits for more than a moment is relieved, so that others can go on;
   only so far that a source which holds nothing else is not read to its end for that.
4. A parked item is the ledger's until it is settled: what is taken up again and lost is still parked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.engine.committer import Committer
from headrace.engine.dispatch import KeyedDispatch
from headrace.engine.lineage import Parking, is_sent, roots_of
from headrace.engine.texts import one_line
from headrace.events import ItemsParked
from headrace.item import QUEUED, WAITING, Delivery
from headrace.policies.limits import KeyState
from headrace.ports import Parking as Record

if TYPE_CHECKING:
    from headrace.engine.run import Run
    from headrace.engine.stage import Caller

__all__ = ["Parkings"]

#: What waits for less than this (seconds) is not worth a commit and a second reading, however full the window is.
MOMENT = 5.0
#: A full window is looked through this often at the most, in seconds, where that brought nothing the last time.
LOOK_EVERY = 0.5
#: So many windows of items may be put aside to make room; then the source waits.
MOST_WINDOWS = 32
#: What cannot be told as a date is due in ten years.
LONGEST = 10 * 366 * 86_400.0
#: Parked items are told of together, after so many seconds.
TELL_AFTER = 0.25
REASON_LENGTH = 200


class Parkings:
    """What a run has parked, and what earlier runs left parked."""

    def __init__(self, run: Run, earlier: Mapping[int, Record]) -> None:
        self.run = run
        self.wait = run.options.wait
        self.is_kept = run.ledger is not None
        self.earlier = frozenset(earlier)
        now, at = run.clock(), time.time()
        #: By position: what is parked and not in the window.
        self.waiting: dict[int, Parking] = {
            position: Parking("", now + (r.due - at), r.due, r.reason, attempts=r.attempts)
            for position, r in earlier.items()
        }
        #: By position: what is in the window, and in the ledger still parked.
        self.again: dict[int, Parking] = {}
        self._not_taken = set(self.earlier)
        self.only_own = False  # whether nothing is taken up but what this run took and parked
        self._for_room = 0
        self._look_at = 0.0
        self._untold: dict[tuple[str, str], ItemsParked] = {}

    # ------------------------------------------------------------------ putting aside

    def may_park(self, delivery: Delivery, at: float) -> bool:
        """Whether a delivery may be put aside until `at`: no *once* call of it went out, and `within=` ends later."""
        if self.run.shutdown.is_stopping or (delivery.until is not None and delivery.until <= at):
            return False
        return not is_sent(delivery)

    def failed(self, caller: Caller, delivery: Delivery, after: float, error: Exception) -> bool:
        """Put a delivery aside that is to be called again in `after` seconds; False where it is to wait in the run."""
        if after <= self.wait or is_sent(delivery):
            return False
        reason = f"{type(error).__name__}: {one_line(error)}"
        self._park(caller, [delivery], self.run.clock() + after, reason)
        return True

    def held(self, caller: Caller, deliveries: Sequence[Delivery], state: KeyState) -> None:
        """Put deliveries aside whose key is held for longer than anything waits here."""
        key = "" if state.key is None else str(state.key)
        reason = f"{state.limit.name} {key}".rstrip() + " is held"
        self._park(caller, deliveries, state.held_until, reason, key)

    def hold_began(self, seconds: float) -> None:
        """Look for what queues for a key that is now held for `seconds`."""
        if seconds > self.wait:
            now = self.run.clock()
            for caller in self.run.callers:
                if isinstance(caller.dispatch, KeyedDispatch):
                    caller.dispatch.park_held(now)

    def _park(
        self,
        caller: Caller,
        deliveries: Sequence[Delivery],
        at: float,
        reason: str,
        key: str = "",
        *,
        for_room: bool = False,
    ) -> None:
        now = self.run.clock()
        at = min(at, now + LONGEST)
        due, node = time.time() + at - now, self.run.nodes.index(caller)
        ending: Parking | None = None
        for delivery in deliveries:
            tried, refused = self.tried_before(delivery)
            tried, refused = tried + delivery.tried, refused + delivery.refused
            reached = max([node, *(self.again[r.position].node for r in self._known(delivery))])
            # Those that are alike share one ending.
            if ending is None or (ending.attempts, ending.refused, ending.node) != (tried, refused, reached):
                ending = Parking(
                    caller.spec.name, at, due, reason[:REASON_LENGTH],
                    attempts=tried, refused=refused, node=reached, key=key, for_room=for_room,
                )  # fmt: skip
            self.run.endings.park(delivery, ending)

    # ------------------------------------------------------------------ a full window

    def make_room(self) -> None:
        """Put some of what waits for more than a moment aside, if that is a good part of the window.

        Called while the source waits for room.
        """
        run, now, share = self.run, self.run.clock(), self.run.roots.share
        if not self.is_kept or now < self._look_at or run.shutdown.is_stopping:
            return
        self._look_at = now + LOOK_EVERY
        half, most = max(1, share // 2), MOST_WINDOWS * share - self._for_room
        keyed = [caller for caller in run.callers if isinstance(caller.dispatch, KeyedDispatch)]
        if most <= 0 or len(run.delays) + sum(len(caller.dispatch) for caller in keyed) < half:
            return
        found = self._long_waits(keyed, now + MOMENT)
        if len(found) < half:
            return
        found.sort(key=lambda entry: -entry[0])
        chosen = found[: min(len(found) - share // 4, most)]
        self._for_room += len(chosen)
        self._look_at = now  # it was worth it
        taken = {id(delivery) for _, _, delivery, _ in chosen}
        run.delays.remove(lambda delivery: id(delivery) in taken)
        for caller in keyed:
            assert isinstance(caller.dispatch, KeyedDispatch)
            caller.dispatch.take_out(lambda delivery: id(delivery) in taken)
        groups: dict[tuple[Caller, float, str], list[Delivery]] = {}
        for at, caller, delivery, key in chosen:
            if delivery.state == WAITING:
                caller.waiting -= 1
            groups.setdefault((caller, at, key), []).append(delivery)
        for (caller, at, key), deliveries in groups.items():
            reason = f"{key or 'it'} waits, and others can go on meanwhile"
            self._park(caller, deliveries, at, reason, key, for_room=True)
        if isinstance(run.exit, Committer):
            run.exit.commit_soon()

    def _long_waits(
        self, keyed: Sequence[Caller], beyond: float
    ) -> list[tuple[float, Caller, Delivery, str]]:
        """List the roots that wait for a repetition or for the end of a hold after `beyond`."""
        found = [
            (at, caller, delivery, "")
            for at, (caller, delivery) in self.run.delays.repeating()
            if at > beyond and delivery.state == WAITING and self._is_plain(delivery, at)
        ]
        for caller in keyed:
            assert isinstance(caller.dispatch, KeyedDispatch)
            for state, deliveries in caller.dispatch.held_beyond(beyond):
                at, key = state.held_until, "" if state.key is None else str(state.key)
                found += [
                    (at, caller, delivery, key)
                    for delivery in deliveries
                    if delivery.state == QUEUED and self._is_plain(delivery, at)
                ]
        return found

    def _is_plain(self, delivery: Delivery, at: float) -> bool:
        """Whether it stands for itself alone, and may be put aside until `at`."""
        return delivery.origin is None and self.may_park(delivery, at)

    # ------------------------------------------------------------------ what became of it

    def count(self, position: int, parking: Parking) -> None:
        """Keep what is parked now, and tell of it soon."""
        if self.is_kept:
            self.again.pop(position, None)
            self._not_taken.discard(position)
            self.waiting[position] = parking
            self.run.intake.has_parked(parking.at)
        if self.run.bus is None:
            return
        told = self._untold.get((parking.stage, parking.key))
        if told is not None:
            told.count += 1
            told.due = max(told.due, parking.due)
            return
        if not self._untold and self.run.state != "flushing":  # else it is told of at the very end
            self.run.later(TELL_AFTER, self.tell)
        self._untold[parking.stage, parking.key] = ItemsParked(
            time.time(), parking.stage, 1, parking.due, parking.reason, parking.key
        )

    def tell(self) -> None:
        """Tell those who listen of what was parked lately."""
        untold, self._untold = self._untold, {}
        if self.run.bus is not None:
            for event in untold.values():
                self.run.bus.emit(event)

    def settled(self, roots: Sequence[Delivery]) -> None:
        """Forget what is settled: with that, it is parked no more in the ledger."""
        if self.again:
            for root in roots:
                self.again.pop(root.position, None)

    # ------------------------------------------------------------------ taking up again

    def next_at(self) -> float | None:
        """Give when the next one is due, on the run's clock; None where none is parked."""
        return min((parking.at for _, parking in self._to_come()), default=None)

    def due(self, now: float) -> set[int]:
        """Give the positions that are due at `now`."""
        return {position for position, parking in self._to_come() if parking.at <= now}

    def _to_come(self) -> Iterable[tuple[int, Parking]]:
        if not self.only_own:
            return self.waiting.items()
        return [entry for entry in self.waiting.items() if entry[0] not in self._not_taken]

    def take_up(self, position: int) -> bool:
        """Note that a parked item enters the window again; say whether this run takes it for the first time."""
        parking = self.again[position] = self.waiting.pop(position)
        self._for_room -= parking.for_room
        is_first = position in self._not_taken
        self._not_taken.discard(position)
        return is_first

    def attempts(self, position: int) -> int:
        """Give the attempts that were made for an item in the window before it was parked."""
        parking = self.again.get(position)
        return 0 if parking is None else parking.attempts

    def tried_before(self, delivery: Delivery) -> tuple[int, int]:
        """Give the attempts that were made for a delivery before it was parked, and how many of them were refused for load:
        they count towards its limits.
        """
        parkings = [self.again[root.position] for root in self._known(delivery)]
        most = max(parkings, key=lambda parking: parking.attempts - parking.refused, default=None)
        return (0, 0) if most is None else (most.attempts, most.refused)

    def has_passed(self, delivery: Delivery, node: int) -> bool:
        """Whether a delivery went through the stage of that number in this run before it was parked."""
        return any(self.again[root.position].node > node for root in self._known(delivery))

    def _known(self, delivery: Delivery) -> list[Delivery]:
        return [root for root in roots_of(delivery) if root.position in self.again] if self.again else []

    # ------------------------------------------------------------------ for people

    def __len__(self) -> int:
        """Count what is parked in the ledger, whoever did it."""
        return len(self.waiting) + len(self.again)

    @property
    def next_due(self) -> float | None:
        """When the next one is due, in seconds since the epoch; None where none is parked."""
        return min(
            (p.due for parked in (self.waiting, self.again) for p in parked.values()),
            default=None,
        )

    def left(self) -> dict[int, Parking]:
        """Give what is parked in the ledger, by position."""
        return {**self.again, **self.waiting}
