"""What exceptions say: tables by status and by type, and totality."""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import os
import socket
import ssl
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest
from foreign_errors import STATUS_MAKERS, Thing, aiohttp_status, botocore_status, httpx_status, shape
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import (
    BreakerOpen,
    CallError,
    Disposition,
    EngineError,
    GiveUp,
    InDoubt,
    PlanError,
    RetryAfter,
    Skip,
    TimedOut,
)
from headrace.policies.classify import Verdict, classify, transient

PERMANENT, TRANSIENT, OVERLOAD = Disposition.PERMANENT, Disposition.TRANSIENT, Disposition.OVERLOAD
UNKNOWN, NEVER = Verdict(PERMANENT, True), Verdict(PERMANENT, False)
UNSENT, LOST = Verdict(TRANSIENT, False), Verdict(TRANSIENT, True)


# ------------------------------------------------------------------------------------------------- by status

BY_STATUS = {
    400: NEVER, 401: NEVER, 403: NEVER, 404: NEVER, 405: NEVER, 409: NEVER, 410: NEVER, 413: NEVER, 418: NEVER,
    422: NEVER, 451: NEVER,
    408: UNSENT, 425: UNSENT, 429: Verdict(OVERLOAD, False),
    500: LOST, 502: LOST, 503: LOST, 504: LOST, 520: LOST, 522: LOST, 524: LOST, 527: LOST, 530: LOST,
    529: Verdict(OVERLOAD, True),
    501: NEVER, 505: NEVER, 511: NEVER, 507: UNKNOWN, 508: UNKNOWN, 599: UNKNOWN,
}  # fmt: skip


@pytest.mark.parametrize("make", STATUS_MAKERS)
@pytest.mark.parametrize(("status", "verdict"), BY_STATUS.items())
def test_a_status_decides(make: Callable[[int], Exception], status: int, verdict: Verdict) -> None:
    """The same status means the same on the exceptions of every client."""
    assert classify(make(status)) == verdict


WITH_RETRY_AFTER = {
    429: Verdict(OVERLOAD, False, 7.0, True),
    503: Verdict(OVERLOAD, False, 7.0, True),
    529: Verdict(OVERLOAD, False, 7.0, True),
    408: Verdict(TRANSIENT, False, 7.0),
    500: Verdict(TRANSIENT, True, 7.0),
    502: Verdict(TRANSIENT, True, 7.0),
    404: NEVER,
}


@pytest.mark.parametrize("make", STATUS_MAKERS)
@pytest.mark.parametrize(("status", "verdict"), WITH_RETRY_AFTER.items())
@pytest.mark.parametrize("header", ["retry_after", "Retry_After"])
def test_retry_after_is_found(
    make: Callable[..., Exception], status: int, verdict: Verdict, header: str
) -> None:
    """429, 503 and 529 with Retry-After hold the key and were not processed; others only wait."""
    assert classify(make(status, **{header: "7"})) == verdict


def test_a_date_counts_from_the_date_of_the_answer() -> None:
    """The other side's own clock is used, and ours only where it sent no Date."""
    until = "Sun, 06 Nov 1994 08:49:37 GMT"
    error = httpx_status(503, Retry_After=until, Date="Sun, 06 Nov 1994 08:49:07 GMT")
    assert classify(error, 1.7e9).retry_after == 30.0
    undated = httpx_status(503, Retry_After=until)
    assert classify(undated, 784111777.0 - 20.0).retry_after == 20.0
    assert classify(undated) == LOST


@pytest.mark.parametrize("value", ["soon", "-5", "NaN", "", "1e9"])
def test_a_senseless_retry_after_counts_as_none(value: str) -> None:
    """503 with a Retry-After that says nothing is a 503 without."""
    assert classify(aiohttp_status(503, Retry_After=value)) == LOST


def test_aws_throttling_is_known_under_status_400() -> None:
    """AWS says "too fast" by a code in the answer."""
    assert classify(botocore_status(400, "ThrottlingException")) == Verdict(OVERLOAD, False)
    assert classify(botocore_status(400, "ValidationException")) == NEVER


def test_an_sdks_own_retry_after_counts() -> None:
    """An attribute in seconds is used where there is no header."""
    error = shape("sdk", "TooMany", status=429, retry_after=4)("too many")
    assert classify(error) == Verdict(OVERLOAD, False, 4.0, True)


