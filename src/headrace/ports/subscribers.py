"""Who listens to a run.

Rules:
1. A subscriber is told and never asked: it cannot hold a run up, and its errors are not the run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace.events import Event

__all__ = ["Subscriber"]


class Subscriber(Protocol):
    """Anyone who listens to a run."""

    def __call__(self, events: Sequence[Event]) -> None:
        """Take a batch of events, on the loop; must not wait. One that raises is dropped, and the report says so."""
        ...
