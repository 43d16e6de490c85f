"""What an answer's headers say of the rate that its server keeps, as hints that only slow us down.

Rules:
1. Total: any text gives a hint or None, and never an error. Headers are written by strangers.
2. Read are the structured fields `RateLimit` and `RateLimit-Policy`, the forms they had before (`RateLimit-Remaining`
   and kin, a dictionary in one field), and `X-RateLimit-…`, whose reset is written in five ways.
3. A hint never lets anything start earlier. Where several windows are told of, the one with the least left counts.
4. What makes no sense (negative, not a number, a reset that is past or more than a day ahead) is passed over; a wait
   that is merely long is cut, as that of a Retry-After is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Final, NamedTuple

from headrace.policies import limits as admission
from headrace.policies.backoff import spread
from headrace.policies.limits import Claim, KeyState
from headrace.policies.retry_after import PAST, bounded_seconds, parse_http_date

__all__ = ["RateHint", "heed", "parse_rate_headers", "parse_reset"]

#: So many characters of a field are looked at: no honest one is longer.
LONGEST_FIELD: Final = 4096
#: Numbers from here on are times since the epoch, in seconds (the year 2001 is the least) or in milliseconds.
EPOCH_SECONDS: Final = 1e9
EPOCH_MILLISECONDS: Final = 1e12
LAST_EPOCH_MILLISECONDS: Final = 1e14

_COUNT = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?", re.ASCII)
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]{4,20}(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})?", re.ASCII)
#: How one window is told of, but for rare parameters, and a policy that says nothing unusual of it.
_ONE = re.compile(r'\s*"[^"\\]*"\s*;\s*r=([0-9]{1,15})\s*;\s*t=([0-9]{1,15})\s*', re.ASCII)
_UNUSUAL = re.compile(r"q(?:u|\s*=\s*0)", re.ASCII)
_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*", re.ASCII)
_PREFIXES: Final = ("ratelimit", "x-ratelimit", "x-rate-limit")


class RateHint(NamedTuple):
    """So many calls are left (`remaining`) until `reset` seconds have passed, which are more than 0."""

    remaining: int
    reset: float


def parse_rate_headers(headers: Mapping[str, str], now_epoch: float) -> RateHint | None:
    """Give what these headers say of the window with the least left; None where they say nothing sensible.

    `headers` has lower-case names, with repeated ones joined by commas. `now_epoch` (seconds since the epoch) is what
    points in time count from: best the answer's own Date.
    """
    found: list[RateHint] = []
    field = headers.get("ratelimit")
    if field is not None:
        found += _structured(field[:LONGEST_FIELD], headers.get("ratelimit-policy", "")[:LONGEST_FIELD])
    for prefix in _PREFIXES:
        remaining, reset = headers.get(f"{prefix}-remaining"), headers.get(f"{prefix}-reset")
        if remaining is not None and reset is not None:
            limit = headers.get(f"{prefix}-limit", "")
            found += _triple(
                limit[:LONGEST_FIELD], remaining[:LONGEST_FIELD], reset[:LONGEST_FIELD], now_epoch
            )
    return min(found, key=lambda hint: (hint.remaining, -hint.reset), default=None)


def heed(claims: Sequence[Claim], hint: RateHint, now: float, rng: Random) -> list[KeyState]:
    """Hold the keys whose calls under way will use up what a hint says is left; give those held longer than before.

    `claims` are those of the call that was answered, which is counted already. As with `hold`, those on keyed limits
    are meant, and all where none is. The hold ends at the reset and up to a tenth later, so that several programs do
    not come back in the same instant. It is never shortened.
    """
    taken = [each for each in claims if each.taken]
    keyed = [each for each in taken if each.state.limit.by is not None] or taken
    until = now + hint.reset
    binding = [
        each
        for each in keyed
        if hint.remaining <= each.state.inflight - 1 and not each.state.held_until >= until
    ]
    if not binding:
        return []
    until = now + spread(hint.reset, rng)
    return [state for each in binding for state in admission.hold(each.state, until)]


# --------------------------------------------------------------------------------------------- structured fields


def _structured(field: str, policies: str) -> Iterator[RateHint]:
    """Read `"default";r=50;t=30`, one or more, and `limit=100, remaining=50, reset=50`."""
    one = _ONE.fullmatch(field)
    if one is not None and _UNUSUAL.search(policies) is None:  # by far the most common case
        yield from _hint(int(one[1]), bounded_seconds(float(one[2])))
        return
    units = dict(_items(policies))
    plain: dict[str, str] = {}
    for name, parameters in _items(field):
        key, equals, value = name.partition("=")
        if equals and not name.startswith('"'):
            plain.setdefault(key.strip().lower(), value)
            continue
        policy = units.get(name, {})
        unit = policy.get("qu", '"requests"').strip('"')
        left = _count(parameters.get("r"))
        if left is None or unit == "concurrent-requests" or _count(policy.get("q")) == 0:
            continue  # calls at once have no reset; and a quota of nothing is one that is switched off
        if unit != "requests" and left:
            continue  # it cannot be compared with a number of calls
        yield from _hint(left, _seconds(parameters.get("t")))
    if "remaining" in plain and "reset" in plain and _count(plain.get("limit")) != 0:
        yield from _hint(_count(plain["remaining"]), _seconds(plain["reset"]))


def _items(field: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Give the items of a list with their parameters; a broken one has those that could be read."""
    for item in _split(field, ","):
        name, *rest = _split(item, ";")
        parameters: dict[str, str] = {}
        for each in rest:
            key, equals, value = each.partition("=")
            key = key.strip().lower()
            if equals and _KEY.fullmatch(key):
                parameters[key] = value.strip()
        yield name.strip(), parameters


