"""How long a user waits before anything happens: `import headrace`, and `headrace --help`.

Rules:
1. The import is timed inside a fresh interpreter, after Python's own start; the command is timed as a whole. Names load when
   they are touched first, so the first touch of the engine is timed too: asyncio, which it needs, is a good part of that.
2. One run that does not count comes first: what is measured is a warm disk, with compiled files where they can be written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import Report, Rounds, Table, below

IMPORT = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"
#: Compiled files go to a directory of their own: some machines are set not to write them beside the source.
ENVIRONMENT_OF_CACHE = "PYTHONPYCACHEPREFIX"


def _import(name: str, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(name)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return float(done.stdout)


def _command(arguments: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(arguments, capture_output=True, check=True, env=environment)
    return time.perf_counter() - began


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Take the medians of many processes."""
    import os

    rounds = 5 if quick else 25
    program = Path(sys.executable).with_name("headrace")
    found: Rounds = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, ENVIRONMENT_OF_CACHE: cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        sides: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: _command([sys.executable, "-c", "pass"], environment),
            "import headrace": lambda: _import("headrace", environment),
            "import headrace; headrace.map": lambda: _import("headrace; headrace.map", environment),
            "import asyncio": lambda: _import("asyncio", environment),
            "import streamable": lambda: _import("streamable", environment),
            "import aiohttp": lambda: _import("aiohttp", environment),
            "import scrapy": lambda: _import("scrapy", environment),
            "headrace --help": lambda: _command([str(program), "--help"], environment),
        }
        for number in range(rounds + 1):
            for name, side in sides.items():
                took = side() * 1e3
                if number:
                    found.setdefault(name, []).append({"ms": took})
            say(f"round {number}/{rounds}")
    table = Table("time to start", {"ms": "ms"}, found)
    medians = table.medians()
    checks = [
        below("import headrace", medians["import headrace"]["ms"], 60, "ms"),
        below("headrace --help", medians["headrace --help"]["ms"], 250, "ms"),
    ]
    return Report([table], checks)
