"""What the end of a call says of the other side: whether it copes, asks for less, has too much, is gone, or is broken."""

from __future__ import annotations

from typing import Literal

__all__ = ["Signal"]

#: "success": it answered, if only to refuse this one item (a 404). "ignore": this says nothing of it.
#: "throttled": it asks for less (429, Retry-After). "overload": it has too much (503). "lost": no connection, or no
#: answer in time. "fault": it is there, and broken (500, 502, 504).
Signal = Literal["success", "ignore", "throttled", "overload", "lost", "fault"]
