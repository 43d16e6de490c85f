"""What a scripted server does with one request: an answer, when it comes, and how it goes wrong.

Rules:
1. A reply says what arrives, not how it looks on a wire: bodies are decoded, times are seconds.
2. A fault is named by what the other side does; which error that becomes is decided where real transfers are judged.
3. What cannot be played is refused where it is written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypedDict, get_args

import msgspec

from headrace.errors import PlanError
from headrace.http.bodies import UNSET
from headrace.http.headers import Headers
from headrace.http.url import mask

__all__ = ["FAULTS", "Fault", "FaultMeaning", "ReplyOptions", "ScriptedReply", "ScriptedRequest", "Step"]

Fault = Literal[
    "unknown host",
    "resolve failed",
    "resolve timeout",
    "connect refused",
    "connect timeout",
    "tls untrusted",
    "tls reset",
    "tls timeout",
    "reset before send",
    "reset during send",
    "stall during send",
    "reset after send",
    "first byte timeout",
    "bad response",
    "headers too large",
    "cut in headers",
    "stall",
    "reset in body",
    "truncated body",
    "bad coding",
    "body too large",
    "transport failed",
]
Stage = Literal["resolve", "connect", "tls", "send", "sent", "head", "body"]

#: Bytes of a body that arrive at a time.
PIECE: Final = 256 << 10
_NO_BODY: Final = frozenset({204, 304})
_REASONS: Final = {200: "OK", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}


class FaultMeaning(NamedTuple):
    """Where in a transfer a fault comes, and the code and text that libcurl has for it; `code` 0 is silence."""

    stage: Stage
    code: int = 0
    text: str = ""


_RESET: Final = "Recv failure: Connection reset by peer"
FAULTS: Final[Mapping[str, FaultMeaning]] = {
    "unknown host": FaultMeaning("resolve", 6, "Name or service not known"),
    "resolve failed": FaultMeaning("resolve", 6, "Temporary failure in name resolution"),
    "resolve timeout": FaultMeaning("resolve"),
    "connect refused": FaultMeaning("connect", 7, "Could not connect to server: connection refused"),
    "connect timeout": FaultMeaning("connect"),
    "tls untrusted": FaultMeaning("tls", 60, "SSL certificate problem: unable to get local issuer certificate"),
    "tls reset": FaultMeaning("tls", 35, _RESET),
    "tls timeout": FaultMeaning("tls"),
    "reset before send": FaultMeaning("tls", 56, _RESET),
    "reset during send": FaultMeaning("send", 55, "Send failure: Connection reset by peer"),
    "stall during send": FaultMeaning("send"),
    "reset after send": FaultMeaning("sent", 56, _RESET),
    "first byte timeout": FaultMeaning("sent"),
    "bad response": FaultMeaning("sent", 1, "Received HTTP/0.9 when not allowed"),
    "headers too large": FaultMeaning("head", 100, "Too large response headers"),
    "cut in headers": FaultMeaning("head", 56, _RESET),
    "stall": FaultMeaning("body"),
    "reset in body": FaultMeaning("body", 56, _RESET),
    "truncated body": FaultMeaning("body", 18, "end of response with bytes missing"),
    "bad coding": FaultMeaning("body", 61, "Error while processing content unencoding: invalid block type"),
    "body too large": FaultMeaning("body", 23, "Failure writing output to destination"),
    "transport failed": FaultMeaning("sent", -1, "the multi handle is in a bad state"),
}  # fmt: skip
assert tuple(FAULTS) == get_args(Fault)

Chunks = Iterable[bytes | float] | AsyncIterable[bytes | float]
HeadersGiven = Mapping[str, str] | Iterable[tuple[str, str]]


class ReplyOptions(TypedDict, total=False):
    """What `ScriptedReply` takes by keyword."""

    json: Any
    text: str | None
    body: bytes | None
    chunks: Chunks | Callable[[], Chunks] | None
    headers: HeadersGiven | None
    retry_after: float | str | None
    after: float
    every: float
    fault: Fault | None


@dataclasses.dataclass(slots=True, eq=False)
class ScriptedRequest:
    """A request that a client made. `at` is the loop's time; `attempt` its number within its item; `nth` counts the
    requests of this method and URL from 1; `fields` are those of the pattern that matched.

    `sent` says whether it went out: it did not where the connection failed. `body` grows while an upload is read.
    """

    method: str
    url: str
    headers: Headers
    body: bytes
    at: float
    attempt: int
    nth: int = 0
    sent: bool = False
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def json(self) -> Any:
        """Decode the body as JSON. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.body)

    def __repr__(self) -> str:
        return f"<{self.method} {mask(self.url)} at {self.at:g} s, attempt {self.attempt}>"


