"""The rate of starts: GCRA, one number for each key.

Rules:
1. Promise: the starts admitted in any half-open window of t seconds cost less than rate * t + burst together.
   With cost 1 and rate * t whole, that is at most rate * t + burst - 1 starts. It is exact, at any `now` and
   for ever.
2. So the arithmetic is in integers: time in ticks so fine that every float `now` above 4 ns is a whole number
   of them, and so scaled that the rate is whole too. Floats would drift: adding 1/rate to a time of 10⁹
   rounds at every start.
3. A reservation counts in full until it is refunded; a refund gives back what was reserved, from then on.
"""

from __future__ import annotations

import math
import re
from typing import Final

from headrace.errors import PlanError

__all__ = ["Gcra", "parse_rate", "rate_ratio"]

#: Ticks per second, before scaling by the rate: a power of two, so that floats convert exactly.
_FINENESS: Final = 2**80
_FINENESS_FLOAT: Final = float(_FINENESS)
_FASTEST: Final = 1e9
_SLOWEST: Final = 1e-9
_UNITS: Final = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
    "d": 86400, "day": 86400,
}  # fmt: skip
#: As a float is written at its longest: 0.00012345678901234567 has 20 digits behind the point.
_NUMBER: Final = r"(\d{1,18})(?:\.(\d{1,21}))?(?:e([+-]?\d{1,2}))?"
_PLAIN = re.compile(_NUMBER, re.ASCII)
_RATE = re.compile(_NUMBER + r"\s*/\s*([a-z]+)", re.ASCII)


def parse_rate(rate: str | float) -> float:
    """Give the starts per second of "500/s", "90000/min", "10/h", "2.5/s"; a number is per second.

    Raises PlanError for anything else, and for what is not above 0 and finite.
    """
    numerator, denominator = rate_ratio(rate)
    return numerator / denominator


def rate_ratio(rate: str | float) -> tuple[int, int]:
    """Give a rate per second as a ratio of integers, as it is written: 0.1 is 1/10. Raises PlanError."""
    ratio = None
    if isinstance(rate, str):
        text = rate.strip().lower()
        found = _RATE.fullmatch(text)
        if found is not None and found[4] in _UNITS:
            ratio = _decimal(found[1], found[2], found[3], _UNITS[found[4]])
    elif not isinstance(rate, bool):
        found = _PLAIN.fullmatch(_as_written(rate))
        if found is not None:
            ratio = _decimal(found[1], found[2], found[3], 1)
    if ratio is None or not _SLOWEST <= ratio[0] / ratio[1] <= _FASTEST:
        raise PlanError(
            f'rate={rate!r}: give a number per time, such as "500/s", "90000/min", "10/h", '
            f"or a number per second; more than 0 and at most 1e9 per second"
        )
    return ratio


def _as_written(rate: float) -> str:
    try:
        return repr(float(rate))
    except (OverflowError, TypeError, ValueError):
        return "no number"


def _decimal(whole: str, part: str | None, exponent: str | None, divisor: int) -> tuple[int, int]:
    part = part or ""
    power = int(exponent or 0) - len(part)
    numerator, denominator = int(whole + part) * 10 ** max(power, 0), divisor * 10 ** max(-power, 0)
    common = math.gcd(numerator, denominator)
    return numerator // common, denominator // common


class Gcra:
    """One key's rate. `rate` is per second, `burst` what may start at once, both in cost."""

    __slots__ = ("_per_cost", "_rate", "_slack", "_tat", "burst", "rate")

    def __init__(self, rate: str | float, burst: float = 1.0) -> None:
        """Begin with the whole burst available. Raises PlanError for a bad rate or burst."""
        numerator, denominator = rate_ratio(rate)
        if not 0.0 < burst < math.inf:
            raise PlanError(f"burst={burst!r}: give a finite number, more than 0")
        self.rate = numerator / denominator
        self.burst = burst
        self._rate = numerator  # ticks per tick of the clock
        self._per_cost = denominator * _FINENESS  # ticks
        self._slack = self._ticks_of(burst, up=False)
        self._tat = 0  # ticks: when all that has started will have been paid for

    def fresh(self) -> Gcra:
        """Give one of the same rate and burst that nothing was taken of: of 100 000 keys none reads the rate again."""
        other = Gcra.__new__(Gcra)
        other.rate, other.burst = self.rate, self.burst
        other._rate, other._per_cost, other._slack = self._rate, self._per_cost, self._slack
        other._tat = 0
        return other

    def _ticks_of(self, cost: float, *, up: bool) -> int:
        if type(cost) is int:
            return cost * self._per_cost
        numerator, denominator = cost.as_integer_ratio()
        ticks = numerator * self._per_cost
        return -(-ticks // denominator) if up else ticks // denominator

    def wait(self, now: float, cost: float = 1.0) -> float:
        """Give the seconds until a start of `cost` fits, inf if it exceeds the burst. Takes nothing.

        At `now` plus that wait, as floats add, it does fit if nothing else is taken meanwhile.
        """
        ticks = self._per_cost if cost == 1.0 else self._ticks_of(cost, up=True)
        if ticks > self._slack:
            return math.inf
        early = self._tat + ticks - self._slack
        if early <= int(now * _FINENESS_FLOAT) * self._rate:
            return 0.0
        return self._wait(now, early)

    def take(self, now: float, cost: float = 1.0) -> None:
        """Reserve a start of `cost` at `now`, whether or not it fits: the excess delays those after it."""
        ticks = self._per_cost if cost == 1.0 else self._ticks_of(cost, up=True)
        self._tat = max(self._tat, int(now * _FINENESS_FLOAT) * self._rate) + ticks

    def admit(self, now: float, cost: float = 1.0) -> float:
        """Take `cost` if it fits and give 0.0; else take nothing and give the wait, as `wait` does."""
        ticks = self._per_cost if cost == 1.0 else self._ticks_of(cost, up=True)
        if ticks > self._slack:
            return math.inf
        tat = self._tat
        present = int(now * _FINENESS_FLOAT) * self._rate
        if present > tat:
            tat = present
        tat += ticks
        if tat - self._slack > present:
            return self._wait(now, tat - self._slack)
        self._tat = tat
        return 0.0

    def refund(self, estimated: float, actual: float) -> None:
        """Correct a reservation of `estimated` to `actual`; if that is more, those after it wait longer."""
        self._tat -= self._ticks_of(estimated, up=True) - self._ticks_of(actual, up=True)

    def is_recovered(self, now: float) -> bool:
        """Say whether the whole burst is available again, so that this state is as good as a new one."""
        return self._tat <= int(now * _FINENESS_FLOAT) * self._rate

    def shift(self, seconds: float) -> None:
        """Move all times by `seconds`: the clock was replaced by another one."""
        self._tat += int(seconds * _FINENESS_FLOAT) * self._rate

    def _wait(self, now: float, early: int) -> float:
        present = int(now * _FINENESS_FLOAT) * self._rate
        wait = (early - present) / (self._rate * _FINENESS)
        if int((now + wait) * _FINENESS_FLOAT) * self._rate < early:
            # The sum was rounded down to a moment before. Without this a caller would come back too early for
            # ever.
            wait += math.ulp(now + wait)
        return wait
