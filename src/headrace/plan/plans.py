"""The plan as a whole: validated before anything moves, and what it amounts to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from headrace.errors import PlanError
from headrace.plan.checks import describe, numbered, seconds_problems, stage_problems
from headrace.plan.stages import StageSpec
from headrace.policies.deadlines import FailureCap
from headrace.policies.fuse import FUSE_OF_JOBS
from headrace.ports import Replayable, Sink, Source, Transactional

__all__ = ["DEFAULT_WAIT", "Plan", "RunOptions"]

MINIMUM_WINDOW = 2048  # two commits of the committer: one is written while the other gathers
#: With child processes: they are given many short calls at a time.
MINIMUM_WINDOW_OF_PROCESSES = 8192
#: What must wait longer than this (seconds) is parked, unless `wait=` says otherwise.
DEFAULT_WAIT = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """What one run of a plan is told; none of it belongs to the job's identity."""

    job: str | None = None
    window: int | None = None
    window_bytes: int = 256 * 2**20
    within: float | None = None
    wait: float = DEFAULT_WAIT  #: what must wait longer is parked
    on_failure: Literal["record", "stop"] = "record"
    max_failures: str | int | float | None = None
    fuse: int | Literal["auto"] | None = "auto"
    fresh: bool = False
    max_age: float | None = None
    accept_changes: bool = False
    grace: float = 8.0
    recorded: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  #: kept with the job, for `resume`; no secrets


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A validated flow: a source, stages, perhaps a sink."""

    source: Source
    stages: tuple[StageSpec, ...] = ()
    sink: Sink | None = None

    # ------------------------------------------------------------------ what it amounts to

    @property
    def concurrency(self) -> int:
        """The calls that may run at once, all stages together."""
        return sum(stage.concurrency for stage in self.stages if stage.calls)

    @property
    def levels(self) -> int:
        """How many times deliveries are counted anew: fan-outs and batches begin a level."""
        return 1 + sum(stage.kind in ("flat_map", "batch") for stage in self.stages)

    def window(self, given: int | None) -> int:
        """Give the window of a run: `given`, else max(2048, 4 × concurrency), and room for what fans out.

        With a stage on processes it is 8192 at least.
        """
        if given is not None:
            return given
        on_processes = any(stage.lane in ("process", "auto") for stage in self.stages)
        return max(
            MINIMUM_WINDOW_OF_PROCESSES if on_processes else MINIMUM_WINDOW,
            4 * self.concurrency,
            self._window_needed(),
        )

    def _window_needed(self) -> int:
        fanout = max((stage.fanout for stage in self.stages if stage.kind == "flat_map"), default=0)
        batch = max((stage.size for stage in self.stages if stage.kind == "batch"), default=0)
        return 2 * self.levels * max(fanout, batch) if self.levels > 1 else 1

    def fuse(self, options: RunOptions) -> int | None:
        """Give how many items must have failed alike for the run to be stopped; None for never. "auto": 50 for a job."""
        if options.fuse != "auto":
            return options.fuse
        return FUSE_OF_JOBS if isinstance(self.sink, Transactional) else None

    def identity(self) -> dict[str, Any]:
        """Give the parts that make this job this job, JSON-able; the source adds its fingerprint."""
        sink = self.sink
        columns = sink.columns() if isinstance(sink, Transactional) else None
        return {
            "stages": [
                {
                    "name": stage.name,
                    "kind": stage.kind,
                    **({"shape": dict(stage.shape)} if stage.shape else {}),
                }
                for stage in self.stages
                if stage.kind != "take"
            ],
            "columns": list(columns) if columns is not None else None,
        }

    def code(self) -> dict[str, str]:
        """Give a hash of each stage function's code. `take` is not counted: it may come and go between runs."""
        stages = [stage for stage in self.stages if stage.kind != "take"]
        return {f"{number}:{s.name}": s.code() for number, s in enumerate(stages) if s.calls}

    # ------------------------------------------------------------------ is it sound?

    def validate(self, options: RunOptions) -> None:
        """Raise one PlanError with all that is wrong with running this plan so; else return."""
        problems = [problem for stage in self.stages for problem in stage_problems(stage)]
        problems += self._run_problems(options)
        if options.job is not None:
            problems += self._job_problems()
        if problems:
            raise PlanError("\n".join(problems) if len(problems) == 1 else numbered(problems))

    def _run_problems(self, options: RunOptions) -> list[str]:
        problems = []
        window, needed = options.window, self._window_needed()
        if window is not None and (not isinstance(window, int) or window < 1):
            problems.append(f"window={window!r}: give a whole number of items, 1 or more")
        elif window is not None and window < needed:
            problems.append(
                f"window={window} is too small for the fan-outs and batches of this flow, which need {needed}: "
                f"raise window=, or lower fanout= or the batch size"
            )
        problems += seconds_problems("within", options.within) + seconds_problems("max_age", options.max_age)
        problems += seconds_problems("wait", options.wait)
        if options.max_failures is not None:
            try:
                FailureCap(options.max_failures)
            except PlanError as error:
                problems.append(str(error))
        fuse = options.fuse
        if fuse is not None and fuse != "auto" and not (type(fuse) is int and fuse >= 1):
            problems.append(f"fuse={fuse!r}: give a whole number of items, 1 or more, or None for no fuse")
        if options.on_failure not in ("record", "stop"):
            problems.append(f'on_failure={options.on_failure!r}: it is "record" or "stop"')
        return problems

    def _job_problems(self) -> list[str]:
        problems = []
        if not isinstance(self.source, Replayable):
            problems.append(
                f"the source {self.source.name} cannot be read again from the same place, so it cannot be a job: "
                f"give a sequence or one of headrace's own sources, or run it without job= and into()"
            )
        if not isinstance(self.sink, Transactional):
            problems.append(
                'job= needs a place to be kept: end the flow with .into(hr.sqlite.table("out.db"))'
            )
        kinds = [stage.kind for stage in self.stages]
        if "flat_map" in kinds and "batch" in kinds[kinds.index("flat_map") :]:
            problems.append(
                "a batch after a flat_map mixes the children of several items, which could then not commit each on its "
                "own: make it two jobs, or batch first"
            )
        return problems

    # ------------------------------------------------------------------ for people

    def explain(self, options: RunOptions) -> str:
        """Describe stages, lanes, policies in their order, limits, guarantees, and what may repeat after a crash."""
        window = self.window(options.window)
        lines = [
            f"source   {self.source.name}" + ("" if isinstance(self.source, Replayable) else "   (read once)")
        ]
        for number, stage in enumerate(self.stages, 1):
            lines += [
                f"stage {number}  {line}" if not i else f"         {line}"
                for i, line in enumerate(describe(stage))
            ]
        sink = self.sink
        lines.append(f"sink     {sink.name if sink is not None else 'none: outcomes are handed to you'}")
        lines.append(
            f"window   at most {window} open items, {options.window_bytes // 2**20} MiB of results under way"
        )
        durable = isinstance(sink, Transactional)
        fuse = self.fuse(options)
        if fuse is not None:
            lines.append(
                f"fuse     where the first {fuse} items all fail for good in the same way, the run stops"
            )
        if durable:
            lines.append(
                "kept     each item has one recorded result or one dead letter, whatever dies and whenever"
            )
            lines.append(f"crash    up to {window} items are taken again; {self._repeats()}")
        else:
            lines.append(
                "kept     nothing: this run cannot be resumed; into(hr.sqlite.table(…)) makes it a job"
            )
        return "\n".join(lines)

    def _repeats(self) -> str:
        once = [stage.name for stage in self.stages if stage.effect == "once"]
        repeat = [stage.name for stage in self.stages if stage.calls and stage.effect != "once"]
        text = f"calls of {', '.join(repeat)} may be made again" if repeat else "no call is made again"
        if once:
            text += f"; {', '.join(once)} (once) never: an unknown end becomes a dead letter in doubt"
        return text
