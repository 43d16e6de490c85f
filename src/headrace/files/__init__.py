"""Files: `lines` gives the lines of a text file as a source, `csv` and `jsonl` its rows; `follow` those of files that grow.

Rules:
1. Names load on first touch: who reads lines loads no parser.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.files.lines import lines

if TYPE_CHECKING:
    from headrace.files.delimited import csv
    from headrace.files.growing import follow
    from headrace.files.jsonlines import jsonl

__all__ = ["csv", "follow", "jsonl", "lines"]

_ROOMS = {"csv": "delimited", "follow": "growing", "jsonl": "jsonlines"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
