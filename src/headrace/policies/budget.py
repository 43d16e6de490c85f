"""Budgets: what a run, or several, may spend in all.

        reserve ─► (the call runs) ─► settle, with its result
           │                     └──► keep, where there is none
           └─► give_back, where it never started

Rules:
1. One Budget object is one budget, wherever it is used. What it counts only grows, but for `give_back` and `actual`.
2. The calls never exceed `calls`; at a start, what is spent and reserved never exceeds `cost`.
3. A reservation ends once: by exactly one of `settle`, `keep` and `give_back`.
4. Costs are added as they are written, in decimals: three calls of 0.1 are 0.3, and no more.
5. Not for use by several threads at once.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact
from typing import Any, Final

from headrace.errors import CallError, Disposition, EngineError, HeadraceError, PlanError
from headrace.policies.limit_options import as_cost, short

__all__ = ["Budget", "BudgetRefused", "BudgetStatistics", "Reservation"]

#: Room for the sum of any floats, digit by digit; how a program sets its own decimals does not matter here.
_EXACT: Final = Context(prec=2000, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])
_ZERO: Final = Decimal(0)


class BudgetRefused(CallError):
    """A budget's estimate failed for this item, gave what cannot be used, or is more than the whole budget."""

    disposition = Disposition.PERMANENT


@dataclasses.dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """A budget at one moment: what calls that are over cost, what those under way have reserved, the calls started.

    `left` is the cost that is not spent or reserved, `calls_left` the calls that may still start; None where the budget
    does not count them. `unsettled` counts the calls whose `actual` failed, so that their estimate stood; `trouble` is the
    last such failure.
    """

    name: str
    spent: float
    reserved: float
    calls: int
    left: float | None
    calls_left: int | None
    unsettled: int = 0
    trouble: str = ""


class Reservation:
    """What one call under way has reserved."""

    __slots__ = ("cost", "is_open")

    def __init__(self, cost: Decimal) -> None:
        self.cost = cost
        self.is_open = True


class Budget:
    """What a stage, a run or several may spend in all: so many `calls`, or calls that `cost` so much together.

    With `cost`, each call reserves its `estimate` (a number, or a function of the stage's value) before it starts, and
    `actual` (a function of the result) corrects that when it is over; give one of them at least. Repetitions are calls
    like any other. When the next call does not fit, the stage calls nothing more: the run drains, and the rest is
    returned. Where `actual` may yet give back what calls under way have reserved, these are waited for first. Use one
    object in several stages, flows and runs of one event loop to have them share it.

    The calls never exceed `calls`. What is spent and reserved never exceeds `cost` when a call starts; what `actual` adds
    to the estimates comes on top, for the calls that are under way then. A failed call costs its estimate.

    An item for which `estimate` fails, or gives more than the whole `cost`, fails with BudgetRefused. Where `actual` fails
    the estimate stands, and `statistics()` counts it. Raises PlanError, with all problems at once, for values that make no
    sense.
    """

    __slots__ = (
        "_calls", "_cost", "_fixed", "_needed", "_reserved", "_spent", "_trouble", "_unsettled",
        "actual", "calls", "cost", "estimate", "name", "waiters",
    )  # fmt: skip

    def __init__(
        self,
        *,
        calls: int | None = None,
        cost: float | None = None,
        estimate: float | Callable[[Any], float] | None = None,
        actual: Callable[[Any], float] | None = None,
        name: str | None = None,
    ) -> None:
        found = _problems(calls, cost, estimate, actual, name)
        if found:
            raise PlanError("Budget: " + "; ".join(found))
        self.calls = calls
        self.cost = cost
        self.estimate = estimate
        self.actual = actual
        self.name = name or ""
        self._cost = None if cost is None else _exact(cost)
        self._fixed = _ZERO if estimate is None or callable(estimate) else _exact(estimate)
        self._calls = 0
        self._spent = self._reserved = _ZERO
        self._needed = _ZERO  # what the call would have reserved that did not fit
        self._unsettled = 0
        self._trouble = ""
        self.waiters: list[Any] = []  # the engine's own: whom to wake when a reservation ends

    def __repr__(self) -> str:
        given = [
            f"{name}={getattr(value, '__name__', repr(value))}"
            for name, value in (
                ("calls", self.calls),
                ("cost", self.cost),
                ("estimate", self.estimate),
                ("actual", self.actual),
            )
            if value is not None
        ]
        return f"Budget {self.name!r} ({', '.join(given)})" if self.name else f"Budget({', '.join(given)})"

    def statistics(self) -> BudgetStatistics:
        """Say what is spent, reserved and left now."""
        left = None if self._cost is None else _EXACT.subtract(self._cost, self._taken)
        return BudgetStatistics(
            name=self.name,
            spent=float(self._spent),
            reserved=float(self._reserved),
            calls=self._calls,
            left=None if left is None else max(0.0, float(left)),
            calls_left=None if self.calls is None else self.calls - self._calls,
            unsettled=self._unsettled,
            trouble=self._trouble,
        )

    @property
    def _taken(self) -> Decimal:
        return _EXACT.add(self._spent, self._reserved)

    # ------------------------------------------------------------------ the steps

    def reserve(self, value: Any) -> Reservation | None:
        """Reserve what a call on `value` may cost; None, with nothing reserved, where that does not fit any more.

        Raises BudgetRefused where it could never fit, or `estimate` fails; other HeadraceErrors of it pass through.
        """
        needed = self._estimate_of(value) if callable(self.estimate) else self._fixed
        if not self._fits(needed):
            self._needed = needed
            return None
        self._calls += 1
        self._reserved = _EXACT.add(self._reserved, needed)
        return Reservation(needed)

    def _fits(self, needed: Decimal) -> bool:
        if self.calls is not None and self._calls >= self.calls:
            return False
        if self._cost is None:
            return True
        taken = self._taken
        if self.estimate is None and taken >= self._cost:
            return False  # what it will cost is not known, and nothing is left
        return _EXACT.add(taken, needed) <= self._cost

    @property
    def may_fit_later(self) -> bool:
        """Whether the call that did not fit may do so when others are over, as `actual` may take less than they reserved."""
        if (
            self.actual is None
            or self._cost is None
            or (self.calls is not None and self._calls >= self.calls)
        ):
            return False
        return self._reserved > 0 and _EXACT.add(self._spent, self._needed) <= self._cost

    def settle(self, reservation: Reservation, result: Any) -> None:
        """Count what a call cost by its result, as `actual` says. Raises nothing that `actual` raises."""
        cost = reservation.cost
        if self.actual is not None:
            try:
                cost = _number(self.actual(result))
            except Exception as error:  # noqa: BLE001  a user's function; the call's result stays good
                self._unsettled += 1
                self._trouble = f"actual= raised {short(error)} for {short(result)}"
        self._end(reservation)
        self._spent = _EXACT.add(self._spent, cost)

    def keep(self, reservation: Reservation) -> None:
        """Count a call without a result: its estimate stands."""
        self._end(reservation)
        self._spent = _EXACT.add(self._spent, reservation.cost)

    def give_back(self, reservation: Reservation) -> None:
        """Take back the reservation of a call that certainly never started."""
        self._end(reservation)
        self._calls -= 1

    def _end(self, reservation: Reservation) -> None:
        if not reservation.is_open:
            raise EngineError(f"a reservation of {self!r} is to be ended twice")
        reservation.is_open = False
        self._reserved = _EXACT.subtract(self._reserved, reservation.cost)

    def shortage(self) -> str:
        """Say in one line why the last call that did not fit did not."""
        what = f"the budget {self.name!r} is spent" if self.name else "the budget is spent"
        if self.calls is not None and self._calls >= self.calls:
            return f"{what}: {_figure(self._calls)} of {_figure(self.calls)} calls"
        assert self._cost is not None
        taken = self._taken
        text = f"{what}: {_figure(taken)} of {_figure(self._cost)}"
        return text if taken >= self._cost else f"{text}, and the next call needs {_figure(self._needed)}"

    def _estimate_of(self, value: Any) -> Decimal:
        assert callable(self.estimate)
        try:
            needed = _number(self.estimate(value))
        except HeadraceError:
            raise
        except Exception as error:
            raise BudgetRefused(
                f"{self._label}: estimate= raised {short(error)} for {short(value)}"
            ) from error
        if self._cost is not None and needed > self._cost:
            raise BudgetRefused(
                f"{self._label}: an estimate of {_figure(needed)} can never fit into cost={_figure(self._cost)}; "
                f"raise cost=, or split the item"
            )
        return needed

    @property
    def _label(self) -> str:
        return f"budget {self.name!r}" if self.name else "the budget"