@pytest.mark.parametrize("status", [0, 200, 204, 302, 399, 600, -1, 10**30, True, "503", 503.0, None, [503]])
def test_what_is_no_error_status_decides_nothing(status: Any) -> None:
    """Only 400 to 599 as an int say something; an unknown exception stays unknown, an OSError of the moment one."""
    assert classify(shape("sdk", "Odd", status=status)("odd")) == UNKNOWN
    assert classify(shape("sdk", "OddOs", OSError, status=status)("odd")) == LOST


def test_an_enum_is_a_status() -> None:
    """http.HTTPStatus counts as its number."""
    assert (
        classify(shape("sdk", "Busy", status_code=http.HTTPStatus.TOO_MANY_REQUESTS)("busy")).disposition
        is OVERLOAD
    )


# ------------------------------------------------------------------------------------------------- by type


def raised(error: BaseException, cause: BaseException) -> BaseException:
    """Chain as `raise error from cause` does."""
    error.__cause__ = cause
    return error


class Mixed(ValueError, OSError):
    """A mistake that calls itself an OSError, as requests' InvalidURL does."""


HTTPX_CONNECT = shape(
    "httpx", "ConnectError", shape("httpx", "NetworkError", shape("httpx", "TransportError"))
)
HTTPX_READ = shape("httpx", "ReadError", shape("httpx", "NetworkError", shape("httpx", "TransportError")))
SDK_CONNECTION = shape("anthropic", "APIConnectionError")
REQUESTS = shape("requests.exceptions", "RequestException", OSError)
REQUESTS_CONNECTION = shape("requests.exceptions", "ConnectionError", REQUESTS)
AIOHTTP_CONNECTION = shape("aiohttp.client_exceptions", "ClientConnectionError")
AIOHTTP_CONNECTOR = shape("aiohttp.client_exceptions", "ClientConnectorError", AIOHTTP_CONNECTION, OSError)
URLLIB3_MAX_RETRY = shape("urllib3.exceptions", "MaxRetryError")
URLLIB3_NEW = shape("urllib3.exceptions", "NewConnectionError")


def max_retry(reason: Exception) -> Exception:
    """urllib3.MaxRetryError with its reason, as requests wraps it."""
    error = URLLIB3_MAX_RETRY("gave up")
    error.reason = reason  # type: ignore[attr-defined]
    return error


