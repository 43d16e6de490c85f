"""Advice on the lane of a function, with the evidence for it.

Rules:
1. It says how many calls it may make before it makes any, and how many it made.
2. Advice never moves anything: that is for `lane=`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from headrace.advisor.measure import Measurement, measure
from headrace.errors import PlanError
from headrace.plan import function_name
from headrace.policies.lane_verdict import CallCosts, LaneVerdict, judge, time_text
from headrace.policies.movable import why_not_movable

__all__ = ["CALLS", "Advice", "advise"]

#: How many calls are made unless said otherwise.
CALLS: Final = 50
_MOST_SAMPLES: Final = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """Where a function belongs, and what that was measured by. `print` it.

    `lane`, `concurrency` and `reason` are the advice, `kind` is what kind of function it is; `gain` is the throughput
    there over that on the lane it has by itself. `calls` were made, of which `errors` raised. `speeds` are calls a
    second by lane, as far as they were measured or can be reckoned. `stays` says why `lane="auto"` would not move it.
    """

    name: str
    where: str
    kind: str
    lane: str
    concurrency: int
    reason: str
    gain: float
    calls: int
    errors: int
    costs: CallCosts
    speeds: dict[str, float]
    sizes: tuple[int, int] | None
    unpicklable: str | None
    stays: str | None

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Give the decision matrix and its evidence, a line each."""
        costs = self.costs
        failed = f", {self.errors} of them failed" if self.errors else ""
        rows = [("a call takes", f"{time_text(costs.wall)} alone, {costs.cpu_share:.0%} of it computing")]
        if costs.is_async:
            rows.append(
                (
                    "holds the loop",
                    f"{time_text(costs.held)} at the longest between two awaits, {time_text(costs.held_in_all)} in all",
                )
            )
        if costs.speedup is not None:
            held = costs.gil_share or 0.0
            rows.append(
                (
                    "two threads",
                    f"{costs.speedup:.1f} × as fast as one; it holds the GIL for {held:.0%} of a call",
                )
            )
        if costs.transport is not None and self.sizes is not None:
            there, back = self.sizes
            rows.append(
                (
                    "to a process",
                    f"{time_text(costs.transport)} there and back (value {there} bytes, result {back} bytes)",
                )
            )
        if self.unpicklable is not None:
            rows.append(("to a process", f"cannot go: {self.unpicklable}"))
        rows += [
            (f"{'→ ' if lane == self.lane else '  '}{lane}", self._speed(lane))
            for lane in ("loop", "thread", "process")
        ]
        choice = f'lane="{self.lane}", concurrency={self.concurrency}'
        rows.append(("advice", f"{choice}: {self.reason}"))
        if self.gain > 1.05:
            rows.append(("it would gain", f"about {self.gain:.2g} × the throughput"))
        if self.lane == "process" and self.stays is not None:
            rows.append(("but", f'lane="auto" would not move it: {self.stays}'))
        head = f"{self.name} ({self.where}): {self.kind}; {self.calls} calls made{failed}"
        return [head, *(f"  {label:16}{text}" for label, text in rows)]

    def _speed(self, lane: str) -> str:
        speed = self.speeds.get(lane)
        if speed is None:
            return "not measured: it is not a candidate"
        reckoned = ", reckoned from the costs" if lane == "process" else ""
        return f"{speed:,.0f} calls/s{reckoned}".replace(",", " ")


def advise(fn: Callable[..., Any], samples: Iterable[Any], *, calls: int = CALLS) -> Advice:
    """Measure `fn` with values from `samples`, and say which lane it belongs in, with the evidence.

    At most `calls` calls are made, real ones, side effects included; fewer where they are slow (a few seconds for each
    part). Plain and async functions are measured, alone and several at once. May be called where a loop is running:
    it then measures in a thread, and returns when it is done.

    Raises PlanError for what cannot be measured, and the function's own first error if none of its calls returns.
    """
    if not callable(fn):
        raise PlanError(f"advise() needs a function and samples of its input; it was given {fn!r}")
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
        raise PlanError(f"calls={calls!r}: give a whole number, 1 or more")
    if isinstance(samples, (str, bytes)) or not isinstance(samples, Iterable):
        raise PlanError(
            f"samples={samples!r}: give a list of values that the function takes, as [{samples!r}]"
        )
    values = list(itertools.islice(samples, _MOST_SAMPLES))
    if not values:
        raise PlanError("there are no samples: give at least one value that the function takes")
    work = partial(measure, fn, values, calls)
    found = _Apart(work).result() if _in_a_loop() else work()
    return _advice(fn, found, judge(found.costs))


def _advice(fn: Callable[..., Any], found: Measurement, verdict: LaneVerdict) -> Advice:
    return Advice(
        name=function_name(fn),
        where=_where(fn),
        kind=verdict.kind,
        lane=verdict.lane,
        concurrency=verdict.concurrency,
        reason=verdict.reason,
        gain=verdict.gain,
        calls=found.calls,
        errors=found.errors,
        costs=found.costs,
        speeds=found.speeds,
        sizes=found.sizes,
        unpicklable=found.unpicklable,
        stays=why_not_movable(fn),
    )


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Apart(threading.Thread):
    """Does some work in a thread of its own, where no loop runs yet."""

    def __init__(self, work: Callable[[], Measurement]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: Measurement | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error

    def result(self) -> Measurement:
        self.start()
        self.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


def _where(fn: Any) -> str:
    inner = inspect.unwrap(getattr(fn, "func", fn))
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    if code is None:
        return "built in"
    return f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"
