"""Values that may be sent but never shown or stored.

Rules:
1. A `Secret` shows as `***` or as its reference; only `reveal()` gives the value, and only where a request is
   made.
2. `{env:NAME}` is a reference: it is what a job stores, and it is resolved when the client opens the request.
3. Some header names are secret whatever their value.
"""

from __future__ import annotations

import os
import re
from typing import Final

from headrace.errors import PlanError

__all__ = ["Secret", "expand", "is_secret_name", "references"]

_REFERENCE: Final = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_NAMES: Final = frozenset(
    {
        "authorization",
        "cookie",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-auth-token",
        "x-access-token",
        "x-amz-security-token",
        "x-csrf-token",
    }
)


class Secret:
    """A value that is sent but never shown or stored: `Secret("…")`, or `Secret(env="NAME")` to name where
    it is found.

    Jobs store the name, never the value. A literal one must be given again on resume.
    """

    __slots__ = ("_value", "env")

    def __init__(self, value: str | None = None, *, env: str | None = None) -> None:
        if (value is None) == (env is None):
            raise PlanError('Secret() takes either a value or env="NAME"')
        self._value = value
        self.env = env

    def reveal(self) -> str:
        """Give the value. Raises PlanError where the environment does not have it."""
        if self._value is not None:
            return self._value
        return _from_environment(self.env or "")

    @property
    def reference(self) -> str:
        """What may be shown and stored in its place."""
        return f"{{env:{self.env}}}" if self.env is not None else "***"

    def __repr__(self) -> str:
        return f"Secret({self.reference})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self._value, self.env) == (other._value, other.env)

    def __hash__(self) -> int:
        return hash((self._value, self.env))

    def __reduce__(self) -> tuple[type[Secret], tuple[None], dict[str, str]]:
        raise PlanError(f"{self!r} cannot be pickled: secrets do not leave the process")


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise PlanError(f"{{env:{name}}}: the environment has no variable {name}; set it and run again")
    return value


def expand(text: str) -> str:
    """Put the values of the environment in the place of `{env:NAME}`. Raises PlanError for a missing one."""
    return _REFERENCE.sub(lambda match: _from_environment(match.group(1)), text)


def references(text: str) -> bool:
    """Whether the text refers to a secret."""
    return _REFERENCE.search(text) is not None


def is_secret_name(name: str) -> bool:
    """Whether a header of this name is always a secret."""
    return name.lower() in _SECRET_NAMES