BY_TYPE: list[tuple[BaseException, Verdict]] = [
    # nothing went out
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), UNSENT),
    (ConnectionRefusedError("no errno"), UNSENT),
    (socket.gaierror(socket.EAI_NONAME, "unknown name"), UNSENT),
    (socket.gaierror(8, "unknown name, as macOS numbers it"), UNSENT),
    (socket.herror("host"), UNSENT),
    (OSError(errno.EMFILE, "too many open files"), UNSENT),
    (OSError(errno.EADDRNOTAVAIL, "no port left"), UNSENT),
    (HTTPX_CONNECT("refused"), UNSENT),
    (shape("httpx", "ConnectTimeout", shape("httpx", "TimeoutException"))("slow"), UNSENT),
    (shape("httpx2", "PoolTimeout", shape("httpx2", "TimeoutException"))("slow"), UNSENT),
    (AIOHTTP_CONNECTOR("refused"), UNSENT),
    (shape("aiohttp.client_exceptions", "ConnectionTimeoutError", TimeoutError)("slow"), UNSENT),
    (shape("requests.exceptions", "ConnectTimeout", REQUESTS_CONNECTION)("slow"), UNSENT),
    (REQUESTS_CONNECTION(max_retry(URLLIB3_NEW("refused"))), UNSENT),
    (shape("botocore.exceptions", "EndpointConnectionError")("refused"), UNSENT),
    (raised(SDK_CONNECTION("failed"), HTTPX_CONNECT("refused")), UNSENT),
    (urllib.error.URLError(ConnectionRefusedError("refused")), UNSENT),
    (urllib.error.URLError(socket.gaierror(-2, "unknown")), UNSENT),
    # it may have gone out
    (ConnectionResetError("reset"), LOST),
    (BrokenPipeError("pipe"), LOST),
    (ConnectionAbortedError("aborted"), LOST),
    (TimeoutError("timed out"), LOST),
    (OSError("of some kind"), LOST),
    (OSError(errno.EHOSTUNREACH, "no route"), LOST),
    (asyncio.IncompleteReadError(b"", 5), LOST),
    (http.client.RemoteDisconnected("gone"), LOST),
    (http.client.IncompleteRead(b""), LOST),
    (ssl.SSLEOFError("eof"), LOST),
    (HTTPX_READ("reset"), LOST),
    (shape("httpx", "RemoteProtocolError", shape("httpx", "ProtocolError"))("gone"), LOST),
    (shape("aiohttp.client_exceptions", "ServerDisconnectedError", AIOHTTP_CONNECTION)("gone"), LOST),
    (shape("aiohttp.client_exceptions", "ClientPayloadError")("short"), LOST),
    (shape("requests.exceptions", "ChunkedEncodingError", REQUESTS)("short"), LOST),
    (REQUESTS_CONNECTION("gone"), LOST),
    (REQUESTS_CONNECTION(max_retry(shape("urllib3.exceptions", "ProtocolError")("gone"))), LOST),
    (
        shape("botocore.exceptions", "ReadTimeoutError", shape("botocore.exceptions", "HTTPClientError"))(
            "slow"
        ),
        LOST,
    ),
    (SDK_CONNECTION("failed"), LOST),
    (raised(SDK_CONNECTION("failed"), HTTPX_READ("reset")), LOST),
    (shape("openai", "APITimeoutError", shape("openai", "APIConnectionError"))("slow"), LOST),
    (urllib.error.URLError(TimeoutError("slow")), LOST),
    # never made
    (ssl.SSLCertVerificationError("certificate"), NEVER),
    (raised(HTTPX_CONNECT("tls"), ssl.SSLCertVerificationError("certificate")), NEVER),
    (shape("aiohttp.client_exceptions", "ServerFingerprintMismatch", AIOHTTP_CONNECTION)("other"), NEVER),
    (shape("aiohttp.client_exceptions", "InvalidURL", ValueError)("nope"), NEVER),
    (shape("requests.exceptions", "MissingSchema", REQUESTS, ValueError)("nope"), NEVER),
    (shape("httpx", "UnsupportedProtocol", shape("httpx", "TransportError"))("ftp"), NEVER),
    # the same way again, as far as anyone knows
    (urllib.error.URLError("unknown url type: foo"), UNKNOWN),
    (FileNotFoundError(errno.ENOENT, "missing"), UNKNOWN),
    (PermissionError(errno.EACCES, "denied"), UNKNOWN),
    (IsADirectoryError("directory"), UNKNOWN),
    (NotADirectoryError("file"), UNKNOWN),
    (FileExistsError("exists"), UNKNOWN),
    (ProcessLookupError("gone"), UNKNOWN),
    (ChildProcessError("gone"), UNKNOWN),
    (OSError(errno.ENOSPC, "disk full"), UNKNOWN),
    (OSError(errno.EROFS, "read-only"), UNKNOWN),
    (OSError(errno.EINVAL, "invalid"), UNKNOWN),
    (io.UnsupportedOperation("not writable"), UNKNOWN),
    (Mixed("invalid"), UNKNOWN),
    (shape("tarfile", "ReadError")("no tar file, although httpx has a ReadError"), UNKNOWN),
    (shape("requests.exceptions", "TooManyRedirects", REQUESTS)("round and round"), UNKNOWN),
    (TypeError("t"), UNKNOWN),
    (ValueError("v"), UNKNOWN),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), UNKNOWN),
    (KeyError("k"), UNKNOWN),
    (IndexError("i"), UNKNOWN),
    (AttributeError("a"), UNKNOWN),
    (NameError("n"), UNKNOWN),
    (ZeroDivisionError("z"), UNKNOWN),
    (AssertionError("a"), UNKNOWN),
    (ImportError("i"), UNKNOWN),
    (RuntimeError("r"), UNKNOWN),
    (NotImplementedError("n"), UNKNOWN),
    (Exception("e"), UNKNOWN),
    (StopIteration(), UNKNOWN),
    (shape("sdk", "Mistake", TypeError, status=503)("a mistake with a status is a mistake"), UNKNOWN),
    # orders to stop are no failures of a call
    (asyncio.CancelledError(), UNKNOWN),
    (KeyboardInterrupt(), UNKNOWN),
    (SystemExit(), UNKNOWN),
    # ours
    (TimedOut("t"), LOST),
    (InDoubt("d"), UNKNOWN),
    (CallError("c"), NEVER),
    (BreakerOpen("b"), Verdict(OVERLOAD, False)),
    (RetryAfter(5, hold=True), Verdict(TRANSIENT, False, 5, True)),
    (GiveUp(), NEVER),
    (Skip(), NEVER),
    (PlanError("p"), UNKNOWN),
    (EngineError("e"), UNKNOWN),
]


