"""What the tests of the process lane share: calls that leave a mark, and ways to die."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


def marked(place: Path, fn: Callable[[int], Any]) -> Callable[[int], Any]:
    """Give a function that notes each call of it in a file, whatever becomes of the call."""
    path = str(place)

    def call(number: int) -> Any:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, b"%d\n" % number)
        os.close(file)
        return fn(number)

    return call


def calls(place: Path) -> Counter[int]:
    """Count the calls that were noted."""
    return Counter(map(int, place.read_text().split())) if place.exists() else Counter()


def children_of(pid: int) -> set[int]:
    """List the children of a process that are alive."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found.update(map(int, file.read_text().split()))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
