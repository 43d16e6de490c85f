"""The plan: what a flow is, immutable and validated before anything moves.

Rules:
1. A plan is data; building one calls none of the user's functions and opens nothing.
2. `validate` reports every problem at once, each with the value and the form that works.
3. `identity` is what must not change between the runs of a job; limits, lanes, timeouts and retries may.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import inspect
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from headrace.errors import PlanError
from headrace.policies.adaptive import Adaptive
from headrace.policies.breaker import Breaker
from headrace.policies.budget import Budget
from headrace.policies.deadlines import FailureCap
from headrace.policies.fuse import FUSE_OF_JOBS
from headrace.policies.hedging import problems as hedge_problems
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import (
    Configured,
    Effect,
    Replayable,
    Shared,
    Sink,
    Source,
    StageDefaults,
    Transactional,
)

__all__ = [
    "DEFAULT_WAIT",
    "LaneName",
    "Plan",
    "Processes",
    "RunOptions",
    "StageSpec",
    "cores",
    "function_name",
    "is_async",
    "known",
    "make_stage",
    "where_is",
]

LaneName = Literal["loop", "thread", "process", "auto"]
Kind = Literal["map", "flat_map", "filter", "batch", "take", "until"]

DEFAULT_CONCURRENCY: Mapping[str, int] = {"loop": 100, "thread": 32, "auto": 32}
DEFAULT_FANOUT = 1000
MINIMUM_WINDOW = 2048  # two commits of the committer: one is written while the other gathers
#: With child processes: they are given many short calls at a time.
MINIMUM_WINDOW_OF_PROCESSES = 8192
#: What must wait longer than this (seconds) is parked, unless `wait=` says otherwise.
DEFAULT_WAIT = 600.0
NO_DEFAULTS = StageDefaults(name="")


def function_name(fn: Any) -> str:
    """Name a callable as a reader of a report would: the function's own name, else its class."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return "function" if name == "<lambda>" else str(name)


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    if not (inspect.isroutine(fn) or inspect.isclass(fn)) and hasattr(fn, "__call__"):  # noqa: B004 - the method itself
        return fn.__call__
    return fn


def where_is(fn: Any) -> tuple[str, str, int]:
    """Give a function's name, file and first line; name and file are empty where it was not written in Python."""
    fn = _unwrapped(fn)
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    return (code.co_name, code.co_filename, code.co_firstlineno) if code is not None else ("", "", 0)


def is_async(fn: Any) -> bool:
    """Whether calling `fn` gives something to await or to iterate asynchronously."""
    inner = _unwrapped(fn)
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


@dataclasses.dataclass(frozen=True, slots=True)
class Processes:
    """How the child processes of a stage live: `lane=hr.Processes(memory=2**30)` in place of `lane="process"`.

    `memory` is the address space (bytes) that a child may have: a call that asks for more gets a MemoryError. After
    `recycle_items` calls, or when it holds `recycle_memory` bytes or more after a chunk of calls, a child ends and a new
    one takes its place. `nice` is added to the children's niceness, so that they leave the event loop its time.
    """

    _: dataclasses.KW_ONLY
    memory: int | None = None
    recycle_items: int | None = None
    recycle_memory: int | None = None
    nice: int = 5


@dataclasses.dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of a plan, with the defaults filled in."""

    kind: Kind
    fn: Callable[..., Any] | None
    name: str
    lane: str = "loop"
    concurrency: int = 1
    limits: tuple[Limit, ...] = ()
    ordered: bool = False
    timeout: float | None = None
    within: float | None = None
    retry: Retry | None = None
    effect: Effect = "idempotent"
    uses: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    shape: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    size: int = 0
    linger: float | None = None
    fanout: int = DEFAULT_FANOUT
    processes: Processes | None = None
    budget: Budget | None = None
    hedge: float | None = None

    @property
    def calls(self) -> bool:
        """Whether this stage calls a function through workers."""
        return self.kind in ("map", "flat_map", "filter")

    def code(self) -> str:
        """Give a hash of the function's code, to warn of a change between runs; "" where there is none to see."""
        fn = _unwrapped(self.fn)
        code = getattr(getattr(fn, "__func__", fn), "__code__", None)
        return hashlib.sha256(_code_bytes(code)).hexdigest()[:16] if isinstance(code, types.CodeType) else ""


