"""One stage of a plan: what it is told, with the defaults filled in.

Rules:
1. A stage is data. What cannot be a stage's function or resource at all is refused where it is given.
2. What a configured function brings along counts where the user gives nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from headrace.errors import PlanError
from headrace.plan.functions import cores, function_name, is_async, unwrapped
from headrace.policies.breaker import Breaker
from headrace.policies.budget import Budget
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import Configured, Effect, StageDefaults

__all__ = ["DEFAULT_FANOUT", "LaneName", "Processes", "StageSpec", "known", "make_stage", "short"]

LaneName = Literal["loop", "thread", "process", "auto"]
Kind = Literal["map", "flat_map", "filter", "batch", "take", "until"]

DEFAULT_CONCURRENCY: Mapping[str, int] = {"loop": 100, "thread": 32, "auto": 32}
DEFAULT_FANOUT = 1000
NO_DEFAULTS = StageDefaults(name="")


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
        fn = unwrapped(self.fn)
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
            f".{kind}() needs a function that takes one item, and was given {type(fn).__name__} {short(fn)}.\n"
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
                    f"uses={{{key!r}: {short(factory)}}}: give a function that opens it (a factory), not the open thing; "
                    f"headrace opens it once a run and closes it"
                )
        return dict(uses)
    if callable(uses):
        return {_resource_name(uses): uses}
    raise PlanError(f"uses={short(uses)}: give a factory, or a dict of keyword and factory")


def _resource_name(factory: Any) -> str:
    raise PlanError(
        f"uses={function_name(factory)}: name the keyword that your function takes it by: "
        f'uses={{"client": {function_name(factory)}}}'
    )


def short(value: Any) -> str:
    """Give at most 60 characters of a value's repr, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
