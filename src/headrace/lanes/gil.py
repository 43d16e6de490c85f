"""What is asked of a call besides its clocks: was it interrupted, was the GIL free meanwhile, what would its way cost.

    probe: sleep a moment ─► needs the GIL to go on ─► count ─► …

Rules:
1. A thread that finds the GIL free wakes as often as it does beside nothing; one that must wait for it wakes every 5 ms.
   Other programs on the machine change little about that: who has slept is let run first.
2. It says nothing about less than a few milliseconds.
3. A call that the system interrupted seems to wait; what is judged by the share of CPU leaves such calls out.
"""

from __future__ import annotations

import pickle
import resource
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

__all__ = ["GilProbe", "Way", "interruptions", "way"]

_MOMENT: Final = 0.0002
_ENOUGH: Final = 0.004
_PRACTICE: Final = 0.01
_WHOLE: Final = 0.9
#: What a value costs on its way to a child and back beyond its pickling, chunked as it is, in seconds.
_HAND_OVER: Final = 5e-6


class Way(NamedTuple):
    """The way of a value to a process, and of its result back: seconds, and the bytes of each."""

    seconds: float
    there: int
    back: int


def way(value: Any, result: Any) -> Way:
    """Say what it would cost to call in another process. Raises what pickling raises where they cannot go."""
    began = time.perf_counter()
    there, back = pickle.dumps(value, 5), pickle.dumps(result, 5)
    pickle.loads(there)
    pickle.loads(back)
    # Twice: it is written to the child and read from it, which costs about as much as pickling.
    return Way(2 * (time.perf_counter() - began) + _HAND_OVER, len(there), len(back))


def interruptions() -> int:
    """Count how often this thread was stopped though it could have gone on; 0 where the system does not say."""
    which = getattr(resource, "RUSAGE_THREAD", None)
    return resource.getrusage(which).ru_nivcsw if which is not None else 0


class GilProbe:
    """A thread that counts how often it gets the GIL. Call `start` while nobody computes, and `end` once.

    `ticks` counts for ever; `cpu` is what asking costs, in seconds of the processor so far.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self.cpu = 0.0
        self._period = _MOMENT
        self._is_ended = False
        self._thread = threading.Thread(target=self._tick, name="headrace-gil-probe", daemon=True)

    def _tick(self) -> None:
        while not self._is_ended:
            time.sleep(_MOMENT)
            self.ticks += 1
            self.cpu = time.thread_time()

    def start(self) -> None:
        """Begin to count, and learn how often it gets the GIL when nobody wants it: takes 10 ms."""
        self._thread.start()
        began, before = time.perf_counter(), self.ticks
        time.sleep(_PRACTICE)
        self._period = (time.perf_counter() - began) / max(1, self.ticks - before)

    def free(self, calls: Iterable[tuple[float, float, int]]) -> float | None:
        """Say for which share of some calls the GIL was free, given the seconds that each took, the seconds of CPU in them,
        and the ticks; None where there is too little to tell.

        Only calls count that computed all the time: while one waits for its turn on a processor, the GIL may be free.
        """
        whole = [(wall, ticks) for wall, cpu, ticks in calls if cpu >= _WHOLE * wall]
        seconds, ticks = sum(wall for wall, _ in whole), sum(ticks for _, ticks in whole)
        return min(1.0, ticks * self._period / seconds) if seconds >= _ENOUGH else None

    def end(self) -> None:
        """Count no more."""
        self._is_ended = True

    @property
    def is_alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until its thread is over, after `end`."""
        self._thread.join()
