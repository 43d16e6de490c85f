"""The headers of a fetch: read from the command line, kept with the job without secrets, and put together again.

Rules:
1. The value of a secret header is never stored: a reference, {env:NAME}, is; a literal value must be given again.
2. What is a secret: all of --secret-header, the names that always are, and names that sound like it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.cli.inputs import is_text
from headrace.cli.options import Problems
from headrace.errors import PlanError

__all__ = ["Header", "read_headers", "recorded_headers", "restored_headers"]

_SOUNDS_SECRET = re.compile(
    r"auth|token|secret|passw|api-?key|session|credential|signature|cookie", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """A header as it was given. `value` is None for a literal secret that a stored job lacks."""

    name: str
    value: str | None = dataclasses.field(repr=False)
    flag: str = "--header"

    @property
    def is_reference(self) -> bool:
        """Whether the value is found in the environment when the job runs, or in each row."""
        from headrace.http.secrets import references
        from headrace.http.template import row_fields

        if self.value is None or references(self.value):
            return self.value is not None
        try:
            return self.flag == "--header" and bool(row_fields(self.value))
        except PlanError:
            return False

    @property
    def is_secret(self) -> bool:
        """Whether the value must not be stored or shown."""
        from headrace.http.secrets import is_secret_name

        return (
            self.flag == "--secret-header"
            or is_secret_name(self.name)
            or bool(_SOUNDS_SECRET.search(self.name))
        )

    def to_send(self) -> tuple[str, Any]:
        """Give name and value as the client takes them."""
        from headrace.http.secrets import Secret

        assert self.value is not None
        return self.name, Secret(self.value) if self.is_secret and not self.is_reference else self.value


def read_headers(
    texts: Sequence[str] | None, secret: Sequence[str] | None, problems: Problems
) -> list[Header]:
    """Read the values of --header and --secret-header, and check them."""
    found: list[Header] = []
    for flag, values in (("--header", texts or ()), ("--secret-header", secret or ())):
        for number, text in enumerate(values, 1):
            name, colon, value = text.partition(":")
            if not colon:
                problems.add(f"{flag} number {number}: give it as 'Name: value', with a colon")
                continue
            if not is_text(text):
                problems.add(f"{flag} number {number}: it has bytes that are not UTF-8")
                continue
            header = Header(name.strip(), value.strip(), flag)
            problems.run(lambda header=header: _check(header))  # type: ignore[misc]
            found.append(header)
    return found


def _check(header: Header) -> None:
    from headrace.http.headers import compile_headers

    try:
        compile_headers([header.to_send()])
    except PlanError as error:
        raise PlanError(f"{header.flag}: {error}") from error


def recorded_headers(headers: Sequence[Header]) -> list[dict[str, Any]]:
    """Give the headers as a job keeps them: literal secrets without their values."""
    return [
        {
            "name": header.name,
            "flag": header.flag,
            "value": header.value if header.is_reference or not header.is_secret else None,
        }
        for header in headers
    ]


def restored_headers(
    recorded: Sequence[Mapping[str, Any]], given: Sequence[Header], problems: Problems
) -> list[Header]:
    """Put the headers of a stored job together with those that were given again."""
    again = {header.name.lower(): header for header in given}
    headers: list[Header] = []
    missing: list[Header] = []
    for entry in recorded:
        header = Header(str(entry["name"]), entry.get("value"), str(entry.get("flag", "--header")))
        new = again.pop(header.name.lower(), None)
        if new is not None:
            headers.append(Header(header.name, new.value, header.flag))
        elif header.value is None:
            missing.append(header)
        else:
            headers.append(header)
            problems.run(lambda header=header: _check(header))  # type: ignore[misc]
    problems.found += [
        f"the header {header.name} was given literally, so its value is not stored: give it again, by "
        f"{header.flag} '{header.name}: …'"
        for header in missing
    ]
    problems.found += [
        f"{header.flag} {header.name}: this job sends no such header; run the fetch again with --accept-changes to add it"
        for header in again.values()
    ]
    return headers
