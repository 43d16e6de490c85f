"""What an exception says about a failed call: may a repetition help, and may the call have taken effect?

Rules:
1. Our own CallError knows; its attributes count. All others are recognised by their type, or by what they
   carry (a status, a Retry-After header), without importing the library they come from.
2. Total: whatever the exception's attributes hold or raise, there is a verdict and no error.
3. What is not recognised is not repeated, and is taken to have had an effect (`ambiguous`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard, TypeVar

from headrace.errors import CallError, Disposition, GiveUp, RetryAfter, Skip, TimedOut
from headrace.policies.known_errors import (
    KNOWN,
    KNOWN_ANYWHERE,
    LOST,
    MISTAKES,
    NEVER,
    OVERLOAD,
    PERMANENT,
    PERMANENT_ERRNOS,
    PERMANENT_OS,
    THROTTLING,
    TRANSIENT,
    UNKNOWN,
    UNSENT,
    UNSENT_ERRNOS,
    WRAPS,
    Verdict,
)
from headrace.policies.retry_after import bounded_seconds, parse_http_date, parse_retry_after
from headrace.policies.signals import Signal

__all__ = ["Verdict", "classify", "is_a", "load_signal", "parse_retry_after", "status_of", "transient"]

T = TypeVar("T", bound=BaseException)

#: Seconds that no adapter of ours can mean: a hundred years.
FOR_EVER: Final = 3.2e9
#: The phases of a call between its connection and its answer.
ON_THE_WAY: Final = frozenset({"connect", "tls", "send", "first byte", "body"})
#: How many exceptions of a chain are looked at.
_CHAIN: Final = 12


def transient(error: BaseException) -> bool:
    """Say whether a failure is of the moment, so that the same call may succeed later.

    True for lost, refused and timed-out connections and other OSErrors of the moment, for the statuses 408,
    425, 429, 500, 502, 503, 504, 520 to 530 on the exceptions of aiohttp, httpx, requests, botocore and SDKs
    like them, and for CallErrors that say so. False for everything else: for TypeError, ValueError, KeyError
    and their kin and for missing files always. An ExceptionGroup is transient if all its members are. Never
    raises.
    """
    return classify(error).disposition is not PERMANENT


def classify(error: BaseException, now_epoch: float | None = None) -> Verdict:
    """Say what a failure means. Never raises.

    `now_epoch` (seconds since the epoch) is what a Retry-After date counts from where the answer itself has
    no Date header; without both, such a date is not used.
    """
    if is_a(error, BaseExceptionGroup):
        return _together([_of_one(leaf, now_epoch) for leaf in _leaves(error)])
    return _of_one(error, now_epoch)


def load_signal(error: BaseException) -> Signal:
    """Say what a failure tells of the other side; of a group, what weighs most. Never raises.

    "throttled": 429, Retry-After, RetryAfter, and what else asks for less. "overload": 503, 529. "lost": no answer
    came, be it that the connection failed, was lost, or the time was up. "fault": 500, 502, 504 and their kin.
    "success": a 404 and other refusals of this one item. "ignore": a mistake of the program, which says nothing.
    """
    leaves = _leaves(error) if is_a(error, BaseExceptionGroup) else (error,)
    return max(map(_signal_of, leaves), key=_WEIGHT.__getitem__, default="ignore")


def status_of(error: BaseException) -> int | None:
    """Give the status of the answer that an exception tells of, its own or its response's, or None. Never raises."""
    own = _peek(error, "status")
    return own if type(own) is int else _status_of_answer(error)


_WEIGHT: Final[Mapping[Signal, int]] = {
    "ignore": 0, "success": 1, "fault": 2, "throttled": 3, "overload": 4, "lost": 5,
}  # fmt: skip


def _signal_of(error: BaseException) -> Signal:
    if is_a(error, RetryAfter):
        return "throttled"
    verdict = _of_one(error, None)
    status = _status_of_answer(error)
    if verdict.disposition is OVERLOAD:
        return "overload" if status == 529 and verdict.retry_after is None else "throttled"
    if status is not None:
        if status in (408, 425):  # it waited for us, or for a better moment
            return "ignore"
        if verdict.disposition is not TRANSIENT:
            return "success"
        return "overload" if status == 503 else "fault"
    if verdict.disposition is not TRANSIENT:
        return "ignore"
    if is_a(error, CallError) and not is_a(error, TimedOut):
        phase = _peek(error, "phase")
        return "lost" if type(phase) is str and phase in ON_THE_WAY else "ignore"
    resolved = not any(kind.__name__ in ("gaierror", "herror") for kind in type(error).__mro__)
    return "lost" if resolved else "ignore"


