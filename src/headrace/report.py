"""The accounting of a run: every item that was taken, and what became of it.

Rules:
1. taken = done + failed + skipped + parked + returned, in source items, for the run; the report says if it is not so.
2. A report is data: it can be stored, printed and read again.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import os
import shlex
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from headrace.errors import EngineError, ItemsFailed
from headrace.item import Delivery, Done, Failed, Outcome, Parked, Returned, Skipped

__all__ = ["DoneColumns", "FailureCause", "HeldPlace", "Outcomes", "Report", "StageReport", "exit_code"]

T = TypeVar("T")

#: How many different causes of failure a report lists.
MOST_CAUSES = 50
#: How many places that held the loop a report lists in its text.
MOST_PLACES = 5


@dataclasses.dataclass(slots=True)
class FailureCause:
    """Failures of one kind: the stage, the class of error, what the first one said, how many."""

    stage: str
    error: str
    example: str
    count: int = 1


@dataclasses.dataclass(slots=True)
class StageReport:
    """What one stage did. `busy` is the sum of the seconds that its calls took; `chosen` says why it was put in its lane,
    where that was left to headrace; `advice` is what it might gain in another one. With `hedge=`, `copies` of slow calls
    were started, which `attempts` and `busy` count too, and `copies_won` of them came first.
    """

    name: str
    lane: str
    concurrency: int
    attempts: int = 0
    failures: int = 0
    busy: float = 0.0
    abandoned: int = 0
    chosen: str | None = None
    advice: str | None = None
    copies: int = 0
    copies_won: int = 0


@dataclasses.dataclass(slots=True)
class HeldPlace:
    """A place in the program that held the event loop, so that nothing else could run.

    `line` is where it stood most of the longest time. `stage` is "" where the code belongs to no stage of the run, and
    "source" while the source was read; `lane` is where that stage runs. `cause`: the code "computes", it "blocks" without
    computing, or it "waits" while other threads of the process compute. `cure` is the lane that would help, or "".
    """

    stage: str
    lane: str
    function: str
    file: str
    line: int
    times: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    cause: str = "computes"
    cure: str = ""

    def __str__(self) -> str:
        who = f"{self.stage} ({self.lane})" if self.lane else self.stage or "code outside the stages"
        times = "once" if self.times == 1 else f"{_number(self.times)} times"
        return (
            f"{who} held the loop {times}, {self.seconds:.1f} s in all, "
            f"at {_near(self.file)}:{self.line} in {self.function}: {self._advice()}"
        )

    def _advice(self) -> str:
        if self.cause == "waits":
            return "it waited while other threads computed"
        if self.cure == "process":
            return "it computes: use lane='process'"
        if self.cure == "thread":
            return "it blocks: make it a plain function, and use lane='thread'"
        return "it computes" if self.cause == "computes" else "it blocks"


def exit_code(
    *,
    fault: bool,
    world: bool,
    busy: bool = False,
    signal: int | None,
    unfinished: bool,
    failed: bool,
) -> int:
    """Give the exit code of what happened; the more urgent one wins: 70, 75, 4, 130/143, 3, 1, 0."""
    if fault:
        return 70
    if busy:
        return 75
    if world:
        return 4
    if signal is not None:
        return 128 + signal
    if unfinished:
        return 3
    return 1 if failed else 0


@dataclasses.dataclass(slots=True)
class Report:
    """What a run did, item by item in sums.

    `job_done`, `job_failed`, `job_skipped` and `job_parked` count the whole job, earlier runs included; None without a job.
    `next_due` (seconds since the epoch) is when the next parked item may go on. `stopped` says why the run ended before the
    source did. `untaken` is true when the source had more to give.
    """

    taken: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    parked: int = 0
    returned: int = 0
    elapsed: float = 0.0
    stages: Sequence[StageReport] = ()
    causes: Sequence[FailureCause] = ()
    job: str | None = None
    place: str | None = None
    job_done: int | None = None
    job_failed: int | None = None
    job_skipped: int | None = None
    stopped: str | None = None
    untaken: bool = False
    within_max_failures: bool = False
    signal: int | None = None
    trouble: str | None = None
    fault: bool = False
    warnings: Sequence[str] = ()
    abandoned: int = 0
    commits: int = 0
    total: int | None = None  #: items in the source, where that is known
    finished_at: float | None = None  #: set where the job was finished before and there was nothing to do
    held: Sequence[HeldPlace] = ()  #: what held the event loop for more than 50 ms at a time, the worst first
    job_parked: int | None = None
    next_due: float | None = None

    @property
    def settled(self) -> int:
        """Items with an outcome."""
        return self.done + self.failed + self.skipped

    @property
    def balanced(self) -> bool:
        """Whether every taken item is accounted for."""
        return self.taken == self.settled + self.parked + self.returned

    @property
    def parked_in_all(self) -> int:
        """The items that are parked now: those of the whole job, or of the run where there is no job."""
        return self.parked if self.job_parked is None else self.job_parked

    @property
    def ok(self) -> bool:
        """Whether all is done or skipped, and nothing is left."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """The exit code for scripts: 0, 1, 3, 4, 70, 130 or 143."""
        failed = self.failed if self.job_failed is None else self.job_failed
        return exit_code(
            fault=self.fault or not self.balanced,
            world=self.trouble is not None and not self.fault,
            signal=self.signal,
            unfinished=self.untaken or self.parked_in_all > 0 or self.returned > 0,
            failed=failed > 0 and not self.within_max_failures,
        )

    def check(self) -> Report:
        """Return self if all items are done or skipped; raise ItemsFailed, or EngineError if the sum is wrong."""
        if not self.balanced:
            raise EngineError(f"items are not accounted for: {self.line()}. Please report this.")
        if self.exit_code != 0:
            why = [f"{self.failed} failed"] if self.failed else []
            why += [f"{self.parked_in_all} parked"] if self.parked_in_all else []
            why += [f"{self.returned} returned"] if self.returned else []
            why += ["the source had more to give"] if self.untaken else []
            why += [self.trouble] if self.trouble else []
            causes = [RuntimeError(f"{c.count} × {c.stage}: {c.error}: {c.example}") for c in self.causes]
            raise ItemsFailed(
                f"not all items are done: {', '.join(why) or self.stopped}",
                causes or [RuntimeError(self.stopped or "unfinished")],
                (),
                self.parked_in_all + self.returned,
            )
        return self

    def line(self) -> str:
        """Give the accounting in one line."""
        text = (
            f"taken {_number(self.taken)} = done {_number(self.done)} + failed {_number(self.failed)} + "
            f"skipped {_number(self.skipped)} + parked {_number(self.parked)} + returned {_number(self.returned)}"
        )
        return text if self.balanced else f"{text}   DOES NOT ADD UP: please report this"

    def parked_line(self) -> str:
        """Say how many items are parked, until when, and how to go on; "" where none are."""
        if not self.parked_in_all or self.next_due is None:
            return ""
        until = "and due" if self.next_due <= time.time() else f"until {_moment(self.next_due)}"
        how = ""
        if self.place is not None:
            job = "" if self.job in (None, "default") else f" --job {shlex.quote(self.job or '')}"
            how = f"; run the same again, or headrace resume {shlex.quote(self.place)}{job}"
        return f"{_number(self.parked_in_all)} parked {until}{how}"

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data, JSON-able."""
        return {**dataclasses.asdict(self), "exit_code": self.exit_code}

    def __str__(self) -> str:
        lines = [self.line()]
        if self.job is not None:
            lines.append(
                f"job {self.job}: done {_number(self.job_done or 0)}, failed {_number(self.job_failed or 0)}, "
                f"skipped {_number(self.job_skipped or 0)} in all"
            )
        if parked := self.parked_line():
            lines.append(parked)
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        if self.trouble:
            lines.append(f"trouble: {self.trouble}")
        lines += [f"  {_number(c.count)} × {c.stage}: {c.error}: {c.example}" for c in self.causes]
        lines += [f"{s.name} ran on the {s.lane} lane: {s.chosen}" for s in self.stages if s.chosen]
        lines += [f"{s.name} {s.advice}" for s in self.stages if s.advice]
        lines += [
            f"{s.name} started copies of {_number(s.copies)} slow calls; {_number(s.copies_won)} of them came first"
            for s in self.stages
            if s.copies
        ]
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [str(place) for place in self.held[:MOST_PLACES]]
        if len(self.held) > MOST_PLACES:
            rest = self.held[MOST_PLACES:]
            seconds = sum(place.seconds for place in rest)
            lines.append(f"{len(rest)} other places held the loop, {seconds:.1f} s in all")
        if self.abandoned:
            lines.append(f"{self.abandoned} calls could not be stopped and still run")
        return "\n".join(lines)


