"""What is wrong with a stage, all of it at once, and how a stage reads for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

from headrace.plan.functions import is_async
from headrace.plan.stages import LaneName, Processes, StageSpec, short
from headrace.policies.adaptive import Adaptive
from headrace.policies.budget import Budget
from headrace.policies.hedging import problems as hedge_problems
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import Effect, Shared

__all__ = ["describe", "numbered", "seconds_problems", "stage_problems"]


def seconds_problems(name: str, value: Any) -> list[str]:
    """Say what is wrong with a number of seconds that may be left out."""
    if value is None:
        return []
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return []
    return [f"{name}={value!r}: give seconds as a number above 0, or leave it out"]


def stage_problems(stage: StageSpec) -> list[str]:
    """Say all that is wrong with a stage; nothing if it is good."""
    where = f"stage {stage.name!r}: "
    problems = (
        seconds_problems("timeout", stage.timeout)
        + seconds_problems("within", stage.within)
        + seconds_problems("linger", stage.linger)
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
        problems.append(f"budget={short(stage.budget)}: give hr.Budget(calls=1000), or leave it out")
    problems += [
        f"limits holds {short(x)}: give hr.Limit objects" for x in stage.limits if not isinstance(x, Limit)
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


def describe(stage: StageSpec) -> list[str]:
    """Describe a stage in lines, for `explain()`."""
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


def numbered(problems: Sequence[str]) -> str:
    """Give several problems as one text."""
    listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
    return f"{len(problems)} things are wrong:\n{listed}"
