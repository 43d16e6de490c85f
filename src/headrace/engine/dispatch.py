"""Dispatch: which delivery a stage's next free worker takes.

        accept ─► queue of its key ─► ready ─► take ─► a worker
                        ▲   │ not admitted
                        │   ├─► waits for a permit   (at the limit's key; the release wakes it)
                        ├───┴─► waits for a time     (in the line of that rate or hold; the timer wakes the first)
                        └─────► is parked            (its key is held for longer than anything waits in the run)

Rules:
1. Admission is one synchronous step over all limits of a delivery: all of them or none.
2. Deliveries with the same limit keys share a queue; a queue that must wait blocks no other queue, and costs nothing
   while it waits. Queues that are ready take turns.
3. Queues that wait for the same rate stand in one line: the first one tries, and nobody goes before it.
4. Nothing that waits here holds a permit or a worker.
5. `take` never waits. A worker that gets nothing parks itself as idle and is woken when there may be something.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from headrace.aio.due import DueHeap
from headrace.aio.gate import SHORTEST, wake_waiters
from headrace.errors import HeadraceError
from headrace.item import QUEUED, Delivery
from headrace.policies import limits as admission
from headrace.policies.limits import Claim, KeyState, Limit

__all__ = ["Dispatch", "KeyQueue", "KeyedDispatch"]

#: So many empty queues are kept for keys to come.
UNUSED = 64
Refuse = Callable[[Delivery, HeadraceError], None]
Park = Callable[[Sequence[Delivery], KeyState], None]
MayPark = Callable[[Delivery, float], bool]


def _nobody(delivery: Delivery, at: float) -> bool:
    return False


class Dispatch:
    """The queue of a stage without limits."""

    __slots__ = ("_idle", "_loop", "_spare", "_spawn", "is_open", "ready")

    def __init__(self, loop: asyncio.AbstractEventLoop, workers: int, spawn: Callable[[], None]) -> None:
        self._loop = loop
        self._idle: deque[asyncio.Future[None]] = deque()
        self._spare = workers  # those not started yet: ten items need no hundred tasks
        self._spawn = spawn
        self.ready: deque[Delivery] = deque()
        self.is_open = True

    def __len__(self) -> int:
        return len(self.ready)

    def accept(self, delivery: Delivery) -> None:
        """Queue a delivery."""
        self.ready.append(delivery)
        if self._idle or self._spare:
            self._wake_one()

    def accept_all(self, deliveries: Sequence[Delivery]) -> None:
        """Queue several."""
        self.ready.extend(deliveries)
        self.wake_more()

    def add_workers(self, more: int) -> None:
        """Let there be more workers."""
        self._spare += more
        self.wake_more()

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Queue some again that were taken and not begun, before all others."""
        self.ready.extendleft(reversed(deliveries))
        self.wake_more()

    def take(self, now: float) -> Delivery | None:
        """Give the next delivery that may start now, admitted; None where there is none."""
        ready = self.ready
        while ready and self.is_open:
            delivery = ready.popleft()
            if delivery.state == QUEUED:  # else it was settled while it queued
                return delivery
        return None

    def take_some(self, most: int) -> list[Delivery]:
        """Give the next deliveries that may start now, at most so many; none only where there is none."""
        taken: list[Delivery] = []
        ready = self.ready
        while ready and self.is_open and not taken:
            some = [ready.popleft() for _ in range(min(most, len(ready)))]
            taken = [
                delivery for delivery in some if delivery.state == QUEUED
            ]  # else settled while it queued
        return taken

    def open(self) -> None:
        """Let workers take again."""
        self.is_open = True
        self.wake_all()
        self.wake_more()

    def close(self) -> None:
        """Let workers take no more; what is queued stays."""
        self.is_open = False

    def drain(self) -> list[Delivery]:
        """Take out all that is queued."""
        left = [delivery for delivery in self.ready if delivery.state == QUEUED]
        self.ready.clear()
        return left

    # ------------------------------------------------------------------ idle workers

    def limit_starts(self, workers: int) -> None:
        """Let so many workers be started from now on, those that run already not counted."""
        self._spare = workers

    def idle(self) -> asyncio.Future[None]:
        """Give a future that is done when there may be something to take."""
        future = self._loop.create_future()
        self._idle.append(future)
        return future

    def lend(self) -> Callable[[], None] | None:
        """Lend the place of an idle worker, so that no call starts there; None where all are taken or wanted.

        What is given returns the place.
        """
        if not self.is_open or self.has_ready:
            return None
        if self._spare:
            self._spare -= 1
            return functools.partial(self.add_workers, 1)
        while self._idle:
            future = self._idle.popleft()
            if not future.done():
                return functools.partial(self._idle_again, future)
        return None

    def _idle_again(self, future: asyncio.Future[None]) -> None:
        if not future.done():  # else its worker was cancelled meanwhile
            self._idle.append(future)
            self.wake_more()

    @property
    def has_ready(self) -> bool:
        """Whether a worker may find something to take."""
        return bool(self.ready)

    def wake_more(self) -> None:
        """Wake two workers if there is something to take.

        A woken worker does the same first: where calls wait, all are soon awake; where they return at once, the first
        few take everything, and a hundred are not woken for nothing.
        """
        if self.is_open and self.has_ready:  # else idle workers would wake each other for ever
            for _ in range(min(2, len(self._idle) + self._spare)):
                self._wake_one()

    def wake_all(self) -> None:
        """Wake all idle workers."""
        while self._idle:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                return
        if self._spare and self.is_open:
            self._spare -= 1
            self._spawn()


