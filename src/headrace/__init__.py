"""headrace: run a million calls from one Python program, bounded, retried, resumable, and account for every one.

    import headrace as hr

    got = await hr.map(fetch_user, ids, concurrency=100, timeout=5)
    got.values                                  # or hr.map_sync in a script

`hr.Flow` builds a whole job; `hr.http`, `hr.files` and `hr.sqlite` bring requests, sources and sinks, and load when they are
first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.errors import (
    CallError,
    EngineError,
    GiveUp,
    HeadraceError,
    IdentityChanged,
    InDoubt,
    ItemsFailed,
    LaneError,
    LedgerBusy,
    LedgerError,
    PlanError,
    RetryAfter,
    SinkError,
    Skip,
    SourceError,
    TimedOut,
)
from headrace.flow.builder import Flow
from headrace.flow.group import Group
from headrace.flow.inbox import Inbox
from headrace.flow.job import Job
from headrace.flow.mapping import map, map_sync
from headrace.item import Done, Failed, Outcome, Parked, Returned, Skipped
from headrace.policies.classify import transient
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import Shared as shared
from headrace.report import Outcomes, Report

if TYPE_CHECKING:
    from headrace import files, http, sqlite
    from headrace.flow.place import open

__version__ = "0.1.0"

__all__ = [
    "CallError",
    "Done",
    "EngineError",
    "Failed",
    "Flow",
    "GiveUp",
    "Group",
    "HeadraceError",
    "IdentityChanged",
    "InDoubt",
    "Inbox",
    "ItemsFailed",
    "Job",
    "LaneError",
    "LedgerBusy",
    "LedgerError",
    "Limit",
    "Outcome",
    "Outcomes",
    "Parked",
    "PlanError",
    "Report",
    "Retry",
    "RetryAfter",
    "Returned",
    "SinkError",
    "Skip",
    "Skipped",
    "SourceError",
    "TimedOut",
    "files",
    "http",
    "map",
    "map_sync",
    "open",
    "shared",
    "sqlite",
    "transient",
]

_ADAPTERS = ("files", "http", "sqlite")


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return import_module(f"headrace.{name}")
    if name == "open":
        from headrace.flow.place import open

        return open
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
