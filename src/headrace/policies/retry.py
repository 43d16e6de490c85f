"""Whether a failed call is repeated, and when.

Rules:
1. What the function says goes first: Skip, GiveUp, RetryAfter.
2. A *once* call whose end is unknown is never repeated: it is in doubt. It is repeated only where it is
   certain that nothing happened.
3. A wait is never shorter than what the other side asked for, and never longer than the item's time allows.
4. A hold concerns the whole key; it stands whatever becomes of this item.
5. To be refused for load says nothing against the item: such calls are counted apart, and may be more.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from random import Random
from typing import Literal, NamedTuple

from headrace.errors import Disposition, GiveUp, PlanError, RetryAfter, Skip
from headrace.policies.backoff import full_jitter, spread
from headrace.policies.classify import classify, is_a, transient
from headrace.policies.limit_options import short

__all__ = ["Decision", "Retry", "decide"]

On = Callable[[BaseException], bool] | type[BaseException] | tuple[type[BaseException], ...]

#: Attempts for a function that raises RetryAfter on a stage without `retry=`.
ATTEMPTS_WITHOUT_RETRY = 4
#: So often may an item be refused for load, for each repetition that its attempts allow.
REFUSALS = 4


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Retry:
    """Which failed calls are repeated, how often, and after what waits.

    `attempts` counts the calls for one item, the first included. Those that were refused because the other
    side has too much to do (429, 503 with Retry-After, RetryAfter(hold=True): none of them was processed) are
    counted apart, since that says nothing against the item: it may be refused four times for each repetition,
    with attempts=4 so twelve times, and the thirteenth refusal is final. attempts=1 repeats nothing. What ends
    waiting earlier is `within=`. `on` says which failures are worth it: an
    exception class, a tuple of them, or a function of the exception. The wait after attempt n is drawn from 0
    … min(cap, base · 2ⁿ⁻¹) seconds; where the other side asked for less load (429, or 503 with Retry-After),
    `overload_base` and `overload_cap` take their place, and the wait is never shorter than the Retry-After
    given. A waiting item holds no place, no permit and no worker. With `budget=0.2` at most a fifth of a key's
    calls are repetitions, but for ten a second; those beyond wait longer.

    A *once* call is only repeated where nothing can have happened, whatever `on` says. Raises PlanError for
    values that make no sense.
    """

    attempts: int = 4
    _: dataclasses.KW_ONLY
    on: On = transient
    base: float = 0.2
    cap: float = 30.0
    overload_base: float = 1.0
    overload_cap: float = 300.0
    budget: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if type(self.attempts) is not int or self.attempts < 1:
            problems.append(f"attempts={self.attempts!r}: give the number of calls in all, 1 or more")
        for name in ("base", "cap", "overload_base", "overload_cap"):
            seconds = getattr(self, name)
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if not number or not 0.0 <= seconds < math.inf:
                problems.append(f"{name}={seconds!r}: give seconds, a finite number, 0 or more")
        share = self.budget
        if share is not None and (
            isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share <= 1.0
        ):
            problems.append(
                f"budget={share!r}: give a share of the calls, above 0 and at most 1, such as 0.2"
            )
        problem = _problem_of_on(self.on)
        if problem:
            problems.append(f"on={self.on!r}: {problem}")
        if problems:
            raise PlanError("Retry: " + "; ".join(problems))

    def __repr__(self) -> str:
        given = [f"attempts={self.attempts}"]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                given.append(f"{field.name}={getattr(value, '__name__', repr(value))}")
        return f"Retry({', '.join(given)})"

    def matches(self, error: Exception) -> bool:
        """Say whether `on` holds for `error`. One that raises counts as no; a note on `error` says so."""
        on = self.on
        if on is transient:
            return transient(error)
        if isinstance(on, type | tuple):
            return is_a(error, on)
        try:
            return bool(on(error))
        except Exception as trouble:  # noqa: BLE001  a user's function; the failure at hand counts
            _note(
                error, f"Retry(on={short(on)}) raised {short(trouble)} for this error: it was not repeated."
            )
            return False

    def backoff(self, attempt: int, disposition: Disposition, rng: Random) -> float:
        """Draw the wait (seconds) after failed attempt `attempt`."""
        if disposition is Disposition.OVERLOAD:
            return full_jitter(attempt, self.overload_base, self.overload_cap, rng)
        return full_jitter(attempt, self.base, self.cap, rng)


def _note(error: Exception, text: str) -> None:
    try:
        error.add_note(text)
    except Exception:  # noqa: BLE001 - an error of the user's that takes no note goes without
        return


def _problem_of_on(on: object) -> str:
    kinds = on if isinstance(on, tuple) else (on,)
    if isinstance(on, type) or (isinstance(on, tuple) and on):
        bad = [kind for kind in kinds if not (isinstance(kind, type) and issubclass(kind, Exception))]
        # CancelledError and KeyboardInterrupt are orders to stop, never failures of a call.
        return f"{bad[0]!r} is not a subclass of Exception" if bad else ""
    if not callable(on):
        return "give an exception class, a tuple of them, or a function of the exception"
    if inspect.iscoroutinefunction(on):
        return "give a plain function; this one is async"
    return ""


class Decision(NamedTuple):
    """What to do about a failed call.

    `again`: repeat it `after` seconds. `fail`: the item fails with this error. `in_doubt`: it fails as
    InDoubt. `skip`: it is settled as Skipped. Whatever the kind, where `hold` is not None the whole key waits
    for so many seconds: those that were asked for, and up to a tenth more. `refused`: the call was refused for
    load, and is one more of those that are counted apart.
    """

    kind: Literal["again", "fail", "in_doubt", "skip"]
    after: float = 0.0
    hold: float | None = None
    refused: bool = False


def decide(
    retry: Retry | None,
    error: Exception,
    attempt: int,
    effect: str,
    sent: bool,
    rng: Random,
    now: float,
    deadline: float | None,
    refused: int = 0,
) -> Decision:
    """Decide what becomes of an item whose attempt number `attempt` (from 1) ended in `error`.

    `refused` is how many of those before were refused for load.

    `effect` is "safe", "idempotent" or "once". `sent=False` says that the caller knows that nothing went out;
    else what the error says counts. `deadline` is the end of the item's `within=`, on the same clock as
    `now`: a repetition that could not start before it is not waited for, the item fails now. Never raises.
    """
    if is_a(error, Skip):
        return Decision("skip")
    if is_a(error, GiveUp):
        return Decision("fail")
    if is_a(error, RetryAfter):
        after = spread(error.seconds, rng)
        hold = after if error.hold and after > 0.0 else None
        most = ATTEMPTS_WITHOUT_RETRY if retry is None else retry.attempts
        again = _may(most, attempt, refused, error.hold)
        return _again_or_fail(after, hold, again, now, deadline, error.hold)

    verdict = classify(error)
    asked = spread(verdict.retry_after, rng) if verdict.retry_after is not None else 0.0
    hold = asked if verdict.hold and asked > 0.0 else None
    if effect == "once" and sent and verdict.ambiguous:
        return Decision("in_doubt", 0.0, hold)
    is_refusal = verdict.disposition is Disposition.OVERLOAD and not verdict.ambiguous
    if retry is None or not _may(retry.attempts, attempt, refused, is_refusal) or not retry.matches(error):
        return Decision("fail", 0.0, hold, is_refusal)
    number = refused + 1 if is_refusal else attempt - refused
    after = max(asked, retry.backoff(number, verdict.disposition, rng))
    return _again_or_fail(after, hold, True, now, deadline, is_refusal)


def _may(attempts: int, attempt: int, refused: int, is_refusal: bool) -> bool:
    """Say whether there may be one more call after number `attempt`, which was refused for load or failed otherwise."""
    return refused < REFUSALS * (attempts - 1) if is_refusal else attempt - refused < attempts


def _again_or_fail(
    after: float, hold: float | None, may: bool, now: float, deadline: float | None, refused: bool
) -> Decision:
    if not may or (deadline is not None and now + after >= deadline):
        return Decision("fail", 0.0, hold, refused)
    return Decision("again", after, hold, refused)
