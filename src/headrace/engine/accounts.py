"""The accounts of a run: what was taken, what became of it, and what that tells to whoever listens.

Rules:
1. taken = done + failed + skipped + parked + returned + what is open, at any moment. What is parked and taken up again in
   the same run is taken once.
2. Nothing here decides; where a count calls for an end, the run is asked to stop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.engine.committer import Committer
from headrace.engine.lineage import Ending, Parking
from headrace.engine.stage import Caller
from headrace.engine.texts import one_line, peek
from headrace.errors import EngineError
from headrace.events import AttemptFailed, ItemSettled, LoopHeld, StageStatistics, Statistics
from headrace.item import Delivery
from headrace.plan import cores
from headrace.policies.deadlines import FailureCap
from headrace.policies.fuse import Fuse
from headrace.policies.holds import Hold, Place, cure_of
from headrace.policies.lane_verdict import advice_on_threads
from headrace.report import MOST_CAUSES, FailureCause, HeldPlace, Report, StageReport

if TYPE_CHECKING:
    from headrace.engine.run import Run

__all__ = ["Accounts"]


class Accounts:
    """Counts source items, and keeps the causes of failures."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.taken = self.done = self.failed = self.skipped = self.parked = self.returned = 0
        self.warnings: list[str] = list(run.job_state.warnings) if run.job_state is not None else []
        self._causes: dict[tuple[str, str, object], FailureCause] = {}
        self._held: dict[tuple[str, str, str, str], HeldPlace] = {}
        most = run.options.max_failures
        self._cap = FailureCap(most) if most is not None else None
        state = run.job_state
        went_well = state is not None and state.done + state.skipped > 0
        self.fuse = Fuse(run.plan.fuse(run.options), disarmed=went_well)

    @property
    def settled(self) -> int:
        """Items with an outcome."""
        return self.done + self.failed + self.skipped

    def count(self, root: Delivery, ending: Ending) -> None:
        """Count a root that ended without a value."""
        if ending.kind == "returned":
            self.returned += 1
            return
        if isinstance(ending, Parking):
            self.parked += 1
            self.run.parking.count(root.position, ending)
            return
        if ending.kind == "skipped":
            self.skipped += 1
            return
        self.failed += 1
        error = ending.error
        assert error is not None
        status = peek(error, "status")
        key = (ending.stage, type(error).__name__, status if type(status) is int else None)
        cause = self._causes.get(key)
        if cause is not None:
            cause.count += 1
        elif len(self._causes) < MOST_CAUSES:
            self._causes[key] = FailureCause(ending.stage, type(error).__name__, one_line(error)[:200])
        others = self.done + self.skipped
        blown = self.fuse.blows(ending.stage, error, in_doubt=ending.in_doubt, others=others)
        if blown and not self.run.shutdown.is_stopping:
            self.run.shutdown.drain(self._fuse_text(ending.stage, error))
        elif self.run.options.on_failure == "stop":
            self.run.shutdown.cancel(f"an item failed and on_failure is stop: {one_line(error)[:200]}")
        elif self._cap is not None and self._cap.exceeded(self.failed, self.settled, self.taken):
            if self.run.shutdown.is_stopping:
                return  # asked again, it would cancel the running calls
            self.run.shutdown.drain(f"more failed than max_failures={self.run.options.max_failures!r} allows")

    def _fuse_text(self, stage: str, error: Exception) -> str:
        cause = f"{stage}: {type(error).__name__}: {one_line(error)[:200]}"
        again = ", and «headrace retry» takes those that failed" if self.run.job_state is not None else ""
        return (
            f"the first {self.failed} items all failed in the same way, {cause}. "
            f"Mend the cause and run the same again{again} (with fuse=None, or --fuse 0, a run goes on)"
        )

    def tell_settled(self, root: Delivery, ending: Ending | None) -> None:
        """Tell those who listen of a settled item."""
        bus = self.run.bus
        if bus is None or (ending is not None and ending.kind in ("returned", "parked")):
            return
        error = ending.error if ending is not None else None
        bus.emit(
            ItemSettled(
                time.time(),
                root.position,
                "done" if ending is None else ending.kind,
                ending.stage if ending is not None else "",
                root.attempts + root.tried,
                self.run.clock() - root.began if root.began else 0.0,
                None if error is None else f"{type(error).__name__}: {one_line(error)[:200]}",
            )
        )

    def attempt_failed(self, delivery: Delivery, stage: str, error: Exception, after: float | None) -> None:
        """Tell of a failed attempt."""
        bus = self.run.bus
        if bus is not None:
            text = f"{type(error).__name__}: {one_line(error)[:200]}"
            bus.emit(AttemptFailed(time.time(), delivery.position, stage, delivery.tried, text, after))

    def loop_held(self, hold: Hold) -> None:
        """Count what held the loop, and tell of it."""
        place, cure = hold.place, cure_of(hold)
        known = self._held.get(place[:4])
        if known is None:
            known = self._held[place[:4]] = HeldPlace(*place)
        known.times += 1
        known.seconds += hold.seconds
        if hold.seconds > known.longest:
            known.longest, known.line = hold.seconds, place.line
            known.cause, known.cure = hold.cause, cure
        if self.run.bus is not None:
            at = (place.stage, place.function, place.file, place.line)
            self.run.bus.emit(LoopHeld(time.time(), *at, hold.seconds, hold.cause, cure))

    def whose(self, task: asyncio.Task[Any] | None) -> Place:
        """Say where the function of the stage begins that a task calls. Asked in another thread, too: it only reads."""
        if task is None:
            return Place()
        for caller in self.run.callers:
            for slot in tuple(caller.slots):
                if slot.task is task:
                    return caller.whose
        return Place("source") if self.run.is_reading(task) else Place()

    def statistics(self) -> Statistics:
        """Say how the run stands now."""
        run, callers = self.run, self.run.callers
        return Statistics(
            taken=self.taken,
            done=self.done,
            failed=self.failed,
            skipped=self.skipped,
            parked=self.parked,
            returned=self.returned,
            open=run.window.open,
            window=run.window.limit,
            open_bytes=run.window.bytes_open,
            attempts=sum(caller.attempts for caller in callers),
            elapsed=run.clock() - run.began,
            state=run.state,
            stages=[self._stage_statistics(caller) for caller in callers],
            keys=self._busiest_keys(),
            source_ended=run.intake.source_over,
            job_parked=len(run.parking),
        )

    @staticmethod
    def _stage_statistics(caller: Caller) -> StageStatistics:
        ahead = len(caller.ahead) if caller.ahead is not None else 0  # with the lane, and not begun
        return StageStatistics(
            name=caller.spec.name,
            lane=caller.spec.lane,
            queued=len(caller.dispatch) + ahead,
            held=getattr(caller.dispatch, "held", 0),
            running=caller.running - ahead,
            waiting=caller.waiting,
            attempts=caller.attempts,
            failures=caller.failures,
            busy=caller.busy,
            abandoned=caller.lane.abandoned + caller.given_up,
            copies=caller.hedge.copies if caller.hedge is not None else 0,
            copies_won=caller.hedge.won if caller.hedge is not None else 0,
        )

    def _busiest_keys(self, most: int = 8) -> list[Mapping[str, Any]]:
        now = self.run.clock()
        limits = {
            limit for caller in self.run.callers for limit in caller.spec.limits if limit.by is not None
        }
        return [
            {
                "limit": limit.name,
                "key": str(key.key),
                "running": key.running,
                "held": max(0.0, key.held_until - now) if math.isfinite(key.held_until) else 0.0,
                "level": key.level,
                "rate": key.found_rate,
                "open": key.is_open,
            }
            for limit in limits
            for key in limit.busiest(most)
        ]

    def report(self) -> Report:
        """Account for every item."""
        run = self.run
        state, trouble = run.job_state, run.trouble_raised
        ended = run.state in ("flushing", "closed")
        capped = self._cap is not None and not self._cap.exceeded(
            self.failed, self.settled, self.taken, ended=True
        )
        elapsed = run.clock() - run.began
        return Report(
            taken=self.taken,
            done=self.done,
            failed=self.failed,
            skipped=self.skipped,
            parked=self.parked,
            returned=self.returned,
            elapsed=elapsed,
            stages=[
                StageReport(
                    c.spec.name,
                    c.spec.lane,
                    c.spec.concurrency,
                    c.attempts,
                    c.failures,
                    c.busy,
                    c.lane.abandoned + c.given_up,
                    None if c.choice is None else c.choice.reason,
                    advice_on_threads(getattr(c.lane, "computed", 0.0), elapsed, cores()),
                    c.hedge.copies if c.hedge is not None else 0,
                    c.hedge.won if c.hedge is not None else 0,
                )
                for c in run.callers
            ],
            causes=sorted(self._causes.values(), key=lambda cause: -cause.count),
            job=run.options.job,
            place=getattr(run.plan.sink, "place", None),
            job_done=state.done + self.done if state is not None else None,
            job_failed=state.failed + self.failed if state is not None else None,
            job_skipped=state.skipped + self.skipped if state is not None else None,
            job_parked=len(run.parking) if state is not None else None,
            next_due=run.parking.next_due if ended else None,
            stopped=run.shutdown.reason,
            untaken=run.leaves_work,
            within_max_failures=capped,
            signal=run.shutdown.signal,
            trouble=None if trouble is None else f"{type(trouble).__name__}: {one_line(trouble)}",
            fault=isinstance(trouble, EngineError),
            warnings=tuple(self.warnings),
            abandoned=run.abandoned,
            commits=run.exit.commits if isinstance(run.exit, Committer) else 0,
            total=run.total,
            held=sorted(self._held.values(), key=lambda place: -place.seconds),
            finished_at=state.finished_at if state is not None and ended and not self.taken else None,
        )
