"""The command: choose benches, run them, print tables and verdicts."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from typing import Any

import bench

#: Name → module and what it measures. A module has `bench(quick, say)`; some take `long` too.
BENCHES = {
    "map": (
        "bench.map",
        "a bounded concurrent map against streamable, aiometer, aiostream, pypeln and hand-written forms",
    ),
    "keyed": (
        "bench.keyed",
        "what limits by key cost an item with 1, 100 and 100 000 keys, and what the keys hold",
    ),
    "threads": (
        "bench.lanes_threads",
        "plain functions in 32 threads against to_thread, run_in_executor, ThreadPoolExecutor and bare threads",
    ),
    "http": (
        "bench.adapters:http",
        "CPU per request against aiohttp and bare libcurl, http and https, nginx",
    ),
    "lines": ("bench.log_lines", "a log of 100 MB over HTTP, line by line, against aiohttp and curl"),
    "many": ("bench.many", "ten thousand connections open at once to slow servers, against aiohttp"),
    "pages": ("bench.pages", "fetch, parse, SQLite: against Scrapy and a hand-written script"),
    "durable": (
        "bench.durable",
        "durable items into SQLite against raw inserts, executemany beside a busy loop, DBOS",
    ),
    "lanes": (
        "bench.lanes",
        "small calls to processes, against ProcessPoolExecutor, multiprocessing.Pool, joblib, mpire",
    ),
    "manners": (
        "bench.manners",
        "a server that limits its clients, one host that hangs: against a fixed limit and aiohttp by hand",
    ),
    "lag": ("bench.lag", "how late the loop is while CPU work goes on in processes, in threads, on the loop"),
    "load": ("bench.load", "load control against 200 simulated hosts, seed by seed; --long plays 1000"),
    "memory": ("bench.memory", "peak memory as the input grows"),
    "imports": ("bench.imports", "time of «import headrace» and «headrace --help»"),
}


def main() -> int:
    """Run what was asked for; the exit code is 1 where a target was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it runs")
    parser.add_argument(
        "--long", action="store_true", help="10 million items where memory is measured, 1000 seeds of load"
    )
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--silent", action="store_true", help="tables only, no figure as it comes")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if arguments.list:
        for name, (_, what) in BENCHES.items():
            print(f"{name:10} {what}")
        return 0
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    machine = _machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    kept: dict[str, Any] = {"machine": machine, "quick": arguments.quick, "benches": {}}
    failed, missed = [], 0
    for name in arguments.names or BENCHES:
        began = time.perf_counter()
        print(f"\n{name}: {BENCHES[name][1]}", flush=True)
        try:
            report = _bench(name, arguments)
        except Exception as error:
            print(f"  could not be measured: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            continue
        print("\n" + "\n".join(report.lines()), flush=True)
        missed += sum(not check.met for check in report.checks)
        kept["benches"][name] = {**report.as_dict(), "seconds": time.perf_counter() - began}
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(kept, file, indent=1)
    print(f"\n{missed} targets missed" + (f"; not measured: {', '.join(failed)}" if failed else ""))
    return 1 if missed or failed else 0


def _bench(name: str, arguments: argparse.Namespace) -> Any:
    module, _, function = BENCHES[name][0].partition(":")
    run = getattr(importlib.import_module(module), function or "bench")
    options = {"long": True} if name in ("memory", "load") and arguments.long else {}
    return run(arguments.quick, _no_word if arguments.silent else _say, **options)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _no_word(text: str) -> None:
    pass


def _machine() -> dict[str, Any]:
    return {
        "Python": platform.python_version(),
        "on": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