def _moment(at: float) -> str:
    """Write epoch seconds as local time, to the full minute after it, with the date where it is not today's."""
    due = time.localtime(-(-at // 60) * 60)
    is_today = time.strftime("%Y-%m-%d", due) == time.strftime("%Y-%m-%d")
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", due)


def _near(file: str) -> str:
    """Shorten the path of a file below the current directory."""
    try:
        here = os.getcwd() + os.sep
    except OSError:  # it was removed
        return file
    return file.removeprefix(here)


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


class DoneColumns:
    """What is known of done items, a column each."""

    __slots__ = ("attempts", "elapsed", "items", "positions", "values")

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.items: list[Any] = []
        self.values: list[Any] = []
        self.attempts = array("L")
        self.elapsed = array("d")

    def keep(self, root: Delivery, elapsed: float) -> None:
        """Add a done item."""
        self.positions.append(root.position)
        self.items.append(root.item)
        self.values.append(root.value)
        self.attempts.append(root.attempts + root.tried)
        self.elapsed.append(elapsed)

    def outcomes(self) -> Iterator[Done[Any]]:
        """Make the outcome of each."""
        columns = (self.items, self.values, self.positions, self.attempts, self.elapsed)
        return map(Done, *columns)

    def values_in_order(self) -> list[Any]:
        """Give the values by position."""
        positions = self.positions
        if all(map(operator.lt, positions, itertools.islice(positions, 1, None))):
            return list(self.values)
        return [self.values[number] for number in sorted(range(len(positions)), key=positions.__getitem__)]


class Outcomes(Generic[T]):
    """What `map` gives: the outcome of each item, in the order of the input.

    Outcome objects are made when they are asked for. Items that the run did not take have none.
    """

    def __init__(
        self,
        done: DoneColumns,
        others: Sequence[Outcome[T]],
        report: Report,
        earlier: Mapping[int, Outcome[T]] | None = None,
    ) -> None:
        self.report = report
        self._done = done
        self._others = others
        self._earlier = earlier or {}
        self._sorted: list[Outcome[T]] | None = None

    def _all(self) -> list[Outcome[T]]:
        if self._sorted is None:
            found: dict[int, Outcome[T]] = dict(self._earlier)
            found.update((outcome.position, outcome) for outcome in self._done.outcomes())
            found.update((outcome.position, outcome) for outcome in self._others)
            self._sorted = [found[position] for position in sorted(found)]
        return self._sorted

    def _of(self, kind: Callable[[Outcome[T]], bool]) -> list[Outcome[T]]:
        return [outcome for outcome in self._all() if kind(outcome)]

    @property
    def values(self) -> list[T]:
        """The values, aligned with the input. Raises ItemsFailed, with every failure, unless all are done."""
        self.check(skipped_too=True)
        if self._sorted is None and not self._others and not self._earlier:
            return self._done.values_in_order()
        return [outcome.value for outcome in self._all() if isinstance(outcome, Done)]

    @property
    def done(self) -> list[Done[T]]:
        """The outcomes with a value."""
        return [outcome for outcome in self._all() if isinstance(outcome, Done)]

    @property
    def failed(self) -> list[Failed[T]]:
        """The outcomes with an error."""
        return [outcome for outcome in self._all() if isinstance(outcome, Failed)]

    @property
    def skipped(self) -> list[Skipped[T]]:
        """The outcomes that were left out."""
        return [outcome for outcome in self._all() if isinstance(outcome, Skipped)]

    @property
    def unfinished(self) -> list[Outcome[T]]:
        """The items that the run parked or returned."""
        return self._of(lambda outcome: isinstance(outcome, (Parked, Returned)))

    @property
    def exit_code(self) -> int:
        """The report's exit code, for scripts."""
        return self.report.exit_code

    def check(self, *, skipped_too: bool = False) -> Outcomes[T]:
        """Return self if all items are done or skipped (with `skipped_too`: done); else raise ItemsFailed."""
        report = self.report
        unfinished = report.parked_in_all + report.returned
        missing = unfinished + (report.skipped if skipped_too else 0)
        if report.failed == 0 and missing == 0 and not report.untaken:
            return self
        failures = self.failed
        errors = [_noted(failure) for failure in failures]
        parts = [f"{len(failures)} of {report.taken} items failed"] if failures else []
        parts += [f"{report.skipped} were skipped"] if skipped_too and report.skipped else []
        parts += [f"{unfinished} are unfinished"] if unfinished else []
        parts += ["the source had more to give"] if report.untaken else []
        if not errors:
            errors = [RuntimeError(report.stopped or "; ".join(parts))]
        raise ItemsFailed("; ".join(parts) or "not all items are done", errors, failures, missing)

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[Outcome[T]]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> Outcome[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Outcome[T]]: ...
    def __getitem__(self, index: int | slice) -> Outcome[T] | list[Outcome[T]]:
        return self._all()[index]

    def __repr__(self) -> str:
        return f"<Outcomes {self.report.line()}>"


def _noted(failure: Failed[Any]) -> Exception:
    note = f"item {failure.position}: {_short(failure.item)}, after {failure.attempts} attempts"
    try:
        if note not in getattr(failure.error, "__notes__", ()):
            failure.error.add_note(note)
    except Exception:  # noqa: BLE001, S110 - an error of the user's that takes no note is raised without
        pass
    return failure.error


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as unreadable:  # noqa: BLE001 - the failures matter more than how their items look
        text = f"<{type(value).__qualname__} whose repr raises {type(unreadable).__name__}>"
    return text if len(text) <= 100 else text[:97] + "…"
