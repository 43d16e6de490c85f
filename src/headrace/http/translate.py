"""libcurl's errors in our words, once.

Rules:
1. What was sent decides, not what was hoped: where PREREQ never ran, nothing went out and nothing is
   ambiguous.
2. Every code gives one of our classes; an unknown one is a lost connection, or a failed connect if nothing
   went out.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import pycurl  # type: ignore[import-untyped]

from headrace.errors import Disposition
from headrace.http.errors import (
    AddressRefused,
    BadResponse,
    BodyTooLarge,
    BodyTruncated,
    ConnectFailed,
    ConnectionLost,
    ConnectTimedOut,
    HttpError,
    InvalidUrl,
    ResolveFailed,
    TlsFailed,
    TotalTimedOut,
    UnsupportedScheme,
)
from headrace.http.url import Url, mask

__all__ = ["Progress", "translate"]

_TRUST: Final = frozenset({58, 59, 60, 66, 77, 80, 82, 83, 90, 91, 98})
_PROTOCOL: Final = frozenset({1, 8, 61})
_BROKEN_OFF: Final = re.compile(
    r"reset|unexpected eof|SSL_ERROR_SYSCALL|closed|broken pipe|Connection was|timed out", re.IGNORECASE
)
_NOT_HTTP: Final = re.compile(
    r"HTTP/0\.9|header|Unsupported HTTP|nul byte|Weird|invalid|status line", re.IGNORECASE
)
_BAD_CODING: Final = re.compile(r"chunk|encoding|malformed|illegal or missing hex", re.IGNORECASE)
_NO_CODING: Final = re.compile(r"unrecognized|exceeding limit", re.IGNORECASE)
_TOO_MANY_HEADERS: Final = re.compile(r"too (?:large|many)|exceeds", re.IGNORECASE)


class Progress(NamedTuple):
    """How far a transfer had got when it failed."""

    method: str
    url: Url
    sends: int  #: how often the request was about to go out on a connection
    answered: bool  #: the headers of the answer were whole
    size: int  #: bytes of decoded body
    limit: int | None
    connected: bool  #: TCP was up
    elapsed: float
    refused: str | None = None  #: why the guard did not let it connect


def translate(error: BaseException, progress: Progress) -> HttpError:
    """Make our error from libcurl's code and text."""
    code = int(error.args[0]) if error.args and isinstance(error.args[0], int) else -1
    text = str(error.args[1]) if len(error.args) > 1 else str(error)
    text = re.sub(r"https?://\S+", lambda found: mask(found.group()), text)[:300]
    shown = mask(progress.url.text)
    kind, options = _classify(code, text, progress)
    reason = options.pop("reason", None) or f"{text or 'no reason given'} (libcurl {code})"
    failed = kind(
        f"{progress.method} {shown}: {reason}, after {progress.elapsed:.3g} s",
        url=shown,
        host=progress.url.key,
        elapsed=progress.elapsed,
        **options,
    )
    failed.__cause__ = error
    return failed


def _classify(code: int, text: str, progress: Progress) -> tuple[type[HttpError], dict[str, Any]]:
    phase = "body" if progress.answered else "first byte"
    if progress.refused is not None and not progress.sends:
        return AddressRefused, {"reason": f"refused: {progress.refused}"}
    if progress.sends > 1:
        # PREREQ stopped libcurl from sending the request again; the first may have been processed.
        return ConnectionLost, {"reason": "the kept-alive connection died after the request was sent"}
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return _classify_timeout(progress, phase)
    if code == pycurl.E_WRITE_ERROR and progress.limit is not None and progress.size > progress.limit:
        return BodyTooLarge, {"reason": f"the body has more than {progress.limit} bytes (max_body=)"}
    if code == pycurl.E_WRITE_ERROR and "pause buffer" in text:
        return BodyTooLarge, {"reason": "a piece of the body unpacks to more than 64 MB"}
    if code in (pycurl.E_URL_MALFORMAT, pycurl.E_UNSUPPORTED_PROTOCOL) and not progress.sends:
        return (InvalidUrl if code == pycurl.E_URL_MALFORMAT else UnsupportedScheme), {}
    if code == pycurl.E_COULDNT_RESOLVE_HOST or code == pycurl.E_COULDNT_RESOLVE_PROXY:
        return ResolveFailed, {}
    if code in _TRUST:
        return TlsFailed, {"disposition": Disposition.PERMANENT}
    if code == pycurl.E_SSL_CONNECT_ERROR:
        broke_off = _BROKEN_OFF.search(text) is not None
        return TlsFailed, {"disposition": Disposition.TRANSIENT if broke_off else Disposition.PERMANENT}
    if not progress.sends:
        if progress.url.scheme == "https" and progress.connected:
            return TlsFailed, {"disposition": Disposition.TRANSIENT}
        return ConnectFailed, {}
    return _classify_answer(code, text, phase)


def _classify_answer(code: int, text: str, phase: str) -> tuple[type[HttpError], dict[str, Any]]:
    """What can go wrong once the request is out."""
    if code == pycurl.E_PARTIAL_FILE:
        return BodyTruncated, {}
    if code == 100 or (code == pycurl.E_RECV_ERROR and _TOO_MANY_HEADERS.search(text)):
        reason = text or "the headers are larger than libcurl takes (300 KB)"
        return BodyTooLarge, {"phase": "first byte", "reason": f"{reason} (libcurl {code})"}
    if code == pycurl.E_RECV_ERROR and "Recv failure" not in text:
        if _BAD_CODING.search(text):
            return BadResponse, {"disposition": Disposition.TRANSIENT, "phase": "body"}
        if _NOT_HTTP.search(text):
            return BadResponse, {}
    if code == pycurl.E_BAD_CONTENT_ENCODING and _NO_CODING.search(text):
        return BadResponse, {"disposition": Disposition.PERMANENT, "phase": "body"}
    if code == pycurl.E_BAD_CONTENT_ENCODING:
        return BadResponse, {"disposition": Disposition.TRANSIENT, "phase": "body"}
    if code in _PROTOCOL:
        return BadResponse, {}
    if code == pycurl.E_SEND_ERROR:
        return ConnectionLost, {"phase": "send"}
    return ConnectionLost, {"phase": phase}


def _classify_timeout(progress: Progress, phase: str) -> tuple[type[HttpError], dict[str, Any]]:
    if progress.sends:
        return TotalTimedOut, {"phase": phase, "reason": "not finished within its total time limit"}
    tls = progress.url.scheme == "https" and progress.connected
    return ConnectTimedOut, {
        "phase": "tls" if tls else "connect",
        "reason": f"no {'TLS handshake' if tls else 'connection'} in time",
    }
