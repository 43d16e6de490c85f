"""The committer: the durable exit. Results and settlements go to the ledger in one transaction, many at a time.

    done, settled ─► buffer ─► one commit at a time ─► final states, room in the window
    intents ───────► buffer ┘                      └─► the *once* calls that waited for theirs

Rules:
1. There is one committer, and one commit under way at most; while it runs, the next one gathers.
2. A commit is never cancelled: it belongs to this task, and whoever hurries the run waits for it.
3. An item is settled, or parked, when its commit has returned, not before; what was not committed is returned.
4. A row that the sink cannot take fails its own item; the rest of its batch is written.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.engine.exits import FINAL_STATE, Exit, outcome_of
from headrace.engine.lineage import Ending, Parking, roots_of, row_order
from headrace.engine.texts import chain_text, one_line, peek
from headrace.engine.window import WEIGHTLESS, weigh
from headrace.errors import EngineError, HeadraceError, SinkError
from headrace.item import DECIDED, DONE, RETURNED, RUNNING, Delivery, Outcome
from headrace.ports import AnyRow, Bookmark, Chunk, Commit, DeadLetter, Intent, Ledger, SingleRows
from headrace.ports import Parking as Record

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Committer"]

#: A commit is made when so many roots are ready, or so many bytes, or after so long (seconds).
BATCH = 1000
BATCH_BYTES = 8 * 2**20
LINGER = 0.1
#: What a dead letter keeps of the item, of one line of the cause, and of the other side's answer.
ITEM_LENGTH = 2048
CAUSE_LENGTH = 500
BODY_LENGTH = 4096

Entry = tuple[Delivery, "Ending | None", list[Delivery]]


class Committer(Exit):
    """Settles roots through the ledger."""

    def __init__(self, run: Run, ledger: Ledger, *, keep_others: bool = False) -> None:
        super().__init__(run)
        self.others: list[Outcome[Any]] = []  # with `keep_others`: the outcomes that are not Done
        self._keep_others = keep_others
        self.ledger = ledger
        self._done: list[Delivery] = []  # roots that came through by themselves: nearly all there ever are
        self._ended: list[Entry] = []  # the others
        self._bytes = 0
        self._intents: list[Intent] = []
        self._intended: list[asyncio.Future[None]] = []
        self._open_intents: Counter[int] = (
            Counter()
        )  # by position: those that were recorded and not taken back
        self._cleared: list[int] = []
        self._void: list[tuple[int, int]] = []
        self._bookmarks: list[Bookmark] = []
        self._wake: asyncio.Future[None] | None = None
        self._batch = max(1, min(BATCH, run.window.limit // 2))
        self._due_at = math.inf  # at how many results, while it waits, a nudge may be due
        self._hurry = False
        self._is_urgent = False
        self._closing = False
        self._idle = asyncio.Event()
        self.commits = 0
        self.failed: Exception | None = None

    # ------------------------------------------------------------------ what comes in

    def entry(self) -> Callable[[Delivery], None]:
        """Buffer it: what the last stage hands its deliveries to."""
        buffer_weight, weightless = self.run.window.weigh, WEIGHTLESS

        def done(delivery: Delivery) -> None:
            if delivery.state != RUNNING:
                self._decide(delivery)
            delivery.state = DECIDED
            ready = self._done
            ready.append(delivery)
            value = delivery.value
            if delivery.weight or type(value) not in weightless:
                self._bytes += buffer_weight(delivery, value)
                self._nudge()
            elif len(ready) >= self._due_at:
                self._nudge()

        return done

    def done(self, delivery: Delivery) -> None:
        """Buffer a root that came through all stages by itself."""
        self.entry()(delivery)

    def settle(self, root: Delivery, ending: Ending | None, rows: list[Delivery]) -> None:
        """Buffer a root that ended otherwise. What is returned needs no record."""
        self._decide(root)
        if ending is not None and ending.kind == "returned":
            root.state = RETURNED
            self._forget_intents(root.position, self._open_intents.pop(root.position, 0))
            self._keep(root, ending)
            self.run.settled(root, ending)
            return
        if ending is not None and ending.kind == "parked":
            self._forget_intents(root.position, self._open_intents.pop(root.position, 0))
        for row in rows:
            self._bytes += weigh(row.value)
        self._ended.append((root, ending, sorted(rows, key=row_order)))
        if self._wake is not None and len(self._ended) >= self.run.accounts.fuse.left:
            self._linger_over(self._wake)  # the sooner it is seen that all goes wrong, the better
        self._nudge()

    async def intend(self, delivery: Delivery, stage: str) -> None:
        """Record that a *once* call is about to go out; return when that is durable."""
        recorded = self.run.loop.create_future()
        for root in roots_of(delivery):
            self._intents.append(Intent(root.position, stage))
            self._open_intents[root.position] += 1
        self._intended.append(recorded)
        self._nudge()
        await recorded

    def forget_intent(self, delivery: Delivery) -> None:
        """Take back the latest intent of what a delivery stands for: its call certainly did nothing."""
        for root in roots_of(delivery):
            if self._open_intents[root.position] > 0:
                self._open_intents[root.position] -= 1
                self._forget_intents(root.position, 1)

    def _forget_intents(self, position: int, number: int) -> None:
        if not number:
            return
        for at in range(len(self._intents) - 1, -1, -1):
            if number and self._intents[at].position == position:
                del self._intents[at]  # not recorded yet: in one commit, the clearing would come before it
                number -= 1
        self._cleared += [position] * number

    def passed(self, chunk: Chunk) -> None:
        """Note positions without items, and a place where reading may start again."""
        if chunk.bookmark is not None:
            self._bookmarks.append(chunk.bookmark)
        if chunk.positions is None:
            return
        at = chunk.start
        for position in chunk.positions:
            if position > at:
                self._void.append((at, position))
            at = position + 1
        if at < chunk.end:
            self._void.append((at, chunk.end))

    def hurry(self) -> None:
        """Commit without delay from now on."""
        self._hurry = True
        self._due_at = min(self._due_at, 1)
        self._nudge()

    def commit_soon(self) -> None:
        """Commit what there is without waiting for more."""
        self._is_urgent = self._ready > 0
        self._nudge()

    # ------------------------------------------------------------------ the task

    def _nudge(self) -> None:
        if self._wake is not None and not self._wake.done() and self._is_due():
            self._wake.set_result(None)

    def _is_due(self) -> bool:
        return (
            self._ready >= self._batch
            or self._bytes >= BATCH_BYTES
            or bool(self._intents)
            or self._is_urgent
            or (self._hurry and self._ready > 0)
            or self._closing
        )

    @property
    def _ready(self) -> int:
        return len(self._done) + len(self._ended)

    async def work(self) -> None:
        """Commit until closed."""
        loop = self.run.loop
        try:
            while True:
                if not self._is_due():
                    self._wake = loop.create_future()
                    self._due_at = 1 if self._hurry else self._batch
                    timer = loop.call_later(LINGER, self._linger_over, self._wake)
                    try:
                        await self._wake
                    finally:
                        timer.cancel()
                        self._wake = None
                        self._due_at = math.inf
                if (
                    self._ready
                    or self._intents
                    or (self._closing and (self._void or self._bookmarks or self._cleared))
                ):
                    await self._commit_buffer()
                elif self._closing:
                    return
        finally:
            self._idle.set()

    @staticmethod
    def _linger_over(wake: asyncio.Future[None]) -> None:
        if not wake.done():
            wake.set_result(None)

    async def close(self) -> None:
        """Commit what there is and end. Waits for the commit under way."""
        self._closing = True
        self._due_at = min(self._due_at, 1)
        self._nudge()
        await self._idle.wait()

    async def _commit_buffer(self) -> None:
        done, self._done = self._done[: self._batch], self._done[self._batch :]
        ended, self._ended = self._ended, []
        intents, self._intents = self._intents, []
        intended, self._intended = self._intended, []
        void, self._void = self._void, []
        bookmarks, self._bookmarks = self._bookmarks, []
        cleared, self._cleared = self._cleared, []
        self._is_urgent = False
        self._bytes = sum(delivery.weight for delivery in self._done) if self._bytes else 0
        try:
            while True:
                commit = self._make_commit(done, ended)
                commit.intents, commit.void, commit.bookmarks = intents, void, bookmarks
                commit.cleared = cleared
                try:
                    await self.ledger.commit(commit)
                    break
                except SinkError as error:
                    if not self._fail_poisoned(done, ended, error):
                        raise
        except HeadraceError as error:
            self._lost(done, ended, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing was recorded, and nobody may hang
            raised = EngineError(
                f"a commit failed: {type(error).__name__}: {one_line(error)}. Please report it."
            )
            raised.__cause__ = error
            self._lost(done, ended, raised)
            return
        self.commits += 1
        for recorded in intended:
            if not recorded.done():
                recorded.set_result(None)
        self._committed(done, ended)

    def _fail_poisoned(self, done: list[Delivery], ended: list[Entry], error: SinkError) -> bool:
        """Turn the root whose row the sink refused into a failure; False if the error names none of them."""
        for number, delivery in enumerate(done):
            if delivery.position == error.position:
                del done[number]
                ended.append((delivery, Ending("failed", "sink", error), []))
                return True
        for number, (root, ending, _) in enumerate(ended):
            if root.position == error.position and ending is None:
                ended[number] = (root, Ending("failed", "sink", error), [])
                return True
        return False

    def _make_commit(self, done: list[Delivery], ended: list[Entry]) -> Commit:
        positions = [delivery.position for delivery in done]
        rows: Sequence[AnyRow] = SingleRows(positions[:], [delivery.value for delivery in done])
        others: list[AnyRow] = []
        skipped: list[int] = []
        failed: list[DeadLetter] = []
        parked: list[Record] = []
        for root, ending, made in ended:
            if ending is None:
                positions.append(root.position)
                others += [(root.position, child, row.value) for child, row in enumerate(made)]
            elif ending.kind == "skipped":
                skipped.append(root.position)
            elif isinstance(ending, Parking):
                parked.append(Record(root.position, ending.due, ending.attempts, ending.reason))
            else:
                failed.append(self._dead_letter(root, ending))
        if others:
            rows = [*rows, *others]
        return Commit(
            rows, positions, skipped, failed=failed, parked=parked, fingerprint=self.run.fingerprint()
        )

    def _dead_letter(self, root: Delivery, ending: Ending) -> DeadLetter:
        error = ending.error
        assert error is not None
        body, status = peek(error, "body"), peek(error, "status")
        return DeadLetter(
            position=root.position,
            item=self.run.item_text(root.item)[:ITEM_LENGTH],
            stage=ending.stage,
            attempts=root.attempts + root.tried,
            error=type(error).__name__,
            cause=one_line(error)[:CAUSE_LENGTH],
            detail=chain_text(error),
            status=status if isinstance(status, int) else None,
            body=bytes(body[:BODY_LENGTH]) if isinstance(body, (bytes, bytearray)) else None,
            in_doubt=ending.in_doubt,
            effect_sent=root.sent > 0 or ending.in_doubt,
            elapsed=self.run.clock() - root.began if root.began else 0.0,
            at=time.time(),
            where=self.run.describe(root.position),
        )

    def _committed(self, done: list[Delivery], ended: list[Entry]) -> None:
        run = self.run
        for root in done:
            root.state = DONE
        run.parking.settled(done)
        run.settled_all(done)
        run.parking.settled([root for root, _, _ in ended])
        for root, ending, _ in ended:
            root.state = DONE if ending is None else FINAL_STATE[ending.kind]
            if ending is not None:
                self._keep(root, ending)
            run.settled(root, ending)
        if self._open_intents:
            for root in (*done, *(root for root, _, _ in ended)):
                self._open_intents.pop(root.position, None)

    def _keep(self, root: Delivery, ending: Ending) -> None:
        if self._keep_others:
            self.others.append(outcome_of(root, ending, self.run.clock()))

    def _lost(self, done: list[Delivery], ended: list[Entry], error: Exception) -> None:
        """The ledger took nothing: give all of it back, and stop."""
        self.failed = error
        for root in (*done, *(root for root, _, _ in ended)):
            root.state = RETURNED
            self.run.settled(root, Ending("returned"))
        self.run.trouble(error)
        self.run.shutdown.cancel(
            one_line(error)
        )  # of a source too: what cannot be recorded need not be called
