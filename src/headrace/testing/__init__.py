"""What headrace is tested with, for the tests of its users too.

`run` (virtual time), `run_real`, `VirtualLoop`; `cancel_everywhere` and `no_leaks`.

Rules:
1. Nothing here is needed to run a flow, and nothing that runs one imports it.
2. A check raises AssertionError, says what it found, and mends nothing.
"""

from headrace.testing.cancel import Ending, Traced, cancel_everywhere, count_await_points
from headrace.testing.leaks import no_leaks, open_descriptors
from headrace.testing.virtual import DeadlockError, VirtualLoop, loop_factory, run, run_real

__all__ = [
    "DeadlockError",
    "Ending",
    "Traced",
    "VirtualLoop",
    "cancel_everywhere",
    "count_await_points",
    "loop_factory",
    "no_leaks",
    "open_descriptors",
    "run",
    "run_real",
]
