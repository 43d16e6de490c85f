"""A run under way, as its user holds it: Job, and the stream of outcomes.

Rules:
1. The run lives in its own task; whoever waits for it may be cancelled any number of times, and waits on until it is over.
2. What opens first closes last: the ledger's place is taken before anything else and given back at the very end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from headrace.aio.tasks import TaskOwner, uninterrupted
from headrace.engine.committer import Committer
from headrace.engine.exits import CountExit, Exit, StreamExit
from headrace.engine.lineage import Parking
from headrace.engine.run import Run
from headrace.errors import HeadraceError, PlanError
from headrace.events import Statistics
from headrace.item import Outcome
from headrace.lanes.loop import LoopLane
from headrace.lanes.sampling import Watchdog
from headrace.lanes.thread import ThreadLane
from headrace.plan import Plan, RunOptions, StageSpec, cores
from headrace.ports import (
    ChunkLane,
    DeadLetter,
    JobRequest,
    JobState,
    Keeping,
    Lane,
    Ledger,
    Replayable,
    Subscriber,
    Transactional,
)
from headrace.report import Report

__all__ = ["Job", "OutcomeStream", "StopEvent"]

T = TypeVar("T")
#: How often a `threading.Event` given as `stop=` is looked at, in seconds.
STOP_LOOK = 0.05


class StopEvent(Protocol):
    """What `stop=` takes: an asyncio.Event, a threading.Event, or anything with `is_set()`."""

    def is_set(self) -> bool:
        """Whether the run is to stop."""
        ...


def _make_lane(spec: StageSpec, on_trouble: Callable[[HeadraceError], None]) -> Lane | ChunkLane:
    if spec.lane == "process":
        from headrace.lanes.process import ProcessLane

        return ProcessLane(spec.concurrency, spec.name, on_trouble, spec.processes)
    if spec.lane == "auto":
        from headrace.lanes.auto import AutoLane
        from headrace.lanes.process import ProcessLane

        return AutoLane(
            ThreadLane(spec.concurrency, spec.name, on_trouble),
            lambda: ProcessLane(min(cores(), spec.concurrency), spec.name, on_trouble),
            places=min(cores(), spec.concurrency),
            most_threads=spec.concurrency,
            cores=cores(),
        )
    if spec.lane == "thread":
        return ThreadLane(spec.concurrency, spec.name, on_trouble)
    return LoopLane()


class Job:
    """A run that is entered with `async with`. Made by `Flow.start`.

    `report` is there after the block. An exception in the block cancels the run and waits for it before it goes on.
    """

    def __init__(
        self,
        plan: Plan,
        options: RunOptions,
        *,
        stop: StopEvent | None = None,
        progress: bool | Subscriber | None = None,
        make_exit: Callable[[Run], Exit] | None = None,
    ) -> None:
        self._plan = plan
        self._options = options
        self._stop_event = stop
        self._progress = progress
        self._make_exit = make_exit
        self._ledger: Ledger | None = None
        self._tasks = TaskOwner()
        self._task: asyncio.Task[Report] | None = None
        self._run: Run | None = None
        self._is_made = asyncio.Event()
        self._asked: list[Callable[[Run], None]] = []
        self.report: Report | None = None
        self.kept_values: Mapping[int, Any] = {}
        self.dead_letters: Sequence[DeadLetter] = ()
        self.others: list[Outcome[Any]] = []  # outcomes of a kept map that are not Done
        self.parked: Mapping[int, Parking] = {}  # of a kept map: what is parked, earlier runs included

    # ------------------------------------------------------------------ the life

    async def __aenter__(self) -> Job:
        if self._task is not None:
            raise PlanError("this job was started before: make a new one with flow.start()")
        self._task = self._tasks.start(self._execute(), "headrace run")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.cancel(f"the block that ran it was left by {kind.__name__}")
            try:
                await self._wait()
            except HeadraceError as trouble:
                if error is not None and trouble is not error:
                    error.add_note(f"while it was cancelled, the run had a trouble of its own: {trouble}")
            return
        await self.wait()

    async def _execute(self) -> Report:
        """Everything from taking the place to giving it back."""
        state: JobState | None = None
        sink = self._plan.sink
        try:
            if isinstance(sink, Transactional):
                self._ledger = sink.ledger()
                state = await self._ledger.open(self._request())
            run = self._run = self._make_run(state)
            self._is_made.set()
            for ask in self._asked:
                ask(run)
            self._asked.clear()
            watching = self._watch_stop(run)
            report = await run.execute()
            if watching is not None:
                watching.cancel()
            if isinstance(self._ledger, Keeping) and isinstance(run.exit, Committer):
                self.kept_values = await self._ledger.values()
                self.dead_letters = await self._ledger.dead_letters()
                self.others = run.exit.others
                self.parked = run.parking.left()
        finally:
            self._is_made.set()
            if self._ledger is not None:
                await self._ledger.close()
        self.report = report
        trouble = run.trouble_raised
        if trouble is not None:
            trouble.report = report  # type: ignore[attr-defined]
            raise trouble
        return report

    def _make_run(self, state: JobState | None) -> Run:
        ledger = self._ledger
        make_exit: Callable[[Run], Exit]
        if ledger is not None:
            make_exit = lambda run: Committer(run, ledger, keep_others=isinstance(ledger, Keeping))  # noqa: E731
        else:
            make_exit = self._make_exit or CountExit
        return Run(
            self._plan,
            self._options,
            make_lane=_make_lane,
            make_watch=Watchdog,
            make_exit=make_exit,
            ledger=ledger,
            state=state,
            subscribers=_subscribers(self._progress),
        )

    def _request(self) -> JobRequest:
        source, options = self._plan.source, self._options
        assert isinstance(source, Replayable)
        return JobRequest(
            name=options.job or "default",
            identity=self._plan.identity(),
            verify_source=source.verify,
            code=self._plan.code(),
            options=options.recorded,
            fresh=options.fresh,
            max_age=options.max_age,
            accept_changes=options.accept_changes,
        )

    def _watch_stop(self, run: Run) -> asyncio.Task[None] | None:
        event = self._stop_event
        if event is None:
            return None
        return self._tasks.start(_stop_when(event, run), "headrace stop event")

    # ------------------------------------------------------------------ for the user

    def _ask(self, what: Callable[[Run], None]) -> None:
        if self._run is None:
            self._asked.append(what)
        else:
            what(self._run)

    def pause(self) -> None:
        """Start no more calls until `resume`; running ones finish."""
        self._ask(lambda run: run.pause())

    def resume(self) -> None:
        """Go on after `pause`."""
        self._ask(lambda run: run.resume())

    def stop(self, reason: str = "stop() was called", *, signal: int | None = None) -> None:
        """Drain: running calls finish, within the grace; the rest is returned. Called again, it cancels."""
        self._ask(lambda run: run.shutdown.drain(reason, signal))

    def cancel(self, reason: str = "cancel() was called") -> None:
        """Cancel the running calls; what is decided is still committed."""
        self._ask(lambda run: run.shutdown.cancel(reason))

    def subscribe(self, subscriber: Subscriber) -> None:
        """Let someone listen to the run's events from now on."""
        self._ask(lambda run: run.subscribe(subscriber))

    def statistics(self) -> Statistics:
        """Say how the run stands now."""
        return self._run.accounts.statistics() if self._run is not None else Statistics(state="opening")

    async def opened(self) -> None:
        """Wait until the run is made, or has failed to open."""
        if self._task is None:
            raise PlanError("a stream is entered first: «async with flow.stream() as outcomes: async for …»")
        await self._is_made.wait()

    async def wait(self) -> Report:
        """Wait for the end and give the report. Cancelled, it cancels the run, waits for it, and is then cancelled.

        Raises the run's own troubles.
        """
        return await self._wait()

    async def _wait(self) -> Report:
        if self._task is None:
            raise PlanError("this job has not been started: use «async with flow.start() as job»")
        return await uninterrupted(self._task, lambda: self.cancel("its waiter was cancelled"))


