"""What a `Retry-After` header says, in seconds from now.

Rules:
1. Total: any text gives a number of seconds or None, and never an error. Headers are written by strangers.
2. Both forms of RFC 9110 §10.2.3 are read: delay-seconds, and the three formats of an HTTP-date.
3. What makes no sense is None (negative, not a number, a date that is long past or more than a day ahead);
   what is merely long is cut to `LONGEST`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["LONGEST", "bounded_seconds", "parse_http_date", "parse_retry_after"]

#: The longest wait (seconds) that a header can impose on us.
LONGEST: Final = 3600.0
#: Seconds beyond which a wait is taken for a mistake (a timestamp, milliseconds) rather than for a wish.
ABSURD: Final = 86400.0
#: How long ago (seconds) a date may lie and still mean "now": clocks differ, and answers take time to arrive.
PAST: Final = 3600.0

_SECONDS = re.compile(r"[0-9]{1,18}(?:\.[0-9]{0,18})?", re.ASCII)
_MONTHS: Final[Mapping[str, int]] = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_DAY: Final = r"(?P<day>\d{1,2})"
_MONTH: Final = r"(?P<month>[a-z]{3})"
_YEAR: Final = r"(?P<year>\d{4})"
_TIME: Final = r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"
_DATES = tuple(
    re.compile(pattern, re.ASCII | re.IGNORECASE)
    for pattern in (
        # Sun, 06 Nov 1994 08:49:37 GMT
        rf"[a-z]{{3}}, {_DAY} {_MONTH} {_YEAR} {_TIME} (?:GMT|UTC)",
        # Sunday, 06-Nov-94 08:49:37 GMT
        rf"[a-z]{{6,9}}, {_DAY}-{_MONTH}-(?P<year>\d\d) {_TIME} (?:GMT|UTC)",
        # Sun Nov  6 08:49:37 1994
        rf"[a-z]{{3}} {_MONTH} {{1,2}}{_DAY} {_TIME} {_YEAR}",
    )
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_retry_after(value: str, now_epoch: float) -> float | None:
    """Give the seconds to wait that a `Retry-After` header asks for; None where it says nothing sensible.

    `now_epoch` (seconds since the epoch) is what a date counts from; the `Date` header of the same answer is
    the best choice, since it is the other side's own clock. At most 3600 seconds: longer waits are cut to
    that, and above a day they are taken for a mistake (None), as are negative ones and dates more than an
    hour past.
    """
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return bounded_seconds(float(text))
    date = parse_http_date(text, now_epoch)
    if date is None:
        return None
    delay = date - now_epoch
    return bounded_seconds(0.0 if -PAST <= delay < 0.0 else delay)


def bounded_seconds(seconds: float) -> float | None:
    """Cut a wait to `LONGEST`; None for what is negative, not a number, or absurdly long."""
    if not 0.0 <= seconds <= ABSURD:
        return None
    return min(seconds, LONGEST)


def parse_http_date(text: str, now_epoch: float) -> float | None:
    """Give the seconds since the epoch of an HTTP-date in any of its three formats; None for anything else.

    A year of two digits is the one that lies at most 50 years after `now_epoch` (RFC 9110 §5.6.7).
    """
    for pattern in _DATES:
        found = pattern.fullmatch(text)
        if found is not None:
            break
    else:
        return None
    year, month = int(found["year"]), _MONTHS.get(found["month"].lower(), 0)
    # A leap second is the second after it: no clock of ours has one.
    leap = found["s"] == "60"
    try:
        if len(found["year"]) == 2:
            year = _full_year(year, now_epoch)
        moment = datetime(
            year,
            month,
            int(found["day"]),
            int(found["h"]),
            int(found["m"]),
            59 if leap else int(found["s"]),
            tzinfo=UTC,
        )
    except (ValueError, OverflowError):
        return None
    return (moment - _EPOCH).total_seconds() + (1.0 if leap else 0.0)


def _full_year(digits: int, now_epoch: float) -> int:
    this_year = (_EPOCH + timedelta(seconds=now_epoch)).year
    year = this_year - this_year % 100 + digits
    if year > this_year + 50:
        return year - 100
    if year <= this_year - 50:
        return year + 100
    return year