@pytest.mark.parametrize(("error", "verdict"), BY_TYPE, ids=lambda value: type(value).__name__)
def test_a_type_decides(error: BaseException, verdict: Verdict) -> None:
    """Each kind of failure has its verdict, and `transient` is whether a repetition may help."""
    assert classify(error) == verdict
    assert transient(error) is (verdict.disposition is not PERMANENT)


def test_our_errors_are_taken_at_their_word() -> None:
    """A CallError's own attributes count, also where they are set on the instance."""
    error = CallError("busy")
    error.disposition, error.ambiguous, error.retry_after, error.hold = OVERLOAD, True, 7200.0, True
    assert classify(error) == Verdict(OVERLOAD, True, 7200.0, True)


def test_a_reset_that_follows_a_certificate_handled_apart_is_a_reset() -> None:
    """`raise … from None` cuts what came before off."""
    error = ConnectionResetError("reset")
    error.__context__, error.__suppress_context__ = ssl.SSLCertVerificationError("another"), True
    assert classify(error) == LOST


# ------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("members", "verdict"),
    [
        ([ConnectionResetError(), TimeoutError()], LOST),
        ([ConnectionRefusedError(), ConnectionRefusedError()], UNSENT),
        ([ConnectionRefusedError(), ConnectionResetError()], LOST),
        ([ConnectionResetError(), TypeError()], UNKNOWN),
        ([httpx_status(404), ConnectionRefusedError()], NEVER),
        ([httpx_status(429, retry_after="7"), aiohttp_status(503, retry_after="9")], Verdict(OVERLOAD, False, 9.0, True)),
        ([ExceptionGroup("inner", [TimeoutError(), KeyError()]), TimeoutError()], UNKNOWN),
    ],
)  # fmt: skip
def test_a_group_is_transient_if_all_its_members_are(members: list[Exception], verdict: Verdict) -> None:
    """The worst member decides each part of the verdict."""
    assert classify(ExceptionGroup("group", members)) == verdict


def test_a_group_with_an_order_to_stop_is_not_transient() -> None:
    """A cancellation among the members is not to be repeated."""
    assert not transient(BaseExceptionGroup("group", [TimeoutError(), asyncio.CancelledError()]))


def test_deep_nesting_is_no_error() -> None:
    """Groups in groups and causes of causes, deeper than the stack, get a verdict."""
    group: Exception = TimeoutError()
    chained: BaseException = TimeoutError()
    for _ in range(5000):
        group = ExceptionGroup("group", [group])
        chained = raised(SDK_CONNECTION("failed"), chained)
    assert transient(group)
    assert transient(chained)
    chained.__cause__ = chained
    assert transient(chained)


# ------------------------------------------------------------------------------------------------- totality


