"""The event bus: batches of events for those who listen.

Rules:
1. Nobody listening costs one `if` where an event would be made.
2. A subscriber cannot hold up or break a run: one that raises is dropped, and the report says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace.engine.texts import item_text, one_line
from headrace.events import Event
from headrace.ports import Subscriber

__all__ = ["Bus"]

#: Events are handed over in batches, this often (seconds).
BATCH_EVERY = 0.05


class Bus:
    """Collect events and hand them to the subscribers a few times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, subscribers: Sequence[Subscriber]) -> None:
        self._loop = loop
        self._subscribers = list(subscribers)
        self._events: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self.dropped: list[str] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add one who listens from now on."""
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        if self._timer is None:
            self._timer = self._loop.call_later(BATCH_EVERY, self.flush)

    def flush(self) -> None:
        """Hand over what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._events = self._events, []
        if not events:
            return
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(events)
            except Exception as error:  # noqa: BLE001 - whoever listens must not break the run
                self._subscribers.remove(subscriber)
                who, why = item_text(subscriber), f"{type(error).__name__}: {one_line(error)}"
                self.dropped.append(f"subscriber {who} was dropped: {why}")