def _together(verdicts: list[Verdict]) -> Verdict:
    kinds = {verdict.disposition for verdict in verdicts}
    waits = [verdict.retry_after for verdict in verdicts if verdict.retry_after is not None]
    return Verdict(
        PERMANENT if PERMANENT in kinds else OVERLOAD if OVERLOAD in kinds else TRANSIENT,
        any(verdict.ambiguous for verdict in verdicts),
        max(waits, default=None),
        any(verdict.hold for verdict in verdicts),
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    # A loop, not a recursion: groups may be nested deeper than the stack.
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if is_a(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        else:
            yield error


def _of_one(error: BaseException, now_epoch: float | None) -> Verdict:
    if not is_a(error, Exception):
        return UNKNOWN
    if is_a(error, CallError):
        return _of_call_error(error)
    if is_a(error, RetryAfter):
        return Verdict(TRANSIENT, False, error.seconds, error.hold)
    if is_a(error, (GiveUp, Skip)):
        return NEVER
    if is_a(error, MISTAKES):
        return NEVER if _of_name(error) is NEVER else UNKNOWN
    if type(error).__module__ == "builtins" and not _peek(error, "__dict__"):
        return _of_builtin(error) or UNKNOWN  # the common case, and it carries nothing to look at
    return _of_status(error, now_epoch) or _of_type(error) or UNKNOWN


def _of_call_error(error: CallError) -> Verdict:
    disposition = _peek(error, "disposition")
    wait = _peek(error, "retry_after")
    return Verdict(
        disposition if type(disposition) is Disposition else PERMANENT,
        _peek(error, "ambiguous") is not False,
        float(wait) if type(wait) in (int, float) and 0.0 <= wait <= FOR_EVER else None,
        _peek(error, "hold") is True,
    )


# ------------------------------------------------------------------------------------------------- by status


def _of_status(error: Exception, now_epoch: float | None) -> Verdict | None:
    status = _status_of_answer(error)
    if status is None:
        return None
    retry_after = _retry_after(error, _peek(error, "response"), now_epoch)
    asked = retry_after is not None
    if status == 429:
        return Verdict(OVERLOAD, False, retry_after, asked)
    if status in (503, 529) and asked:
        return Verdict(OVERLOAD, False, retry_after, True)
    if status == 529:
        return Verdict(OVERLOAD, True)
    if status in (408, 425):  # the request was not processed
        return Verdict(TRANSIENT, False, retry_after)
    if status in (500, 502, 503, 504) or 520 <= status <= 530:
        return Verdict(TRANSIENT, True, retry_after)
    if status < 500 or status in (501, 505, 511):
        return NEVER
    return UNKNOWN


def _status_of_answer(error: BaseException) -> int | None:
    response = _peek(error, "response")
    status = _status_of(error) or _status_of(response)
    if status is None and issubclass(type(response), dict):
        status = _status(_entry(_entry(response, "ResponseMetadata"), "HTTPStatusCode"))
        code = _entry(_entry(response, "Error"), "Code")
        if type(code) is str and code in THROTTLING:
            return 429
    return status


def _status_of(thing: object) -> int | None:
    for name in ("status", "status_code", "http_status"):
        status = _status(_peek(thing, name))
        if status is not None:
            return status
    return None


def _status(value: object) -> int | None:
    kind = type(value)
    if not issubclass(kind, int) or kind is bool:
        return None
    number = int.__index__(value)  # type: ignore[arg-type]  # past what a subclass overrides
    return number if 400 <= number <= 599 else None


def _retry_after(error: object, response: object, now_epoch: float | None) -> float | None:
    for headers in (
        _peek(error, "headers"),
        _peek(response, "headers"),
        _entry(_entry(response, "ResponseMetadata"), "HTTPHeaders"),
    ):
        value = _header(headers, "retry-after")
        if value is None:
            continue
        date = _header(headers, "date")
        reference = parse_http_date(date.strip(), now_epoch or 0.0) if date is not None else None
        if reference is None:
            reference = now_epoch
        # Without a clock only delay-seconds mean something; NaN makes every date None.
        return parse_retry_after(value, math.nan if reference is None else reference)
    return _seconds(_peek(error, "retry_after"))


def _header(headers: object, name: str) -> str | None:
    value = None
    for spelling in (name, name.title()):
        value = _entry(headers, spelling)
        if value is not None:
            break
    if type(value) in (int, float):
        return str(value)
    if type(value) is bytes:
        return value.decode("latin-1")
    return value if type(value) is str else None


def _seconds(value: object) -> float | None:
    kind = type(value)
    if kind is float or kind is int:
        return bounded_seconds(value)  # type: ignore[arg-type]
    return None


# ------------------------------------------------------------------------------------------------- by type


def _of_type(error: BaseException) -> Verdict | None:
    """Judge by class, and by what it wraps where the class says nothing or a certificate was refused."""
    verdict = _of_class(error)
    if verdict is None or verdict.disposition is PERMANENT:
        return verdict
    inner = list(_chain(error))
    if any(_is_certificate(each) for each in inner):
        return NEVER
    if verdict is not WRAPS:
        return verdict
    for each in inner:
        found = None if is_a(each, MISTAKES) else _of_class(each)
        if found is not None and found is not WRAPS and found is not UNKNOWN:
            return found
    # urllib.error.URLError gives its own text as reason where it refused the URL.
    return UNKNOWN if type(_peek(error, "reason")) is str else LOST


def _of_class(error: BaseException) -> Verdict | None:
    named = _of_name(error)
    if named is not None:
        return named
    return _of_builtin(error)


def _of_builtin(error: BaseException) -> Verdict | None:
    if is_a(error, TimeoutError):
        return LOST
    if is_a(error, OSError):
        return _of_os_error(error)
    return None


def _of_name(error: BaseException) -> Verdict | None:
    for kind in type(error).__mro__:
        module = kind.__module__ if type(kind.__module__) is str else ""
        known = KNOWN.get(module.partition(".")[0], KNOWN_ANYWHERE)
        found = known.get(kind.__name__) or KNOWN_ANYWHERE.get(kind.__name__)
        if found is not None:
            return found
    return None


def _of_os_error(error: OSError) -> Verdict:
    if is_a(error, PERMANENT_OS):
        return UNKNOWN
    if is_a(error, ConnectionRefusedError):
        return UNSENT
    number = _peek(error, "errno")
    if type(number) is int:
        if number in PERMANENT_ERRNOS:
            return UNKNOWN
        if number in UNSENT_ERRNOS:
            return UNSENT
    return LOST


def _is_certificate(error: BaseException) -> bool:
    return any(kind.__name__ == "SSLCertVerificationError" for kind in type(error).__mro__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give what `error` wraps, nearest first: reason, first argument, cause, context; a dozen at most."""
    seen = {id(error)}
    ahead = [error]
    while ahead and len(seen) <= _CHAIN:
        current = ahead.pop(0)
        args = _peek(current, "args")
        first = args[0] if type(args) is tuple and args else None
        context = None if _peek(current, "__suppress_context__") else _peek(current, "__context__")
        for each in (_peek(current, "reason"), first, _peek(current, "__cause__"), context):
            if issubclass(type(each), BaseException) and id(each) not in seen:
                seen.add(id(each))
                ahead.append(each)  # type: ignore[arg-type]
                yield each  # type: ignore[misc]


# ------------------------------------------------------------------------------------------- looking safely


def is_a(error: object, kinds: type[T] | tuple[type[T], ...]) -> TypeGuard[T]:
    """Say as `isinstance` does whether it is one of `kinds`; the object's own `__class__` is not asked."""
    return issubclass(type(error), kinds)


def _peek(thing: object, name: str) -> Any:
    """Give an attribute, or None; a property that raises counts as absent."""
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001  a stranger's property: whatever it raises says nothing about the call
        return None


def _entry(mapping: object, key: str) -> Any:
    """Give `mapping.get(key)`, or None; what is no mapping, or raises, has no entries."""
    try:
        return mapping.get(key)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  as above
        return None
