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

if TYPE_CHECKING:
    from headrace import files, http, sqlite
    from headrace.advisor.advice import advise
    from headrace.errors import (
        CallError,
        GiveUp,
        HeadraceError,
        InDoubt,
        ItemsFailed,
        LaneError,
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
    from headrace.flow.place import open
    from headrace.item import Done, Failed, Outcome, Parked, Returned, Skipped
    from headrace.plan import Processes
    from headrace.policies.adaptive import Adaptive
    from headrace.policies.breaker import Breaker
    from headrace.policies.budget import Budget
    from headrace.policies.classify import transient
    from headrace.policies.limits import Limit
    from headrace.policies.retry import Retry
    from headrace.ports import Shared as shared
    from headrace.report import Outcomes, Report

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "Breaker",
    "Budget",
    "CallError",
    "Done",
    "Failed",
    "Flow",
    "GiveUp",
    "Group",
    "HeadraceError",
    "InDoubt",
    "Inbox",
    "ItemsFailed",
    "Job",
    "LaneError",
    "LedgerError",
    "Limit",
    "Outcome",
    "Outcomes",
    "Parked",
    "PlanError",
    "Processes",
    "Report",
    "Retry",
    "RetryAfter",
    "Returned",
    "SinkError",
    "Skip",
    "Skipped",
    "SourceError",
    "TimedOut",
    "advise",
    "files",
    "http",
    "map",
    "map_sync",
    "open",
    "shared",
    "sqlite",
    "transient",
]

#: Where each name lives. Nothing is loaded before it is touched: `import headrace` costs next to nothing.
_HOMES = {
    **dict.fromkeys(
        (
            "CallError",
            "GiveUp",
            "HeadraceError",
            "InDoubt",
            "ItemsFailed",
            "LaneError",
            "LedgerError",
            "PlanError",
            "RetryAfter",
            "SinkError",
            "Skip",
            "SourceError",
            "TimedOut",
        ),
        "errors",
    ),
    **dict.fromkeys(("Done", "Failed", "Outcome", "Parked", "Returned", "Skipped"), "item"),
    **dict.fromkeys(("Outcomes", "Report"), "report"),
    **dict.fromkeys(("map", "map_sync"), "flow.mapping"),
    "Adaptive": "policies.adaptive",
    "Breaker": "policies.breaker",
    "Budget": "policies.budget",
    "Flow": "flow.builder",
    "Group": "flow.group",
    "Inbox": "flow.inbox",
    "Job": "flow.job",
    "Limit": "policies.limits",
    "Processes": "plan",
    "Retry": "policies.retry",
    "advise": "advisor.advice",
    "open": "flow.place",
    "transient": "policies.classify",
}
_ADAPTERS = ("files", "http", "sqlite")


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return import_module(f"headrace.{name}")
    if name == "shared":
        value = import_module("headrace.ports").Shared
    elif name in _HOMES:
        value = getattr(import_module(f"headrace.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
