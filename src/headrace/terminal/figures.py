"""What a screen says of a run, worked out from its events alone.

Rules:
1. Time is what the events say: nothing here looks at a clock, so a recorded run shows the same again.
2. Everything that is given out is clean text: no control character of a server reaches a screen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from headrace.events import (
    Event,
    ItemSettled,
    KeyHeld,
    LoopHeld,
    RunFinished,
    RunStarted,
    RunStateChanged,
    Statistics,
    StatisticsSampled,
)
from headrace.terminal.text import clean, count, duration, fit, rate

__all__ = ["Figures"]

#: The rate is that of the last so many seconds.
RATE_OVER = 15.0
BAR = 24
MOST_KEYS = 4
#: So many seconds must have passed before a rate, and the time left, is more than a guess.
RATE_AFTER = 1.0


class Figures:
    """A run as a person wants to see it: feed it events with `take`, ask it for `line` or `screen`."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.statistics = Statistics()
        self.finished = False
        self.state = "opening"
        self.reason = ""
        self.at = 0.0
        self._last_failure = ""
        self._failed = 0  # counted from the settlements, which come before the next sample
        self._held: dict[str, tuple[float, str]] = {}
        self.loop_held = 0.0
        self._last_hold: LoopHeld | None = None
        self._samples: deque[tuple[float, int]] = deque()

    # ------------------------------------------------------------------ what comes in

    def take(self, events: Sequence[Event]) -> None:
        """Fold a batch of events in."""
        for event in events:
            self.at = max(self.at, event.at)
            if isinstance(event, ItemSettled):
                if event.error is not None:
                    self._failed += 1
                    self._last_failure = event.error
            elif isinstance(event, StatisticsSampled):
                self._sampled(event)
            elif isinstance(event, KeyHeld):
                self._held[event.key] = (event.until, event.reason)
            elif isinstance(event, LoopHeld):
                self.loop_held += event.seconds
                self._last_hold = event
            elif isinstance(event, RunStateChanged):
                self.state, self.reason = event.state, event.reason or self.reason
            elif isinstance(event, RunStarted):
                self.started = event
            elif isinstance(event, RunFinished):
                self.finished = True
        for key in [key for key, (until, _) in self._held.items() if until <= self.at]:
            del self._held[key]

    def _sampled(self, event: StatisticsSampled) -> None:
        self.statistics = event.statistics
        samples = self._samples
        samples.append((event.statistics.elapsed, self.settled))
        while len(samples) > 2 and samples[1][0] <= event.statistics.elapsed - RATE_OVER:
            samples.popleft()

    # ------------------------------------------------------------------ numbers

    @property
    def settled(self) -> int:
        """Items that this run has settled."""
        s = self.statistics
        return s.done + s.failed + s.skipped

    @property
    def settled_in_all(self) -> int:
        """Items that the job has settled, earlier runs included."""
        return self.settled + (self.started.settled if self.started is not None else 0)

    @property
    def total(self) -> int | None:
        """Items in the source, where that is known."""
        return self.started.total if self.started is not None else None

    @property
    def failed(self) -> int:
        """Items that failed in this run."""
        return max(self.statistics.failed, self._failed)

    @property
    def in_flight(self) -> int:
        """Calls that run now."""
        return sum(stage.running for stage in self.statistics.stages)

    def per_second(self) -> float | None:
        """Items settled per second lately; None where too little is known."""
        if len(self._samples) < 2:
            return None
        (since, before), (until, after) = self._samples[0], self._samples[-1]
        return None if until - since < RATE_AFTER else (after - before) / (until - since)

    def left(self) -> float | None:
        """The seconds that the rest will take at this rate; None where that cannot be said."""
        speed = self.per_second()
        if not speed or self.total is None or self.state not in ("running", "paused"):
            return None
        return max(0, self.total - self.settled_in_all) / speed

    # ------------------------------------------------------------------ words

    def amount(self) -> str:
        """«1 234 of 10 000 (12%)», as far as the total is known."""
        done, total = self.settled_in_all, self.total
        if total is None or total < done:
            return count(done)
        share = f" ({100 * done // total}%)" if total else ""
        return f"{count(done)} of {count(total)}{share}"

    def waiting(self) -> list[str]:
        """What items wait for, and how many."""
        stages = self.statistics.stages
        backoff = sum(stage.waiting for stage in stages)
        held = sum(stage.held for stage in stages)
        words = [f"{count(backoff)} for their next attempt"] if backoff else []
        if held:
            words.append(f"{count(held)} for a limit")
        return words

    @property
    def parked(self) -> int:
        """Items that are parked now, by the whole job where there is one."""
        return max(self.statistics.parked, self.statistics.job_parked)

    def copies(self) -> str:
        """How many second copies of slow calls were started, and how many came first; empty where none were."""
        started = sum(stage.copies for stage in self.statistics.stages)
        won = sum(stage.copies_won for stage in self.statistics.stages)
        return f"copies of slow calls {count(started)}, first {count(won)}" if started else ""

    def holds(self) -> list[str]:
        """Which keys are held, for how long still, and why."""
        return [
            f"{clean(key)} for {duration(until - self.at)} ({clean(reason)})"
            for key, (until, reason) in sorted(self._held.items(), key=lambda entry: -entry[1][0])
        ]

    def last_hold(self) -> str:
        """How long the loop was held in all, and by what most recently; empty where it was not."""
        hold = self._last_hold
        if hold is None:
            return ""
        stage = f"{clean(hold.stage)}, " if hold.stage else ""
        cure = f": use lane='{clean(hold.cure)}'" if hold.cure else ""
        where = f"{stage}{clean(hold.function)} at {clean(hold.file)}:{hold.line}"
        return f"loop held for {duration(self.loop_held)} in all, last by {where}{cure}"

    def busiest(self) -> list[str]:
        """The keys with the most calls under way, and their level and rate where these are found as they go."""
        running: dict[str, int] = {}
        levels: dict[str, int] = {}
        rates: dict[str, float] = {}
        for key in self.statistics.keys:
            name = str(key.get("key"))
            running[name] = max(running.get(name, 0), int(key.get("running", 0)))
            if (level := key.get("level")) is not None:
                levels[name] = min(levels.get(name, int(level)), int(level))
            if (rate := key.get("rate")) is not None:
                rates[name] = float(rate)
        most = sorted(((n, key) for key, n in running.items() if n), key=lambda pair: (-pair[0], pair[1]))
        return [
            f"{clean(key)} {n}"
            + (f" of {levels[key]}" if key in levels else "")
            + (f" at {rates[key]:.3g}/s" if key in rates else "")
            for n, key in most[:MOST_KEYS]
        ]

    def line(self) -> str:
        """All of it in one line, for where there is no terminal."""
        parts = [self.amount() + " settled"]
        if self.failed:
            parts.append(f"{count(self.failed)} failed")
        if self.parked:
            parts.append(f"{count(self.parked)} parked")
        parts += self._pace()
        if self.loop_held:
            parts.append(f"loop held {duration(self.loop_held)}")
        if not self.finished:
            parts.append(f"{count(self.in_flight)} in flight")
            if copies := self.copies():
                parts.append(copies)
            if words := self.waiting():
                parts.append("waiting: " + ", ".join(words))
            if holds := self.holds():
                parts.append(f"held: {holds[0]}" + (f" and {len(holds) - 1} more" if len(holds) > 1 else ""))
        return self._name() + ", ".join(parts)

    def screen(self, width: int) -> list[str]:
        """The lines of the display, none longer than `width`."""
        head = "  ".join([self._name() + self.amount(), *self._bar(), *self._pace()])
        if self.finished:
            return [fit(head, width)]
        second = [f"in flight {count(self.in_flight)}"]
        if words := self.waiting():
            second.append("waiting: " + ", ".join(words))
        second.append(f"failed {count(self.failed)}")
        if self.parked:
            second.append(f"parked {count(self.parked)}")
        if copies := self.copies():
            second.append(copies)
        lines = [head, "  " + " · ".join(second)]
        if busiest := self.busiest():
            lines.append("  busiest: " + " · ".join(busiest))
        lines += [f"  held: {hold}" for hold in self.holds()[:3]]
        if hold := self.last_hold():
            lines.append("  " + hold)
        if self._last_failure:
            lines.append("  last failure: " + clean(self._last_failure))
        if notice := self.notice():
            lines.append("  " + notice)
        return [fit(line, width) for line in lines]

    def notice(self) -> str:
        """What a stop under way means; empty while nothing stops."""
        if self.finished:
            return ""
        if self.state == "draining":
            return (
                f"stopping ({clean(self.reason)}): {count(self.in_flight)} running calls may finish; "
                "the same signal again cancels them"
            )
        if self.state == "cancelling":
            return f"stopping ({clean(self.reason)}): running calls are cancelled"
        if self.state == "paused":
            return "paused: no new calls are started"
        return ""

    def _name(self) -> str:
        job = self.started.job if self.started is not None else None
        return f"{clean(job)}: " if job and job != "default" else ""

    def _bar(self) -> list[str]:
        done, total = self.settled_in_all, self.total
        if not total or total < done:
            return []
        full = BAR * done // total
        return ["━" * full + "─" * (BAR - full)]

    def _pace(self) -> list[str]:
        elapsed = self.statistics.elapsed
        if self.finished:
            speed = f" ({rate(self.settled / elapsed)})" if elapsed >= RATE_AFTER and self.settled else ""
            return [f"in {duration(elapsed)}{speed}"]
        parts = []
        speed_now = self.per_second()
        if speed_now is not None:
            parts.append(rate(speed_now))
        left = self.left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return parts
