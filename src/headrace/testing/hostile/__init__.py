"""A hostile HTTP server on loopback: every way in which an answer can go wrong, by path.

Rules:
1. It runs in a thread with a loop of its own, so that a client that blocks its loop does not stop it.
2. It keeps an account of what it was sent; a test compares that with what the client believes.
3. What it needs beyond the standard library (trustme, h2, brotli) is imported where it is asked for.
"""

from __future__ import annotations

from headrace.testing.hostile.exchange import Received
from headrace.testing.hostile.faults import FAULTS
from headrace.testing.hostile.server import HostileServer

__all__ = ["FAULTS", "HostileServer", "Received"]
