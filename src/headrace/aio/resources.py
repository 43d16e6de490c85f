"""What is known of resources that their own protocol does not say.

Rules:
1. Nothing is imported to find out.
"""

from __future__ import annotations

from typing import Any

__all__ = ["stays_open"]


def stays_open(resource: Any) -> bool:
    """Say whether leaving `with resource` does not close it: the block of a sqlite3.Connection is a transaction."""
    return any(
        (kind.__module__, kind.__name__) == ("sqlite3", "Connection") for kind in type(resource).__mro__
    )