def _code_bytes(code: types.CodeType) -> bytes:
    parts = [code.co_code, repr(code.co_names).encode()]
    for constant in code.co_consts:
        parts.append(
            _code_bytes(constant) if isinstance(constant, types.CodeType) else repr(constant).encode()
        )
    return b"\0".join(parts)


def make_stage(
    kind: Kind,
    fn: Callable[..., Any],
    *,
    lane: str | Processes | None = None,
    concurrency: int | None = None,
    rate: str | float | None = None,
    limits: Sequence[Limit] = (),
    ordered: bool = False,
    timeout: float | None = None,
    within: float | None = None,
    retry: Retry | None = None,
    effect: Effect | None = None,
    uses: Any = None,
    budget: Budget | None = None,
    name: str | None = None,
    fanout: int = DEFAULT_FANOUT,
    breaker: Breaker | None = None,
    hedge: float | None = None,
) -> StageSpec:
    """Fill in a stage's defaults. Raises PlanError where `fn` or `uses` cannot be a stage's at all."""
    _check_callable(fn, kind)
    given = fn.stage_defaults if isinstance(fn, Configured) else NO_DEFAULTS
    if lane is None:
        # A predicate is expected to be quick: sending each item to a thread and back would cost more than it does.
        lane = "loop" if is_async(fn) or kind == "filter" else "thread"
    if lane == "auto" and (is_async(fn) or kind != "map"):
        lane = "loop" if is_async(fn) else "thread"  # there is nothing to choose
    processes = lane if isinstance(lane, Processes) else None
    if isinstance(lane, Processes):
        lane = "process"
    all_limits = (*given.limits, *limits)
    if rate is not None:
        all_limits = (*all_limits, Limit(rate=rate, name=f"{name or given.name or function_name(fn)} rate"))
    if breaker is not None:
        all_limits = (
            *all_limits,
            Limit(breaker=breaker, name=f"{name or given.name or function_name(fn)} breaker"),
        )
    return StageSpec(
        kind=kind,
        fn=fn,
        name=name or given.name or function_name(fn),
        lane=lane,
        concurrency=_default_concurrency(lane) if concurrency is None else concurrency,
        limits=tuple(dict.fromkeys(all_limits)),
        ordered=ordered,
        timeout=given.timeout if timeout is None else timeout,
        within=within,
        retry=given.retry if retry is None else retry,
        effect=given.effect if effect is None else effect,
        uses={**given.uses, **_factories(uses)},
        shape=given.shape,
        columns=tuple(given.columns),
        fanout=fanout,
        processes=processes,
        budget=budget,
        hedge=hedge,
    )


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_concurrency(lane: str) -> int:
    if lane == "process":
        return cores()
    return DEFAULT_CONCURRENCY.get(lane, 1)


def known(kind: str, options: Mapping[str, Any], also: Sequence[str] = ()) -> Mapping[str, Any]:
    """Give the options of a stage back; raise PlanError for one that there is not, naming the likely one."""
    there = [*list(inspect.signature(make_stage).parameters)[2:], *also]
    unknown = [name for name in options if name not in there]
    if unknown:
        likely = difflib.get_close_matches(unknown[0], there, 1)
        hint = f"did you mean {likely[0]}=?" if likely else f"there are {', '.join(there)}"
        raise PlanError(f"{kind}() has no option {unknown[0]}=: {hint}")
    return options


def _check_callable(fn: Any, kind: str) -> None:
    if inspect.iscoroutine(fn):
        name = fn.__name__
        fn.close()
        raise PlanError(
            f".{kind}() was given the coroutine that {name}(…) returned.\n  you wrote:  .{kind}({name}(…))\n"
            f"  instead:    .{kind}({name})      headrace calls it with each item"
        )
    if not callable(fn):
        raise PlanError(
            f".{kind}() needs a function that takes one item, and was given {type(fn).__name__} {_short(fn)}.\n"
            f"  the form is:  hr.map(fn, items)   or   hr.Flow(items).{kind}(fn)"
        )


def _factories(uses: Any) -> Mapping[str, Callable[[], Any]]:
    if uses is None:
        return {}
    if isinstance(uses, Mapping):
        for key, factory in uses.items():
            if not isinstance(key, str) or not key.isidentifier():
                raise PlanError(
                    f"uses={{{key!r}: …}}: the key is passed as a keyword, so it must be an identifier"
                )
            if not callable(factory):
                raise PlanError(
                    f"uses={{{key!r}: {_short(factory)}}}: give a function that opens it (a factory), not the open thing; "
                    f"headrace opens it once a run and closes it"
                )
        return dict(uses)
    if callable(uses):
        return {_resource_name(uses): uses}
    raise PlanError(f"uses={_short(uses)}: give a factory, or a dict of keyword and factory")


