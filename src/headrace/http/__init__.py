"""HTTP over libcurl: a client, the configured stage function `fetch`, and every error that a call can end
with.

Rules:
1. Names load on first touch: a program that makes no request does not load libcurl.
2. What is public stands in `__all__`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.http.client import Client, ClientStatistics
    from headrace.http.errors import (
        BadResponse,
        BodyTooLarge,
        BodyTruncated,
        ClientClosed,
        ConnectFailed,
        ConnectionLost,
        ConnectTimedOut,
        FirstByteTimedOut,
        HttpError,
        InvalidUrl,
        RedirectRefused,
        ResolveFailed,
        RobotsUnavailable,
        Stalled,
        StatusError,
        TlsFailed,
        TooManyRedirects,
        TotalTimedOut,
        UnsupportedScheme,
    )
    from headrace.http.fetching import Fetch, fetch
    from headrace.http.headers import Headers
    from headrace.http.profile import Timeouts
    from headrace.http.resolver import Resolver
    from headrace.http.response import Response, Timings
    from headrace.http.secrets import Secret
    from headrace.http.selecting import columns
    from headrace.http.streaming import StreamedResponse
    from headrace.http.url import host, mask

__all__ = [
    "BadResponse",
    "BodyTooLarge",
    "BodyTruncated",
    "Client",
    "ClientClosed",
    "ClientStatistics",
    "ConnectFailed",
    "ConnectTimedOut",
    "ConnectionLost",
    "Fetch",
    "FirstByteTimedOut",
    "Headers",
    "HttpError",
    "InvalidUrl",
    "RedirectRefused",
    "ResolveFailed",
    "Resolver",
    "Response",
    "RobotsUnavailable",
    "Secret",
    "Stalled",
    "StatusError",
    "StreamedResponse",
    "Timeouts",
    "Timings",
    "TlsFailed",
    "TooManyRedirects",
    "TotalTimedOut",
    "UnsupportedScheme",
    "columns",
    "fetch",
    "host",
    "mask",
]

_ROOMS = {
    "Client": "client",
    "ClientStatistics": "client",
    "Fetch": "fetching",
    "Headers": "headers",
    "Resolver": "resolver",
    "Response": "response",
    "Secret": "secrets",
    "StreamedResponse": "streaming",
    "Timeouts": "profile",
    "Timings": "response",
    "columns": "selecting",
    "fetch": "fetching",
    "host": "url",
    "mask": "url",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
