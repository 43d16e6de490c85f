"""The plan: what a flow is, immutable and validated before anything moves.

Rules:
1. A plan is data; building one calls none of the user's functions and opens nothing.
2. `validate` reports every problem at once, each with the value and the form that works.
3. `identity` is what must not change between the runs of a job; limits, lanes, timeouts and retries may.
"""

from __future__ import annotations

from headrace.plan.functions import cores, function_name, is_async, where_is
from headrace.plan.plans import DEFAULT_WAIT, Plan, RunOptions
from headrace.plan.stages import DEFAULT_FANOUT, LaneName, Processes, StageSpec, known, make_stage

__all__ = [
    "DEFAULT_FANOUT",
    "DEFAULT_WAIT",
    "LaneName",
    "Plan",
    "Processes",
    "RunOptions",
    "StageSpec",
    "cores",
    "function_name",
    "is_async",
    "known",
    "make_stage",
    "where_is",
]
