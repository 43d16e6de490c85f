"""What may be given to a Limit: its options, costs and names.

Rules:
1. All problems of a Limit are found at once; each names the option, the value and the right form.
2. A cost is a finite number, 0 or more; whatever else a user's function gives is refused.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Final

from headrace.errors import PlanError
from headrace.policies.adaptive import Adaptive
from headrace.policies.breaker import Breaker
from headrace.policies.gcra import parse_rate

__all__ = ["as_cost", "name_of", "problems", "short"]

#: The largest burst: beyond it a float no longer tells one start from the next.
LARGEST: Final = 1e15


def problems(
    concurrency: object, rate: Any, by: object, burst: Any, cost: Any, actual: object, breaker: object
) -> list[str]:
    """Say all that is wrong with the options of a Limit; nothing if they are good."""
    found = []
    if concurrency is None and rate is None and breaker is None:
        found.append("give concurrency=, rate= or breaker= (or several)")
    if breaker is not None and not isinstance(breaker, Breaker):
        found.append(f"breaker={breaker!r}: give a Breaker(), with brackets")
    if isinstance(concurrency, type) and issubclass(concurrency, Adaptive):
        found.append("concurrency=Adaptive: give an object, such as Adaptive(1, 16)")
    elif not (concurrency is None or isinstance(concurrency, Adaptive) or _is_count(concurrency)):
        found.append(f"concurrency={concurrency!r}: give a whole number, 1 or more, or Adaptive(min, max)")
    if rate is not None:
        try:
            parse_rate(rate)
        except PlanError as error:
            found.append(str(error))
    if burst is not None and not (_is_number(burst) and 1 <= burst <= LARGEST):
        found.append(f"burst={burst!r}: give a number from 1 to 1e15")
    for name, value in (("burst", burst), ("cost", cost)):
        if value is not None and rate is None:
            found.append(f"{name}= counts against a rate; give rate= too")
    if cost is not None and not callable(cost) and not (_is_number(cost) and 0 < cost < math.inf):
        found.append(f"cost={cost!r}: give a finite number above 0, or a function of the value")
    elif cost is not None and burst is None:
        found.append("cost= needs burst=, the most that may start at once")
    elif _is_number(cost) and _is_number(burst) and cost > burst:
        found.append(f"cost={cost!r} can never fit into burst={burst!r}; give a burst of at least that")
    if actual is not None and cost is None:
        found.append("actual= corrects a cost; give cost= too")
    for name, function in (("by", by), ("cost", cost if callable(cost) else None), ("actual", actual)):
        if function is not None and (not callable(function) or inspect.iscoroutinefunction(function)):
            found.append(f"{name}={function!r}: give a plain function")
    return found


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_cost(value: Any) -> float:
    """Give a cost as a float; raise ValueError for what cannot be one."""
    cost = float(value)
    if not 0.0 <= cost < math.inf:
        raise ValueError(f"{value!r} is no cost: it must be a finite number, 0 or more")
    return cost


def name_of(by: object) -> str:
    """Give the name of a limit that was given none: that of its key function, if it has one."""
    name = getattr(by, "__name__", "limit")
    return "limit" if name.startswith("<") else str(name)


def short(value: object) -> str:
    """Give up to 80 characters of a value's repr, for a message; never raise."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  a stranger's __repr__, needed only for a message
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."
