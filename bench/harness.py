"""What all benches share: sides in processes of their own, rounds that take turns, tables and verdicts.

Rules:
1. A side is a function of a bench module that takes keywords (JSON-able) and gives a dict of figures. It runs in a fresh
   process and never sees another side's imports or memory.
2. Figures are kept per round: a verdict compares within rounds, so that what slows a whole round slows both.
3. The peak of memory is the process's own (VmHWM): `ru_maxrss` of a child begins with what its parent had.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Check", "Report", "Side", "Table", "above", "below", "peak_megabytes", "play", "run_side"]

Figures = dict[str, float]
Rounds = dict[str, list[Figures]]
#: A side that takes longer than this, in seconds, is broken.
PATIENCE = 600.0


@dataclasses.dataclass(frozen=True)
class Side:
    """One competitor: how it is called in the table, where its function is, and what it is told."""

    name: str
    function: str  #: "bench.map:workers"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pinned: bool = True  #: to one core; not where the side has threads that are to run beside each other


@dataclasses.dataclass(frozen=True)
class Check:
    """A figure against its target."""

    what: str
    value: float
    target: float
    at_least: bool = True
    unit: str = "×"

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.at_least else self.value <= self.target

    def line(self) -> str:
        """Say it."""
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "NOT MET"
        value, target = _figure(self.value), _figure(self.target).strip()
        return f"  {self.what:66} {value} {self.unit:4} (target {sign} {target})  {verdict}"


@dataclasses.dataclass
class Table:
    """Medians of one comparison: a row for each side, a column for each figure."""

    title: str
    columns: Mapping[str, str]  #: figure → heading
    rounds: Rounds
    base: str | None = None  #: the side that the ratio column is against
    ratio_of: str | None = None  #: the figure that it is of

    def medians(self) -> dict[str, Figures]:
        """Give the median of each figure of each side."""
        return {
            name: {key: statistics.median(one[key] for one in found) for key in found[0]}
            for name, found in self.rounds.items()
        }

    def lines(self) -> list[str]:
        """Lay it out."""
        medians = self.medians()
        width = max([len(self.title), 28, *(len(name) + 2 for name in medians)])
        head = f"{self.title:{width}}" + "".join(f"{text:>16}" for text in self.columns.values())
        if self.base is not None:
            head += f"{'against ' + self.base:>26}"
        lines = [head]
        for name, figures in medians.items():
            line = f"{'  ' + name:{width}}"
            line += "".join(f"{_figure(figures[key]) if key in figures else '':>16}" for key in self.columns)
            if self.base is not None and self.ratio_of is not None and name != self.base:
                line += f"{ratio(self.rounds, name, self.base, self.ratio_of):>24.3g} ×"
            lines.append(line)
        return lines


@dataclasses.dataclass
class Report:
    """What a bench gives back."""

    tables: list[Table] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """Lay all of it out."""
        lines: list[str] = []
        for table in self.tables:
            lines += [*table.lines(), ""]
        lines += [check.line() for check in self.checks]
        return lines + [f"  {note}" for note in self.notes]

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return {
            "tables": [{"title": t.title, "medians": t.medians(), "rounds": t.rounds} for t in self.tables],
            "checks": [{**dataclasses.asdict(check), "met": check.met} for check in self.checks],
            "notes": self.notes,
        }


def above(what: str, rounds: Rounds, ours: str, theirs: str, figure: str, target: float) -> Check:
    """Check that ours is at least `target` times theirs in `figure`, where more is better."""
    return Check(what, ratio(rounds, ours, theirs, figure), target)


def below(what: str, value: float, target: float, unit: str) -> Check:
    """Check that a value is at most `target`."""
    return Check(what, value, target, False, unit)


def ratio(rounds: Rounds, ours: str, theirs: str, figure: str) -> float:
    """Give the median over the rounds of ours / theirs."""
    return statistics.median(
        mine[figure] / other[figure] for mine, other in zip(rounds[ours], rounds[theirs], strict=True)
    )


def play(sides: Sequence[Side], rounds: int, say: Callable[[str], None]) -> Rounds:
    """Run all sides, taking turns; say each figure as it comes."""
    found: Rounds = {side.name: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            figures = run_side(side)
            found[side.name].append(figures)
            shown = ", ".join(f"{key} {_figure(value).strip()}" for key, value in figures.items())
            say(f"round {number}/{rounds}  {side.name}: {shown}")
    return found


def run_side(side: Side) -> Figures:
    """Run one side in a process of its own. Raises RuntimeError, with what it wrote, where it fails."""
    command = [sys.executable, "-m", "bench.harness", side.function, json.dumps(dict(side.options))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd=pathlib.Path(__file__).parents[1],
        preexec_fn=_pin if side.pinned else None,
    )
    if done.returncode:
        raise RuntimeError(f"{side.name} ({side.function}) failed:\n{done.stderr[-4000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _pin() -> None:
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})


def peak_megabytes() -> float:
    """Give the most memory that this process has held, in MB."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _figure(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:>10,.0f}".replace(",", " ")
    return f"{value:>10.3g}" if abs(value) < 100 else f"{value:>10.0f}"


def main() -> None:
    """Be the process of one side: run its function, write its figures as the last line."""
    module, _, name = sys.argv[1].partition(":")
    figures = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
