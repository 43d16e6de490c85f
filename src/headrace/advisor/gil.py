"""Whether others can have the interpreter while a function computes, asked by a thread that wants it all the time.

    probe: sleep a moment ─► needs the GIL to go on ─► count ─► …

Rules:
1. A thread that finds the GIL free wakes as often as it does beside nothing; one that must wait for it wakes every 5 ms.
2. It says nothing about less than a few milliseconds.
"""

from __future__ import annotations

import threading
import time
from typing import Final

__all__ = ["GilProbe"]

_MOMENT: Final = 0.0002
_ENOUGH: Final = 0.004
_PRACTICE: Final = 0.02


class GilProbe:
    """A thread that counts how often it gets the GIL. Use it with `with`; then `free` is the share of the time that it
    was to be had, or None where it was too short to tell; `cpu` is what asking cost, as a share of the time.
    """

    def __init__(self) -> None:
        self.free: float | None = None
        self.cpu = 0.0
        self._ticks = 0
        self._computed = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._tick, name="headrace-gil-probe", daemon=True)

    def _tick(self) -> None:
        while not self._ended:
            time.sleep(_MOMENT)
            self._ticks += 1
            self._computed = time.thread_time()

    def __enter__(self) -> GilProbe:
        self._thread.start()
        began = time.perf_counter()
        time.sleep(_PRACTICE)  # the GIL is free: so long it takes when nobody has it
        self._period = (time.perf_counter() - began) / max(1, self._ticks)
        self._ticks = 0
        self._before = self._computed
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        took, ticks = time.perf_counter() - self._began, self._ticks
        self._ended = True
        self._thread.join()
        self.cpu = (self._computed - self._before) / max(took, 1e-9)
        if took >= _ENOUGH:
            self.free = min(1.0, ticks * self._period / took)
