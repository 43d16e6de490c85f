"""What headrace is tested with, for the tests of its users too.

`run` (virtual time), `run_real`, `VirtualLoop`; `ScriptedHttp`, `HostileServer`; `cancel_everywhere` and `no_leaks`.

Rules:
1. Nothing here is needed to run a flow, and nothing that runs one imports it.
2. A check raises AssertionError, says what it found, and mends nothing.
3. What needs libcurl loads on first touch: a test that makes no request does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.testing.cancel import Ending, Traced, cancel_everywhere, count_await_points
from headrace.testing.leaks import no_leaks, open_descriptors
from headrace.testing.virtual import DeadlockError, VirtualLoop, loop_factory, run, run_real

if TYPE_CHECKING:
    from headrace.testing.hostile import HostileServer
    from headrace.testing.replies import ScriptedReply, ScriptedRequest
    from headrace.testing.scripted import ScriptedHttp, UnscriptedRequest

__all__ = [
    "DeadlockError",
    "Ending",
    "HostileServer",
    "ScriptedHttp",
    "ScriptedReply",
    "ScriptedRequest",
    "Traced",
    "UnscriptedRequest",
    "VirtualLoop",
    "cancel_everywhere",
    "count_await_points",
    "loop_factory",
    "no_leaks",
    "open_descriptors",
    "run",
    "run_real",
]

_ROOMS = {
    "HostileServer": "hostile",
    "ScriptedHttp": "scripted",
    "ScriptedReply": "replies",
    "ScriptedRequest": "replies",
    "UnscriptedRequest": "scripted",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value
