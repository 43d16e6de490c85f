"""Times and shares that users write.

Rules:
1. A time is a number of seconds, more than 0; a share is counted in integers, so that 29 of 100 are not more than 29 %.
2. What a user wrote wrongly is refused with the value and the right form.
"""

from __future__ import annotations

import math
import re
from typing import Final

from headrace.errors import PlanError

__all__ = ["FailureCap", "parse_duration"]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d)"
_DURATION = re.compile(rf"(?:{_PART}\s*)+", re.ASCII)
_PARTS = re.compile(_PART, re.ASCII)
_SHARE = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?\s*%", re.ASCII)
_COUNT = re.compile(r"\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def parse_duration(value: str | float, name: str = "duration") -> float:
    """Give the seconds of "2h", "10m", "1h30m", "500ms", "90" or 90. Raises PlanError for all else, 0 too."""
    seconds = math.nan
    if isinstance(value, str):
        text = value.strip().lower()
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        elif _DURATION.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))
    elif not isinstance(value, bool):
        seconds = _as_float(value)
    if not 0.0 < seconds < math.inf:
        raise PlanError(
            f"{name}={value!r}: give a time such as 30s, 10m, 2h, 1h30m, 7d, or seconds; more than 0"
        )
    return seconds


def _as_float(value: float) -> float:
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return math.nan


class FailureCap:
    """How many failed items a run accepts before it stops: a count (100), or a share ("1%").

    A share is judged once 100 items are settled, or at the end; a count at once. Raises PlanError for
    anything else.
    """

    __slots__ = ("_ratio", "count", "text")

    #: A share of fewer settled items than this says nothing yet.
    ENOUGH: Final = 100

    def __init__(self, value: str | int | float) -> None:
        self.text = str(value).strip()
        self.count = 0
        self._ratio: tuple[int, int] | None = None
        share = _SHARE.fullmatch(self.text)
        if share is not None:
            whole, part = share[1], share[2] or ""
            # As a ratio of integers: 29 of 100 must not be more than 29 %, which 0.29 * 100 = 28.999… would
            # make it.
            self._ratio = (int(whole + part), 100 * 10 ** len(part))
        elif _COUNT.fullmatch(self.text):
            self.count = int(self.text)
        if isinstance(value, bool) or not (share or _COUNT.fullmatch(self.text)) or self._above_all():
            raise PlanError(
                f'max_failures={value!r}: give a count such as 100, or a share such as "1%", up to "100%"'
            )

    def _above_all(self) -> bool:
        return self._ratio is not None and self._ratio[0] > self._ratio[1]

    def exceeded(self, failed: int, settled: int, taken: int, *, ended: bool = False) -> bool:
        """Say whether `failed` items are too many. `ended` says that no more items will settle.

        At the end a share is one of the settled items. Before, it is exceeded when at least 100 are settled
        and the failures are too many even if all that are `taken` and still open succeed.
        """
        if self._ratio is None:
            return failed > self.count
        if not ended and settled < self.ENOUGH:
            return False
        numerator, denominator = self._ratio
        return failed * denominator > numerator * (settled if ended else max(settled, taken))

    def __repr__(self) -> str:
        return f"FailureCap({self.text!r})"
