"""Whether others can have the interpreter while a function computes, asked by a thread that wants it all the time.

    probe: sleep a moment ─► needs the GIL to go on ─► count ─► …

Rules:
1. A thread that finds the GIL free wakes as often as it does beside nothing; one that must wait for it wakes every 5 ms.
   Other programs on the machine change little about that: who has slept is let run first.
2. It says nothing about less than a few milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

__all__ = ["GilProbe"]

_MOMENT: Final = 0.0002
_ENOUGH: Final = 0.004
_PRACTICE: Final = 0.01
_WHOLE: Final = 0.9


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
