"""Flow: what you build. Every method gives a new flow; nothing is called, opened or read before it runs.

Rules:
1. A flow is immutable, so it can be kept, shared and run again.
2. Options of a stage go with the stage; options of a run go with the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

from headrace.aio.iterables import as_source
from headrace.errors import PlanError
from headrace.flow.job import Job, OutcomeStream, StopEvent
from headrace.flow.main import run_to_end
from headrace.plan import (
    DEFAULT_FANOUT,
    DEFAULT_WAIT,
    LaneName,
    Plan,
    Processes,
    RunOptions,
    StageSpec,
    function_name,
    known,
    make_stage,
)
from headrace.policies.breaker import Breaker
from headrace.policies.budget import Budget
from headrace.policies.deadlines import parse_duration
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import Effect, Sink, Source, Subscriber, Transactional
from headrace.report import Report

__all__ = ["Flow"]

T = TypeVar("T")
R = TypeVar("R")
Uses = Mapping[str, Callable[[], Any]] | None
Progress = bool | Subscriber | None


class Flow(Generic[T]):
    """A source and the stages that its items go through.

    `source` is any iterable or async iterable, or one of headrace's own sources. Raises PlanError for what only looks like
    one (a str, a dict, a DataFrame).
    """

    def __init__(self, source: Iterable[T] | AsyncIterable[T] | Source) -> None:
        self._plan = Plan(as_source(source))

    @classmethod
    def _of(cls, plan: Plan) -> Flow[Any]:
        flow: Flow[Any] = cls.__new__(cls)
        flow._plan = plan
        return flow

    def _with(self, stage: StageSpec) -> Flow[Any]:
        if self._plan.sink is not None:
            raise PlanError(f".{stage.kind}() after .into(): the sink ends a flow")
        names = {spec.name for spec in self._plan.stages}
        if stage.name in names and stage.calls:
            number = 2
            while f"{stage.name}_{number}" in names:
                number += 1
            stage = dataclasses.replace(stage, name=f"{stage.name}_{number}")
        return self._of(Plan(self._plan.source, (*self._plan.stages, stage)))

    # ------------------------------------------------------------------ stages

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        *,
        lane: LaneName | Processes | None = ...,
        concurrency: int | None = ...,
        rate: str | float | None = ...,
        limits: Sequence[Limit] = ...,
        ordered: bool = ...,
        timeout: float | None = ...,
        within: float | None = ...,
        retry: Retry | None = ...,
        effect: Effect | None = ...,
        hedge: float | None = ...,
        uses: Uses = ...,
        budget: Budget | None = ...,
        breaker: Breaker | None = ...,
        name: str | None = ...,
    ) -> Flow[R]: ...
    @overload
    def map(
        self,
        fn: Callable[..., R],
        *,
        lane: LaneName | Processes | None = ...,
        concurrency: int | None = ...,
        rate: str | float | None = ...,
        limits: Sequence[Limit] = ...,
        ordered: bool = ...,
        timeout: float | None = ...,
        within: float | None = ...,
        retry: Retry | None = ...,
        effect: Effect | None = ...,
        hedge: float | None = ...,
        uses: Uses = ...,
        budget: Budget | None = ...,
        breaker: Breaker | None = ...,
        name: str | None = ...,
    ) -> Flow[R]: ...
    def map(self, fn: Callable[..., Any], **options: Any) -> Flow[Any]:
        """Call `fn` with each item; what it returns goes on.

        `lane`: "loop" (where async functions go), "thread" (where plain ones go) or "process" (child processes, for what
        computes), also as `hr.Processes(…)`. `concurrency`: calls at once; 100 on the loop, 32 in threads, and as many
        processes as there are cores. `rate` ("500/s") and `limits` hold starts back. `ordered`: leave in the order of the
        source. `timeout`: seconds for one attempt, `within`: for all of them and the waiting between. `retry`: which
        failures are repeated; none unless given. `effect`: what a repeated call would do: "safe", "idempotent" (the
        default) or "once", which is never repeated when its end is unknown. `hedge`: so many more calls, as a share
        (0.05), may be spent on second copies of safe calls that are slower than 95 % of the others; the first result
        counts, and the other call is cancelled. `uses`: factories of what `fn` takes by keyword, opened once a run (in
        threads: once a thread; in processes: once a child). `budget`: what may be spent in all (`hr.Budget`); when it is,
        the run drains, and the rest is returned. `breaker`: calls pause where nearly all fail (`hr.Breaker`).

        A call that raises fails its item, and the run goes on.
        """
        return self._with(make_stage("map", fn, **known("map", options)))

    def flat_map(
        self,
        fn: Callable[..., Iterable[R] | AsyncIterable[R] | Coroutine[Any, Any, Iterable[R]]],
        *,
        lane: LaneName | Processes | None = None,
        concurrency: int | None = None,
        rate: str | float | None = None,
        limits: Sequence[Limit] = (),
        ordered: bool = False,
        timeout: float | None = None,
        within: float | None = None,
        retry: Retry | None = None,
        effect: Effect | None = None,
        uses: Uses = None,
        budget: Budget | None = None,
        breaker: Breaker | None = None,
        name: str | None = None,
        fanout: int = DEFAULT_FANOUT,
    ) -> Flow[R]:
        """Call `fn` with each item; everything that it yields or returns goes on by itself, as a child of the item.

        The item is settled when all its children are; one failed child fails it. More than `fanout` children fail it
        too. The other options are those of `map`.
        """
        return self._with(
            make_stage(
                "flat_map", fn, lane=lane, concurrency=concurrency, rate=rate, limits=limits, ordered=ordered,
                timeout=timeout, within=within, retry=retry, effect=effect, uses=uses, budget=budget, breaker=breaker,
                name=name, fanout=fanout,
            )
        )  # fmt: skip

    def filter(self, fn: Callable[[T], Any], **options: Any) -> Flow[T]:
        """Let only items go on for which `fn` is true; the others are settled as Skipped.

        A plain `fn` runs on the loop and must be quick; `lane="thread"` moves it. The other options are those of `map`.
        """
        return self._with(make_stage("filter", fn, **known("filter", options)))

    def batch(self, size: int, *, linger: float | None = None) -> Flow[list[T]]:
        """Gather items into lists of `size`, or of fewer after `linger` seconds or when no more can come.

        What fails as a batch fails each of its members.
        """
        return self._with(StageSpec("batch", None, f"batch({size})", size=size, linger=linger))

    def take(self, n: int) -> Flow[T]:
        """Stop the source when `n` items have passed; open ones finish, and the rest stays for a later run.

        In front of all other stages it takes exactly `n` items.
        """
        return self._with(StageSpec("take", None, f"take({n})", size=n))

    def until(self, fn: Callable[[T], Any]) -> Flow[T]:
        """Stop the source when `fn` is true for an item that passes; it and all open items finish."""
        if not callable(fn):
            raise PlanError(f"until({fn!r}): give a function of the item")
        return self._with(StageSpec("until", fn, function_name(fn)))

    def into(self, sink: Sink) -> Flow[T]:
        """End the flow in `sink`. One that keeps its own ledger, as `hr.sqlite.table` does, makes it a job."""
        if not isinstance(sink, Sink):
            raise PlanError(f'into({sink!r}): give a sink, as hr.sqlite.table("out.db", "results")')
        if self._plan.sink is not None:
            raise PlanError("into() twice: a flow has one sink")
        return self._of(Plan(self._plan.source, self._plan.stages, sink))

    # ------------------------------------------------------------------ looking

    def explain(self, *, window: int | None = None) -> str:
        """Describe the plan: stages, lanes, policies in their order, limits, guarantees, what may repeat after a crash."""
        return self._plan.explain(RunOptions(window=window))

    def __repr__(self) -> str:
        stages = "".join(f".{s.kind}({s.name if s.calls else ''})" for s in self._plan.stages)
        return f"Flow({self._plan.source.name}){stages}" + (
            f".into({self._plan.sink.name})" if self._plan.sink else ""
        )

    # ------------------------------------------------------------------ running

    def _options(self, job: str | None, **options: Any) -> RunOptions:
        if job is None and isinstance(self._plan.sink, Transactional):
            job = "default"
        made = RunOptions(job=job, **options)
        self._plan.validate(made)
        return made

    def start(
        self,
        *,
        job: str | None = None,
        window: int | None = None,
        within: float | None = None,
        wait: float | str = DEFAULT_WAIT,
        on_failure: Literal["record", "stop"] = "record",
        max_failures: str | int | float | None = None,
        fuse: int | Literal["auto"] | None = "auto",
        fresh: bool = False,
        max_age: float | str | None = None,
        accept_changes: bool = False,
        stop: StopEvent | None = None,
        progress: Progress = None,
        grace: float = 8.0,
        recorded: Mapping[str, Any] | None = None,
    ) -> Job:
        """Make a job to be entered with `async with`: it starts there, and leaving the block waits for its end.

        An exception in the block, or a cancellation, cancels the run, waits for it, and goes on. Raises PlanError, with
        everything that is wrong, before anything moves. The options are those of `run`; `recorded` (JSON-able, no secrets)
        is kept with the job for whoever resumes it.
        """
        options = self._options(
            job, window=window, within=within, wait=parse_duration(wait, "wait"), on_failure=on_failure,
            max_failures=max_failures, fresh=fresh, max_age=_seconds(max_age), accept_changes=accept_changes, grace=grace,
            fuse=fuse,
            recorded=recorded or {},
        )  # fmt: skip
        return Job(self._plan, options, stop=stop, progress=progress)

    async def run(
        self,
        *,
        job: str | None = None,
        window: int | None = None,
        within: float | None = None,
        wait: float | str = DEFAULT_WAIT,
        on_failure: Literal["record", "stop"] = "record",
        max_failures: str | int | float | None = None,
        fuse: int | Literal["auto"] | None = "auto",
        fresh: bool = False,
        max_age: float | str | None = None,
        accept_changes: bool = False,
        stop: StopEvent | None = None,
        progress: Progress = None,
        grace: float = 8.0,
    ) -> Report:
        """Run to the end and give the report. Values go to the sink; without one they are dropped.

        `job` names the run in its sink's place; run again, it goes on where it ended. `window`: the most open items.
        `within`: seconds for the whole run; what is left then is returned. `wait` (seconds, or "10m"): what would have to
        wait longer, for a repetition or for a key that is held, is parked, and a later run takes it up.
        `on_failure="stop"`: the first failure cancels the rest. `max_failures`: a number or "1%". `fuse`: the run stops
        where its first so many items all fail for good in the same way; "auto" is 50 for a job, and otherwise, as None,
        never. `fresh`: do everything anew; `max_age`: what was done longer ago (seconds, or "24h"). `accept_changes`: go on
        although the plan has changed. `stop`: an event that drains the run. `progress`: True, or who listens to the events.
        `grace`: seconds that a drain gives to running calls.

        Failed items do not raise: see `Report.check`. Cancelled, it cancels its calls, waits for them up to the grace,
        commits what is decided, and raises CancelledError. Raises the run's own troubles: SourceError, SinkError,
        LedgerError, LaneError, EngineError, with the report as their `report`.
        """
        running = self.start(
            job=job, window=window, within=within, wait=wait, on_failure=on_failure, max_failures=max_failures, fresh=fresh,
            max_age=max_age, accept_changes=accept_changes, stop=stop, progress=progress, grace=grace, fuse=fuse,
        )  # fmt: skip
        async with running:
            return await running.wait()

    def run_sync(self, **options: Any) -> Report:
        """Run from a script: chooses the loop, and handles Ctrl-C and SIGTERM. The options are those of `run`.

        The first signal drains, the second cancels, the third exits. The report says which signal it was.
        """
        return run_to_end(lambda: self.start(**options))

    def stream(
        self,
        *,
        window: int | None = None,
        within: float | None = None,
        wait: float | str = DEFAULT_WAIT,
        on_failure: Literal["record", "stop"] = "record",
        fuse: int | Literal["auto"] | None = "auto",
        stop: StopEvent | None = None,
        progress: Progress = None,
        grace: float = 8.0,
    ) -> OutcomeStream[T]:
        """Consume the outcomes: `async with flow.stream() as outcomes: async for outcome in outcomes: …`.

        The source waits for the consumer: at most `window` items are open. Leaving the block cancels the run; what was
        not consumed is returned. `outcomes.report` is there after the block.
        """
        if self._plan.sink is not None:
            raise PlanError("stream() hands the outcomes to you: leave out .into(), or use run()")
        options = self._options(
            None, window=window, within=within, wait=parse_duration(wait, "wait"), on_failure=on_failure, fuse=fuse,
            grace=grace,
        )  # fmt: skip
        return OutcomeStream(self._plan, options, stop=stop, progress=progress)


def _seconds(value: float | str | None) -> float | None:
    """Read a duration: seconds, or text as "24h"."""
    return None if value is None else parse_duration(value)