def _number(value: Any) -> Decimal:
    """Give what a user's function returned as a cost; raise ValueError or TypeError for what cannot be one."""
    if hasattr(value, "__await__"):
        close = getattr(value, "close", None)
        if close is not None:
            close()  # else Python warns of a coroutine that was never awaited
        raise TypeError("it returned an awaitable; give a plain function")
    return _exact(as_cost(value))


def _exact(value: float) -> Decimal:
    """Give a number as it is written: the digits that Python shows, not those that a float hides."""
    return Decimal(int(value)) if isinstance(value, int) else Decimal(repr(float(value)))


def _figure(value: Decimal | int) -> str:
    number = float(value)
    if abs(number) >= 1e15:
        return f"{number:g}"
    return f"{number:,.12g}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _problems(calls: Any, cost: Any, estimate: Any, actual: Any, name: Any) -> list[str]:
    """Say all that is wrong with the options of a Budget; nothing if they are good."""
    found = []
    if calls is None and cost is None:
        found.append("give calls= or cost= (or both)")
    if calls is not None and not (type(calls) is int and calls >= 1):
        found.append(f"calls={short(calls)}: give a whole number, 1 or more")
    if cost is not None and not _is_amount(cost):
        found.append(f"cost={short(cost)}: give a finite number above 0")
    if estimate is not None and not callable(estimate) and not _is_amount(estimate):
        found.append(f"estimate={short(estimate)}: give a finite number above 0, or a function of the value")
    elif _is_amount(estimate) and _is_amount(cost) and _exact(estimate) > _exact(cost):
        found.append(f"estimate={estimate!r} can never fit into cost={cost!r}; give a cost of at least that")
    if cost is not None and estimate is None and actual is None:
        found.append("cost= needs estimate=, what a call may cost, or actual=, what its result says")
    for option, value in (("estimate", estimate), ("actual", actual)):
        if value is not None and cost is None:
            found.append(f"{option}= counts against a cost; give cost= too")
    for option, function in (("estimate", estimate if callable(estimate) else None), ("actual", actual)):
        if function is not None and (not callable(function) or _is_async(function)):
            found.append(f"{option}={short(function)}: give a plain function")
    if name is not None and not (isinstance(name, str) and name.strip()):
        found.append(f"name={short(name)}: give a text, or leave it out")
    return found


def _is_amount(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return 0.0 < float(value) < math.inf
    except OverflowError:  # an int beyond all floats
        return False


def _is_async(function: Any) -> bool:
    kinds = (function, getattr(function, "__call__", None))  # noqa: B004 - the method itself is what is looked at
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in kinds)