async def _stop_when(event: StopEvent, run: Run) -> None:
    try:
        if isinstance(event, asyncio.Event):
            await event.wait()
        else:
            while not event.is_set():  # noqa: ASYNC110 - it is set by another thread, which can wake nobody here
                await asyncio.sleep(STOP_LOOK)
    except Exception as error:  # noqa: BLE001 - it is the user's; a run that cannot be stopped must not go on
        raised = HeadraceError(f"the stop= event failed: {type(error).__name__}: {error}")
        raised.__cause__ = error
        run.trouble(raised)
        return
    run.shutdown.drain("its stop event was set")


def _subscribers(progress: bool | Subscriber | None) -> list[Subscriber]:
    if progress is None or progress is False:
        return []
    if progress is True:
        from headrace.terminal.progress import progress_for_here

        return [progress_for_here()]
    return [progress]


class OutcomeStream(Generic[T]):
    """The outcomes of a run as an async iterator. Made by `Flow.stream`; entered with `async with`.

    Leaving the block cancels what runs and returns what was not consumed; `report` accounts for all of it.
    """

    def __init__(
        self,
        plan: Plan,
        options: RunOptions,
        *,
        stop: StopEvent | None = None,
        progress: bool | Subscriber | None = None,
    ) -> None:
        self._exit: StreamExit | None = None
        self._job = Job(plan, options, stop=stop, progress=progress, make_exit=self._make_exit)
        self._ended = False

    def _make_exit(self, run: Run) -> StreamExit:
        self._exit = StreamExit(run)
        return self._exit

    @property
    def report(self) -> Report | None:
        """The accounting; None before the block was left or the outcomes have ended."""
        return self._job.report

    @property
    def job(self) -> Job:
        """The job, to pause, stop or look at."""
        return self._job

    async def __aenter__(self) -> OutcomeStream[T]:
        await self._job.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self._job.cancel("the stream was left")
            if self._exit is not None:
                self._exit.leave()
        await self._job.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[Outcome[T]]:
        return self

    async def __anext__(self) -> Outcome[T]:
        if self._exit is None:
            await self._job.opened()
        exit = self._exit
        if exit is None:
            await self._job.wait()
            raise StopAsyncIteration
        while True:
            outcome = exit.take()
            if outcome is not None:
                return outcome
            if not await exit.wait():
                self._ended = True
                await self._job.wait()
                raise StopAsyncIteration
