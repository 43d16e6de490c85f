"""A stage's workers: taking, calling, classifying, handing on.

Rules:
1. Workers are few and live long; there is never a task for an item.
2. Between a call's result and its hand-over there is no `await`: no cancellation can come in between.
3. A worker is only cancelled by the engine, which says why in `slot.ending` first. A CancelledError without a reason and
   without a cancellation of the worker's task was raised by the function, and is that item's failure.
4. A call that will not end when it is cancelled loses its worker: the item is settled without it, a new worker takes the
   place, and what it returns one day is dropped.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace.engine.ahead import ahead_of
from headrace.engine.dispatch import Dispatch, KeyedDispatch
from headrace.engine.lineage import Child, Ending, begin_family, count_sent, is_doomed, root_of
from headrace.engine.permits import Permits
from headrace.engine.reorder import Reorder
from headrace.engine.slot import Slot
from headrace.engine.spending import spending_of
from headrace.engine.texts import one_line, peek
from headrace.engine.window import WEIGHTLESS, Level
from headrace.errors import CallError, HeadraceError, SinkError, Skip, TimedOut
from headrace.item import QUEUED, RUNNING, WAITING, Delivery
from headrace.plan import StageSpec, where_is
from headrace.policies.hedging import Hedge
from headrace.policies.holds import Place
from headrace.policies.limits import KeyState
from headrace.policies.retry import decide
from headrace.ports import ChunkLane, Lane, LaneChoice, current_call

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Caller", "carry"]

#: How long a cancelled call may take to end before its worker is given up, in seconds.
PATIENCE = 5.0
#: How long the workers of a run may go on, one after the other, without giving the loop a turn, in seconds.
BREATH = 0.005


class Caller:
    """A stage that calls a function: map, flat_map or filter."""

    hedge: Hedge | None = None  # where slow calls get a copy

    def __init__(self, run: Run, spec: StageSpec, lane: Lane | ChunkLane, level: Level, below: Level) -> None:
        self.run = run
        self.spec = spec
        self.lane = lane
        self.level = level  # of the deliveries that come in
        self.below = below  # of those that go out; another one for a fan-out
        self.slots: list[Slot] = []
        self.failures = 0
        self._calls_before = 0  # of workers that were given up
        self._busy_before = 0.0
        self.waiting = 0
        self.emitting = 0
        self.given_up = 0  # workers lost to calls that would not end
        self.ended = False
        self.choice: LaneChoice | None = None  # of a lane that was to be chosen
        self.forward: Callable[[Delivery], None] = run.endings.leave
        self._call: Callable[[Any], Awaitable[Any]] | None = None
        self._reorder: Reorder | None = None
        self._emission = asyncio.Lock()
        if spec.ordered:
            self._reorder = Reorder()
            level.reorders.append(self._reorder)
        loop = run.loop
        self.dispatch: Dispatch = (
            KeyedDispatch(
                loop, spec.concurrency, self.spawn, spec.limits, self._refuse,
                self._park_held, run.parking.may_park, run.parking.wait,
            )
            if spec.limits
            else Dispatch(loop, spec.concurrency, self.spawn)
        )  # fmt: skip
        self.spending = spending_of(self)
        self.permits = Permits(run, spec.limits, self.spending)
        self.settles = bool(spec.limits or self.spending)  # what a call took is to be settled when it is over
        self.is_careful = (
            spec.within is not None
            or spec.effect == "once"
            or run.plan.levels > 1
            or self.spending is not None
        )
        self.ahead = ahead_of(self, lane)

    @property
    def whose(self) -> Place:
        """Where the function begins that is called here, for the watchdog."""
        return Place(self.spec.name, self.spec.lane, *where_is(self.spec.fn))

    @property
    def attempts(self) -> int:
        """The calls that are over."""
        return self._calls_before + sum(slot.calls for slot in self.slots)

    @property
    def busy(self) -> float:
        """The seconds that these calls took."""
        if self.ahead is not None:
            return self.ahead.busy
        return self._busy_before + sum(slot.busy for slot in self.slots)

    @property
    def running(self) -> int:
        """The calls under way."""
        return sum(slot.delivery is not None for slot in self.slots)

    @property
    def is_busy(self) -> bool:
        """Whether anything is here that may still go on to the next stage."""
        return bool(self.running or self.waiting or self.emitting or len(self.dispatch) or self._held_back)

    @property
    def _held_back(self) -> int:
        return len(self._reorder) if self._reorder is not None else 0

    def load(
        self, fn: Callable[..., Any], opened: Mapping[str, Any], factories: Mapping[str, Callable[[], Any]]
    ) -> None:
        """Give the lane its function with the resources that are open, and what it opens for itself."""
        assert not isinstance(self.lane, ChunkLane)
        self._call = self.lane.bind(fn, opened, factories)

    # ------------------------------------------------------------------ coming in

    def accept(self, delivery: Delivery) -> None:
        """Queue a delivery from the stage before, or from the source."""
        if self.run.shutdown.is_stopping and not self.run.shutdown.carries_on(delivery, self):
            self.run.endings.give_back(delivery)
            return
        delivery.state = QUEUED
        self.dispatch.accept(delivery)

    def _refuse(self, delivery: Delivery, error: HeadraceError) -> None:
        if isinstance(error, Skip):
            self.run.endings.skip(delivery, error.reason)
        else:
            self.run.endings.fail(delivery, self.spec.name, error)

    def _park_held(self, deliveries: Sequence[Delivery], state: KeyState) -> None:
        self.run.parking.held(self, deliveries, state)

    def retry_due(self, delivery: Delivery) -> None:
        """Queue a delivery whose time to be repeated has come."""
        if delivery.state != WAITING:
            return
        self.waiting -= 1
        self.run.delays.watch(self, delivery)
        self.accept(delivery)

    def end_if_late(self, delivery: Delivery) -> None:
        """Fail a delivery whose `within=` has passed while it queued."""
        if delivery.state == QUEUED and delivery.until is not None:
            delivery.state = (
                WAITING  # where order is kept it ends in its turn, and is not to be called until then
            )
            self.run.endings.fail(delivery, self.spec.name, self._too_late())

    # ------------------------------------------------------------------ the workers

    def spawn(self) -> None:
        """Start one more worker."""
        self._start_worker(Slot(self))

    def _start_worker(self, slot: Slot) -> None:
        self.slots.append(slot)
        slot.task = self.run.workers.start(self._work(slot), f"headrace {self.spec.name} {len(self.slots)}")
        slot.task.add_done_callback(lambda task: self._worker_over(slot, task))

    def _worker_over(self, slot: Slot, task: asyncio.Task[None]) -> None:
        """Replace a worker that ended of a cancellation which its last function left behind."""
        if task.cancelled() and slot.ending is None and not self.ended and not self.run.is_torn_down:
            self.slots.remove(slot)
            self._calls_before += slot.calls
            self._busy_before += slot.busy
            self.spawn()

    async def _work(self, slot: Slot) -> None:
        current_call.set(slot)
        run, dispatch, call = self.run, self.dispatch, self._call
        assert call is not None
        take, ready, clock, forward = dispatch.take, dispatch.ready, run.clock, self.forward
        timeout, sweep = self.spec.timeout or math.inf, run.sweep
        timed = self.spec.timeout is not None or self.spec.within is not None
        plain = self.spec.kind == "map" and self._reorder is None
        limited = bool(self.spec.limits)
        settles, careful = self.settles, self.is_careful
        dispatch.wake_more()
        now = clock()
        while True:
            delivery: Delivery | None = None
            if limited:
                delivery = take(now)
            elif ready and dispatch.is_open:
                delivery = ready.popleft()
                if delivery.state != QUEUED:
                    continue  # it was settled while it queued
            if delivery is None:
                if self.ended:
                    return
                await dispatch.idle()
                dispatch.wake_more()
                now = clock()
                run.breathe_at = now + BREATH  # the loop has just had its turn
                continue
            slot.delivery = delivery
            slot.began = now
            delivery.state = RUNNING
            delivery.tried += 1
            if not delivery.began:
                delivery.began = now
            try:
                if careful and not await self._prepare(slot, delivery, now):
                    continue
                if timed:
                    deadline = now + timeout
                    if delivery.until is not None and delivery.until < deadline:
                        deadline = delivery.until
                    slot.deadline = deadline
                    if deadline < sweep.at:
                        sweep.arm(deadline)
                value = await call(delivery.value)
            except asyncio.CancelledError as error:
                if self._cancelled(slot, delivery, error):
                    raise
                now = clock()
            except Exception as error:  # noqa: BLE001 - it becomes the outcome of the item
                if self._raised(slot, delivery, error):
                    return
                now = clock()
            except BaseException as error:
                if (
                    asyncio.current_task(run.loop) is slot.task
                ):  # else the loop is gone, and this coroutine with it
                    self._panicked(slot, delivery, error)
                raise
            else:
                slot.delivery = None
                if timed:
                    slot.deadline = None
                now = clock()
                slot.calls += 1
                slot.busy += now - slot.began
                if slot.ending is not None:
                    if self._overran(slot, delivery, value):
                        return
                    continue
                if settles:
                    self.permits.settle(delivery, value)
                run.now = now
                if plain:
                    delivery.value = value
                    forward(delivery)
                else:
                    await self._pass(delivery, value)
            if now >= run.breathe_at:
                run.breathe_at = now + BREATH
                if run.watch is not None and now >= run.watch.starts_at:
                    run.watch.start_late(self.whose)
                await asyncio.sleep(0)
                now = clock()

    async def _prepare(self, slot: Slot, delivery: Delivery, now: float) -> bool:
        """Do what only some stages need before a call; say whether the call is to be made at all."""
        if delivery.origin is not None and is_doomed(delivery):
            self._not_called(slot, delivery, self.run.endings.drop)
            return False
        if self.spending is not None:
            end = self.spending.reserve(delivery)
            if end is not None:
                self._not_called(slot, delivery, end)
                return False
        within = self.spec.within
        if within is not None and delivery.until is None:
            delivery.until = now + within
        if self.spec.effect == "once":
            try:
                await self.run.intend(delivery, self.spec.name)
            except BaseException:
                self.permits.cancel(delivery)  # it was stopped before it went out
                raise
            if delivery.origin is not None and is_doomed(delivery):
                self.run.forget_intent(delivery)
                self._not_called(slot, delivery, self.run.endings.drop)
                return False
            count_sent(delivery, 1)
        return True

    def _not_called(self, slot: Slot, delivery: Delivery, end: Callable[[Delivery], None]) -> None:
        """End a delivery without the call: its root has ended badly already, or its stage's budget does not allow it."""
        self._call_over(slot)
        slot.calls -= 1
        delivery.tried -= 1
        self.permits.cancel(delivery)
        end(delivery)

    # ------------------------------------------------------------------ how a call ends

    async def _pass(self, delivery: Delivery, value: Any) -> None:
        """Hand on what a call gave, where that is more than the value itself."""
        if self.spec.kind == "flat_map":
            await self._spread(delivery, value)
            return
        if self.spec.kind == "filter":
            try:
                stays = bool(value)
            except Exception as error:  # noqa: BLE001 - it becomes the outcome of the item
                self.run.endings.fail(delivery, self.spec.name, error)
                return
            if not stays:
                self.run.endings.skip(delivery, f"left out by {self.spec.name}")
                return
        else:
            delivery.value = value
        if self._reorder is not None:
            self._reorder.passes(delivery, lambda: self.forward(delivery))
        else:
            self.forward(delivery)

    async def _spread(self, parent: Delivery, values: Sequence[Any]) -> None:
        """Let the children of `parent` in, as the window has room; the worker waits meanwhile."""
        if self._reorder is None:
            await self._emit(parent, values)
            return
        # In order: the worker must be free for the head of the line, so the emission goes on without it.
        self._reorder.passes(
            parent,
            lambda: self.run.started(
                self._emit_in_turn(parent, values), f"headrace {self.spec.name} fan-out"
            ),
        )

    async def _emit_in_turn(self, parent: Delivery, values: Sequence[Any]) -> None:
        async with self._emission:
            await self._emit(parent, values)

    async def _emit(self, parent: Delivery, values: Sequence[Any]) -> None:
        below, run, window = self.below, self.run, self.run.window
        root = root_of(parent)
        family = begin_family(parent)
        self.emitting += 1
        try:
            for index, value in enumerate(values):
                if not window.may_have_more(root, below):
                    family.bad = self._too_many(below)
                    break
                await window.wait_room(root, below)
                if family.bad is not None or not run.shutdown.carries_on(parent, self, called=True):
                    break
                child = Child(parent, index, value, below.sequence)
                child.attempts = parent.attempts + parent.tried
                child.began = parent.began
                below.sequence += 1
                window.enter(root, below)
                family.pending += 1
                self.forward(child)
            else:
                family.closed = True
        finally:
            self.emitting -= 1
            if not family.closed:
                run.endings.stop_family(parent)
            run.endings.close_family(parent)

    def _too_many(self, level: Level) -> Ending:
        most = level.share // 2
        error = CallError(
            f"the item fans out into more than {most} deliveries in all, half a level of window={self.run.window.limit}: "
            f"raise window=, or make it two jobs"
        )
        return Ending("failed", self.spec.name, error)

    def _failed(self, slot: Slot, delivery: Delivery, error: Exception) -> None:
        """Decide what becomes of a delivery whose call failed."""
        self.failures += 1
        _forget_earlier(error)
        run, spec = self.run, self.spec
        if isinstance(error, SinkError):
            # Where results go cannot take them, which is no fault of the item's.
            self.permits.release(delivery, "ignore")
            run.trouble(error)
            run.endings.give_back(delivery)
            return
        sent = delivery.sent > 0
        tried, refused = run.parking.tried_before(delivery)
        decision = decide(
            spec.retry, error, tried + delivery.tried, spec.effect, sent, run.rng, run.clock(), delivery.until,
            refused + delivery.refused,
        )  # fmt: skip
        delivery.refused += decision.refused
        if decision.hold is not None:
            self.permits.hold(delivery, decision.hold, error)
        after = decision.after
        if decision.kind == "again" and spec.retry is not None:
            after = max(after, self.permits.wait_of_budget(delivery, spec.retry, lambda: self.attempts))
        self.permits.release(delivery, self.permits.signal_of(delivery, error))
        if decision.kind == "in_doubt":
            run.endings.fail(delivery, spec.name, error, in_doubt=True)
            return
        if spec.effect == "once" and sent:
            count_sent(delivery, -1)  # it is certain that nothing happened
            run.forget_intent(delivery)
        if isinstance(error, Skip):
            run.endings.skip(delivery, error.reason)
        elif decision.kind == "again" and not run.shutdown.is_stopping:
            run.accounts.attempt_failed(delivery, spec.name, error, after)
            if not run.parking.failed(self, delivery, after, error):
                delivery.state = WAITING
                self.waiting += 1
                run.delays.repeat(self, delivery, after)
        elif decision.kind == "again":
            run.endings.give_back(delivery)
        else:
            run.accounts.attempt_failed(delivery, spec.name, error, None)
            run.endings.fail(delivery, spec.name, error)

    def _call_over(self, slot: Slot) -> None:
        """Count a call that is over, one way or another."""
        slot.deadline = None
        slot.delivery = None
        slot.calls += 1
        slot.busy += self.run.clock() - slot.began

    def _raised(self, slot: Slot, delivery: Delivery, error: Exception) -> bool:
        """Deal with a call that raised; say whether its worker is to end."""
        if slot.ending == "given up":
            self._come_back(slot)
            return True
        self._call_over(slot)
        self._end_of_timeout(slot)
        self._failed(slot, delivery, error)
        return slot.ending is not None

    def _panicked(self, slot: Slot, delivery: Delivery, error: BaseException) -> None:
        """Fail the item of a call that ended with what is no Exception, as Rust's panics are; its worker is replaced."""
        self.run.panics.append(error)
        raised = CallError(f"the function ended with {type(error).__name__}: {one_line(error)}")
        raised.__cause__ = error
        if not self._raised(slot, delivery, raised):
            self.slots.remove(slot)
            self._calls_before += slot.calls
            self._busy_before += slot.busy
            self.spawn()

    def _overran(self, slot: Slot, delivery: Delivery, value: Any) -> bool:
        """Deal with a call that returned although it was cancelled; say whether its worker is to end."""
        if slot.ending == "given up":
            self._come_back(slot)
            return True
        if slot.ending == "timeout":
            self._end_of_timeout(slot)
            self._failed(slot, delivery, self._timed_out(delivery))
            return False
        # It was told to stop and finished instead: its result counts.
        self.permits.settle(delivery, value)
        if self.spec.kind == "map":
            delivery.value = value
            self.forward(delivery)
        else:
            self.run.endings.give_back(delivery)
        return True

    def _cancelled(self, slot: Slot, delivery: Delivery, error: asyncio.CancelledError) -> bool:
        """Find out who cancelled; say whether the cancellation is to go on."""
        task = slot.task
        assert task is not None
        if slot.ending == "given up":
            self._come_back(slot)
            return True
        self._call_over(slot)
        if not self.run.is_torn_down:
            if slot.ending == "timeout":
                self._end_of_timeout(slot)
                self._failed(slot, delivery, self._timed_out(delivery))
                return False
            if slot.ending is None:
                self._end_of_timeout(slot)
                raised = CallError("the function was cancelled, and not by the run: it cancelled itself")
                raised.__cause__ = error
                self._failed(slot, delivery, raised)
                return False
        self.permits.release(delivery)
        self.run.endings.give_back(delivery)
        return True

    def _timed_out(self, delivery: Delivery) -> TimedOut:
        if delivery.until is not None and (self.spec.timeout is None or self.run.clock() >= delivery.until):
            return self._too_late()
        return TimedOut(f"no result within timeout={self.spec.timeout:g} s")

    def _too_late(self) -> TimedOut:
        return TimedOut(f"not done within={self.spec.within:g} s")

    def _end_of_timeout(self, slot: Slot) -> None:
        """Take back our own cancellation, and those that the function made, so that the worker can go on."""
        if slot.ending == "timeout":
            slot.ending = None
        if slot.ending is None and slot.task is not None and not self.run.is_torn_down:
            while slot.task.cancelling():
                slot.task.uncancel()

    # ------------------------------------------------------------------ calls that do not end

    def expired(self, slot: Slot, now: float) -> None:
        """The sweep found that this slot's time limit has passed."""
        if slot.ending is None and self.ahead is not None and self.ahead.put_off(slot, now):
            return
        if slot.ending == "timeout":
            self.give_up(slot, self._timed_out(slot.delivery) if slot.delivery is not None else None)
            return
        slot.ending = "timeout"
        slot.deadline = now + PATIENCE
        if slot.task is not None:
            slot.task.cancel()

    def stop(self, slot: Slot) -> None:
        """Cancel the call in this slot, or its idle worker, because the run ends."""
        if slot.ending != "given up" and slot.task is not None and not slot.task.done():
            slot.ending = "stop"
            slot.deadline = None
            slot.task.cancel()

    def recall(self) -> None:
        """Take back what a lane was given and has not begun: nothing, where it is given one call at a time."""

    async def close(self) -> None:
        """Wait for what may still end although all items are settled: nothing, where each has one call."""

    def give_up(self, slot: Slot, error: Exception | None) -> None:
        """Go on without a call that will not end: settle its item, and start a worker in its place."""
        delivery = slot.delivery
        slot.ending = "given up"
        slot.deadline = None
        self.given_up += 1
        self.slots.remove(slot)
        if delivery is not None:
            self._call_over(slot)
        self._calls_before += slot.calls
        self._busy_before += slot.busy
        if delivery is None:
            return
        self.permits.keep(slot, delivery, error)
        if error is None:
            self.run.endings.give_back(delivery)
        else:
            self._failed(slot, delivery, error)
            self.spawn()
        self.run.worker_given_up(self)

    def _come_back(self, slot: Slot) -> None:
        """A given-up call ended after all: its permits go back, its result is dropped."""
        self.given_up -= 1
        self.permits.give_back_late(slot)


def _forget_earlier(error: Exception) -> None:
    """Cut from an error's traceback what earlier raises of it left: one object raised for each item grows by each."""
    trace = peek(error, "__traceback__")
    while isinstance(trace, TracebackType) and (following := trace.tb_next) is not None:
        if following.tb_frame.f_code is Caller._work.__code__:
            trace.tb_next = None
        trace = trace.tb_next


def carry(delivery: Delivery, run: Run) -> None:
    """Make a delivery ready for the next stage: its calls so far are counted, its value weighed."""
    delivery.attempts += delivery.tried
    delivery.tried = delivery.refused = 0
    delivery.until = None
    if delivery.weight or type(delivery.value) not in WEIGHTLESS:
        run.window.weigh(delivery, delivery.value)
