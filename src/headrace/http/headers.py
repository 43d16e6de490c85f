"""Headers: checked and compiled once on their way out, kept as bytes and read late on their way in.

Rules:
1. A name or value with a control character is refused; nothing is escaped or dropped silently.
2. A set of headers to send knows which lines are credentials, so that a redirect elsewhere leaves them out.
3. An answer's headers are parsed when somebody asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from headrace.errors import PlanError
from headrace.http.secrets import Secret, expand, is_secret_name, references

__all__ = [
    "HeaderValue",
    "Headers",
    "Outgoing",
    "check_header",
    "compile_headers",
    "header_line",
    "split_head",
]

HeaderValue = str | Secret
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[^\t\x20-\x7e]")
_HOP = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})


class Outgoing(NamedTuple):
    """Header lines as libcurl takes them: all, those without credentials, and the latter without a body's
    headers.
    """

    lines: tuple[str, ...]
    public: tuple[str, ...]
    names: frozenset[str]

    def without_body(self) -> Outgoing:
        """Leave out what described the body, for a redirect that became a GET."""
        return Outgoing(_without_content(self.lines), _without_content(self.public), self.names)

    def without_credentials(self) -> Outgoing:
        """Leave out all credentials, for a redirect to another origin."""
        return Outgoing(self.public, self.public, self.names)

    def without(self, names: frozenset[str]) -> Outgoing:
        """Leave out the headers of these names, in small letters."""
        if self.names.isdisjoint(names):
            return self
        lines, public = (
            tuple(line for line in some if _name_of(line) not in names) for some in (self.lines, self.public)
        )
        return Outgoing(lines, public, self.names - names)

    def plus(self, lines: Sequence[str], *, secret: bool = False) -> Outgoing:
        """Add lines that were made by this package."""
        if secret:
            return Outgoing((*self.lines, *lines), self.public, self.names.union(map(_name_of, lines)))
        return Outgoing((*self.lines, *lines), (*self.public, *lines), self.names)


def _name_of(line: str) -> str:
    return line.partition(":")[0].removesuffix(";").lower()


def _without_content(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line for line in lines if not line.lower().startswith("content-"))


def check_header(name: str, value: str) -> None:
    """Refuse what cannot be a header. Raises PlanError, with the name but never the value of the header."""
    if _NAME.fullmatch(name) is None:
        raise PlanError(f"header name {name!r} is not allowed: use letters, digits and hyphens")
    if name.lower() in _HOP:
        raise PlanError(
            f"header {name!r} cannot be set: it is made from the URL, the body and the connection"
        )
    bad = _BAD_VALUE.search(value)
    if bad is not None:
        how = "remove it" if bad.group().isascii() else "encode it, as %XX or as the server wants it"
        raise PlanError(f"the value of header {name!r} holds {bad.group()!r} at {bad.start()}: {how}")


def compile_headers(
    headers: Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]] | None,
) -> Outgoing:
    """Check headers, resolve the references of secrets, and make the lines to send. Raises PlanError."""
    if not headers:
        return NO_HEADERS
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines: list[str] = []
    public: list[str] = []
    names: set[str] = set()
    for name, value in pairs:
        secret = isinstance(value, Secret) or is_secret_name(name) or references(value)
        text = value.reveal() if isinstance(value, Secret) else expand(value)
        text = text.strip(" \t")
        check_header(name, text)
        line = header_line(name, text)
        lines.append(line)
        names.add(name.lower())
        if not secret:
            public.append(line)
    return Outgoing(tuple(lines), tuple(public), frozenset(names))


def header_line(name: str, value: str) -> str:
    """Write a checked header as libcurl takes it."""
    # libcurl sends a header without a value only where the colon is written as a semicolon.
    return f"{name}: {value}" if value else f"{name};"


NO_HEADERS = Outgoing((), (), frozenset())


class Headers(Mapping[str, str]):
    """The headers of an answer: names in any case, repeated ones joined by ", " (`all` gives them apart)."""

    __slots__ = ("_index", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = tuple(pairs)
        index: dict[str, list[str]] = {}
        for name, value in self._pairs:
            index.setdefault(name.lower(), []).append(value)
        self._index = index

    @classmethod
    def from_lines(cls, lines: Iterable[bytes]) -> Headers:
        """Read header lines. What has no colon, or continues a line in the obsolete way, is joined or left
        out.
        """
        pairs: list[tuple[str, str]] = []
        for raw in lines:
            if raw[:1] in b" \t" and pairs:
                name, value = pairs[-1]
                pairs[-1] = (name, f"{value} {raw.decode('latin-1').strip()}")
                continue
            name_bytes, colon, value_bytes = raw.partition(b":")
            if colon:
                pairs.append((name_bytes.decode("latin-1").strip(), value_bytes.decode("latin-1").strip()))
        return cls(pairs)

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._index[name.lower()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def all(self, name: str) -> tuple[str, ...]:
        """Give every value of a repeated header, in order; empty if there is none."""
        return tuple(self._index.get(name.lower(), ()))

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Give names and values as they came."""
        return self._pairs

    def __repr__(self) -> str:
        return f"Headers({', '.join(self._index)})"


def split_head(raw: Sequence[bytes]) -> Sequence[bytes]:
    """Give the header lines of the final answer: interim answers, a proxy's answer and trailers are left
    out.
    """
    start = 0
    for at, line in enumerate(raw):
        if line.startswith(b"HTTP/"):
            start = at + 1
    end = start
    while end < len(raw) and raw[end] not in (b"\r\n", b"\n"):
        end += 1
    return raw[start:end]
