"""Values that may be sent but never shown or stored.

Rules:
1. A `Secret` shows as `***` or as its reference; only `reveal()` gives the value, and only where a request is
   made.
2. `{env:NAME}` is a reference: it is what a job stores, and it is resolved when the client opens the request.
3. Some header names are secret whatever their value.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from typing import Final

from headrace.errors import PlanError

__all__ = ["Secret", "basic", "bearer", "expand", "is_secret_name", "references"]

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
    """A value that is sent but never shown or stored: `Secret("…")`, or `Secret(env="NAME")`, `Secret(file="path")` to name
    where it is found.

    Jobs store the name, never the value. A literal one must be given again on resume. A file is read
    once; it holds nothing else (the last line end is left out), and is for its owner only.
    """

    __slots__ = ("_read", "_value", "env", "file")

    def __init__(
        self, value: str | None = None, *, env: str | None = None, file: str | os.PathLike[str] | None = None
    ) -> None:
        if (value is None) + (env is None) + (file is None) != 2:
            raise PlanError('Secret() takes either a value, env="NAME" or file="path"')
        self._value = value
        self._read: str | None = None
        self.env = env
        self.file = None if file is None else os.fspath(file)

    def reveal(self) -> str:
        """Give the value. Raises PlanError where the environment or the file does not have it."""
        if self._value is not None:
            return self._value
        if self.file is not None:
            if self._read is None:
                self._read = _from_file(self.file)
            return self._read
        return _from_environment(self.env or "")

    @property
    def reference(self) -> str:
        """What may be shown and stored in its place."""
        if self.file is not None:
            return f"{{file:{self.file}}}"
        return f"{{env:{self.env}}}" if self.env is not None else "***"

    def __repr__(self) -> str:
        return f"Secret({self.reference})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self._value, self.env, self.file) == (other._value, other.env, other.file)

    def __hash__(self) -> int:
        return hash((self._value, self.env, self.file))

    def __reduce__(self) -> tuple[type[Secret], tuple[None], dict[str, str]]:
        raise PlanError(f"{self!r} cannot be pickled: secrets do not leave the process")


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise PlanError(f"{{env:{name}}}: the environment has no variable {name}; set it and run again")
    return value


def _from_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise PlanError(f"the secret in {path} may be read by others: chmod 600 {path}")
            return file.read().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PlanError(f"the secret in {path} cannot be read: {reason}") from error


class _Composed(Secret):
    """A value made of secrets, when it is sent."""

    __slots__ = ("_compose", "_shown")

    def __init__(self, compose: Callable[[], str], shown: str) -> None:
        super().__init__("")
        self._compose = compose
        self._shown = shown

    def reveal(self) -> str:
        """Make the value."""
        return self._compose()

    @property
    def reference(self) -> str:
        """What may be shown and stored in its place."""
        return self._shown

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def basic(user: str, password: str | Secret) -> Secret:
    """Give the credentials of basic authentication (RFC 7617): `hr.http.Client(auth=hr.http.basic("me", Secret(env="PW")))`.

    Raises PlanError for a user with a colon or a control character.
    """
    if ":" in user or not user.isprintable():
        raise PlanError("basic(): a user has no colon and no control character")
    secret = password if isinstance(password, Secret) else Secret(password)

    def compose() -> str:
        return "Basic " + base64.b64encode(f"{user}:{secret.reveal()}".encode()).decode("ascii")

    return _Composed(compose, f"Basic {secret.reference}")


def bearer(token: str | Secret) -> Secret:
    """Give the credentials of a bearer token (RFC 6750): `hr.http.Client(auth=hr.http.bearer(Secret(file="token")))`."""
    secret = token if isinstance(token, Secret) else Secret(token)
    return _Composed(lambda: f"Bearer {secret.reveal()}", f"Bearer {secret.reference}")


def expand(text: str) -> str:
    """Put the values of the environment in the place of `{env:NAME}`. Raises PlanError for a missing one."""
    return _REFERENCE.sub(lambda match: _from_environment(match.group(1)), text)


def references(text: str) -> bool:
    """Whether the text refers to a secret."""
    return _REFERENCE.search(text) is not None


def is_secret_name(name: str) -> bool:
    """Whether a header of this name is always a secret."""
    return name.lower() in _SECRET_NAMES
