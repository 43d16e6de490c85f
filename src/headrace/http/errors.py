"""Every way in which an HTTP call can fail, as one class each.

Rules:
1. An error says what is to be done next: `disposition` and `ambiguous` follow from how far the request had
   got.
2. It says where it happened: `phase` is "url", "resolve", "connect", "tls", "send", "first byte", "body" or
   "redirect"; `host` is `host:port`; `elapsed` is in seconds from the start of the call.
3. Messages and attributes hold masked URLs only: no userinfo, no values of a query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import CallError, Disposition, TimedOut

__all__ = [
    "AddressRefused",
    "BadResponse",
    "BodyTooLarge",
    "BodyTruncated",
    "ClientClosed",
    "ConnectFailed",
    "ConnectTimedOut",
    "ConnectionLost",
    "FirstByteTimedOut",
    "HttpError",
    "InvalidUrl",
    "RedirectRefused",
    "ResolveFailed",
    "RobotsUnavailable",
    "Stalled",
    "StatusError",
    "TlsFailed",
    "TooManyRedirects",
    "TotalTimedOut",
    "UnsupportedScheme",
]


class HttpError(CallError):
    """An HTTP call failed. `url` is masked."""

    phase: str = ""

    def __init__(
        self,
        message: str,
        *,
        url: str = "",
        host: str = "",
        phase: str | None = None,
        elapsed: float = 0.0,
        disposition: Disposition | None = None,
        ambiguous: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.url = url
        self.host = host
        self.elapsed = elapsed
        if phase is not None:
            self.phase = phase
        if disposition is not None:
            self.disposition = disposition
        if ambiguous is not None:
            self.ambiguous = ambiguous

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (type(self), self.args, self.__dict__))


def _restore(kind: type[HttpError], args: tuple[Any, ...], state: dict[str, Any]) -> HttpError:
    """Make an error again where it arrives from another process."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidUrl(HttpError):
    """The URL cannot be used as it stands; the message says why. Permanent, nothing was sent."""

    phase = "url"


class UnsupportedScheme(InvalidUrl):
    """The URL is neither http nor https. Permanent, nothing was sent."""


class ResolveFailed(HttpError):
    """The host's name gave no address: permanent if there is no such name, transient otherwise. Nothing
    was sent.
    """

    phase = "resolve"
    disposition = Disposition.TRANSIENT


class AddressRefused(HttpError):
    """The URL, a redirect, or the addresses of its name lead where the client's guard does not let it. Permanent,
    nothing was sent there.
    """

    phase = "connect"


class ConnectFailed(HttpError):
    """No connection could be made: refused, unreachable, or the proxy said no. Transient, nothing was
    sent.
    """

    phase = "connect"
    disposition = Disposition.TRANSIENT


class ConnectTimedOut(ConnectFailed, TimedOut):
    """No connection (TLS included) within the `connect` limit. Transient, nothing was sent."""

    disposition = Disposition.TRANSIENT
    ambiguous = False


class TlsFailed(HttpError):
    """TLS could not be set up: permanent where the certificate is not trusted, transient where the
    handshake broke off.

    Nothing was sent.
    """

    phase = "tls"
    disposition = Disposition.PERMANENT


class ConnectionLost(HttpError):
    """The connection ended after the request had begun to go out: it may have taken effect. Transient."""

    phase = "first byte"
    disposition = Disposition.TRANSIENT
    ambiguous = True


class BodyTruncated(ConnectionLost):
    """The body ended before its announced length. What had arrived is discarded. Transient."""

    phase = "body"


class BadResponse(HttpError):
    """What came back is not HTTP as it should be: no status line, a bad chunk, a content coding that does
    not decode.

    Permanent where it is not HTTP at all, transient where the body broke off in its coding.
    """

    phase = "first byte"
    disposition = Disposition.PERMANENT
    ambiguous = True


class FirstByteTimedOut(HttpError, TimedOut):
    """The request went out and no byte of an answer came within the `first_byte` limit. Transient."""

    phase = "first byte"
    disposition = Disposition.TRANSIENT
    ambiguous = True


class Stalled(HttpError, TimedOut):
    """The answer began and then (nearly) stopped for the `stall` limit. Transient."""

    phase = "body"
    disposition = Disposition.TRANSIENT
    ambiguous = True


class TotalTimedOut(HttpError, TimedOut):
    """The call, with its redirects, did not end within the `total` limit; `phase` says what it was doing.
    Transient.
    """

    disposition = Disposition.TRANSIENT
    ambiguous = True


class BodyTooLarge(HttpError):
    """The decoded body or the headers passed their limit, and the transfer was stopped there. Permanent."""

    phase = "body"
    ambiguous = True


class TooManyRedirects(HttpError):
    """The answer to the last allowed redirect was one more. Permanent."""

    phase = "redirect"


class RedirectRefused(HttpError):
    """A redirect led where we do not follow: another scheme, https to http, or no usable URL. Permanent."""

    phase = "redirect"


class RobotsUnavailable(HttpError):
    """robots.txt could not be had (5xx, 429, no answer), so that it is unknown what may be requested.

    Transient; nothing was sent. The error that it ended with is the cause, `status` that of the answer, if there was
    one.
    """

    disposition = Disposition.TRANSIENT
    status: int | None = None


class ClientClosed(HttpError):
    """The client was closed, or its transport failed and was rebuilt, while the call was under way.
    Transient.
    """

    disposition = Disposition.TRANSIENT
    ambiguous = True


class StatusError(HttpError):
    """The answer's status is not among the accepted ones.

    `status` is the code, `headers` those of the answer, `body` its first 4 KiB. With a Retry-After (seconds
    or a date; at most one hour), `retry_after` has it, and for 429 and 503 `hold` is set: the whole host
    waits. 408, 425, 429 and 503 with Retry-After were not processed; 500, 502, 503, 504 and 52x may have
    been. All other statuses are permanent.
    """

    phase = "body"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        retry_after: float | None = None,
        hold: bool = False,
        url: str = "",
        host: str = "",
        elapsed: float = 0.0,
        disposition: Disposition | None = None,
        ambiguous: bool | None = None,
    ) -> None:
        super().__init__(
            message, url=url, host=host, elapsed=elapsed, disposition=disposition, ambiguous=ambiguous
        )
        self.status = status
        self.headers = headers
        self.body = body
        self.retry_after = retry_after
        self.hold = hold