class KeyQueue:
    """The deliveries of one combination of limit keys.

    `waiting_at` is the key whose permit it waits for; `woken_by` the one whose freed permit it was offered last. An
    offer that it cannot use goes on to the next in line, or that permit would lie idle. `line` is the key for whose
    rate or hold it stands in line; while it is ready it is the first there.
    """

    __slots__ = ("dispatch", "is_ready", "items", "key", "line", "waiting_at", "woken_by")

    def __init__(self, dispatch: KeyedDispatch, key: Any) -> None:
        self.dispatch = dispatch
        self.key = key
        self.items: deque[Delivery] = deque()
        self.is_ready = False
        self.line: KeyState | None = None
        self.waiting_at: KeyState | None = None
        self.woken_by: KeyState | None = None

    def permit_freed(self, state: KeyState) -> None:
        """Try again: a permit of `state` is free."""
        self.waiting_at = None
        self.woken_by = state
        self.dispatch.queue_ready(self)

    def pass_on(self) -> None:
        """Offer a permit that was offered to this queue, and that it did not use, to the next in line."""
        if self.woken_by is not None:
            state, self.woken_by = self.woken_by, None
            wake_waiters((state,))


class KeyedDispatch(Dispatch):
    """The queues of a stage with limits, one for each combination of keys."""

    __slots__ = (
        "_limits", "_lines", "_longest", "_may_park", "_park", "_queued", "_queues", "_ready_queues", "_refuse", "_timed",
        "_unused",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        workers: int,
        spawn: Callable[[], None],
        limits: Sequence[Limit],
        refuse: Refuse,
        park: Park | None = None,
        may_park: MayPark = _nobody,
        longest: float = math.inf,
    ) -> None:
        super().__init__(loop, workers, spawn)
        self._park = park
        self._may_park = may_park
        self._longest = longest  # what waits for a hold longer than so many seconds is parked
        self._limits = tuple(limits)
        self._refuse = refuse
        self._queues: dict[Any, KeyQueue] = {}
        self._ready_queues: deque[KeyQueue] = deque()
        self._timed: DueHeap[KeyQueue] = DueHeap(loop, self.queue_ready)
        self._lines: dict[
            KeyState, deque[KeyQueue]
        ] = {}  # those who wait for a rate or hold that others wait for
        self._queued = 0
        self._unused: list[KeyQueue] = []

    def __len__(self) -> int:
        return self._queued

    @property
    def has_ready(self) -> bool:
        """Whether a worker may find something to take."""
        return bool(self._ready_queues)

    @property
    def held(self) -> int:
        """How many deliveries wait for a permit, a rate or a hold."""
        ready = sum(len(queue.items) for queue in self._ready_queues)
        return self._queued - ready

    def accept(self, delivery: Delivery) -> None:
        """Queue a delivery by the keys of its limits; one whose key or cost cannot be had is refused."""
        self._queue(delivery)
        if self._ready_queues and (self._idle or self._spare):
            self._wake_one()

    def accept_all(self, deliveries: Sequence[Delivery]) -> None:
        """Queue several."""
        for delivery in deliveries:
            self._queue(delivery)
        self.wake_more()

    def _queue(self, delivery: Delivery) -> None:
        try:
            claims = admission.claim(self._limits, delivery.value)
        except HeadraceError as error:
            self._refuse(delivery, error)
            return
        delivery.claims = claims
        key = claims[0].state if len(claims) == 1 else tuple([claim.state for claim in claims])
        queue = self._queues.get(key)
        self._queued += 1
        if queue is not None:
            queue.items.append(delivery)
            return
        if self._unused:  # keys come and go all the time: what is empty serves the next one
            queue = self._unused.pop()
            queue.key = key
        else:
            queue = KeyQueue(self, key)
        self._queues[key] = queue
        queue.items.append(delivery)
        queue.is_ready = True
        self._ready_queues.append(queue)

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Queue some again; their keys have a line of their own, and they go to its end."""
        self.accept_all(deliveries)

    def queue_ready(self, queue: KeyQueue) -> None:
        """Put a queue in line for admission."""
        if not queue.is_ready:
            queue.is_ready = True
            self._ready_queues.append(queue)
            self.wake_more()

    def take(self, now: float) -> Delivery | None:
        """Give the next delivery that all its limits admit now; None where there is none."""
        lines = self._ready_queues
        while lines and self.is_open:
            queue = lines.popleft()
            queue.is_ready = False
            items = queue.items
            while items and items[0].state != QUEUED:
                self._queued -= 1
                admission.drop(items.popleft().claims)
            if not items:
                self._end(queue)
                continue
            if self._lines and queue.line is None:
                if self._parked_all(queue, now):
                    continue
                if self._line_up(queue, items[0].claims):
                    continue
            wait = admission.admit(items[0].claims, now)
            if wait == 0.0:
                self._queued -= 1
                queue.woken_by = None
                self._leave_line(queue)
                delivery = items.popleft()
                if items:
                    queue.is_ready = True
                    lines.append(queue)
                else:
                    self._forget(queue)
                return delivery
            if not self._parked_all(queue, now):
                self._wait(queue, items[0].claims, wait, now)
        return None

    def _wait(self, queue: KeyQueue, claims: list[Claim], wait: float, now: float) -> None:
        if math.isinf(wait):
            state = admission.blocked(claims, now)
            if state is not None:
                self._leave_line(queue)
                queue.waiting_at = state
                if queue.woken_by is state:
                    queue.woken_by = None
                state.waiters.append(queue)
                queue.pass_on()
                return
            wait = 0.001
        if len(claims) > 1:  # else no other queue waits for this key
            state = admission.delayed(claims, now)
            if queue.line is not state:
                self._leave_line(queue)
                if self._join(queue, state):
                    queue.pass_on()
                    return
        self._timed.push(now + max(wait, SHORTEST), queue)
        queue.pass_on()

    # ------------------------------------------------------------------ lines

    def _line_up(self, queue: KeyQueue, claims: list[Claim]) -> bool:
        """Let a queue stand behind those who wait for a rate or hold that it needs; say whether there are any."""
        for each in claims:
            if each.state in self._lines:
                self._join(queue, each.state)
                queue.pass_on()
                return True
        return False

    def _join(self, queue: KeyQueue, state: KeyState) -> bool:
        """Let a queue stand in line; say whether others are before it."""
        queue.line = state
        line = self._lines.get(state)
        if line is None:
            self._lines[state] = deque((queue,))
            return False
        line.append(queue)
        return True

    def _leave_line(self, queue: KeyQueue) -> None:
        """Take a queue out of its line; if it was the first, the next one tries now."""
        state = queue.line
        if state is None:
            return
        queue.line = None
        line = self._lines[state]
        if line[0] is not queue:
            line.remove(queue)
            return
        line.popleft()
        if line:
            self.queue_ready(line[0])
        else:
            del self._lines[state]

    def _end(self, queue: KeyQueue) -> None:
        """Let an empty queue go, and what it stood in the way of go on."""
        self._leave_line(queue)
        queue.pass_on()
        if self._queues.get(queue.key) is queue:  # else it was let go before, and its timer came now
            self._forget(queue)

    def _forget(self, queue: KeyQueue) -> None:
        """Let a queue go that waits nowhere; it may serve another key."""
        del self._queues[queue.key]
        if len(self._unused) < UNUSED:
            queue.key = None
            self._unused.append(queue)

    # ------------------------------------------------------------------ long holds

    def park_held(self, now: float) -> None:
        """Park what queues for a key that is held for too long, wherever its queue waits."""
        for queue in list(self._queues.values()):
            if self._park_queue(queue, now) and not queue.items and not queue.is_ready:
                # It may wait at a permit for long: what comes later is to be looked at in a queue of its own.
                self._leave_line(queue)
                del self._queues[queue.key]
                if queue.waiting_at is not None:
                    queue.waiting_at.waiters.remove(queue)
                    queue.waiting_at = None
                queue.pass_on()

    def _parked_all(self, queue: KeyQueue, now: float) -> bool:
        """Park a queue's deliveries if their key is held for too long; say whether none is left."""
        if self._park is None or not self._park_queue(queue, now) or queue.items:
            return False
        self._end(queue)
        return True

    def _park_queue(self, queue: KeyQueue, now: float) -> bool:
        """Park a queue's deliveries if their key is held for too long; say whether any were parked."""
        state = _longest_held(queue)
        if state is None or state.held_until - now <= self._longest or self._park is None:
            return False
        until, may_park = state.held_until, self._may_park
        parked = self._take_from(queue, lambda delivery: may_park(delivery, until))
        if parked:
            self._park(parked, state)
        return bool(parked)

    def held_beyond(self, beyond: float) -> list[tuple[KeyState, list[Delivery]]]:
        """Give the keys that are held until after `beyond`, and what queues for each."""
        held = []
        for queue in self._queues.values():
            state = _longest_held(queue)
            if state is not None and state.held_until > beyond:
                held.append((state, list(queue.items)))
        return held

    def take_out(self, chosen: Callable[[Delivery], bool]) -> None:
        """Let go of those deliveries for which `chosen` is true."""
        for queue in self._queues.values():
            self._take_from(queue, chosen)

    def _take_from(self, queue: KeyQueue, chosen: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take deliveries out of a queue, and give up their claims; one that was settled while it queued goes with them."""
        taken: list[Delivery] = []
        staying: list[Delivery] = []
        for delivery in queue.items:
            if delivery.state == QUEUED and not chosen(delivery):
                staying.append(delivery)
                continue
            self._queued -= 1
            admission.drop(delivery.claims)
            if delivery.state == QUEUED:
                delivery.claims = None
                taken.append(delivery)
        queue.items.clear()
        queue.items.extend(staying)
        return taken

    def drain(self) -> list[Delivery]:
        """Take out all that is queued, and give up its claims."""
        left: list[Delivery] = []
        self._timed.drain()
        queues, self._queues = self._queues, {}
        self._ready_queues.clear()
        self._lines.clear()
        self._queued = 0
        for queue in queues.values():
            queue.line = None
            if queue.waiting_at is not None:
                state = queue.waiting_at
                queue.waiting_at = None
                state.waiters.remove(queue)
            for delivery in queue.items:
                admission.drop(delivery.claims)
                delivery.claims = None
                if delivery.state == QUEUED:
                    left.append(delivery)
            queue.items.clear()
            queue.pass_on()
        return left


def _longest_held(queue: KeyQueue) -> KeyState | None:
    """Give the key of a queue that is held for longest; None where nothing queues."""
    if not queue.items:
        return None
    states: list[KeyState] = [claim.state for claim in queue.items[0].claims]
    return states[0] if len(states) == 1 else max(states, key=lambda state: state.held_until)
