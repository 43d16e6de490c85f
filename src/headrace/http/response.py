"""An answer.

Rules:
1. It is made for every request, so it keeps what came as bytes and reads it when asked.
2. `body` is decoded (gzip and kin), never more than the request's limit.
3. A row of it holds no cookie, and no userinfo in its URLs.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, overload

import msgspec

from headrace.errors import Disposition
from headrace.http.errors import BadResponse
from headrace.http.headers import Headers, split_head
from headrace.http.url import mask
from headrace.ports import OUR_COLUMNS

__all__ = ["COLUMNS", "Response", "ResponseHead", "Timings", "free_name", "with_item"]

T = TypeVar("T")

COLUMNS: Final = ("url", "final_url", "status", "headers", "body", "timings", "attempts", "fetched_at")
_NOT_STORED: Final = frozenset({"set-cookie", "set-cookie2"})
_CHARSET: Final = re.compile(r"""charset\s*=\s*["']?([A-Za-z0-9._:-]+)""", re.IGNORECASE)


class Timings(NamedTuple):
    """Seconds spent in each phase of the last hop; `total` covers all hops. Connecting costs 0 on a kept
    connection.
    """

    resolve: float
    connect: float
    tls: float
    first_byte: float  #: from the request being sent to the first byte of the answer
    total: float


class ResponseHead:
    """What stands above the body of an answer.

    `url` is what was asked for and `final_url` what answered after `redirects` redirects; `attempts` is the
    number of this attempt within its item; `fetched_at` is in seconds since the epoch; `item` is the URL or
    row that the request was made from.
    """

    __slots__ = (
        "_clock",
        "_head",
        "_headers",
        "attempts",
        "fetched_at",
        "final_url",
        "item",
        "redirects",
        "status",
        "url",
    )

    url: str
    final_url: str
    status: int
    item: Any
    attempts: int
    redirects: int
    fetched_at: float

    def __init__(
        self,
        url: str,
        status: int,
        head: Sequence[bytes],
        clock: tuple[float, float, float, float, float],
        fetched_at: float,
        item: Any = None,
    ) -> None:
        self.url = self.final_url = url
        self.status = status
        self.item = item
        self.attempts = 1
        self.redirects = 0
        self.fetched_at = fetched_at
        self._head = head
        self._headers: Headers | None = None
        self._clock = clock

    @property
    def headers(self) -> Headers:
        """The headers of the final answer; names in any case."""
        if self._headers is None:
            self._headers = Headers.from_lines(split_head(self._head))
        return self._headers

    @property
    def raw_head(self) -> Sequence[bytes]:
        """The lines of status and headers as they came, interim answers first."""
        return self._head

    @property
    def http_version(self) -> str:
        """The protocol that answered: "HTTP/1.1", "HTTP/2" …"""
        return self._status_line().partition(b" ")[0].decode("latin-1")

    def _status_line(self) -> bytes:
        """The first line of the final answer: interim ones may stand before it."""
        return next((line for line in reversed(self._head) if line.startswith(b"HTTP/")), b"")

    @property
    def timings(self) -> Timings:
        """Seconds in each phase."""
        resolve, connected, secured, first_byte, total = self._clock
        return Timings(
            resolve=resolve,
            connect=connected,
            tls=max(0.0, secured - connected),
            first_byte=max(0.0, first_byte),
            total=total,
        )

    @property
    def named_charset(self) -> str | None:
        """The charset that the headers name, where Python knows it."""
        named = _CHARSET.search(self.headers.get("content-type", ""))
        if named is None:
            return None
        try:
            return codecs.lookup(named.group(1)).name
        except LookupError:
            return None


class Response(ResponseHead):
    """The answer to a request, with its decoded `body`."""

    __slots__ = ("body",)

    body: bytes

    def __init__(
        self,
        url: str,
        status: int,
        head: Sequence[bytes],
        body: bytes,
        clock: tuple[float, float, float, float, float],
        fetched_at: float,
        item: Any = None,
    ) -> None:
        super().__init__(url, status, head, clock, fetched_at, item)
        self.body = body

    async def beginning(self) -> bytes:
        """Give the first bytes of the body, for the error of a refused status."""
        return self.body

    async def aclose(self) -> None:
        """Do nothing: the answer is here."""

    @property
    def nbytes(self) -> int:
        """The size of the body, by which a run weighs its open items."""
        return len(self.body)

    @property
    def charset(self) -> str:
        """The charset that the answer names, else that of a byte order mark, else utf-8."""
        named = self.named_charset
        if named is not None:
            return named
        if self.body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        return "utf-8-sig"

    @property
    def text(self) -> str:
        """The body as text; bytes that are not in its charset become U+FFFD."""
        return self.body.decode(self.charset, errors="replace")

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:
        """Decode the body as JSON, checked against `type` where one is given (msgspec).

        Raises BadResponse, permanent, where it is not that.
        """
        try:
            return msgspec.json.decode(self.body, type=type)
        except msgspec.DecodeError as error:
            raise BadResponse(
                f"{mask(self.final_url)}: the body is not the JSON that was asked for: {error}",
                url=mask(self.final_url),
                phase="body",
                disposition=Disposition.PERMANENT,
                ambiguous=False,
            ) from error

    def as_row(self) -> dict[str, Any]:
        """Give the columns of a result table, then those of the row that was the item: where a name is there already, it
        is called input_NAME.
        """
        row: dict[str, Any] = {
            "url": self.url,
            "final_url": self.final_url,
            "status": self.status,
            "headers": {name: value for name, value in self.headers.items() if name not in _NOT_STORED},
            "body": self.body,
            "timings": {name: round(seconds, 6) for name, seconds in self.timings._asdict().items()},
            "attempts": self.attempts,
            "fetched_at": self.fetched_at,
        }
        return with_item(row, self.item, self.url)

    def __repr__(self) -> str:
        return f"<Response {self.status} {mask(self.final_url)[:100]} {len(self.body)} bytes>"


def with_item(row: dict[str, Any], item: Any, url: str) -> dict[str, Any]:
    """Add the columns of a row that was the item. None is lost: where a name is taken (whatever the case of its letters, as
    tables ignore it), or is one of those that tables add, it is called input_NAME. The URL that was asked for is there once.
    """
    if not isinstance(item, Mapping):
        return row
    taken = {name.lower() for name in row}
    for key, value in item.items():
        name = str(key)
        if name.lower() in taken or name in OUR_COLUMNS:
            if name == "url" and value == url == row.get("url"):
                continue
            name = free_name(f"input_{name}", taken)
        taken.add(name.lower())
        row[name] = value
    return row


def free_name(name: str, taken: Collection[str]) -> str:
    """Give a name that is not taken, whatever the case of its letters."""
    while name.lower() in taken:
        name += "_"
    return name
