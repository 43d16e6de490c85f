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
    from headrace.http.downloading import Download, Downloaded, download
    from headrace.http.errors import (
        AddressRefused,
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
    from headrace.http.guard import Guard
    from headrace.http.headers import Headers
    from headrace.http.logs import events, lines
    from headrace.http.profile import Timeouts
    from headrace.http.resolver import Resolver
    from headrace.http.response import Response, Timings
    from headrace.http.secrets import Secret, basic, bearer
    from headrace.http.selecting import columns
    from headrace.http.streaming import StreamedResponse
    from headrace.http.url import host, mask
    from headrace.logs.events import ServerSentEvent
    from headrace.logs.lines import Line
    from headrace.logs.notices import Notice, StreamStatistics
    from headrace.logs.stream import LogStream

__all__ = [
    "AddressRefused",
    "BadResponse",
    "BodyTooLarge",
    "BodyTruncated",
    "Client",
    "ClientClosed",
    "ClientStatistics",
    "ConnectFailed",
    "ConnectTimedOut",
    "ConnectionLost",
    "Download",
    "Downloaded",
    "Fetch",
    "FirstByteTimedOut",
    "Guard",
    "Headers",
    "HttpError",
    "InvalidUrl",
    "Line",
    "LogStream",
    "Notice",
    "RedirectRefused",
    "ResolveFailed",
    "Resolver",
    "Response",
    "RobotsUnavailable",
    "Secret",
    "ServerSentEvent",
    "Stalled",
    "StatusError",
    "StreamStatistics",
    "StreamedResponse",
    "Timeouts",
    "Timings",
    "TlsFailed",
    "TooManyRedirects",
    "TotalTimedOut",
    "UnsupportedScheme",
    "basic",
    "bearer",
    "columns",
    "download",
    "events",
    "fetch",
    "host",
    "lines",
    "mask",
]

_ROOMS = {
    "Download": "downloading",
    "Downloaded": "downloading",
    "download": "downloading",
    "Client": "client",
    "ClientStatistics": "client",
    "Fetch": "fetching",
    "Guard": "guard",
    "Headers": "headers",
    "Line": "headrace.logs.lines",
    "LogStream": "headrace.logs.stream",
    "Notice": "headrace.logs.notices",
    "Resolver": "resolver",
    "Response": "response",
    "Secret": "secrets",
    "ServerSentEvent": "headrace.logs.events",
    "StreamStatistics": "headrace.logs.notices",
    "StreamedResponse": "streaming",
    "Timeouts": "profile",
    "Timings": "response",
    "basic": "secrets",
    "bearer": "secrets",
    "columns": "selecting",
    "events": "logs",
    "fetch": "fetching",
    "host": "url",
    "lines": "logs",
    "mask": "url",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = _ROOMS.get(name, "errors")
    value = getattr(import_module(room if "." in room else f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