def _split(text: str, mark: str) -> list[str]:
    """Split at a mark that stands in no string; a string that is not closed goes to the end."""
    if '"' not in text:
        return text.split(mark)
    parts: list[str] = []
    begin = at = 0
    quoted = False
    while at < len(text):
        char = text[at]
        if quoted and char == "\\":
            at += 1
        elif char == '"':
            quoted = not quoted
        elif char == mark and not quoted:
            parts.append(text[begin:at])
            begin = at + 1
        at += 1
    parts.append(text[begin:])
    return parts


# --------------------------------------------------------------------------------------------- fields of their own


def _triple(limit: str, remaining: str, reset: str, now_epoch: float) -> Iterator[RateHint]:
    """Read limit, remaining and reset of one or several windows, each in a field of its own."""
    limits = [_count(each.partition(";")[0]) for each in limit.split(",")]
    if set(limits) == {0}:
        return
    lefts = [_count(each) for each in remaining.split(",")]
    whole = parse_reset(reset, now_epoch)  # a date has a comma in it
    resets = [whole] if whole is not None else [parse_reset(each, now_epoch) for each in reset.split(",")]
    if len(resets) == 1:
        resets *= len(lefts)
    if len(lefts) != len(resets):
        return
    for left, seconds in zip(lefts, resets, strict=True):
        yield from _hint(left, seconds)


def parse_reset(value: str, now_epoch: float) -> float | None:
    """Give the seconds from now that a reset is away; None for what is none, and for a time long past or far ahead.

    It is written as seconds from now, as seconds or milliseconds since the epoch, as an HTTP-date or an ISO time.
    """
    text = value.strip()
    if _COUNT.fullmatch(text):
        number = float(text)
        if number < EPOCH_SECONDS:
            return bounded_seconds(number)
        if EPOCH_MILLISECONDS <= number < LAST_EPOCH_MILLISECONDS:
            number /= 1000.0
        return _from_now(number, now_epoch)
    moment = _iso(text) if _ISO.fullmatch(text) else parse_http_date(text, now_epoch)
    return None if moment is None else _from_now(moment, now_epoch)


def _from_now(moment: float, now_epoch: float) -> float | None:
    delay = moment - now_epoch
    return bounded_seconds(0.0 if -PAST <= delay < 0.0 else delay)


def _iso(text: str) -> float | None:
    """Read an ISO time; one without a zone is in UTC."""
    try:
        moment = datetime.fromisoformat(text.upper())
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _hint(left: int | None, seconds: float | None) -> Iterator[RateHint]:
    if left is not None and seconds is not None and seconds > 0.0:
        yield RateHint(left, seconds)


def _seconds(text: str | None) -> float | None:
    return bounded_seconds(float(text)) if text is not None and _COUNT.fullmatch(text.strip()) else None


def _count(text: str | None) -> int | None:
    return int(float(text)) if text is not None and _COUNT.fullmatch(text.strip()) else None
