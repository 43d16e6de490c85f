"""A bounded channel between tasks of one loop.

Rules:
1. `put` waits for room, `get` for a value; both may be cancelled at any time and nothing is lost or doubled by it.
2. After `close`, `put` raises `ChannelClosed`, and `get` gives what is left, then raises it too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Channel", "ChannelClosed"]

T = TypeVar("T")


class ChannelClosed(Exception):
    """The channel takes no more values, or holds no more."""


class Channel(Generic[T]):
    """A first-in, first-out channel that holds at most `capacity` values."""

    __slots__ = ("_capacity", "_closed", "_getters", "_putters", "_values")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: deque[T] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._putters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._values)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Take no more values; wake all who wait."""
        self._closed = True
        for waiter in (*self._getters, *self._putters):
            if not waiter.done():
                waiter.set_result(None)

    def drain(self) -> list[T]:
        """Take out all that it holds."""
        values = list(self._values)
        self._values.clear()
        self._wake(self._putters)
        return values

    def put_nowait(self, value: T) -> bool:
        """Put `value` where there is room, and say whether there was."""
        if self._closed:
            raise ChannelClosed
        if len(self._values) >= self._capacity:
            return False
        self._values.append(value)
        self._wake(self._getters)
        return True

    async def put(self, value: T) -> None:
        """Wait for room, then put `value`. A cancelled `put` has put nothing."""
        while not self.put_nowait(value):
            await self._wait(self._putters)

    async def get(self) -> T:
        """Wait for a value and take it. A cancelled `get` has taken nothing."""
        while not self._values:
            if self._closed:
                raise ChannelClosed
            await self._wait(self._getters)
        value = self._values.popleft()
        self._wake(self._putters)
        return value

    def get_all_nowait(self, most: int) -> list[T]:
        """Take up to `most` values that are there now."""
        taken = [self._values.popleft() for _ in range(min(most, len(self._values)))]
        for _ in taken:
            self._wake(self._putters)
        return taken

    async def _wait(self, waiters: deque[asyncio.Future[None]]) -> None:
        waiter = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # Woken and cancelled in one turn: the chance goes to the next one in line.
            if waiter.done() and not waiter.cancelled():
                self._wake(waiters)
            raise
        finally:
            if not waiter.done() or waiter.cancelled():
                try:
                    waiters.remove(waiter)
                except ValueError:
                    pass

    @staticmethod
    def _wake(waiters: deque[asyncio.Future[None]]) -> None:
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
