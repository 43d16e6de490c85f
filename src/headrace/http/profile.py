"""What is set once on a libcurl handle: limits, TLS, proxy, protocol version.

Rules:
1. A profile is frozen; handles are pooled by it and are never reset.
2. Certificates are always verified. The environment sets no proxy; only `proxy=` does.
3. Everything that differs from request to request is set in transfer.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
import resource
from importlib import metadata
from typing import Any, Final

import certifi
import pycurl  # type: ignore[import-untyped]

from headrace.errors import PlanError
from headrace.http.guard import Guard
from headrace.http.secrets import Secret
from headrace.http.url import parse

__all__ = [
    "Profile",
    "Timeouts",
    "certificate_store",
    "default_user_agent",
    "idle_connections",
    "milliseconds",
]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
# A kept-alive connection may die under a request. A safe one is repeated; for the others only a connection
# used this
# recently (seconds) is taken, far below the idle limits of servers (5 s and more).
SAFE_IDLE: Final = 60
UNSAFE_IDLE: Final = 1
CONNECTION_LIFETIME: Final = 600  # seconds; so that changes in DNS are followed
# Longer than the resolver keeps an answer: libcurl must never find an entry of ours expired.
DNS_KEPT: Final = 600

_VERSIONS: Final = {
    "1.1": pycurl.CURL_HTTP_VERSION_1_1,
    "2": pycurl.CURL_HTTP_VERSION_2TLS,
    "3": pycurl.CURL_HTTP_VERSION_3,
}
_PROXY_PORTS: Final = {"http": 80, "https": 443, "socks4a": 1080, "socks5h": 1080}
_STORES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """Time limits of a request in seconds; None switches one off.

    `resolve` a name to addresses; `connect`, TLS included; `first_byte` from the request being sent to the
    first byte of the answer; `stall` is how long the body may (nearly) stand still: less than 32 bytes a
    second; `total` is all of it, redirects included.
    """

    resolve: float | None = 10.0
    connect: float | None = 10.0
    first_byte: float | None = 30.0
    stall: float | None = 30.0
    total: float | None = 120.0

    def without_total(self) -> Timeouts:
        """Give the same limits but for the total one, for what may take as long as it goes on."""
        return self if self.total is None else dataclasses.replace(self, total=None)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (
                isinstance(value, (int, float)) and math.isfinite(value) and 0.001 <= value <= 1_000_000
            ):
                raise PlanError(
                    f"Timeouts({field.name}={value!r}): give seconds from 0.001 to 1000000, or None for none"
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """What one pool of handles has in common. Compared by identity: a client keeps few of them."""

    timeouts: Timeouts = dataclasses.field(default_factory=Timeouts)
    user_agent: str = ""
    proxy: str | Secret | None = None
    http_version: str = "2"
    ca_file: str | None = None
    certificate: str | None = (
        None  #: a client certificate, with its key where `key` does not name another file
    )
    guard: Guard | None = None
    key: str | None = None
    key_password: str | Secret | None = None
    unix_socket: str | None = None
    cookies: bool = False

    def check(self) -> None:
        """Try all options on a handle that is thrown away. Raises PlanError."""
        if any(mark in self.user_agent for mark in "\r\n\0"):
            raise PlanError(f"user_agent={self.user_agent!r} holds a line break or NUL: remove it")
        self.proxy_host  # noqa: B018 - raises for a proxy that cannot be used
        if self.http_version not in _VERSIONS:
            raise PlanError(f'http_version={self.http_version!r}: use "1.1", "2" or "3"')
        if self.http_version == "3" and not pycurl.version_info()[4] & pycurl.VERSION_HTTP3:
            raise PlanError(
                f'http_version="3": this libcurl ({pycurl.version_info()[1]}) cannot speak it; use "2"'
            )
        if self.unix_socket is not None and len(os.fsencode(self.unix_socket)) > 107:
            raise PlanError(
                f"unix_socket={self.unix_socket!r} is longer than a socket's path may be (107 bytes)"
            )
        if self.unix_socket is not None and self.proxy is not None:
            raise PlanError("unix_socket= with proxy=: a request takes one way or the other")
        if self.guard is not None and (self.proxy is not None or self.unix_socket is not None):
            raise PlanError(
                "guard= with proxy= or unix_socket=: the proxy would look names up, and no guard can see what it finds, "
                "or what is behind the socket"
            )
        curl = pycurl.Curl()
        try:
            self.configure(curl, "GET")
        finally:
            curl.close()

    def configure(self, curl: Any, method: str) -> None:
        """Set all options of this profile on a new handle. Raises PlanError where libcurl refuses one."""
        try:
            self._configure(curl, method)
        except pycurl.error as error:
            raise PlanError(f"libcurl refuses an option of this client: {error}") from error

    def _configure(self, curl: Any, method: str) -> None:
        setopt = curl.setopt
        setopt(pycurl.NOSIGNAL, 1)
        setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        setopt(pycurl.FOLLOWLOCATION, 0)
        setopt(pycurl.HTTP_VERSION, _VERSIONS[self.http_version])
        if self.unix_socket is not None:
            setopt(pycurl.UNIX_SOCKET_PATH, self.unix_socket)
        if self.cookies:
            setopt(pycurl.COOKIEFILE, "")
        setopt(pycurl.DNS_CACHE_TIMEOUT, DNS_KEPT)
        setopt(pycurl.MAXLIFETIME_CONN, CONNECTION_LIFETIME)
        setopt(pycurl.MAXAGE_CONN, SAFE_IDLE if method in SAFE_METHODS else UNSAFE_IDLE)
        setopt(pycurl.USERAGENT, self.user_agent or default_user_agent())
        setopt(pycurl.ACCEPT_ENCODING, "")  # all that this libcurl can decode
        # 0 would mean libcurl's own default of 300 s; a day is as good as no limit.
        setopt(pycurl.CONNECTTIMEOUT_MS, milliseconds(self.timeouts.connect, 86_400_000))
        setopt(pycurl.TIMEOUT_MS, milliseconds(self.timeouts.total, 0))
        self._configure_trust(setopt)
        proxy = self.proxy.reveal() if isinstance(self.proxy, Secret) else self.proxy
        setopt(pycurl.PROXY, proxy or "")
        setopt(pycurl.NOPROXY, "")

    def _configure_trust(self, setopt: Any) -> None:
        setopt(pycurl.SSL_VERIFYPEER, 1)
        setopt(pycurl.SSL_VERIFYHOST, 2)
        setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        store = self.ca_file or certificate_store()
        setopt(pycurl.CAINFO, store)
        setopt(pycurl.PROXY_CAINFO, store)
        if self.certificate is not None:
            setopt(pycurl.SSLCERT, self.certificate)
        if self.key is not None:
            setopt(pycurl.SSLKEY, self.key)
        if self.key_password is not None:
            password = self.key_password
            setopt(pycurl.KEYPASSWD, password.reveal() if isinstance(password, Secret) else password)

    @functools.cached_property
    def sweep(self) -> float:
        """Seconds between looks at the limits that libcurl does not have; infinite where there is none."""
        shortest = min(self.timeouts.first_byte or math.inf, self.timeouts.stall or math.inf)
        return min(1.0, shortest / 8) if shortest < math.inf else math.inf

    @functools.cached_property
    def may_share(self) -> bool:
        """Whether a connection may serve several requests at a time."""
        return self.http_version != "1.1"

    @functools.cached_property
    def proxy_host(self) -> tuple[str, int] | None:
        """The name and port that must be resolved instead of the URL's, where there is a proxy."""
        if self.proxy is None:
            return None
        return _proxy_address(self.proxy.reveal() if isinstance(self.proxy, Secret) else self.proxy)


