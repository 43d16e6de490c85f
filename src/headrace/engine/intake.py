"""Intake: the source is read as fast as the window has room, and no faster.

    what is due of earlier runs ─► the source, to its end ─► what is parked, whenever some is due

Rules:
1. An item is taken when it enters the window; what was read and not taken is read again by the next run.
2. What an earlier run settled is passed over by position, and what is parked too: it is taken up again by passes of its
   own over a source that can be read again.
3. A pass for parked items tells the ledger nothing of how far the source was read.
4. A source that fails ends the run like one that ended: what is open finishes first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.engine.committer import Committer
from headrace.engine.lineage import count_sent
from headrace.engine.parking import LOOK_EVERY
from headrace.engine.stage import Caller
from headrace.engine.texts import one_line
from headrace.engine.window import WEIGHTLESS
from headrace.errors import HeadraceError, InDoubt, ItemUnreadable, SourceError
from headrace.item import Delivery
from headrace.policies.holds import Place
from headrace.ports import Bookmark, Chunk, Intent, Reader, Unreadable

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Intake", "SettledCursor"]

#: The most items that are read at once: few enough to leave the loop free, many enough to cost next to nothing each.
CHUNK = 512
#: So many bookmarks are remembered, about equally far from each other.
MOST_MARKS = 256
#: Reading for what is parked takes at most this share of the time, however little is due each time.
READING_SHARE = 0.1
#: The loop fires a timer up to one clock tick early; what is due within that tick is due.
TICK = 1e-6


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

    def __init__(
        self,
        run: Run,
        settled: Sequence[tuple[int, int]],
        bookmark: Bookmark | None,
        intents: Sequence[Intent] = (),
    ) -> None:
        self.run = run
        self._in_doubt = {intent.position for intent in intents}
        self.ended = False
        self.exhausted = False  # the source has no more; else it was stopped
        self.reached = (
            bookmark.position if bookmark is not None else 0
        )  # all positions below have been taken or passed
        self._bookmark = bookmark
        self._marks = [] if bookmark is None else [bookmark]  # ascending: where reading may start again
        self._between_marks = CHUNK  # positions
        self._known = settled[-1][1] if settled else 0  # earlier runs read so far at least
        self._has_read = False  # whether the source itself was read on, not only for what is parked
        self._settled = SettledCursor(settled)
        self._parked = run.parking.earlier
        self._reader: Reader | None = None
        self._rest: asyncio.Future[None] | None = None  # set while it waits for what is parked
        self._rest_until = math.inf
        self._looking: asyncio.TimerHandle | None = None
        self._reading = 0.0  # seconds of this pass
        self.has_enough = False  # of the source: only what this run has parked may still come
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
    def rests(self) -> bool:
        """Whether the source is read, and what is parked is waited for."""
        return self._rest is not None

    @property
    def is_held_up(self) -> bool:
        """Whether no more items come now: the source has ended, or the window is full."""
        return self.ended or self.wanted is not None or self._rest is not None

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
        self.look_again()

    def enough(self) -> bool:
        """Take no more from the source, but what was taken and parked: the caller then interrupts the reading.

        False, with nothing done, where that leaves nothing to come.
        """
        if self.source_over or not (self.run.parking.is_kept and self.run.accounts.parked):
            return False
        self.has_enough = self.run.parking.only_own = True
        return True

    @property
    def knows_more(self) -> bool:
        """Whether the source was read as far as by earlier runs: until then their description of it stands."""
        if not self._has_read:
            return False
        return self.reached >= self._known or self.exhausted or self.run.options.accept_changes

    @property
    def source_over(self) -> bool:
        """Whether the source itself gives no more."""
        return self.ended or self.exhausted or self.has_enough

    def look_again(self) -> None:
        """Look again at what is parked: nothing is open any more, or it has changed."""
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    def has_parked(self, at: float) -> None:
        """Note that an item was parked until `at`."""
        if at < self._rest_until:
            self.look_again()

    def pause(self) -> None:
        """Take no more until `resume`."""
        self._blocked.clear()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._blocked.set()

    async def read(self) -> None:
        """Read to the end of the source, or until stopped; before and after that, what is parked and due."""
        try:
            parking = self.run.parking
            try:
                at = parking.next_at()
                if at is not None and at <= self.run.clock():
                    await self._take_up()
                self.exhausted = await self._pass(self._bookmark, self._admit)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self.ended or not self.has_enough or task is None or not task.uncancel() == 0:
                    raise
            if (self.exhausted or self.has_enough) and parking.is_kept:
                await self._take_up_the_rest()
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
            await self._close()
            self.run.intake_over()

    async def _pass(self, bookmark: Bookmark | None, admit: Callable[[Chunk], bool]) -> bool:
        """Read on from a bookmark as long as `admit` says, which takes the chunks in; say whether the source has ended."""
        await self._close()
        self._reader = reader = self.run.plan.source.open(bookmark)
        while not self.ended:
            await self._blocked.wait()
            room = await self._room()
            if self.ended or room <= 0:
                break
            began = self.run.clock()
            chunk = await reader.read(room)
            if chunk is None:
                return True
            goes_on = admit(chunk)
            self._reading += self.run.clock() - began
            watch = self.run.watch
            if watch is not None and self.run.clock() >= watch.starts_at:
                watch.start_late(Place("source"))
            await asyncio.sleep(0)
            if not goes_on:
                break
        return False

    def _failed(self, error: BaseException) -> None:
        name = self.run.plan.source.name
        raised = SourceError(f"the source {name} failed: {type(error).__name__}: {one_line(error)}")
        raised.__cause__ = error
        self.run.trouble(raised)

    async def _close(self) -> None:
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                await reader.close()
        except Exception as error:  # noqa: BLE001 - the items are safe; the run tells of it and goes on
            self.run.accounts.warnings.append(
                f"closing the source failed: {type(error).__name__}: {one_line(error)}"
            )

    async def _room(self) -> int:
        """Wait for room in the window, and say how many items may be read."""
        window = self.run.window
        left = None if self.has_enough else self._left
        if left == 0:
            return 0
        while window.room() < 1 and not self.ended:
            self.room_enough = max(1, min(CHUNK, (window.roots.share - self.run.plan.concurrency) // 4))
            self.wanted = self.run.loop.create_future()
            self.run.window_full()
            self.run.look()
            if self.run.parking.is_kept:
                self._look_for_room()
            try:
                await self.wanted
            finally:
                self.wanted = None
                if self._looking is not None:
                    self._looking.cancel()
            self.run.look()
        room = min(CHUNK, window.room())
        return room if left is None else min(room, left)

    def _look_for_room(self) -> None:
        """Have some of what waits long put aside, and look again later, as long as there is no room."""
        if self.waits:
            self.run.parking.make_room()
            self._looking = self.run.loop.call_later(LOOK_EVERY, self._look_for_room)

    def _admit(self, chunk: Chunk) -> bool:
        """Take a chunk's items into the window."""
        run = self.run
        positions: Sequence[int] = chunk.positions or range(chunk.start, chunk.start + len(chunk.payloads))
        payloads = chunk.payloads
        if self._settled or self._parked:
            settled, parked = self._settled, self._parked
            pairs = [
                (p, item)
                for p, item in zip(positions, payloads, strict=True)
                if p not in settled and p not in parked
            ]
            positions, payloads = [p for p, _ in pairs], [item for _, item in pairs]
        level = run.window.roots
        seq = level.sequence
        deliveries = list(map(Delivery, positions, payloads, range(seq, seq + len(payloads))))
        level.sequence = seq + len(deliveries)
        level.open += len(deliveries)
        if self._left is not None:
            self._left -= len(deliveries)
        self.reached = chunk.end
        self._has_read = True
        if chunk.bookmark is not None and run.parking.is_kept:
            self._mark(chunk.bookmark)
        run.accounts.taken += len(deliveries)
        if isinstance(run.exit, Committer):
            run.exit.passed(chunk)
        self._let_in(deliveries, chunk.payloads)
        return True

    def _let_in(self, deliveries: list[Delivery], payloads: Sequence[Any]) -> None:
        """Take deliveries, which hold these payloads, into the first stage."""
        run = self.run
        if self._in_doubt:
            deliveries = [d for d in deliveries if not self._was_in_doubt(d)]
        kinds = set(map(type, payloads))
        if not kinds <= WEIGHTLESS:
            if Unreadable in kinds:
                deliveries = [d for d in deliveries if not self._is_unreadable(d)]
            for delivery in deliveries:
                run.window.weigh(delivery, delivery.item)
        first = run.nodes[0] if run.nodes else None
        if isinstance(first, Caller):
            if run.shutdown.is_stopping:
                for delivery in deliveries:
                    run.endings.give_back(delivery)
            else:
                first.dispatch.accept_all(deliveries)
            return
        accept = first.accept if first is not None else run.endings.leave
        for delivery in deliveries:
            accept(delivery)

    def _was_in_doubt(self, delivery: Delivery) -> bool:
        if delivery.position not in self._in_doubt:
            return False
        self._in_doubt.discard(delivery.position)
        died = InDoubt("an earlier run died when the call had gone out; its end is unknown")
        count_sent(delivery, 1)
        self.run.endings.fail(delivery, "run", died, in_doubt=True)
        return True

    def _is_unreadable(self, delivery: Delivery) -> bool:
        found = delivery.item
        if type(found) is not Unreadable:
            return False
        delivery.item = delivery.value = found.text
        self.run.endings.fail(delivery, "source", ItemUnreadable(found.why))
        return True

    def _mark(self, bookmark: Bookmark) -> None:
        if self._marks and bookmark.position < self._marks[-1].position + self._between_marks:
            return
        self._marks.append(bookmark)
        if len(self._marks) > MOST_MARKS:
            self._marks = self._marks[::2]
            self._between_marks *= 2

    # ------------------------------------------------------------------ what is parked

    async def _take_up(self) -> None:
        """Take up what is parked and due now, in one pass over the part of the source where that is."""
        wanted = self.run.parking.due(self.run.clock() + TICK)
        first, last, seen = min(wanted), max(wanted), 0

        def admit(chunk: Chunk) -> bool:
            nonlocal seen
            seen = chunk.end
            positions = chunk.positions or range(chunk.start, chunk.start + len(chunk.payloads))
            found = [pair for pair in zip(positions, chunk.payloads, strict=True) if pair[0] in wanted]
            wanted.difference_update(position for position, _ in found)
            self._let_in(self._again(found), [item for _, item in found])
            return seen <= last

        mark = next((mark for mark in reversed(self._marks) if mark.position <= first), None)
        if await self._pass(mark, admit):
            seen = last + 1
        gone = sorted(position for position in wanted if position < seen)
        if not self.ended:
            for delivery in self._again([(position, None) for position in gone]):
                self.run.endings.skip(delivery, "the source does not give it any more")

    def _again(self, found: Sequence[tuple[int, Any]]) -> list[Delivery]:
        """Let parked items into the window again; those that count for the first time in this run are taken with that."""
        run, level, deliveries = self.run, self.run.window.roots, []
        for position, item in found:
            if run.parking.take_up(position):
                run.accounts.taken += 1
                if self._left is not None:
                    self._left -= 1
            else:
                run.accounts.parked -= 1
            delivery = Delivery(position, item, level.sequence)
            delivery.attempts = run.parking.attempts(position)
            deliveries.append(delivery)
            level.sequence += 1
            level.open += 1
        return deliveries

    async def _take_up_the_rest(self) -> None:
        """Take up what is parked whenever some is due, until nothing is open and no more will be due within `wait`."""
        run, parking, not_before = self.run, self.run.parking, -math.inf
        while not self.ended and (self.has_enough or self._left != 0):
            now, at = run.clock(), parking.next_at()
            at = None if at is None else max(at, not_before)
            if at is not None and at <= now + TICK:
                self._reading = 2 * (run.clock() - now)  # looking for what is due, here and in a moment
                await self._blocked.wait()
                await self._take_up()
                not_before = run.clock() + self._reading * (1 / READING_SHARE - 1)
                continue
            is_near = at is not None and at - now <= parking.wait
            if not is_near and not run.roots.open:
                return
            await self._wait_until(math.inf if at is None else at if is_near else at - parking.wait)

    async def _wait_until(self, at: float) -> None:
        """Wait until `at`, or until something is parked that is due before, or until nothing is open."""
        self._rest = rest = self.run.loop.create_future()
        self._rest_until = at
        timer = None if math.isinf(at) else self.run.loop.call_at(at, self.look_again)
        self.run.nothing_to_read()
        try:
            await rest
        finally:
            self._rest = None
            if timer is not None:
                timer.cancel()
            self.run.look()


def _leading_takes(run: Any) -> list[Any]:
    """Give the `take` stages that stand before anything else: these cut the source to the item."""
    takes = []
    for spec in run.plan.stages:
        if spec.kind != "take":
            break
        takes.append(spec)
    return takes
