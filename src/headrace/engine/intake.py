"""Intake: the source is read as fast as the window has room, and no faster.

Rules:
1. An item is taken when it enters the window; what was read and not taken is read again by the next run.
2. What an earlier run settled is passed over by position.
3. A source that fails ends the run like one that ended: what is open finishes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.engine.texts import one_line
from headrace.errors import HeadraceError, SourceError
from headrace.item import Delivery
from headrace.policies.holds import Place
from headrace.ports import Bookmark, Chunk, Reader

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Intake", "SettledCursor"]

#: The most items that are read at once: few enough to leave the loop free, many enough to cost next to nothing each.
CHUNK = 512


class SettledCursor:
    """Says of ascending positions whether an earlier run settled them, at constant cost each."""

    __slots__ = ("_at", "_ranges")

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._at = 0

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __contains__(self, position: int) -> bool:
        ranges = self._ranges
        while self._at < len(ranges) and ranges[self._at][1] <= position:
            self._at += 1
        return self._at < len(ranges) and ranges[self._at][0] <= position


class Intake:
    """Reads the source into the window."""

    def __init__(self, run: Run, settled: Sequence[tuple[int, int]], bookmark: Bookmark | None) -> None:
        self.run = run
        self.ended = False
        self.exhausted = False  # the source has no more; else it was stopped
        self.reached = (
            bookmark.position if bookmark is not None else 0
        )  # all positions below have been taken or passed
        self._bookmark = bookmark
        self._settled = SettledCursor(settled)
        self.wanted: asyncio.Future[None] | None = None  # set while it waits for room
        self.room_enough = 1  # what it waits for
        self._left = min((s.size for s in _leading_takes(run)), default=None)
        self._blocked = asyncio.Event()
        self._blocked.set()

    @property
    def waits(self) -> bool:
        """Whether it waits for room, and has not been told yet that there is enough."""
        return self.wanted is not None and not self.wanted.done()

    @property
    def is_held_up(self) -> bool:
        """Whether no more items come now: the source has ended, or the window is full."""
        return self.ended or self.wanted is not None

    def room_freed(self) -> None:
        """Look whether there is room enough to go on. Called when items leave the window."""
        wanted = self.wanted
        if wanted is not None and self.run.window.room() >= self.room_enough and not wanted.done():
            wanted.set_result(None)
            self.run.look()

    def stop(self) -> None:
        """Take no more."""
        self.ended = True
        if self.wanted is not None and not self.wanted.done():
            self.wanted.set_result(None)

    def pause(self) -> None:
        """Take no more until `resume`."""
        self._blocked.clear()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._blocked.set()

    async def read(self) -> None:
        """Read to the end of the source, or until stopped."""
        reader: Reader | None = None
        try:
            reader = self.run.plan.source.open(self._bookmark)
            while not self.ended:
                await self._blocked.wait()
                room = await self._room()
                if self.ended or room <= 0:
                    break
                chunk = await reader.read(room)
                if chunk is None:
                    self.exhausted = True
                    break
                self._admit(chunk)
                watch = self.run.watch
                if watch is not None and self.run.clock() >= watch.starts_at:
                    watch.start_late(Place("source"))
                await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            if self.ended:
                raise
            raised = SourceError(
                f"the source {self.run.plan.source.name} raised CancelledError, though nobody cancelled it"
            )
            raised.__cause__ = error
            self.run.trouble(raised)
        except HeadraceError as error:
            self.run.trouble(error)
        except Exception as error:  # noqa: BLE001 - it is the user's iterable; translated once, here
            self._failed(error)
        except BaseException as error:
            if not isinstance(error, GeneratorExit):  # else the loop is gone, and this coroutine with it
                self.run.panics.append(error)
                self._failed(error)
            raise
        finally:
            self.ended = True
            if reader is not None:
                await self._close(reader)
            self.run.intake_over()

    def _failed(self, error: BaseException) -> None:
        name = self.run.plan.source.name
        raised = SourceError(f"the source {name} failed: {type(error).__name__}: {one_line(error)}")
        raised.__cause__ = error
        self.run.trouble(raised)

    async def _close(self, reader: Reader) -> None:
        try:
            await reader.close()
        except Exception as error:  # noqa: BLE001 - the items are safe; the run tells of it and goes on
            self.run.accounts.warnings.append(
                f"closing the source failed: {type(error).__name__}: {one_line(error)}"
            )

    async def _room(self) -> int:
        """Wait for room in the window, and say how many items may be read."""
        window = self.run.window
        if self._left == 0:
            return 0
        if window.room() < 1:
            self.room_enough = max(1, min(CHUNK, (window.roots.share - self.run.plan.concurrency) // 4))
            self.wanted = self.run.loop.create_future()
            self.run.window_full()
            self.run.look()
            await self.wanted
            self.wanted = None
            self.run.look()
        room = min(CHUNK, window.room())
        return room if self._left is None else min(room, self._left)

    def _admit(self, chunk: Chunk) -> None:
        """Take a chunk's items into the window."""
        run = self.run
        positions: Sequence[int] = chunk.positions or range(chunk.start, chunk.start + len(chunk.payloads))
        payloads = chunk.payloads
        if self._settled:
            pairs = [(p, item) for p, item in zip(positions, payloads, strict=True) if p not in self._settled]
            positions, payloads = [p for p, _ in pairs], [item for _, item in pairs]
        level = run.window.roots
        seq = level.sequence
        deliveries = list(map(Delivery, positions, payloads, range(seq, seq + len(payloads))))
        level.sequence = seq + len(deliveries)
        level.open += len(deliveries)
        if self._left is not None:
            self._left -= len(deliveries)
        self.reached = chunk.end
        run.taken_in(deliveries, chunk)


def _leading_takes(run: Any) -> list[Any]:
    """Give the `take` stages that stand before anything else: these cut the source to the item."""
    takes = []
    for spec in run.plan.stages:
        if spec.kind != "take":
            break
        takes.append(spec)
    return takes
