"""A stage whose slow calls get a second copy: the first result counts, and the other call is cancelled.

      the call ─────────────── slow ──────────────────► its result, and the copy is cancelled
                                └─► the copy ─────────► its result, and the call is cancelled

Rules:
1. The call runs in its worker, as anywhere; only the copy is a task. It takes the place of an idle worker and claims of
   its own on all limits, if they are to be had right now: it waits for nothing, and no item waits for it.
2. The loser is cancelled at once. A copy that lost ends by itself, its place and permits with it; a call that lost ends
   before its worker goes on. One that will not end is given up.
3. Who was first is decided in one synchronous step. What the engine has decided by then (a time limit, a stop) stands.
4. A copy ends no call by failing: the call's own error counts. It is no attempt, but it is counted among the calls.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from headrace.aio.sweep import DeadlineSweep
from headrace.engine.lineage import is_doomed
from headrace.engine.slot import Slot
from headrace.engine.stage import PATIENCE, Caller
from headrace.engine.window import Level
from headrace.errors import CallError, GiveUp, HeadraceError, Skip
from headrace.item import Delivery
from headrace.plan import StageSpec
from headrace.policies import limits as admission
from headrace.policies.hedging import AGAIN, Hedge
from headrace.policies.retry import decide
from headrace.ports import Lane, current_call

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["HedgingCaller"]

#: A look may come so much too early (seconds); it is not put off for that.
TICK = 1e-5
#: Why a call is cancelled: the other one was first.
OUTRUN = "outrun"


class _Worker(Slot):
    """A worker's place, and the race of the call in it."""

    __slots__ = ("race",)

    def __init__(self, stage: Caller) -> None:
        super().__init__(stage)
        self.race: _Race | None = None


class _Copy(Slot):
    """The place of a copy, which it was lent. Its delivery is a likeness of the call's, with claims of its own."""

    __slots__ = ("error", "has_value", "race", "return_place", "value")

    def __init__(
        self, stage: Caller, race: _Race, delivery: Delivery, return_place: Callable[[], None]
    ) -> None:
        super().__init__(stage)
        self.race = race
        self.delivery = delivery
        self.return_place = return_place
        self.value: Any = None
        self.has_value = False
        self.error: Exception | None = None


class _Race:
    """A call, and its copy once there is one. `deadline` is when to look whether the call is slow."""

    __slots__ = ("copy", "deadline", "delivery", "error", "key", "over", "slot", "value", "won")

    def __init__(self, slot: _Worker, delivery: Delivery, key: Any) -> None:
        self.slot = slot
        self.delivery = delivery
        self.key = key
        self.deadline: float | None = None
        self.copy: _Copy | None = None  # while it runs and its result would count
        self.won: Delivery | None = None  # the copy's, when its result counts
        self.value: Any = None
        self.error: Exception | None = None  # of the call itself
        self.over: asyncio.Future[None] | None = None  # the copy's end, where the call waits for it


