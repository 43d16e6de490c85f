"""What held the event loop: which place in the program, for how long, and whether it computed or waited.

    last beat ── due ···· sample, sample, sample ···· next beat      the loop was held from about «due» to the next beat

Rules:
1. Blame needs evidence: samples of the loop's stack, taken while it was held, one after the other in the same place.
2. Code of the user is blamed, not the libraries that it calls; where none of it is in the stack, nobody is.
3. A process that was stopped as a whole held nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

__all__ = ["Cause", "Frame", "Gap", "Hold", "Place", "Sample", "blame", "cure_of", "judge"]

#: The loop must be held so long (seconds) for it to be told.
LEAST = 0.05
#: Of the time held, the share in which a thread computes that is said to compute.
BUSY = 0.5
#: The share that will do where the code went on, or was made to give way, meanwhile: the machine had other things to do.
SOME = 0.15
#: A thread that had to give way so often (a second) would have gone on; one that blocks gives way by itself.
PREEMPTED = 20
#: A process that used less of the time, while nothing in it got a turn, was stopped or asleep with its machine.
STOPPED = 0.1
#: Bodies that have no name of their own: blamed is who they are part of.
NAMELESS = frozenset({"<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>"})

#: It computed; it blocked without computing; it waited while other threads of the process computed.
Cause = Literal["computes", "blocks", "waits"]


class Frame(NamedTuple):
    """One level of a stack."""

    function: str
    file: str
    line: int


class Place(NamedTuple):
    """A place in the program: a function's line, and the stage that it was called for, if any."""

    stage: str = ""
    lane: str = ""
    function: str = ""
    file: str = ""
    line: int = 0


class Sample(NamedTuple):
    """A look at the loop while it was held; `place` is None where nobody is blamed.

    `task` tells calls apart, and `point` changes as the code of one goes on.
    """

    at: float
    place: Place | None
    task: int = 0
    point: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """The time between two beats, the second of which came late.

    `beat` is the time after which it was due. `cpu` is what the loop's thread computed meanwhile and `cpu_of_all` the
    whole process, in seconds; `away` the longest time that the watching thread got no turn in; `preempted` how often the
    system took the processor from the loop's thread, as far as it tells.
    """

    began: float
    ended: float
    beat: float
    cpu: float
    cpu_of_all: float
    away: float = 0.0
    preempted: int = 0


class Hold(NamedTuple):
    """A place that held the loop, for so many seconds, and how."""

    place: Place
    seconds: float
    cause: Cause


def blame(frames: Sequence[Frame], whose: Place, libraries: Sequence[str], own: str) -> Place | None:
    """Give the place to be blamed for a stack, deepest frame first; None where no code of the user is in it.

    `whose` is where the function of the stage begins that made the call: empty where it was no stage's. `libraries` are the
    directories of the standard library, `own` that of headrace. Installed packages count as the user's code, but code in
    the file of the stage's function comes first: it is what can be changed.
    """
    found: Frame | None = None
    for frame in frames:
        if frame.function in NAMELESS or frame.file.startswith(own) or _is_library(frame.file, libraries):
            continue
        if whose.file and frame.file == whose.file:
            found = frame
            break
        found = found or frame
    if found is None:
        return None
    return Place(whose.stage, whose.lane, *found)


def _is_library(file: str, libraries: Sequence[str]) -> bool:
    if file.startswith("<frozen"):
        return True
    return "site-packages" not in file and any(file.startswith(directory) for directory in libraries)


def judge(gap: Gap, samples: Sequence[Sample]) -> list[Hold]:
    """Say what held the loop between two beats; nothing where it was not held long enough by one place."""
    began = gap.began + gap.beat / 2  # some time between the last beat and when the next one was due
    length = gap.ended - began
    samples = [sample for sample in samples if sample.at >= gap.began]
    if gap.ended - gap.began - gap.beat < LEAST or not samples:
        return []
    if gap.away > length / 2 and gap.cpu_of_all < STOPPED * length:
        return []
    return [
        Hold(place, until - since, _cause(gap, length, seen))
        for place, since, until, seen in _stretches(samples, began, gap.ended)
        if place is not None and until - since >= LEAST
    ]


class _Stretch(NamedTuple):
    """A time in which one place held the loop, and what was seen of it."""

    place: Place | None
    since: float
    until: float
    seen: list[Sample]


def _stretches(samples: Sequence[Sample], began: float, ended: float) -> list[_Stretch]:
    """Divide the time among the places: long calls one by one, short ones of one place in one stretch."""
    groups = [
        list(group) for _, group in groupby(samples, key=lambda one: (one.task, one.place and one.place[:4]))
    ]
    edges = [began, *((before[-1].at + after[0].at) / 2 for before, after in pairwise(groups)), ended]
    found: list[_Stretch] = []
    for seen, (since, until) in zip(groups, pairwise(edges), strict=True):
        place = seen[0].place
        last = found[-1] if found else None
        if (
            place is not None
            and last is not None
            and last.place is not None
            and last.place[:4] == place[:4]
            and min(until - since, last.until - last.since) < LEAST
        ):
            since, seen = last.since, last.seen + seen
            found.pop()
        if place is not None:
            place = place._replace(line=_commonest_line(seen))
        found.append(_Stretch(place, since, until, seen))
    return found


def _commonest_line(seen: Sequence[Sample]) -> int:
    return Counter(one.place.line for one in seen if one.place).most_common(1)[0][0]


def cure_of(hold: Hold) -> str:
    """Give the lane on which the stage would not hold the loop; "" where that is no stage, or its own lane helps not."""
    if not hold.place.lane:
        return ""
    return {"computes": "process", "blocks": "thread", "waits": ""}[hold.cause]


def _cause(gap: Gap, length: float, seen: Sequence[Sample]) -> Cause:
    share = gap.cpu / length
    went_on = len({sample.point for sample in seen}) > 1 or gap.preempted >= PREEMPTED * length
    if share >= BUSY or (share >= SOME and went_on):
        return "computes"
    return "waits" if (gap.cpu_of_all - gap.cpu) / length >= BUSY else "blocks"
