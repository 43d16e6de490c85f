"""The records that consumers see while a run goes on: `<Noun><PastParticiple>`.

Rules:
1. A record says what happened; nobody answers it. Screens, logs and metrics need nothing else.
2. Fields are plain values, so that a run can be recorded and shown again later. New fields are added at the end.
3. `at` is in seconds since the epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "AttemptFailed",
    "Event",
    "ItemSettled",
    "ItemsParked",
    "KeyHeld",
    "LaneChosen",
    "LoopHeld",
    "RunFinished",
    "RunStarted",
    "RunStateChanged",
    "StageStatistics",
    "Statistics",
    "StatisticsSampled",
]


@dataclasses.dataclass(slots=True)
class Event:
    """What all records have."""

    at: float


@dataclasses.dataclass(slots=True)
class RunStarted(Event):
    """A run began. `total` is the number of items in the source where it is known; `settled` what earlier runs did."""

    job: str | None
    stages: Sequence[str]
    window: int
    total: int | None = None
    settled: int = 0
    place: str | None = None


@dataclasses.dataclass(slots=True)
class RunStateChanged(Event):
    """The run went on to another state: running, paused, draining, cancelling, flushing, closed; and why."""

    state: str
    reason: str = ""


@dataclasses.dataclass(slots=True)
class AttemptFailed(Event):
    """An attempt failed. `retry_after` is the time (seconds) to the next one, None if it was the last."""

    position: int
    stage: str
    attempt: int
    error: str
    retry_after: float | None = None


@dataclasses.dataclass(slots=True)
class ItemSettled(Event):
    """An item reached its outcome: Done, Failed or Skipped."""

    position: int
    outcome: str
    stage: str
    attempts: int
    elapsed: float
    error: str | None = None


@dataclasses.dataclass(slots=True)
class ItemsParked(Event):
    """So many items of a `stage` were put aside until `due` (epoch seconds; the last of them), because of `reason`.

    `key` is that of the limit which held them, "" where it was the item itself that has to wait.
    """

    stage: str
    count: int
    due: float
    reason: str
    key: str = ""


@dataclasses.dataclass(slots=True)
class KeyHeld(Event):
    """Everything of one key of a limit waits until `until` (epoch seconds), because `reason`."""

    limit: str
    key: str
    until: float
    reason: str


@dataclasses.dataclass(slots=True)
class LaneChosen(Event):
    """A stage with `lane="auto"` was found to belong in `lane`, `concurrency` calls at once, for `reason`.

    A call takes `wall` seconds, of which `cpu_share` is computing; two threads are `speedup` times as fast as one, and
    the way to a process and back takes `transport` seconds, where these were looked at. It rests on so many `calls`.
    """

    stage: str
    lane: str
    concurrency: int
    kind: str
    reason: str
    wall: float
    cpu_share: float
    speedup: float | None
    transport: float | None
    calls: int


@dataclasses.dataclass(slots=True)
class LoopHeld(Event):
    """The event loop was held: nothing else could run for `seconds`, time limits included.

    `function`, `file` and `line` are where it stood meanwhile. `stage` is "" where the code belongs to no stage of the
    run, and "source" while the source was read. `cause`: it "computes", it "blocks" without computing, or it "waits"
    while other threads of the process compute. `cure` is the lane that would help, or "".
    """

    stage: str
    function: str
    file: str
    line: int
    seconds: float
    cause: str
    cure: str = ""


@dataclasses.dataclass(slots=True)
class StageStatistics:
    """One stage at one moment: what queues, waits and runs, attempts and failures so far, seconds in calls.

    With `hedge=`, `copies` of slow calls were started, which `running`, `attempts` and `busy` count too, and `copies_won`
    of them came first.
    """

    name: str
    lane: str
    queued: int = 0
    held: int = 0
    running: int = 0
    waiting: int = 0
    attempts: int = 0
    failures: int = 0
    busy: float = 0.0
    abandoned: int = 0
    copies: int = 0
    copies_won: int = 0


@dataclasses.dataclass(slots=True)
class Statistics:
    """A run at one moment. The first six are source items of this run; `open` is what the window holds."""

    taken: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    parked: int = 0
    returned: int = 0
    open: int = 0
    window: int = 0
    open_bytes: int = 0
    attempts: int = 0
    elapsed: float = 0.0
    state: str = "running"
    stages: Sequence[StageStatistics] = ()
    keys: Sequence[
        Mapping[str, Any]
    ] = ()  #: the busiest keys of keyed limits: limit, key, running, held, level, rate, open
    source_ended: bool = False
    job_parked: int = 0  #: items that the whole job has parked now, those of earlier runs included


@dataclasses.dataclass(slots=True)
class StatisticsSampled(Event):
    """A sample of the run's statistics, a few times a second while somebody listens."""

    statistics: Statistics


@dataclasses.dataclass(slots=True)
class RunFinished(Event):
    """The run is over. `report` is `Report.as_dict()`."""

    report: Mapping[str, Any]
