"""Many logs as one stream of records, in the order in which they arrive.

    log ─► task ─┐
    log ─► task ─┼─► channel ─► whoever reads       a log whose records nobody takes is not read on
    log ─► task ─┘

Rules:
1. Records of one log keep their order; between logs each batch waits its turn, so that a loud one does not hide the others.
2. Memory is bounded: a batch a log, and a few in the channel.
3. Leaving ends every log; nothing of them is left open.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from headrace.aio.channel import Channel, ChannelClosed
from headrace.aio.tasks import TaskOwner
from headrace.errors import HeadraceError, PlanError
from headrace.logs.notices import Notice, OnNotice, StreamStatistics, reason_of

__all__ = ["Log", "LogStream", "OnLogFailure"]

T = TypeVar("T")
OnLogFailure = Literal["stop", "record"]
MOST_WAITING: Final = 1  # batches in the channel
GRACE: Final = 5.0  # seconds that a log has to close


class Log(Protocol[T]):
    """One log: its name, its counts, and its records in batches, until it ends or raises."""

    url: str
    statistics: StreamStatistics

    def batches(self) -> AsyncGenerator[list[T], None]:
        """Give the records as they come. Called once."""
        ...


class _Reading(Generic[T]):
    """What the tasks that read share with the stream. They hold this and not the stream, so that it can be let go of."""

    def __init__(self, logs: int, on_notice: OnNotice) -> None:
        self.channel: Channel[list[T]] = Channel(MOST_WAITING)
        self.failures: dict[str, Exception] = {}
        self.left = logs
        self._on_notice = on_notice

    async def read(self, log: Log[T]) -> None:
        """Read one log to its end or failure."""
        try:
            async with contextlib.aclosing(log.batches()) as batches:
                async for batch in batches:
                    await self.channel.put(batch)
        except HeadraceError as error:
            self.failures[log.url] = error
            log.statistics.state = "failed"
            self._on_notice(
                Notice("failed", log.url, log.statistics.offset, f"given up: {reason_of(error, log.url)}")
            )
        except ChannelClosed:
            return
        self.left -= 1
        with contextlib.suppress(ChannelClosed):
            await self.channel.put([])  # so that who waits looks again


class LogStream(Generic[T]):
    """The records of several logs as one stream: `async with` it, then `async for`.

    `on_failure="stop"` raises what a log fails with, after the records that came before; with "record" the others go on, and
    `failures` has it. Cancelling while it waits for a record loses none. Made by `hr.http.lines`, `hr.http.events` and
    `hr.files.follow`.
    """

    def __init__(
        self,
        logs: Mapping[str, Log[T]],
        on_failure: OnLogFailure,
        on_notice: OnNotice,
        close: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        if on_failure not in ("stop", "record"):
            raise PlanError(f'on_failure={on_failure!r}: use "stop" or "record"')
        self._logs = dict(logs)
        self._on_failure = on_failure
        self._reading: _Reading[T] = _Reading(len(self._logs), on_notice)
        self._close = close
        self._tasks = TaskOwner()
        self._current: Iterator[T] = iter(())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    @property
    def failures(self) -> dict[str, Exception]:
        """What logs failed with, by their URL (masked)."""
        return self._reading.failures

    async def __aenter__(self) -> LogStream[T]:
        if self._loop is not None:
            raise PlanError("these logs are read already: open them anew")
        self._loop = asyncio.get_running_loop()
        for log in self._logs.values():
            self._tasks.start(self._reading.read(log), "headrace-log")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def stop(self) -> None:
        """Read no more: what has arrived is still given, then the iteration ends. Repeatable; from the loop's thread."""
        self._reading.channel.close()

    async def aclose(self) -> None:
        """End all logs and close their connections. Repeatable."""
        self._is_closed = True
        await _close(self._reading.channel, self._tasks, self._close)

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is None or self._is_closed:
            return
        warnings.warn(f"{self!r} was not closed: use it with «async with»", ResourceWarning, stacklevel=2)
        if not loop.is_closed():
            loop.call_soon_threadsafe(_abandon, self._reading.channel, self._tasks, self._close)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._records()

    async def _records(self) -> AsyncIterator[T]:
        while True:
            for record in self._current:
                yield record
            batch = await self._batch()
            if not batch:
                return
            self._current = iter(batch)

    async def batches(self) -> AsyncIterator[list[T]]:
        """Give the records in lists, as they arrive: faster than one by one."""
        if left := list(self._current):
            yield left
        while batch := await self._batch():
            yield batch

    async def _batch(self) -> list[T]:
        """Give the next records, waiting for one; none at the end of all logs. Raises what a log failed with ("stop")."""
        if self._loop is None:
            raise PlanError("the logs are not open: read them within «async with»")
        reading = self._reading
        while True:
            if not len(reading.channel):
                if reading.failures and self._on_failure == "stop":
                    raise next(iter(reading.failures.values()))
                if not reading.left:
                    return []
            try:
                batch = await reading.channel.get()
            except ChannelClosed:
                return []
            for more in reading.channel.get_all_nowait(MOST_WAITING):
                batch = batch + more if more else batch
            if batch:
                return batch

    def statistics(self) -> dict[str, StreamStatistics]:
        """Give the counts of each log."""
        return {name: log.statistics for name, log in self._logs.items()}

    def __repr__(self) -> str:
        state = "not opened" if self._loop is None else "closed" if self._is_closed else "open"
        return f"<LogStream of {len(self._logs)}, {state}>"


async def _close(
    channel: Channel[Any], tasks: TaskOwner, close: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    channel.close()
    try:
        await tasks.cancel(GRACE)
    finally:
        if close is not None:
            await close()


_abandoned: Final = TaskOwner()


def _abandon(
    channel: Channel[Any], tasks: TaskOwner, close: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    """Close what a program has let go of."""
    _abandoned.start(_close(channel, tasks, close), "headrace-log-abandoned")