def _resource_name(factory: Any) -> str:
    raise PlanError(
        f"uses={function_name(factory)}: name the keyword that your function takes it by: "
        f'uses={{"client": {function_name(factory)}}}'
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """What one run of a plan is told; none of it belongs to the job's identity."""

    job: str | None = None
    window: int | None = None
    window_bytes: int = 256 * 2**20
    within: float | None = None
    wait: float = DEFAULT_WAIT  #: what must wait longer is parked
    on_failure: Literal["record", "stop"] = "record"
    max_failures: str | int | float | None = None
    fuse: int | Literal["auto"] | None = "auto"
    fresh: bool = False
    max_age: float | None = None
    accept_changes: bool = False
    grace: float = 8.0
    recorded: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  #: kept with the job, for `resume`; no secrets


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A validated flow: a source, stages, perhaps a sink."""

    source: Source
    stages: tuple[StageSpec, ...] = ()
    sink: Sink | None = None

    # ------------------------------------------------------------------ what it amounts to

    @property
    def concurrency(self) -> int:
        """The calls that may run at once, all stages together."""
        return sum(stage.concurrency for stage in self.stages if stage.calls)

    @property
    def levels(self) -> int:
        """How many times deliveries are counted anew: fan-outs and batches begin a level."""
        return 1 + sum(stage.kind in ("flat_map", "batch") for stage in self.stages)

    def window(self, given: int | None) -> int:
        """Give the window of a run: `given`, else max(2048, 4 × concurrency), and room for what fans out.

        With a stage on processes it is 8192 at least.
        """
        if given is not None:
            return given
        on_processes = any(stage.lane in ("process", "auto") for stage in self.stages)
        return max(
            MINIMUM_WINDOW_OF_PROCESSES if on_processes else MINIMUM_WINDOW,
            4 * self.concurrency,
            self._window_needed(),
        )

    def _window_needed(self) -> int:
        fanout = max((stage.fanout for stage in self.stages if stage.kind == "flat_map"), default=0)
        batch = max((stage.size for stage in self.stages if stage.kind == "batch"), default=0)
        return 2 * self.levels * max(fanout, batch) if self.levels > 1 else 1

    def fuse(self, options: RunOptions) -> int | None:
        """Give how many items must have failed alike for the run to be stopped; None for never. "auto": 50 for a job."""
        if options.fuse != "auto":
            return options.fuse
        return FUSE_OF_JOBS if isinstance(self.sink, Transactional) else None

    def identity(self) -> dict[str, Any]:
        """Give the parts that make this job this job, JSON-able; the source adds its fingerprint."""
        sink = self.sink
        columns = sink.columns() if isinstance(sink, Transactional) else None
        return {
            "stages": [
                {
                    "name": stage.name,
                    "kind": stage.kind,
                    **({"shape": dict(stage.shape)} if stage.shape else {}),
                }
                for stage in self.stages
                if stage.kind != "take"
            ],
            "columns": list(columns) if columns is not None else None,
        }

    def code(self) -> dict[str, str]:
        """Give a hash of each stage function's code. `take` is not counted: it may come and go between runs."""
        stages = [stage for stage in self.stages if stage.kind != "take"]
        return {f"{number}:{s.name}": s.code() for number, s in enumerate(stages) if s.calls}

    # ------------------------------------------------------------------ is it sound?

    def validate(self, options: RunOptions) -> None:
        """Raise one PlanError with all that is wrong with running this plan so; else return."""
        problems = [problem for stage in self.stages for problem in _stage_problems(stage)]
        problems += self._run_problems(options)
        if options.job is not None:
            problems += self._job_problems()
        if problems:
            raise PlanError("\n".join(problems) if len(problems) == 1 else _numbered(problems))

    def _run_problems(self, options: RunOptions) -> list[str]:
        problems = []
        window, needed = options.window, self._window_needed()
        if window is not None and (not isinstance(window, int) or window < 1):
            problems.append(f"window={window!r}: give a whole number of items, 1 or more")
        elif window is not None and window < needed:
            problems.append(
                f"window={window} is too small for the fan-outs and batches of this flow, which need {needed}: "
                f"raise window=, or lower fanout= or the batch size"
            )
        problems += _seconds("within", options.within) + _seconds("max_age", options.max_age)
        problems += _seconds("wait", options.wait)
        if options.max_failures is not None:
            try:
                FailureCap(options.max_failures)
            except PlanError as error:
                problems.append(str(error))
        fuse = options.fuse
        if fuse is not None and fuse != "auto" and not (type(fuse) is int and fuse >= 1):
            problems.append(f"fuse={fuse!r}: give a whole number of items, 1 or more, or None for no fuse")
        if options.on_failure not in ("record", "stop"):
            problems.append(f'on_failure={options.on_failure!r}: it is "record" or "stop"')
        return problems

    def _job_problems(self) -> list[str]:
        problems = []
        if not isinstance(self.source, Replayable):
            problems.append(
                f"the source {self.source.name} cannot be read again from the same place, so it cannot be a job: "
                f"give a sequence or one of headrace's own sources, or run it without job= and into()"
            )
        if not isinstance(self.sink, Transactional):
            problems.append(
                'job= needs a place to be kept: end the flow with .into(hr.sqlite.table("out.db"))'
            )
        kinds = [stage.kind for stage in self.stages]
        if "flat_map" in kinds and "batch" in kinds[kinds.index("flat_map") :]:
            problems.append(
                "a batch after a flat_map mixes the children of several items, which could then not commit each on its "
                "own: make it two jobs, or batch first"
            )
        return problems

    # ------------------------------------------------------------------ for people

    def explain(self, options: RunOptions) -> str:
        """Describe stages, lanes, policies in their order, limits, guarantees, and what may repeat after a crash."""
        window = self.window(options.window)
        lines = [
            f"source   {self.source.name}" + ("" if isinstance(self.source, Replayable) else "   (read once)")
        ]
        for number, stage in enumerate(self.stages, 1):
            lines += [
                f"stage {number}  {line}" if not i else f"         {line}"
                for i, line in enumerate(_describe(stage))
            ]
        sink = self.sink
        lines.append(f"sink     {sink.name if sink is not None else 'none: outcomes are handed to you'}")
        lines.append(
            f"window   at most {window} open items, {options.window_bytes // 2**20} MiB of results under way"
        )
        durable = isinstance(sink, Transactional)
        fuse = self.fuse(options)
        if fuse is not None:
            lines.append(
                f"fuse     where the first {fuse} items all fail for good in the same way, the run stops"
            )
        if durable:
            lines.append(
                "kept     each item has one recorded result or one dead letter, whatever dies and whenever"
            )
            lines.append(f"crash    up to {window} items are taken again; {self._repeats()}")
        else:
            lines.append(
                "kept     nothing: this run cannot be resumed; into(hr.sqlite.table(…)) makes it a job"
            )
        return "\n".join(lines)

    def _repeats(self) -> str:
        once = [stage.name for stage in self.stages if stage.effect == "once"]
        repeat = [stage.name for stage in self.stages if stage.calls and stage.effect != "once"]
        text = f"calls of {', '.join(repeat)} may be made again" if repeat else "no call is made again"
        if once:
            text += f"; {', '.join(once)} (once) never: an unknown end becomes a dead letter in doubt"
        return text


def _numbered(problems: Sequence[str]) -> str:
    listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
    return f"{len(problems)} things are wrong:\n{listed}"


def _seconds(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return []
    return [f"{name}={value!r}: give seconds as a number above 0, or leave it out"]


def _stage_problems(stage: StageSpec) -> list[str]:
    where = f"stage {stage.name!r}: "
    problems = (
        _seconds("timeout", stage.timeout)
        + _seconds("within", stage.within)
        + _seconds("linger", stage.linger)
    )
    if isinstance(stage.concurrency, Adaptive):
        problems.append(
            f"concurrency={stage.concurrency!r}: that is for a limit; "
            f"give limits=[hr.Limit(concurrency=hr.{stage.concurrency!r})], and as concurrency= a whole number"
        )
    elif (
        not isinstance(stage.concurrency, int) or isinstance(stage.concurrency, bool) or stage.concurrency < 1
    ):
        problems.append(f"concurrency={stage.concurrency!r}: give a whole number, 1 or more")
    if stage.effect not in get_args(Effect):
        problems.append(f'effect={stage.effect!r}: it is "safe", "idempotent" or "once"')
    if stage.lane not in get_args(LaneName):
        problems.append(f'lane={stage.lane!r}: it is "loop", "thread", "process" or "auto"')
    elif stage.lane != "loop" and stage.fn is not None and is_async(stage.fn):
        problems.append(f'lane="{stage.lane}" needs a plain function, and this one is async: leave lane= out')
    if stage.lane == "process":
        problems += _process_problems(stage)
    if stage.kind == "batch" and (not isinstance(stage.size, int) or stage.size < 1):
        problems.append(f"batch size {stage.size!r}: give a whole number, 1 or more")
    if stage.kind == "take" and (not isinstance(stage.size, int) or stage.size < 0):
        problems.append(f"take({stage.size!r}): give a whole number, 0 or more")
    if stage.kind == "flat_map" and (not isinstance(stage.fanout, int) or stage.fanout < 1):
        problems.append(f"fanout={stage.fanout!r}: give a whole number, 1 or more")
    if stage.retry is not None and not isinstance(stage.retry, Retry):
        problems.append(f"retry={stage.retry!r}: give hr.Retry(attempts=4)")
    if stage.budget is not None and not isinstance(stage.budget, Budget):
        problems.append(f"budget={_short(stage.budget)}: give hr.Budget(calls=1000), or leave it out")
    problems += [
        f"limits holds {_short(x)}: give hr.Limit objects" for x in stage.limits if not isinstance(x, Limit)
    ]
    problems += hedge_problems(
        stage.hedge, kind=stage.kind, effect=stage.effect, lane=stage.lane,
        is_async=is_async(stage.fn), concurrency=stage.concurrency,
    )  # fmt: skip
    return [where + problem for problem in problems]


def _process_problems(stage: StageSpec) -> list[str]:
    problems = [
        f"uses={{{key!r}: hr.shared(…)}}: processes share nothing; without hr.shared each opens its own"
        for key, factory in stage.uses.items()
        if isinstance(factory, Shared)
    ]
    options = stage.processes or Processes()
    for name in ("memory", "recycle_items", "recycle_memory"):
        given = getattr(options, name)
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            problems.append(f"Processes({name}={given!r}): give a whole number, 1 or more, or leave it out")
    if not isinstance(options.nice, int) or not 0 <= options.nice <= 19:
        problems.append(f"Processes(nice={options.nice!r}): give a whole number from 0 to 19")
    return problems


def _describe(stage: StageSpec) -> list[str]:
    if stage.kind == "batch":
        return [
            f"batch    of {stage.size}"
            + (f", at the latest after {stage.linger:g} s" if stage.linger else "")
        ]
    if stage.kind == "take":
        return [f"take     {stage.size}, then the source stops"]
    if stage.kind == "until":
        return [f"until    {stage.name} says so, then the source stops"]
    lines = [
        f"{stage.kind:8} {stage.name} on the {stage.lane} lane, {stage.concurrency} at a time, {stage.effect}"
    ]
    lines += [f"  limit    {limit!r}" for limit in stage.limits]
    if stage.budget is not None:
        lines.append(f"  budget   {stage.budget!r}, repetitions included; then the rest is returned")
    if stage.timeout is not None:
        lines.append(f"  timeout  {stage.timeout:g} s per attempt")
    if stage.within is not None:
        lines.append(f"  within   {stage.within:g} s in all, from its first admission")
    if stage.retry is not None:
        lines.append(f"  retry    {stage.retry!r}; a waiting item holds no place")
    if stage.hedge is not None:
        lines.append(
            f"  hedge    a second copy of a call slower than 95 % of the others; at most {100 * stage.hedge:g} % more calls"
        )
    if stage.ordered:
        lines.append("  ordered  leaves in the order in which it came")
    if stage.uses:
        lines.append(f"  uses     {', '.join(stage.uses)}")
    if stage.lane == "auto":
        lines.append(
            "  auto     begins in threads; what computes and keeps no state moves to processes, where that is faster"
        )
    if stage.lane == "process":
        lines.append("  child    one process for each; one that dies costs the call that it ran")
        options = stage.processes or Processes()
        if options.memory is not None:
            lines.append(f"  memory   {options.memory} bytes of address space in each child")
        recycled = [
            f"{value} {unit}"
            for value, unit in ((options.recycle_items, "calls"), (options.recycle_memory, "bytes held"))
            if value is not None
        ]
        if recycled:
            lines.append(f"  recycle  a child ends after {' or '.join(recycled)}")
    if stage.kind == "flat_map":
        lines.append(f"  fan-out  at most {stage.fanout} for each")
    return lines
