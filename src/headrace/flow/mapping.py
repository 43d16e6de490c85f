"""map and map_sync: a bounded concurrent map over items, with the outcome of each."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from headrace.aio.iterables import as_source
from headrace.engine.exits import CollectExit
from headrace.engine.run import Run
from headrace.errors import CallError, PlanError
from headrace.flow.job import Job, StopEvent
from headrace.flow.main import run_sync, signals_to
from headrace.item import Done, Failed, Outcome, Parked
from headrace.plan import DEFAULT_WAIT, LaneName, Plan, Processes, RunOptions, known, make_stage
from headrace.policies.breaker import Breaker
from headrace.policies.budget import Budget
from headrace.policies.deadlines import parse_duration
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import Effect, Sink, Source, Subscriber, Transactional, Unreadable
from headrace.report import DoneColumns, Outcomes, Report

__all__ = ["map", "map_sync"]

T = TypeVar("T")
R = TypeVar("R")
#: The options of `map` that are the run's, not the stage's.
RUN_OPTIONS = (
    "out", "job", "window", "wait", "on_failure", "max_failures", "fuse", "fresh", "max_age", "accept_changes", "stop",
    "progress",
    "grace",
)  # fmt: skip
Items = Iterable[T] | AsyncIterable[T] | Source


@overload
async def map(
    fn: Callable[..., Coroutine[Any, Any, R]],
    items: Items[T],
    *,
    concurrency: int | None = ...,
    lane: LaneName | Processes | None = ...,
    rate: str | float | None = ...,
    limits: Sequence[Limit] = ...,
    timeout: float | None = ...,
    within: float | None = ...,
    retry: Retry | None = ...,
    effect: Effect | None = ...,
    hedge: float | None = ...,
    uses: Mapping[str, Callable[[], Any]] | None = ...,
    budget: Budget | None = ...,
    breaker: Breaker | None = ...,
    out: str | os.PathLike[str] | Sink | None = ...,
    job: str | None = ...,
    window: int | None = ...,
    wait: float | str = ...,
    on_failure: Literal["record", "stop"] = ...,
    max_failures: str | int | float | None = ...,
    fuse: int | Literal["auto"] | None = ...,
    fresh: bool = ...,
    max_age: float | str | None = ...,
    accept_changes: bool = ...,
    stop: StopEvent | None = ...,
    progress: bool | Subscriber | None = ...,
    grace: float = ...,
) -> Outcomes[R]: ...
@overload
async def map(
    fn: Callable[..., R],
    items: Items[T],
    *,
    concurrency: int | None = ...,
    lane: LaneName | Processes | None = ...,
    rate: str | float | None = ...,
    limits: Sequence[Limit] = ...,
    timeout: float | None = ...,
    within: float | None = ...,
    retry: Retry | None = ...,
    effect: Effect | None = ...,
    hedge: float | None = ...,
    uses: Mapping[str, Callable[[], Any]] | None = ...,
    budget: Budget | None = ...,
    breaker: Breaker | None = ...,
    out: str | os.PathLike[str] | Sink | None = ...,
    job: str | None = ...,
    window: int | None = ...,
    wait: float | str = ...,
    on_failure: Literal["record", "stop"] = ...,
    max_failures: str | int | float | None = ...,
    fuse: int | Literal["auto"] | None = ...,
    fresh: bool = ...,
    max_age: float | str | None = ...,
    accept_changes: bool = ...,
    stop: StopEvent | None = ...,
    progress: bool | Subscriber | None = ...,
    grace: float = ...,
) -> Outcomes[R]: ...
async def map(fn: Callable[..., Any], items: Any, **options: Any) -> Outcomes[Any]:
    """Call `fn` with each of `items`, at most `concurrency` at a time, and give the outcome of each.

    Failures do not raise: `got.failed` has them, with their items; `got.values` raises ItemsFailed unless all are done.
    The stage's options are those of `Flow.map`, the run's those of `Flow.run`. With `out="x.db"` values are kept there as
    JSON while it runs: run again, it goes on where it ended, and gives the values of all runs.

    Cancelled, it cancels its calls, waits for them up to `grace` (8 s), and raises CancelledError. Raises PlanError,
    before anything moves, for what cannot be run.
    """
    mapping = _Mapping(fn, items, **options)
    async with mapping.job:
        return await mapping.outcomes(await mapping.job.wait())


@overload
def map_sync(
    fn: Callable[..., Coroutine[Any, Any, R]],
    items: Items[T],
    *,
    concurrency: int | None = ...,
    lane: LaneName | Processes | None = ...,
    rate: str | float | None = ...,
    limits: Sequence[Limit] = ...,
    timeout: float | None = ...,
    within: float | None = ...,
    retry: Retry | None = ...,
    effect: Effect | None = ...,
    hedge: float | None = ...,
    uses: Mapping[str, Callable[[], Any]] | None = ...,
    budget: Budget | None = ...,
    breaker: Breaker | None = ...,
    out: str | os.PathLike[str] | Sink | None = ...,
    job: str | None = ...,
    window: int | None = ...,
    wait: float | str = ...,
    on_failure: Literal["record", "stop"] = ...,
    max_failures: str | int | float | None = ...,
    fuse: int | Literal["auto"] | None = ...,
    fresh: bool = ...,
    max_age: float | str | None = ...,
    accept_changes: bool = ...,
    stop: StopEvent | None = ...,
    progress: bool | Subscriber | None = ...,
    grace: float = ...,
) -> Outcomes[R]: ...
@overload
def map_sync(
    fn: Callable[..., R],
    items: Items[T],
    *,
    concurrency: int | None = ...,
    lane: LaneName | Processes | None = ...,
    rate: str | float | None = ...,
    limits: Sequence[Limit] = ...,
    timeout: float | None = ...,
    within: float | None = ...,
    retry: Retry | None = ...,
    effect: Effect | None = ...,
    hedge: float | None = ...,
    uses: Mapping[str, Callable[[], Any]] | None = ...,
    budget: Budget | None = ...,
    breaker: Breaker | None = ...,
    out: str | os.PathLike[str] | Sink | None = ...,
    job: str | None = ...,
    window: int | None = ...,
    wait: float | str = ...,
    on_failure: Literal["record", "stop"] = ...,
    max_failures: str | int | float | None = ...,
    fuse: int | Literal["auto"] | None = ...,
    fresh: bool = ...,
    max_age: float | str | None = ...,
    accept_changes: bool = ...,
    stop: StopEvent | None = ...,
    progress: bool | Subscriber | None = ...,
    grace: float = ...,
) -> Outcomes[R]: ...
def map_sync(fn: Callable[..., Any], items: Any, **options: Any) -> Outcomes[Any]:
    """Do what `map` does, from a script: chooses the loop, and handles Ctrl-C and SIGTERM.

    The first signal drains, the second cancels, the third exits. Items that were not taken have no outcome, and
    `got.exit_code` is 130 or 143.
    """
    mapping = _Mapping(fn, items, **options)

    async def main() -> Outcomes[Any]:
        with signals_to(mapping.job):
            async with mapping.job:
                return await mapping.outcomes(await mapping.job.wait())

    return run_sync(main)


class _Mapping:
    """One map: a plan of one stage, its job, and the outcomes in the end."""

    def __init__(
        self,
        fn: Callable[..., Any],
        items: Any,
        *,
        out: str | os.PathLike[str] | Sink | None = None,
        job: str | None = None,
        window: int | None = None,
        wait: float | str = DEFAULT_WAIT,
        on_failure: Literal["record", "stop"] = "record",
        max_failures: str | int | float | None = None,
        fuse: int | Literal["auto"] | None = "auto",
        fresh: bool = False,
        max_age: float | str | None = None,
        accept_changes: bool = False,
        stop: StopEvent | None = None,
        progress: bool | Subscriber | None = None,
        grace: float = 8.0,
        **stage: Any,
    ) -> None:
        if callable(items) and not callable(fn):
            raise PlanError("the function comes first: hr.map(fn, items)")
        if "ordered" in stage:
            raise PlanError(
                "map() gives the outcomes in the order of the items in any case: leave ordered= out"
            )
        sink = None if out is None else _keeping_sink(out)
        plan = Plan(as_source(items), (make_stage("map", fn, **known("map", stage, RUN_OPTIONS)),), sink)
        if job is None and sink is not None:
            job = "default"
        options = RunOptions(
            job=job,
            window=window,
            wait=parse_duration(wait, "wait"),
            on_failure=on_failure,
            max_failures=max_failures,
            fuse=fuse,
            fresh=fresh,
            max_age=None if max_age is None else parse_duration(max_age, "max_age"),
            accept_changes=accept_changes,
            grace=grace,
        )
        plan.validate(options)
        self._exit: CollectExit | None = None
        self._sink = sink
        self._items = items
        self._name = job or "default"
        self.job = Job(plan, options, stop=stop, progress=progress, make_exit=self._make_exit)

    def _make_exit(self, run: Run) -> CollectExit:
        self._exit = CollectExit(run)
        return self._exit

    async def outcomes(self, report: Report) -> Outcomes[Any]:
        """Give the outcomes of the finished job."""
        if self._sink is None:
            assert self._exit is not None
            return Outcomes(self._exit.columns, self._exit.others, report)
        items = await self._items_by_position()
        found: dict[int, Outcome[Any]] = {}
        for letter in self.job.dead_letters:
            error = CallError(f"{letter.error}: {letter.cause}")
            found[letter.position] = Failed(
                items[letter.position], error, letter.position, letter.attempts, letter.elapsed, letter.stage
            )
        for position, parking in self.job.parked.items():
            found[position] = Parked(items[position], parking.due, position, parking.attempts)
        found.update((outcome.position, outcome) for outcome in self.job.others)
        for position, value in self.job.kept_values.items():
            found[position] = Done(items[position], value, position)
        return Outcomes(DoneColumns(), (), report, found)

    async def _items_by_position(self) -> Mapping[int, Any] | Sequence[Any]:
        """Give the items; those of a source of headrace's are read once more."""
        if not isinstance(self._items, Source):
            return self._items  # type: ignore[no-any-return]
        found: dict[int, Any] = {}
        reader = self._items.open()
        try:
            while (chunk := await reader.read(1024)) is not None:
                positions = chunk.positions or range(chunk.start, chunk.start + len(chunk.payloads))
                for position, item in zip(positions, chunk.payloads, strict=True):
                    found[position] = item.text if type(item) is Unreadable else item
        finally:
            await reader.close()
        return found


def _keeping_sink(out: str | os.PathLike[str] | Sink) -> Sink:
    if isinstance(out, Transactional):
        return out
    from headrace.sqlite import keep

    return keep(os.fspath(out))  # type: ignore[arg-type]
