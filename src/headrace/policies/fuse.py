"""The fuse: where everything fails in the same way from the first item on, something is wrong with the run itself.

Rules:
1. It blows once, where the first N settled items all failed alike: same stage, same error, same status, permanently.
2. One item that ended otherwise disarms it for good: then the failures are the items' own.
3. What is of the moment never blows it, nor what is in doubt.
"""

from __future__ import annotations

import math
from typing import Final

from headrace.errors import Disposition
from headrace.policies.classify import classify, status_of

__all__ = ["FUSE_OF_JOBS", "Fuse"]

#: How many items of a job must have failed alike before it is stopped, unless `fuse=` says otherwise.
FUSE_OF_JOBS: Final = 50


class Fuse:
    """Watches the first `items` failures of a run. `items=None`, or `disarmed`, never blows."""

    __slots__ = ("_failed", "_items", "_kind")

    def __init__(self, items: int | None, *, disarmed: bool = False) -> None:
        self._items = None if disarmed else items
        self._failed = 0
        self._kind: tuple[str, type[BaseException], int | None] | None = None

    @property
    def left(self) -> float:
        """After how many more failures of the same kind it blows; infinite where it cannot any more."""
        return math.inf if self._items is None else self._items - self._failed

    def blows(self, stage: str, error: BaseException, *, in_doubt: bool, others: int) -> bool:
        """Count an item that failed at `stage`, and say whether the run is to stop.

        `others` is how many items of the run ended otherwise so far. Never raises.
        """
        if self._items is None:
            return False
        kind = (stage, type(error), status_of(error))
        self._failed += 1
        first = self._kind is None
        if others or in_doubt or not (first or kind == self._kind) or not _is_permanent(error):
            self._items = None
            return False
        self._kind = kind
        if self._failed < self._items:
            return False
        self._items = None
        return True


def _is_permanent(error: BaseException) -> bool:
    return classify(error).disposition is Disposition.PERMANENT
