"""What is sent with a request: bytes, text, a form or JSON, and the header that says which."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from headrace.errors import PlanError

__all__ = ["UNSET", "Unset", "encode"]


class Unset(enum.Enum):
    """Tells «not given» from None, which is a value."""

    UNSET = "not given"

    def __repr__(self) -> str:
        return "<not given>"


UNSET: Final = Unset.UNSET


def encode(
    body: bytes | str | None = None, data: Mapping[str, Any] | None = None, json: Any = UNSET
) -> tuple[bytes | None, str | None]:
    """Give the bytes to send and their content type; (None, None) for no body. Raises PlanError."""
    if (body is not None) + (data is not None) + (json is not UNSET) > 1:
        raise PlanError("give only one of body=, data= and json=")
    if body is not None:
        return (body.encode(), "text/plain; charset=utf-8") if isinstance(body, str) else (bytes(body), None)
    if data is not None:
        return urlencode(data, doseq=True).encode("ascii"), "application/x-www-form-urlencoded"
    if json is not UNSET:
        try:
            return msgspec.json.encode(json), "application/json"
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"json= cannot be written as JSON: {error}") from error
    return None, None
