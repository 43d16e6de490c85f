"""A run: its states, its accounting, and what holds its parts together.

    opening ─► running ⇄ paused ─► draining ─► cancelling ─► flushing ─► closed

Rules:
1. The run lives in one task of its own. Whoever waits for it and is cancelled asks it to stop; nobody cancels it.
2. Every taken item is settled, parked or returned when the run closes, and the sum is checked.
3. Draining lets running calls finish and takes no more; cancelling ends them. An item whose *once* call went out is
   carried through a drain to its settlement.
4. No task, thread, socket or file outlives the run, but for calls that cannot be stopped: these are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from headrace.aio.clock import clock_of
from headrace.aio.sweep import DeadlineSweep
from headrace.aio.tasks import TaskOwner
from headrace.engine.accounts import Accounts
from headrace.engine.batch import Gatherer, Tap
from headrace.engine.bus import Bus
from headrace.engine.choosing import ChoosingCaller
from headrace.engine.chunks import ChunkCaller
from headrace.engine.committer import Committer
from headrace.engine.delays import Delays
from headrace.engine.endings import Endings
from headrace.engine.exits import Exit
from headrace.engine.fanout import collecting
from headrace.engine.hedging import HedgingCaller
from headrace.engine.intake import Intake
from headrace.engine.lineage import Ending
from headrace.engine.parking import Parkings
from headrace.engine.resources import open_resource
from headrace.engine.shutdown import Shutdown
from headrace.engine.slot import Slot
from headrace.engine.stage import PATIENCE, Caller, carry
from headrace.engine.texts import item_text, one_line
from headrace.engine.watching import MakeWatch
from headrace.engine.window import Window
from headrace.errors import EngineError, HeadraceError, LaneError, LedgerError, SinkError
from headrace.events import (
    RunFinished,
    RunStarted,
    RunStateChanged,
    StatisticsSampled,
)
from headrace.item import Delivery
from headrace.plan import Plan, RunOptions
from headrace.ports import (
    ChoosingLane,
    ChunkLane,
    JobState,
    Lane,
    Ledger,
    Replayable,
    Shared,
    Subscriber,
)
from headrace.report import Report

__all__ = ["Run"]

Node = Caller | Gatherer | Tap
#: How long idle workers may take to end, in seconds; those whose calls do not end were waited for before.
LAST_LOOK = 0.5
#: How often listeners get the run's statistics, in seconds.
SAMPLE_EVERY = 0.25


class Run:
    """One run of a plan."""

    def __init__(
        self,
        plan: Plan,
        options: RunOptions,
        *,
        make_lane: Callable[[Any, Callable[[HeadraceError], None]], Lane | ChunkLane],
        make_exit: Callable[[Run], Exit],
        make_watch: MakeWatch | None = None,
        ledger: Ledger | None = None,
        state: JobState | None = None,
        subscribers: Sequence[Subscriber] = (),
        rng: Random | None = None,
    ) -> None:
        self.plan = plan
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.clock = clock_of(self.loop)
        self.rng = rng or Random(random.getrandbits(64))  # so that a seed of `random` holds here, too
        self.ledger = ledger
        self.job_state = state
        self.generation = state.generation if state is not None else ""
        self.window = Window(plan.window(options.window), plan.levels, options.window_bytes)
        self.window.on_weighs = self.look
        self.roots = self.window.roots
        self.sweep = DeadlineSweep(self.loop, self._limited_slots, self._expired)
        self.breathe_at = 0.0  # when the workers are to give the loop a turn
        self.now = self.clock()  # when the call ended whose result is being handed on
        self.bus: Bus | None = Bus(self.loop, subscribers) if subscribers else None
        self.workers = TaskOwner(self._task_failed)
        self.panics: list[BaseException] = []  # no Exceptions, on their way out of their workers
        self._tasks = TaskOwner(self._task_failed)
        self._make_lane = make_lane
        self.delays = Delays(self.loop)
        # states
        self.notify_at = plan.window(options.window)  # see `look`
        self.state = "opening"
        self._starts_paused = False
        self._over = asyncio.Event()
        self._intake_task: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.total: int | None = None  # items in the source, where somebody wants to know
        self.trouble_raised: BaseException | None = None
        self.began = self.clock()
        self.parking = Parkings(self, state.parked if state is not None else {})
        # parts
        self.nodes: list[Node] = []
        self.accounts = Accounts(self)
        self.endings = Endings(self)
        self.shutdown = Shutdown(self)
        self.exit = make_exit(self)
        self.watch = (
            make_watch(self.accounts.whose, self.accounts.loop_held) if make_watch is not None else None
        )
        self._build()
        self.intake = (
            Intake(self, (), None)
            if state is None
            else Intake(self, state.settled, state.bookmark, state.intents)
        )

    def _build(self) -> None:
        levels = iter(self.window.levels)
        level = next(levels)
        for spec in self.plan.stages:
            below = next(levels) if spec.kind in ("flat_map", "batch") else level
            if spec.kind == "batch":
                self.nodes.append(Gatherer(self, spec, level, below))
            elif spec.kind in ("take", "until"):
                self.nodes.append(Tap(self, spec))
            else:
                lane = self._make_lane(spec, self.trouble)
                if isinstance(lane, ChoosingLane):
                    self.nodes.append(ChoosingCaller(self, spec, lane, level, below))
                elif isinstance(lane, ChunkLane):
                    self.nodes.append(ChunkCaller(self, spec, lane, level, below))
                else:
                    kind = Caller if spec.hedge is None else HedgingCaller
                    self.nodes.append(kind(self, spec, lane, level, below))
            level = below
        for node, following in zip(self.nodes, self.nodes[1:], strict=False):
            node.forward = self._carrier(following) if isinstance(node, Caller) else following.accept
        if self.nodes and self.plan.levels == 1:
            self.nodes[-1].forward = self.exit.entry()  # nothing can have an origin
        self.endings.has_order = any(level.reorders for level in self.window.levels)

    def _carrier(self, following: Node) -> Callable[[Delivery], None]:
        def forward(delivery: Delivery) -> None:
            carry(delivery, self)
            following.accept(delivery)

        return forward

    @property
    def leaves_work(self) -> bool:
        """Whether the run was stopped before the source ended, other than by `take` or `until`."""
        return self.shutdown.leaves_work and not self.intake.exhausted

    @property
    def callers(self) -> list[Caller]:
        """The stages that call functions."""
        return [node for node in self.nodes if isinstance(node, Caller)]

    # ------------------------------------------------------------------ the life of a run

    async def execute(self) -> Report:
        """Run to the end and give the report. Never cancelled from outside: see `shutdown`.

        Raises what kept it from opening: then nothing has moved.
        """
        self._task = asyncio.current_task()
        async with contextlib.AsyncExitStack() as resources:
            await self._open(resources)
            self._start()
            await self._over.wait()
            await self._close()
        return self.accounts.report()

    _task: asyncio.Task[Any] | None = None

    @property
    def is_torn_down(self) -> bool:
        """Whether the loop's owner cancels everything, the run's own task too: the loop ends."""
        return self._task is not None and self._task.cancelling() > 0

    async def _open(self, resources: contextlib.AsyncExitStack) -> None:
        shared: dict[Any, Any] = {}
        for caller in self.callers:
            spec = caller.spec
            own: dict[str, Callable[[], Any]] = {}
            opened: dict[str, Any] = {}
            for key, factory in spec.uses.items():
                if spec.lane != "loop" and not isinstance(factory, Shared):
                    own[key] = factory
                    continue
                if factory not in shared:
                    shared[factory] = await self._open_resource(resources, key, factory)
                opened[key] = shared[factory]
            from_fn = spec.fn
            assert from_fn is not None
            if spec.kind == "flat_map":
                from_fn = collecting(from_fn, spec.fanout)
            caller.load(from_fn, opened, own)

    async def _open_resource(
        self, resources: contextlib.AsyncExitStack, key: str, factory: Callable[[], Any]
    ) -> Any:
        try:
            return await open_resource(resources, factory, self.accounts.warnings.append)
        except HeadraceError:
            raise
        except Exception as error:
            raise LaneError(
                f"uses={key!r} could not be opened: {type(error).__name__}: {one_line(error)}"
            ) from error

    def _start(self) -> None:
        self.began = self.clock()
        source = self.plan.source
        if isinstance(source, Replayable) and (self.bus is not None or self.ledger is not None):
            self.total = source.total()
        if self.bus is not None:
            state = self.job_state
            self.bus.emit(
                RunStarted(
                    time.time(),
                    self.options.job,
                    [caller.spec.name for caller in self.callers],
                    self.window.limit,
                    self.total,
                    state.done + state.failed + state.skipped if state is not None else 0,
                    getattr(self.plan.sink, "place", None),
                )
            )
        if not self.shutdown.is_stopping:
            self.set_state("running")
        self._sample()
        if self.watch is not None:
            self.watch.start()
        self.look()
        if isinstance(self.exit, Committer):
            self._tasks.start(self.exit.work(), "headrace committer")
        self._intake_task = self._tasks.start(self.intake.read(), "headrace intake")
        if self._starts_paused:
            self.pause()
        if self.options.within is not None:
            self.later(self.options.within, self.shutdown.drain, f"within={self.options.within:g} s is over")

    async def _close(self) -> None:
        self.set_state("flushing")
        for timer in self._timers:
            timer.cancel()
        self.sweep.stop()
        self.delays.drain()
        for caller in self.callers:
            await caller.close()
            caller.ended = True
            caller.dispatch.drain()  # what was settled while it queued still stands in line at its limits
            caller.dispatch.wake_all()
        await self.exit.close()
        self.parking.tell()
        left = await self.workers.cancel(LAST_LOOK) if len(self.workers) else 0
        if self._intake_task is not None:
            # It closes the source, and a generator's `finally` may have to wait for something.
            await asyncio.wait((self._intake_task,), timeout=PATIENCE)
        left += await self._tasks.cancel(PATIENCE) if len(self._tasks) else 0
        for caller in self.callers:
            left += await caller.lane.close(0.0)
        if self.watch is not None:
            await self.watch.close()
        self.abandoned = left
        # None are open here, but after a fault of ours: these were not settled either.
        self.accounts.returned += self.roots.open
        await self._finish_ledger()
        if self.bus is not None:
            self.set_state("closed")
            self.bus.emit(StatisticsSampled(time.time(), self.accounts.statistics()))
            self.bus.emit(RunFinished(time.time(), self.accounts.report().as_dict()))
            self.bus.flush()
            self.accounts.warnings += self.bus.dropped
        self.state = "closed"

    async def _finish_ledger(self) -> None:
        if self.ledger is None:
            return
        report = self.accounts.report()
        try:
            if not isinstance(self.exit, Committer) or self.exit.failed is None:
                complete_job = self.intake.exhausted and not report.returned and not report.job_parked
                await self.ledger.finish(report.exit_code, complete=complete_job, report=report.as_dict())
        except (LedgerError, SinkError) as error:
            self.trouble(error)

    abandoned = 0

    # ------------------------------------------------------------------ stopping

    def stop_source(self, reason: str) -> None:
        """Take no more items; what is open finishes, and the run ends as if the source had."""
        if not self.intake.ended:
            self.shutdown.reason = self.shutdown.reason or reason
            self.intake.stop()
            self.stop_reading()
            self.check_over()  # a task that is cancelled before its first step cannot do it

    def enough(self, reason: str) -> None:
        """Take no more from the source, as a stage says; what this run has parked may come again."""
        if self.intake.has_enough:
            return
        if not self.intake.enough():
            self.stop_source(reason)
            return
        self.shutdown.reason = self.shutdown.reason or reason
        self.stop_reading()

    def trouble(self, error: BaseException) -> None:
        """Note a trouble of the run itself, the first one, and stop: at once where nothing can be recorded any more."""
        if self.trouble_raised is None:
            self.trouble_raised = error
        reason = one_line(error)
        self.shutdown.note(reason)
        if isinstance(error, (LedgerError, SinkError, LaneError, EngineError)):
            self.shutdown.cancel(reason)
        else:
            self.stop_source(reason)

    def pause(self) -> None:
        """Start no more calls until `resume`; running ones finish."""
        if self.state == "opening":
            self._starts_paused = True
        if self.state == "running":
            self.set_state("paused")
            self.intake.pause()
            for caller in self.callers:
                caller.dispatch.close()
                caller.recall()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._starts_paused = False
        if self.state == "paused":
            self.set_state("running")
            self.intake.resume()
            for caller in self.callers:
                caller.dispatch.open()

    def is_reading(self, task: asyncio.Task[Any]) -> bool:
        """Whether this is the task that reads the source."""
        return task is self._intake_task

    def stop_reading(self) -> None:
        """Interrupt the reading of the source."""
        if self._intake_task is not None:
            self._intake_task.cancel()

    def end(self) -> None:
        """Let the run go on to its closing."""
        self._over.set()

    def check_over(self) -> None:
        """End the run if nothing is open and nothing more comes."""
        if self.roots.open:
            return
        if not self.intake.ended:
            self.intake.look_again()  # it may be that it waits for nothing else
            return
        self._over.set()
        finish = getattr(self.exit, "finish", None)
        if finish is not None:
            finish()

    def nothing_to_read(self) -> None:
        """The source is read to its end, or was stopped; what is parked may come yet."""
        self.look()
        if isinstance(self.exit, Committer):
            self.exit.hurry()
        self.flush_batches()

    def intake_over(self) -> None:
        """Nothing more comes."""
        self.nothing_to_read()
        self.check_over()

    def window_full(self) -> None:
        """The intake waits for room: batches that wait for more than can come go on."""
        self.flush_batches()

    def flush_batches(self) -> None:
        """Let those batches go on that nothing more can reach now."""
        upstream_busy = False
        for node in self.nodes:
            if isinstance(node, Caller):
                upstream_busy = upstream_busy or node.is_busy
            elif isinstance(node, Gatherer) and not upstream_busy and node.members:
                node.flush()
                upstream_busy = True
        self._flush_when_idle = any(isinstance(node, Gatherer) and node.members for node in self.nodes)
        self.look()

    _flush_when_idle = False

    # ------------------------------------------------------------------ what comes in and goes out

    def settled(self, root: Delivery, ending: Ending | None) -> None:
        """Count a root that has reached its final state, and give its place in the window back."""
        self.roots.open = left = self.roots.open - 1
        if ending is None:
            self.accounts.done += 1
        else:
            self.accounts.count(root, ending)
        if left <= self.notify_at:
            self.after_settled(root, ending)

    def settled_all(self, done: list[Delivery]) -> None:
        """Count many roots that are done, as `settled` does one."""
        self.roots.open = left = self.roots.open - len(done)
        self.accounts.done += len(done)
        if left <= self.notify_at and done:
            if self.notify_at == self.window.limit:  # each of them calls for more
                for root in done:
                    self.after_settled(root, None)
            else:
                self.after_settled(done[-1], None)

    def after_settled(self, root: Delivery, ending: Ending | None) -> None:
        """Do what a settled item calls for beyond being counted."""
        if root.weight:
            self.window.bytes_open -= root.weight
        if len(self.window.levels) > 1:
            self.window.leave(root)
        if self.bus is not None:
            self.accounts.tell_settled(root, ending)
        if self.intake.wanted is not None:
            self.intake.room_freed()
        if not self.roots.open:
            self.check_over()
        elif self._flush_when_idle:
            self.flush_batches()

    def look(self) -> None:
        """Decide at how few open roots a settled one calls for more than to be counted. Called when that may change."""
        intake = self.intake
        if (
            self.bus is not None
            or self.window.weighs
            or len(self.window.levels) > 1
            or self._flush_when_idle
            or (intake.waits and self.window.is_heavy)
        ):
            self.notify_at = self.window.limit
        elif intake.waits:
            self.notify_at = self.roots.share - intake.room_enough
        else:
            self.notify_at = 0 if intake.ended or intake.rests else -1

    # ------------------------------------------------------------------ for its parts

    async def intend(self, delivery: Delivery, stage: str) -> None:
        """Record a *once* call before it goes out; at once where there is no ledger."""
        if isinstance(self.exit, Committer):
            await self.exit.intend(delivery, stage)

    def forget_intent(self, delivery: Delivery) -> None:
        """Take back the record of a *once* call that certainly did nothing."""
        if isinstance(self.exit, Committer):
            self.exit.forget_intent(delivery)

    def _limited_slots(self) -> list[Slot]:
        return [slot for caller in self.callers for slot in caller.slots]

    def _expired(self, slot: Any, now: float) -> None:
        slot.stage.expired(slot, now)

    def worker_given_up(self, caller: Caller) -> None:
        """A call would not end when it was cancelled: too many of these fail the run."""
        most = max(16, caller.spec.concurrency)
        if caller.given_up > most:
            self.trouble(
                LaneError(
                    f"{caller.given_up} calls of {caller.spec.name} went on after they were cancelled. Does the "
                    f"function swallow CancelledError?"
                )
            )

    def started(self, coroutine: Any, name: str) -> None:
        """Start a task that belongs to the run."""
        self._tasks.start(coroutine, name)

    def later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """Call back in `seconds`, unless the run is over by then."""
        self._timers.append(self.loop.call_later(seconds, callback, *args))

    def _task_failed(self, error: BaseException) -> None:
        for number, panic in enumerate(self.panics):
            if panic is error:
                del self.panics[number]  # once: the same object may be under way several times
                return  # its item has failed with it
        if not isinstance(error, HeadraceError):
            raised = EngineError(
                f"a fault in headrace: {type(error).__name__}: {one_line(error)}. Please report it."
            )
            raised.__cause__ = error
            error = raised
        self.trouble(error)

    # ------------------------------------------------------------------ what it tells

    def set_state(self, state: str, reason: str = "") -> None:
        """Go on to another state, and tell of it."""
        self.state = state
        if self.bus is not None:
            self.bus.emit(RunStateChanged(time.time(), state, reason))

    def _sample(self) -> None:
        if self.bus is not None and self.state not in ("closed", "flushing"):
            self.bus.emit(StatisticsSampled(time.time(), self.accounts.statistics()))
            self.later(SAMPLE_EVERY, self._sample)
            self._timers = [
                timer for timer in self._timers if not timer.cancelled() and timer.when() > self.clock() - 1
            ]

    def subscribe(self, subscriber: Subscriber) -> None:
        """Let someone listen from now on."""
        if self.bus is None:
            self.bus = Bus(self.loop, [])
            self._sample()
            self.look()
        self.bus.subscribe(subscriber)

    def fingerprint(self) -> Mapping[str, Any] | None:
        """Describe the source up to what has been taken; None where the last description says more."""
        source = self.plan.source
        if not self.intake.knows_more or not isinstance(source, Replayable):
            return None
        return source.fingerprint(self.intake.reached)

    def describe(self, position: int) -> str:
        """Name a position for people."""
        source = self.plan.source
        return source.describe(position) if isinstance(source, Replayable) else f"item {position}"

    @staticmethod
    def item_text(item: Any) -> str:
        """Give an item as a dead letter shows it; a password in a URL is no part of that."""
        return item_text(item)