class ScriptedReply:
    """What a scripted server does with one request.

    Args:
        status: From 200 to 599.
        json, text, body, chunks: At most one of them. `body` is what the client sees, decoded. `chunks` are pieces as they
            arrive; a number among them is a silence of so many seconds. They may be endless, and asynchronous. What can be
            read only once serves one request: give a function that makes it anew to repeat it.
        headers: A mapping, or pairs where a name is repeated. Content-Length and Content-Type are added.
        retry_after: The header, in seconds or as it is.
        after: Seconds from the request to the first byte, or to the fault.
        every: Seconds before each chunk.
        fault: What goes wrong. Before an answer: "unknown host", "resolve failed", "resolve timeout", "connect refused",
            "connect timeout", "tls untrusted", "tls reset", "tls timeout", "reset before send", "reset during send",
            "stall during send", "reset after send", "first byte timeout", "bad response", "headers too large",
            "cut in headers", "transport failed". After the body that is given: "stall", "reset in body",
            "truncated body", "bad coding", "body too large". Timeouts and stalls are silence, which the client's limits end.

    Raises PlanError for what cannot be played.
    """

    def __init__(
        self,
        status: int | None = None,
        *,
        json: Any = UNSET,
        text: str | None = None,
        body: bytes | None = None,
        chunks: Chunks | Callable[[], Chunks] | None = None,
        headers: HeadersGiven | None = None,
        retry_after: float | str | None = None,
        after: float = 0.0,
        every: float = 0.0,
        fault: Fault | None = None,
    ) -> None:
        self.status = 200 if status is None else status
        self.after = after
        self.every = every
        self.fault = fault
        self._chunks = chunks
        self._played = False
        self._pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        if retry_after is not None:
            shown = retry_after if isinstance(retry_after, str) else f"{retry_after:g}"
            self._pairs.append(("Retry-After", shown))
        self._names = {name.lower() for name, _ in self._pairs}
        given = (json is not UNSET) + (text is not None) + (body is not None) + (chunks is not None)
        self._check(given, status)
        self.body = body or b""
        if json is not UNSET:
            self.body = msgspec.json.encode(json)
            self._add("Content-Type", "application/json")
        elif text is not None:
            self.body = text.encode()
            self._add("Content-Type", "text/plain; charset=utf-8")

    def _check(self, given: int, status: int | None) -> None:
        if not (isinstance(self.status, int) and 200 <= self.status <= 599):
            raise PlanError(f"status={self.status!r}: give a number from 200 to 599")
        for name, seconds in (("after", self.after), ("every", self.every)):
            if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
                raise PlanError(f"{name}={seconds!r}: give seconds, 0 or more")
        if given > 1:
            raise PlanError("give only one of json=, text=, body= and chunks=")
        if given and self.status in _NO_BODY:
            raise PlanError(f"status {self.status} has no body: leave it out")
        if self.every and self._chunks is None:
            raise PlanError(f"every={self.every:g} is the time before each of chunks=: give them too")
        if self.fault is None:
            return
        if self.fault not in FAULTS:
            raise PlanError(f"fault={self.fault!r} is none of: {', '.join(FAULTS)}")
        if FAULTS[self.fault].stage != "body" and (given or status is not None):
            raise PlanError(f"fault={self.fault!r} comes before any answer: leave status and body out")
        if self.status in _NO_BODY:
            raise PlanError(f"fault={self.fault!r} comes in the body, and status {self.status} has none")

    def _add(self, name: str, value: str) -> None:
        if name.lower() not in self._names:
            self._pairs.append((name, value))

    @property
    def meaning(self) -> FaultMeaning | None:
        """Where the fault comes, and what it is."""
        return None if self.fault is None else FAULTS[self.fault]

    def has_body(self, method: str) -> bool:
        """Whether a body comes with the answer to this method."""
        return method != "HEAD" and self.status not in _NO_BODY

    def head(self) -> list[bytes]:
        """Give the lines of status and headers, the blank one last."""
        pairs = self._pairs
        if not self._names & {"content-length", "transfer-encoding"} and self.status not in _NO_BODY:
            if self._chunks is not None or (self.fault is not None and self.fault != "truncated body"):
                pairs = [*pairs, ("Transfer-Encoding", "chunked")]
            else:
                missing = 1 if self.fault is not None else 0
                pairs = [*pairs, ("Content-Length", str(len(self.body) + missing))]
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}",
            *(f"{n}: {v}" for n, v in pairs),
            "",
        ]
        return [f"{line}\r\n".encode("latin-1") for line in lines]

    async def pieces(self) -> AsyncGenerator[bytes | float, None]:
        """Give the body as it arrives: bytes, and silences in seconds. Raises PlanError where it was read before."""
        if self._chunks is None:
            for at in range(0, len(self.body), PIECE):
                yield self.body[at : at + PIECE]
        else:
            chunks = self._chunks() if callable(self._chunks) else self._chunks
            if isinstance(chunks, AsyncIterable):
                self._read_once(chunks is self._chunks and hasattr(chunks, "__anext__"))
                async for piece in chunks:
                    for part in self._spaced(piece):
                        yield part
            else:
                self._read_once(chunks is self._chunks and isinstance(chunks, Iterator))
                for piece in chunks:
                    for part in self._spaced(piece):
                        yield part
        if self.fault == "body too large":
            while True:
                yield bytes(PIECE)

    def _read_once(self, is_once: bool) -> None:
        if is_once and self._played:
            raise PlanError(
                "chunks= can be read once only, and a second request asks for it: give a function"
            )
        self._played = True

    def _spaced(self, piece: bytes | float) -> Iterator[bytes | float]:
        if isinstance(piece, bytes):
            if self.every:
                yield float(self.every)
            yield piece
        elif isinstance(piece, int | float) and 0 <= piece < math.inf:
            yield float(piece)
        else:
            raise PlanError(f"chunks= gave {piece!r}: give bytes, or seconds of silence")

    def __repr__(self) -> str:
        return (
            f"<ScriptedReply {self.fault or self.status}{f' after {self.after:g} s' if self.after else ''}>"
        )


#: A reply, or what makes one from the request.
Step = ScriptedReply | Callable[[ScriptedRequest], Any]