def _proxy_address(proxy: str) -> tuple[str, int]:
    scheme, slashes, rest = proxy.partition("://")
    if not slashes or scheme not in _PROXY_PORTS:
        raise PlanError(
            "proxy= must begin with http://, https://, socks4a:// or socks5h:// (which resolve names at the proxy)"
        )
    url = parse(f"http://{rest}")
    named = rest.rpartition("@")[2].rpartition("]")[2].partition("/")[0].partition(":")[2]
    return url.host, url.port if named else _PROXY_PORTS[scheme]


def milliseconds(seconds: float | None, unlimited: int) -> int:
    """Convert for libcurl; at least 1, since 0 has another meaning there."""
    return unlimited if seconds is None else max(1, round(seconds * 1000))


@functools.cache
def certificate_store() -> str:
    """Find the system's certificates, else certifi's. The wheel of pycurl looks in one system's place
    only.
    """
    for path in _STORES:
        if os.access(path, os.R_OK):
            return path
    return certifi.where()


@functools.cache
def default_user_agent() -> str:
    """Say who calls, with version and URL, as servers' owners want to know."""
    try:
        version = metadata.version("headrace")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"headrace/{version} (+https://pypi.org/project/headrace/) Python/{platform.python_version()}"


def idle_connections() -> int:
    """How many connections may be kept: a share of the files that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 4096
    return max(16, min(4096, soft * 7 // 8))


# Both read files: once, when the room is loaded, and not in somebody's running loop.
certificate_store()
default_user_agent()