class Hostile(Exception):
    """All that can be asked of it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is not yours to see")


class HostileCall(CallError):
    """One of ours with a broken attribute."""

    @property
    def disposition(self) -> Any:  # type: ignore[override]
        raise RuntimeError("broken")


class HostileMapping(dict[str, Any]):
    """Headers that raise."""

    def get(self, *args: Any) -> Any:
        raise RuntimeError("broken")


class HostileInt(int):
    """A status that raises when it is compared."""

    def __le__(self, other: object) -> bool:
        raise RuntimeError("broken")

    __eq__ = __lt__ = __ge__ = __gt__ = __le__  # type: ignore[assignment]
    __hash__ = int.__hash__


@pytest.mark.parametrize(
    "make",
    [
        Hostile,
        HostileCall,
        shape("sdk", "A", status=503, headers=HostileMapping()),
        shape("sdk", "B", status=HostileInt(503)),
        shape("sdk", "C", response=HostileMapping()),
        shape("sdk", "D", response=Thing(status_code=503, headers=object())),
        shape("sdk", "E", OSError, errno="rubbish"),
        shape("sdk", "F", OSError, errno=HostileInt(3)),
        shape("sdk", "G", __class__=property(lambda self: 1 / 0)),
        shape("sdk", "H", __module__=None),
    ],
)
def test_rubbish_never_raises(make: Callable[[], Exception]) -> None:
    """Attributes that raise count as absent."""
    error = make()
    assert isinstance(classify(error), tuple)
    assert transient(error) in (True, False)


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.sampled_from([429, 503, 404])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["retry-after", "Retry-After", "Date", "Error", "Code", "ResponseMetadata", "HTTPStatusCode"]),
            inner,
        ),
        st.builds(
            lambda a, b: Thing(status_code=a, headers=b, retry_after=a, disposition=b, hold=a, errno=b), inner, inner
        ),
    ),
    max_leaves=6,
)  # fmt: skip
NAMES = ["status", "status_code", "http_status", "headers", "response", "retry_after", "reason", "errno",
         "disposition", "ambiguous", "hold", "args"]  # fmt: skip


@given(
    base=st.sampled_from([Exception, OSError, TimeoutError, CallError, SDK_CONNECTION, REQUESTS_CONNECTION]),
    attributes=st.dictionaries(st.sampled_from(NAMES), ANYTHING),
    now=st.one_of(st.none(), st.floats()),
)
def test_any_attributes_give_a_sound_verdict(
    base: type[Exception], attributes: dict[str, Any], now: float | None
) -> None:
    """Whatever an exception carries: a verdict whose parts have their types, and no wait that is not a number."""
    verdict = classify(type("Any", (base,), {"__module__": "sdk", **attributes})(), now)
    assert type(verdict.disposition) is Disposition
    assert type(verdict.ambiguous) is bool
    assert type(verdict.hold) is bool
    assert verdict.retry_after is None or 0.0 <= verdict.retry_after < 4e9


# ------------------------------------------------------------------------------------------------- the real ones


def free_port() -> int:
    """Give a port of this machine at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_real_sockets_and_urllib() -> None:
    """A refused connection is known as not sent, through the standard library's layers."""
    port = free_port()
    with pytest.raises(ConnectionRefusedError) as refused:
        socket.create_connection(("127.0.0.1", port))
    assert classify(refused.value) == UNSENT
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with pytest.raises(OSError) as through_http:
        connection.request("GET", "/")
    connection.close()
    assert classify(through_http.value) == UNSENT


def test_real_requests() -> None:
    """requests wraps what happened three times; it is found all the same."""
    requests = pytest.importorskip("requests")
    with pytest.raises(requests.ConnectionError) as refused:
        requests.get(f"http://127.0.0.1:{free_port()}/", timeout=5)
    assert classify(refused.value) == UNSENT
    with pytest.raises(requests.exceptions.MissingSchema) as nowhere:
        requests.get("nowhere")
    assert classify(nowhere.value) == NEVER
    assert classify(requests.ReadTimeout("slow")) == LOST
    response = requests.Response()
    response.status_code, response.headers["Retry-After"] = 503, "7"
    with pytest.raises(requests.HTTPError) as busy:
        response.raise_for_status()
    assert classify(busy.value) == Verdict(OVERLOAD, False, 7.0, True)


def test_real_aiohttp() -> None:
    """aiohttp's classes are named as the table says."""
    aiohttp = pytest.importorskip("aiohttp")

    async def get(url: str) -> None:
        async with aiohttp.ClientSession() as session, session.get(url):
            raise AssertionError("nobody listens there")

    with pytest.raises(aiohttp.ClientError) as refused:
        asyncio.run(get(f"http://127.0.0.1:{free_port()}/"))
    assert classify(refused.value) == UNSENT
    with pytest.raises(aiohttp.InvalidURL) as nowhere:
        asyncio.run(get("nowhere"))
    assert classify(nowhere.value) == NEVER
    assert classify(aiohttp.ServerDisconnectedError()) == LOST
    assert classify(aiohttp.ClientPayloadError("short")) == LOST
    assert classify(aiohttp.ConnectionTimeoutError("slow")) == UNSENT
    assert classify(aiohttp.SocketTimeoutError("slow")) == LOST
    error = aiohttp.ClientResponseError(None, (), status=429, headers={"Retry-After": "7"})  # type: ignore[arg-type]
    assert classify(error) == Verdict(OVERLOAD, False, 7.0, True)


def test_a_real_missing_file() -> None:
    """open() of what is not there is never repeated."""
    with pytest.raises(OSError) as missing:
        os.stat("/nowhere/at/all")
    assert not transient(missing.value)
