"""The tables behind `classify`: the exceptions of clients, the numbers of the system, the codes of AWS.

Rules:
1. A class is known by its name and by the top-level package that defines it; no package is imported.
2. An entry holds for its subclasses too, up to the next entry: the most specific one counts.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final, NamedTuple

from headrace.errors import Disposition

__all__ = [
    "KNOWN", "KNOWN_ANYWHERE", "LOST", "MISTAKES", "NEVER", "OVERLOAD", "PERMANENT", "PERMANENT_ERRNOS",
    "PERMANENT_OS", "THROTTLING", "TRANSIENT", "UNKNOWN", "UNSENT", "UNSENT_ERRNOS", "WRAPS", "Verdict",
]  # fmt: skip


class Verdict(NamedTuple):
    """What a failure says. Fields as in CallError; `retry_after` in seconds."""

    disposition: Disposition
    ambiguous: bool
    retry_after: float | None = None
    hold: bool = False


PERMANENT: Final = Disposition.PERMANENT
TRANSIENT: Final = Disposition.TRANSIENT
OVERLOAD: Final = Disposition.OVERLOAD

UNKNOWN: Final = Verdict(PERMANENT, True)  #: not recognised; the call may have taken effect
NEVER: Final = Verdict(PERMANENT, False)  #: refused, or never made: the same way again
UNSENT: Final = Verdict(TRANSIENT, False)  #: nothing went out
LOST: Final = Verdict(TRANSIENT, True)  #: it went out, or may have, and no answer came back
WRAPS: Final = Verdict(TRANSIENT, True)  #: told apart by identity from LOST: look at what it wraps

#: Mistakes in a program, whatever else they inherit from or carry.
MISTAKES: Final = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, ReferenceError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip
PERMANENT_OS: Final = (
    FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError,
    ChildProcessError, ProcessLookupError,
)  # fmt: skip
PERMANENT_ERRNOS: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ENOENT", "EEXIST", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EROFS", "ENOSPC", "EDQUOT", "EFBIG",
        "ENAMETOOLONG", "ELOOP", "EINVAL", "EBADF", "ENOTEMPTY", "EXDEV", "ENOEXEC", "ENOTTY", "ESPIPE",
        "ENOTSUP", "EOPNOTSUPP", "EAFNOSUPPORT", "EPROTONOSUPPORT",
        "ENOTSOCK", "EFAULT", "EDESTADDRREQ", "EMSGSIZE",
    )
    if hasattr(errno, name)
)  # fmt: skip
#: This machine had nothing left to make a connection with.
UNSENT_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ECONNREFUSED})

_HTTPX: Final = {
    "ConnectError": UNSENT, "ConnectTimeout": UNSENT, "PoolTimeout": UNSENT,
    "InvalidURL": NEVER, "LocalProtocolError": NEVER, "UnsupportedProtocol": NEVER, "TransportError": LOST,
    "TimeoutException": LOST, "NetworkError": LOST, "RemoteProtocolError": LOST, "ProxyError": LOST,
}  # fmt: skip
#: Classes by the top-level package that defines them: names alone would confuse httpx.ReadError with
#: tarfile.ReadError.
KNOWN: Final[Mapping[str, Mapping[str, Verdict]]] = {
    "aiohttp": {
        "InvalidURL": NEVER, "ServerFingerprintMismatch": NEVER, "ClientConnectorCertificateError": NEVER,
        "ClientConnectorError": UNSENT, "ConnectionTimeoutError": UNSENT,
        "ClientConnectionError": LOST, "ClientPayloadError": LOST,
    },
    "httpx": _HTTPX, "httpx2": _HTTPX, "httpcore": _HTTPX, "httpcore2": _HTTPX,
    "requests": {
        "MissingSchema": NEVER, "InvalidSchema": NEVER, "InvalidURL": NEVER, "ConnectTimeout": UNSENT,
        "ConnectionError": WRAPS, "Timeout": LOST, "ChunkedEncodingError": LOST,
        "RetryError": LOST, "RequestException": UNKNOWN,
    },
    "urllib3": {
        "NewConnectionError": UNSENT, "NameResolutionError": UNSENT, "ConnectTimeoutError": UNSENT,
        "EmptyPoolError": UNSENT, "MaxRetryError": WRAPS, "ProxyError": WRAPS, "TimeoutError": LOST,
        "ProtocolError": LOST, "SSLError": WRAPS,
    },
    "urllib": {"URLError": WRAPS},
    "http": {"IncompleteRead": LOST, "BadStatusLine": LOST},
    "asyncio": {"IncompleteReadError": LOST},
    "botocore": {
        "EndpointConnectionError": UNSENT, "ConnectTimeoutError": UNSENT, "ProxyConnectionError": UNSENT,
        "ConnectionError": LOST, "HTTPClientError": WRAPS, "ResponseStreamingError": LOST,
        "IncompleteReadError": LOST,
    },
    "ssl": {"SSLCertVerificationError": NEVER, "SSLError": LOST},
}  # fmt: skip
#: Classes that many packages define under the same name and with the same meaning.
KNOWN_ANYWHERE: Final[Mapping[str, Verdict]] = {
    "gaierror": UNSENT, "herror": UNSENT, "APIConnectionError": WRAPS, "APITimeoutError": WRAPS,
}  # fmt: skip

#: Error codes with which AWS says "too fast", under status 400.
THROTTLING: Final = frozenset(
    {
        "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException", "ProvisionedThroughputExceededException", "RequestLimitExceeded",
        "TransactionInProgressException", "BandwidthLimitExceeded", "LimitExceededException", "SlowDown",
        "PriorRequestNotComplete", "EC2ThrottledException",
    }
)  # fmt: skip