class HedgingCaller(Caller):
    """A stage that calls an async function on the loop, and slow calls of it twice."""

    hedge: Hedge

    def __init__(self, run: Run, spec: StageSpec, lane: Lane, level: Level, below: Level) -> None:
        super().__init__(run, spec, lane, level, below)
        assert spec.hedge is not None
        self.hedge = Hedge(spec.hedge)
        self._once: Callable[[Any], Awaitable[Any]]
        self._looks = DeadlineSweep(run.loop, self._races, self._look)
        self._unknown: dict[Any, set[_Race]] = {}  # by key, until it is known what is slow there
        self._keyed = next((n for n, limit in enumerate(spec.limits) if limit.by is not None), None)
        # Nothing of one call is to be seen in another: copies, and what is done between calls, start from here.
        self._context = contextvars.copy_context()

    def load(
        self, fn: Callable[..., Any], opened: Mapping[str, Any], factories: Mapping[str, Callable[[], Any]]
    ) -> None:
        """Give the lane its function; each call of it is watched."""
        super().load(fn, opened, factories)
        assert self._call is not None
        self._once, self._call = self._call, self._hedged

    def spawn(self) -> None:
        """Start one more worker."""
        self._start_worker(_Worker(self))

    @property
    def is_busy(self) -> bool:
        """Whether anything is here that may still go on; a copy's result goes on with the call that it is of."""
        calls = any(slot.delivery is not None and not isinstance(slot, _Copy) for slot in self.slots)
        return bool(calls or self.waiting or self.emitting or len(self.dispatch) or self._held_back)

    # ------------------------------------------------------------------ a call

    async def _hedged(self, value: Any) -> Any:
        """Call the function; give the result of the call or of its copy, whichever comes first."""
        slot = current_call.get()
        assert isinstance(slot, _Worker)
        race = self._begin(slot)
        try:
            try:
                result = await self._once(value)
            except asyncio.CancelledError:
                if not self._copy_counts(race):
                    raise
            except Exception as error:  # noqa: BLE001 - it is raised again, unless the copy has a result
                race.error = error
                if not self._copy_counts(race):
                    await self._wait_for_copy(race, error)
            else:
                if not self._copy_counts(race):
                    return result
            return self._take_over(race)
        finally:
            self._over(race)

    def _begin(self, slot: _Worker) -> _Race:
        delivery = slot.delivery
        assert delivery is not None
        key = delivery.claims[self._keyed].state.key if self._keyed is not None else None
        race = slot.race = _Race(slot, delivery, key)
        slow_after = self.hedge.begin(key, slot.began)
        if slow_after is None:
            self._unknown.setdefault(key, set()).add(race)
        else:
            self._look_at(race, slot.began + slow_after)
        return race

    def _look_at(self, race: _Race, at: float) -> None:
        race.deadline = at
        if at < self._looks.at:
            self._looks.arm(at)

    def _watch_first(self, key: Any, now: float) -> None:
        """Watch the calls that began when nothing was known, once it is: of few items these may be all."""
        unknown = self._unknown[key]
        slow_after = self.hedge.slow_after(key, now) if self.hedge.known_with(key, len(unknown)) else None
        if slow_after is not None:
            for race in unknown:
                self._look_at(race, max(now, race.slot.began + slow_after))
        if not unknown or slow_after is not None:
            del self._unknown[key]

    def _copy_counts(self, race: _Race) -> bool:
        """Whether the call ends with its copy's result: not where the loop ends, or where it was settled without."""
        return race.won is not None and not self.run.is_torn_down and race.slot.ending != "given up"

    async def _wait_for_copy(self, race: _Race, error: Exception) -> None:
        """Wait for the copy of a call that failed; raise `error` where there is none, or it fails too."""
        slot, race.deadline = race.slot, None
        if race.copy is None or slot.ending is not None or isinstance(error, (Skip, GiveUp)):
            raise error
        race.over = self.run.loop.create_future()
        try:
            await race.over
        except asyncio.CancelledError:
            if self.run.is_torn_down or not (self._copy_counts(race) or slot.ending == "timeout"):
                raise
        if race.won is None:
            raise error

    def _take_over(self, race: _Race) -> Any:
        """Let the call end with its copy's result: its permits go back, and the copy's become its own."""
        slot, delivery, won = race.slot, race.delivery, race.won
        assert won is not None
        if slot.ending == OUTRUN:
            slot.ending = None
        slot.deadline = None
        self._end_of_timeout(slot)  # the cancellation was ours
        if race.error is not None:
            self._failure(delivery, race.error)
        else:
            self.permits.release(delivery)
        delivery.claims, won.claims = won.claims, None
        return race.value

    def _over(self, race: _Race) -> None:
        """End the race, whoever won it."""
        slot = race.slot
        slot.race = race.deadline = None
        if slot.ending == OUTRUN:
            slot.ending = None
        self._drop_copy(race)
        if race.won is not None and race.won.claims:  # the loop ends, or the call broke off with no Exception
            self.permits.release(race.won)
        if race.error is None:  # one that was cut short took that long at least
            now = self.run.clock()
            self.hedge.end(race.key, now - slot.began, now)
        if race.key in self._unknown:
            self._unknown[race.key].discard(race)
            self._watch_first(race.key, self.run.clock())

    def _failure(self, delivery: Delivery, error: Exception) -> None:
        """Count a failed call that is not the one that counts, and do what its error asks of its limits."""
        self.failures += 1
        run, spec = self.run, self.spec
        if delivery.claims:
            now = run.clock()
            hold = decide(spec.retry, error, delivery.tried, spec.effect, False, run.rng, now, None).hold
            if hold is not None:
                self.permits.hold(delivery, hold, error)
        self.permits.release(delivery, self.permits.signal_of(delivery, error))

    # ------------------------------------------------------------------ a copy

    def _races(self) -> list[_Race]:
        return [slot.race for slot in self.slots if isinstance(slot, _Worker) and slot.race is not None]

    def _look(self, race: Any, now: float) -> None:
        """Start a copy of a call that is slow; where that cannot be now, look again later."""
        race.deadline = None
        if race.slot.ending is not None or self.run.shutdown.is_stopping:
            return
        ran = now - race.slot.began
        slow_after = self.hedge.slow_after(race.key, now)  # by what is known by now
        if slow_after is not None and slow_after > ran + TICK:
            race.deadline = race.slot.began + slow_after
        elif slow_after is None or not self._start_copy(race):
            race.deadline = race.slot.began + AGAIN * ran

    def _start_copy(self, race: _Race) -> bool:
        run, delivery = self.run, race.delivery
        if run.state != "running" or not self.hedge.may_copy:
            return False
        if delivery.origin is not None and is_doomed(delivery):
            return False
        return_place = self.dispatch.lend()
        if return_place is None:
            return False
        now = run.clock()
        try:
            claims = admission.claim(self.spec.limits, delivery.value)
        except HeadraceError:
            return_place()
            return False
        if claims and admission.admit(claims, now) != 0.0:
            admission.drop(claims)
            return_place()
            return False
        self.hedge.copy()
        likeness = copy.copy(delivery)
        likeness.claims = claims
        slot = race.copy = _Copy(self, race, likeness, return_place)
        slot.began, slot.deadline = now, race.slot.deadline
        self.slots.append(slot)
        context = self._context.copy()
        slot.task = context.run(
            self.run.workers.start, self._run_copy(slot, delivery.value), f"headrace {self.spec.name} copy"
        )
        slot.task.add_done_callback(functools.partial(self._copy_over, slot), context=self._context.copy())
        return True

    async def _run_copy(self, slot: _Copy, value: Any) -> None:
        current_call.set(slot)
        try:
            slot.value = await self._once(value)
            slot.has_value = True
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - it is told to the limits, and the call goes on
            slot.error = error
        except BaseException as error:
            if asyncio.current_task(self.run.loop) is slot.task:  # else the loop is gone, and this with it
                self.run.panics.append(error)
                slot.error = CallError(f"the function ended with {type(error).__name__}")
            raise

    def _copy_over(self, slot: _Copy, task: asyncio.Task[None]) -> None:
        """Decide whether a copy that has ended was first; give back what it held."""
        if slot.ending == "given up":
            self._come_back(slot)
            return
        race, delivery = slot.race, slot.delivery
        assert delivery is not None
        self._leave(slot)
        if not slot.has_value and slot.error is None and slot.ending is None and not self.run.is_torn_down:
            slot.error = CallError("the function was cancelled, and not by the run: it cancelled itself")
        is_first = race.copy is slot and race.slot.ending is None and not self.run.is_torn_down
        if slot.has_value and is_first:
            self._won(race, delivery, slot.value)
        elif slot.has_value:
            self.permits.settle(delivery, slot.value)
        elif slot.error is not None:
            self._failure(delivery, slot.error)
        else:
            self.permits.release(delivery)
        self._tell_race(slot)
        slot.return_place()

    def _won(self, race: _Race, delivery: Delivery, value: Any) -> None:
        self.hedge.won += 1
        race.won, race.value, race.deadline = delivery, value, None
        slot = race.slot
        slot.deadline = None
        if race.over is None:  # else the call has ended already
            self._cancel(slot)

    def _cancel(self, slot: Slot) -> None:
        """Cancel a call that lost."""
        assert slot.task is not None
        slot.ending = OUTRUN
        slot.deadline = self.run.clock() + PATIENCE
        if slot.deadline < self.run.sweep.at:
            self.run.sweep.arm(slot.deadline)
        slot.task.cancel()

    def _drop_copy(self, race: _Race) -> None:
        """Cancel the copy, if one runs: its result counts no more."""
        dropped, race.copy = race.copy, None
        if dropped is not None and dropped.ending is None:
            self._cancel(dropped)

    def _tell_race(self, slot: _Copy) -> None:
        """Let the call go on that waits for this copy, if one does."""
        race = slot.race
        if race.copy is slot:
            race.copy = None
        if race.over is not None and not race.over.done():
            race.over.set_result(None)

    def _leave(self, slot: _Copy) -> None:
        """Count a copy that is over, one way or another."""
        self._call_over(slot)
        self.slots.remove(slot)
        self._calls_before += slot.calls
        self._busy_before += slot.busy

    # ------------------------------------------------------------------ calls that do not end

    def expired(self, slot: Slot, now: float) -> None:
        """The time limit of a call or a copy has passed, or a loser's time to end."""
        if slot.ending == OUTRUN:
            self.give_up(slot, None)
            return
        if isinstance(slot, _Worker) and slot.race is not None:
            self._drop_copy(slot.race)
        super().expired(slot, now)

    def give_up(self, slot: Slot, error: Exception | None) -> None:
        """Go on without a call that will not end, or without a copy."""
        race = slot.race if isinstance(slot, _Worker) else None
        if isinstance(slot, _Copy):
            self._give_up_copy(slot)
        elif race is not None and race.won is not None:
            self._go_on_without(slot, race, race.won)
        else:
            if race is not None:
                self._drop_copy(race)
            super().give_up(slot, error)

    def _give_up_copy(self, slot: _Copy) -> None:
        delivery = slot.delivery
        assert delivery is not None
        self._leave(slot)
        slot.ending = "given up"
        self.given_up += 1
        self.permits.keep(slot, delivery, None)
        self._tell_race(slot)
        slot.return_place()
        self.run.worker_given_up(self)

    def _go_on_without(self, slot: Slot, race: _Race, won: Delivery) -> None:
        """Hand on the copy's result although the call does not end."""
        run, delivery, stops = self.run, race.delivery, slot.ending == "stop"
        self._call_over(slot)
        super().give_up(slot, None)
        self.permits.keep(slot, delivery, None)
        delivery.claims, won.claims = won.claims, None
        # Not in the context of this call, which keeps permits that come back.
        self._context.copy().run(self.permits.settle, delivery, race.value)
        run.now = run.clock()
        delivery.value = race.value
        if self._reorder is not None:
            self._reorder.passes(delivery, lambda: self.forward(delivery))
        else:
            self.forward(delivery)
        if not stops:
            self.spawn()
        run.worker_given_up(self)

    async def close(self) -> None:
        """Wait for copies that lost: they may end after their items are settled."""
        self._looks.stop()
        copies = [slot for slot in self.slots if isinstance(slot, _Copy) and slot.task is not None]
        if copies:
            await asyncio.wait([slot.task for slot in copies if slot.task is not None], timeout=PATIENCE)
        for slot in copies:
            if slot.task is not None and not slot.task.done():
                self.give_up(slot, None)
