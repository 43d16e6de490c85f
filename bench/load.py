"""Load control in simulation: seeded runs against 200 hosts, one in ten of them sick, in virtual time.

Rules:
1. The hosts, and what is promised of every call, are those of the tests: `tests/engine/load_world.py`.
2. A share is what was used of the limit that binds a host, from its fifth second on until it had no more work; where one
   limit lies over all hosts, what was used of that.
3. Healthy hosts are compared with themselves in a run without the sick ones.
"""

from __future__ import annotations

import importlib
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.harness import Check, Report, Table, below

WORLD = pathlib.Path(__file__).parents[1] / "tests" / "engine"
#: So many seeds, and how many lines of what went wrong are shown.
QUICK, SEEDS, LONG = 10, 100, 1000
SHOWN = 10


def _world() -> Any:
    if str(WORLD) not in sys.path:
        sys.path.insert(0, str(WORLD))
    return importlib.import_module("load_world")


def _play(seed: int) -> Any:
    world = _world()
    began = time.process_time()
    return world.of_seed(seed), time.process_time() - began


def bench(quick: bool, say: Callable[[str], None], *, long: bool = False) -> Report:
    """Play the seeds from 0 on, on all cores."""
    seeds = QUICK if quick else LONG if long else SEEDS
    played: list[Any] = []
    _world()  # what comes back is of its classes
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=50) as pool:
        for one in pool.imap_unordered(_play, range(seeds)):
            played.append(one)
            if len(played) % max(1, seeds // 20) == 0:
                say(f"{len(played)} of {seeds} seeds")
    played.sort(key=lambda one: one[0].seed)
    return _report(played)


def _report(played: list[Any]) -> Report:
    found = [one for one, _ in played]
    shares = sorted((share, one.seed) for one in found for share in one.shares)
    means = sorted((statistics.mean(one.shares), one.seed) for one in found if one.shares)
    slower = sorted((one.slower, one.seed) for one in found if one.slower is not None)
    last = sorted((one.last, one.seed) for one in found if one.last is not None)
    broken = [(one.seed, text) for one in found for text in one.violations]
    failed = [(one.seed, one.failed) for one in found if one.failed]
    rounds: dict[str, list[dict[str, float]]] = {}
    for one, seconds in played:
        figures = {"calls": float(one.calls), "refused": 100.0 * one.refused, "seconds": seconds}
        rounds.setdefault(one.kind, []).append(figures)
    report = Report()
    columns = {"calls": "calls", "refused": "% refused", "seconds": "CPU seconds"}
    report.tables.append(Table(f"a seed, of {len(found)}", columns, rounds))
    report.checks += [
        below("promises broken", float(len(broken)), 0.0, ""),
        below("failed items of healthy hosts", float(sum(count for _, count in failed)), 0.0, ""),
        Check("share used of what hosts take, the mean of a run, worst run", 100.0 * means[0][0], 90.0, unit="%"),
        below("healthy hosts are done later, mean of the runs", _mean_percent(slower), 5.0, "%"),
        below("the last healthy host is done later, mean of the runs", _mean_percent(last), 5.0, "%"),
    ]  # fmt: skip
    few = sum(share < 0.9 for share, _ in shares)
    middle = _percent(_middle([share for share, _ in shares]))
    report.notes.append(
        f"single hosts: {len(shares)} shares, median {middle}, worst {_percent(shares[0][0])} (seed {shares[0][1]}); "
        f"{few} below 90 %"
    )
    middle = _percent(_middle([share for share, _ in slower]))
    report.notes.append(
        f"healthy hosts later: median {middle}, {_span(slower)}; the last one {_span(last)}: each run has its own jitter"
    )
    report.notes += [f"seed {seed}: {text}" for seed, text in broken[:SHOWN]]
    report.notes += [f"seed {seed}: {count} items of healthy hosts failed" for seed, count in failed[:SHOWN]]
    return report


def _mean_percent(found: list[tuple[float, int]]) -> float:
    return 100.0 * statistics.mean(value for value, _ in found)


def _span(found: list[tuple[float, int]]) -> str:
    (least, _), (most, seed) = found[0], found[-1]
    return f"{_percent(least)} to {_percent(most)} (seed {seed})"


def _middle(values: list[float]) -> float:
    return statistics.median(values)


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f} %"
