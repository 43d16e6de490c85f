"""Which lane a function belongs in, judged by what its calls were measured to cost.

Rules:
1. The judgement is a table: what keeps a call busy (waiting, the processor, the interpreter's lock) decides, and what
   moving it costs decides whether that is worth it.
2. Without evidence nothing is moved: what was not measured is None, and then the function stays where it is.
3. All times are seconds of one call; a share is between 0 and 1.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

__all__ = ["CallCosts", "Kind", "LaneVerdict", "advice_on_threads", "judge", "time_text"]

Kind = Literal[
    "waits",
    "waits, holding the loop",
    "computes, holding the loop",
    "blocks",
    "computes, holding the GIL",
    "computes, releasing the GIL",
    "mixed",
    "small",
]

#: A call shorter than this is not worth a hand-over to a thread and back.
SMALL: Final = 20e-6
#: A call shorter than this is not worth a way to another process, chunked as it is.
SMALL_FOR_A_PROCESS: Final = 100e-6
#: The share of CPU in a call's time below which it waits, and above which it computes.
WAITING: Final = 0.3
COMPUTING: Final = 0.7
#: How much faster two threads must be than one before the interpreter's lock counts as released.
RELEASED: Final = 1.4
#: The share of its time in which others could have the lock, above which it counts as released.
FREE: Final = 0.6
#: How much faster another lane must be before a function is moved there.
WORTH_IT: Final = 1.25
#: A coroutine that keeps the loop longer than this in one go, or for this share of its time, holds it.
HELD: Final = 0.05
HELD_SHARE: Final = 0.5
LEAST_HELD: Final = 0.002
#: A thread stage that computed for less than this in all (seconds) is not worth advice, nor is one that kept less or more
#: than about one core busy.
LEAST_COMPUTED: Final = 1.0
ONE_CORE: Final = (0.5, 1.2)
#: Threads for calls that wait, as many as the lane has by default.
THREADS: Final = 32
CALLS: Final = 100


@dataclasses.dataclass(frozen=True, slots=True)
class CallCosts:
    """What a call costs: medians over some calls.

    `wall` is how long it takes alone, `cpu` the processor's part of that. Of an async function, `held` is the longest
    time between two awaits, and `held_in_all` the sum of these. `speedup` is what two threads achieve over one,
    `gil_free` the share of a call's time in which another thread could have the interpreter, `transport` what it takes
    to bring the value to another process and the result back.
    """

    wall: float
    cpu: float
    cores: int
    is_async: bool = False
    held: float = 0.0
    held_in_all: float = 0.0
    speedup: float | None = None
    gil_free: float | None = None
    transport: float | None = None
    free_threaded: bool = False

    @property
    def cpu_share(self) -> float:
        """The processor's part of a call's time."""
        return min(1.0, self.cpu / self.wall) if self.wall > 0 else 0.0

    @property
    def gil_share(self) -> float | None:
        """The part of a call's computing for which it holds the interpreter's lock; None where that is not known.

        Two threads that never hold it together are twice as fast as one; two that always want it are no faster.
        """
        if self.gil_free is not None:
            return 1.0 - self.gil_free
        if self.speedup is None:
            return None
        return max(0.0, min(1.0, 2.0 / max(self.speedup, 1.0) - 1.0))

    @property
    def releases_gil(self) -> bool:
        """Whether threads compute side by side: they were seen to, or could have if the machine had been idle.

        On a busy machine two threads may seem faster than one that was interrupted, so the lock itself has the last word.
        """
        if self.gil_free is not None:
            return self.gil_free >= FREE
        return (self.speedup or 0.0) >= RELEASED


@dataclasses.dataclass(frozen=True, slots=True)
class LaneVerdict:
    """Where a function belongs, and why. `gain` is the throughput there over that on the lane it has by itself."""

    kind: Kind
    lane: Literal["loop", "thread", "process"]
    concurrency: int
    reason: str
    gain: float = 1.0


def judge(costs: CallCosts) -> LaneVerdict:
    """Say which lane a function with these costs belongs in."""
    return _judge_async(costs) if costs.is_async else _judge_plain(costs)


def _judge_async(costs: CallCosts) -> LaneVerdict:
    holds = costs.held >= HELD or (costs.held >= LEAST_HELD and costs.held_in_all >= HELD_SHARE * costs.wall)
    if not holds:
        return LaneVerdict("waits", "loop", CALLS, "it waits, and leaves the loop free meanwhile")
    if costs.cpu >= HELD_SHARE * costs.held_in_all:
        return LaneVerdict(
            "computes, holding the loop",
            "process",
            costs.cores,
            f"it computes for up to {time_text(costs.held)} between two awaits, and everything else waits: make that part a "
            f"plain function, in a stage of its own with lane='process'",
            max(1.0, float(costs.cores)),
        )
    return LaneVerdict(
        "waits, holding the loop",
        "thread",
        THREADS,
        f"it blocks for up to {time_text(costs.held)} between two awaits without computing, and everything else waits: make "
        f"that part a plain function, which runs in threads",
        max(1.0, THREADS * costs.held_in_all / costs.wall),  # the loop does one of them at a time
    )


def _judge_plain(costs: CallCosts) -> LaneVerdict:
    share = costs.cpu_share
    if costs.wall < SMALL:
        return LaneVerdict(
            "small",
            "loop",
            1,
            f"a call takes {time_text(costs.wall)}, less than the way to a thread and back: lane='loop', or batch(…)",
        )
    if share < WAITING:
        return LaneVerdict(
            "blocks",
            "thread",
            THREADS,
            f"it waits without computing ({share:.0%} CPU): threads wait side by side",
        )
    if costs.free_threaded:
        return LaneVerdict(
            "computes, releasing the GIL" if share >= COMPUTING else "mixed",
            "thread",
            costs.cores,
            "this interpreter has no lock that threads would wait for",
        )
    if costs.speedup is None and costs.gil_free is None:
        return LaneVerdict(
            "mixed" if share < COMPUTING else "computes, holding the GIL",
            "thread",
            costs.cores if share >= COMPUTING else THREADS,
            f"it computes ({share:.0%} CPU); whether two threads are faster than one was not measured",
        )
    if costs.releases_gil:
        kind: Kind = "computes, releasing the GIL" if share >= COMPUTING else "mixed"
        threads = costs.cores if share >= COMPUTING else _threads_for(costs)
        return LaneVerdict(
            kind,
            "thread",
            threads,
            f"it computes ({share:.0%} CPU), but leaves the GIL to others meanwhile: {_evidence(costs)}",
        )
    return _judge_locked(costs)


def _judge_locked(costs: CallCosts) -> LaneVerdict:
    """Judge a function whose computing goes no faster in two threads than in one."""
    kind: Kind = "computes, holding the GIL" if costs.cpu_share >= COMPUTING else "mixed"
    threads = 1 if costs.cpu_share >= COMPUTING else _threads_for(costs)
    why = f"it computes ({costs.cpu_share:.0%} CPU) and holds the GIL: {_evidence(costs)}"
    if costs.transport is None:
        return LaneVerdict(kind, "thread", threads, why + "; what a process would cost was not measured")
    # In threads the lock lets one compute at a time. In processes each core does, and carries the values besides.
    in_threads = max(costs.cpu, costs.wall / THREADS)
    in_processes = (costs.wall + costs.transport) / costs.cores
    gain = in_threads / in_processes
    if costs.wall < SMALL_FOR_A_PROCESS or gain < WORTH_IT:
        cost = (
            f"{time_text(costs.wall)} a call, {time_text(costs.transport)} for the way to a process and back"
        )
        few = " on one core" if costs.cores < 2 else ""
        return LaneVerdict(kind, "thread", threads, f"{why}, but moving it is not worth it{few}: {cost}")
    return LaneVerdict(kind, "process", costs.cores, why, gain)


def _evidence(costs: CallCosts) -> str:
    parts = []
    if costs.speedup is not None:
        parts.append(f"two threads are {costs.speedup:.1f} times as fast as one")
    if costs.gil_free is not None:
        parts.append(f"another thread could have it for {costs.gil_free:.0%} of the time")
    return ", ".join(parts)


def _threads_for(costs: CallCosts) -> int:
    """Give the threads that keep the processor busy with calls of which a part waits."""
    return max(1, min(THREADS, round(costs.cores / max(costs.cpu_share, 1e-3))))


def advice_on_threads(computed: float, elapsed: float, cores: int) -> str | None:
    """Say what a thread stage might gain elsewhere that computed so many seconds of CPU in a run; None if nothing.

    Threads that keep one core busy and no more wait for the interpreter's lock; more than one core shows that they do not.
    """
    share = computed / elapsed if elapsed > 0 else 0.0
    if cores < 2 or computed < LEAST_COMPUTED or not ONE_CORE[0] <= share <= ONE_CORE[1]:
        return None
    return (
        f"computed for {time_text(computed)} in threads, which is {share:.0%} of one core: processes may be faster; "
        f'lane="auto" finds out, and headrace advise shows it'
    )


def time_text(seconds: float) -> str:
    """Write a time as people read it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
