"""The one reading of a URL: what is checked here is what is sent.

Rules:
1. Only http and https. Control characters, whitespace and backslashes are refused, never repaired.
2. A `Url` is canonical: lower-case scheme and host, no default port, no userinfo, no fragment. libcurl gets
   this text.
3. Userinfo is a secret: it leaves the text at once, and `mask` keeps it and the values of a query out of
   messages.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin

from headrace.http.errors import InvalidUrl, UnsupportedScheme
from headrace.policies.further import understands_urls

__all__ = ["RequestUrl", "Url", "host", "join", "mask", "parse"]

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_LENGTH = 65_536

# What most URLs look like; all else takes the long way. The target has no character that needs encoding.
_PLAIN = re.compile(
    r"(https?)://"
    r"([a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?)"
    r"(?::([1-9][0-9]{0,4}))?"
    r"(/[!$-;=?-\[\]_a-z~]*)?"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ufeff\ud800-\udfff]")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
# The characters that IDNA 2003 (which Python has) and 2008 map to different names.
_DEVIATIONS = re.compile("[\u00df\u03c2\u200c\u200d]")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_QUERY_VALUE = re.compile(r"=[^&;#]+")
_TARGET_SAFE = "!$%&'()*+,-./:;=?@[]_~"


class Url(NamedTuple):
    """A checked URL. `text` is what is sent; `key` is `host:port`; `userinfo` is (user, password) or None."""

    text: str
    scheme: str
    host: str
    port: int
    key: str
    literal: bool  #: the host is an address, not a name
    userinfo: tuple[str, str] | None = None

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials belong to."""
        return (self.scheme, self.host, self.port)

    def __repr__(self) -> str:
        return f"Url({mask(self.text)!r})"


@functools.lru_cache(maxsize=4096)
def parse(url: str) -> Url:
    """Check a URL and bring it into its canonical form.

    Raises InvalidUrl, or UnsupportedScheme for anything but http and https.
    """
    if not isinstance(url, str):
        raise InvalidUrl(f"a URL must be a str, not {type(url).__name__}", phase="url")
    plain = _PLAIN.fullmatch(url)
    if plain is None or len(url) > MAX_LENGTH:
        return _parse_slowly(url)
    scheme, name, port_text, target = plain.groups()
    canonical, name, port, key, literal = _authority(scheme, name, port_text)
    return Url(canonical + (target or "/"), scheme, name, port, key, literal)


@functools.lru_cache(maxsize=1024)
def _authority(scheme: str, name: str, port_text: str | None) -> tuple[str, str, int, str, bool]:
    """Check host and port of a plain URL: the canonical beginning, host, port, key, and whether it is an
    address.
    """
    shown = f"{scheme}://{name}"
    name, literal = _check_host(shown, name)
    default = DEFAULT_PORTS[scheme]
    port = _check_port(shown, port_text, default)
    authority = name if port == default else f"{name}:{port}"
    return f"{scheme}://{authority}", name, port, f"{name}:{port}", literal


def _parse_slowly(url: str) -> Url:
    if len(url) > MAX_LENGTH:
        raise _invalid(url[:200], f"it has {len(url)} characters, more than {MAX_LENGTH}")
    bad = _FORBIDDEN.search(url)
    if bad is not None:
        raise _invalid(url, f"it holds {bad.group()!r} at {bad.start()}; encode it as %XX or remove it")
    scheme_match = _SCHEME.match(url)
    if scheme_match is None:
        raise _invalid(url, "it has no scheme; write http:// or https:// in front")
    scheme = scheme_match.group(1).lower()
    if scheme not in DEFAULT_PORTS:
        if "." in scheme or url[scheme_match.end() : scheme_match.end() + 1].isdigit():
            raise _invalid(url, "it has no scheme; write http:// or https:// in front")
        raise UnsupportedScheme(
            f"{mask(url)}: scheme {scheme!r} is not http or https", url=mask(url), phase="url"
        )
    rest = url[scheme_match.end() :]
    if not rest.startswith("//"):
        raise _invalid(url, f"write {scheme}:// with two slashes")
    rest = rest[2:].partition("#")[0]
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    authority, target = rest[:end], rest[end:]
    userinfo_text, at, authority = authority.rpartition("@")
    name, port_text = _split_port(url, authority)
    name, literal = _check_host(url, name)
    port = _check_port(url, port_text, DEFAULT_PORTS[scheme])
    target = quote(target if target.startswith("/") else "/" + target, safe=_TARGET_SAFE)
    shown = name if port == DEFAULT_PORTS[scheme] else f"{name}:{port}"
    text = f"{scheme}://{shown}{target}"
    return Url(text, scheme, name, port, f"{name}:{port}", literal, _userinfo(userinfo_text) if at else None)


def _split_port(url: str, authority: str) -> tuple[str, str]:
    if authority.startswith("["):
        name, bracket, port_text = authority.partition("]")
        if not bracket or (port_text and not port_text.startswith(":")):
            raise _invalid(url, "its IPv6 address is not closed by ]")
        return name + "]", port_text[1:]
    name, _, port_text = authority.partition(":")
    return name, port_text


def _check_port(url: str, text: str | None, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:7]) <= 65_535:
        raise _invalid(url, f"port {text!r} is not a number from 1 to 65535")
    return int(text)


def _check_host(url: str, name: str) -> tuple[str, bool]:
    """Give the canonical host, and whether it is an address."""
    if name.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1]).compressed}]", True
        except ValueError as error:
            raise _invalid(url, f"{name!r} is not an IPv6 address") from error
    name = name.lower()
    if not name.isascii():
        name = _to_ascii(url, name)
    name = name.removesuffix(".")
    if not name:
        raise _invalid(url, "it has no host")
    if len(name) > 253 or _HOST.fullmatch(name) is None:
        raise _invalid(url, f"{name[:80]!r} is not a host name")
    if _NUMERIC_LABEL.fullmatch(name.rpartition(".")[2]):
        # 127.1, 0x7f000001 and 2130706433 all mean 127.0.0.1 to some programs: refuse what is read in two
        # ways.
        try:
            return str(ipaddress.IPv4Address(name)), True
        except ValueError as error:
            raise _invalid(
                url, f"{name!r} is neither a name nor an IPv4 address of four decimal numbers"
            ) from error
    return name, False


def _to_ascii(url: str, name: str) -> str:
    if _DEVIATIONS.search(name):
        raise _invalid(
            url, f"host {name!r} is read differently by IDNA 2003 and 2008; write it in its xn-- form"
        )
    try:
        return name.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise _invalid(url, f"{name!r} is not a valid international host name") from error


def _userinfo(text: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    return unquote(user), unquote(password)


def _invalid(url: str, why: str) -> InvalidUrl:
    shown = mask(url)
    return InvalidUrl(f"{shown[:200]!r} is not a usable URL: {why}", url=shown[:2000], phase="url")


def join(base: Url, location: str) -> Url:
    """Resolve a redirect's Location against the URL that it came from. Raises as `parse` does."""
    return parse(urljoin(base.text, location))


def mask(url: str) -> str:
    """Hide userinfo and the values of the query, for messages, logs and screens. Never raises."""
    head, question, query = url.partition("?")
    scheme, slashes, rest = head.partition("//")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        head = f"{scheme}{slashes}***@{authority.rpartition('@')[2]}{slash}{path}"
    if not question:
        return head
    if "=" not in query:
        # A query without names is a value itself.
        return f"{head}?***" if query else url
    return head + question + _QUERY_VALUE.sub("=***", query)


class RequestUrl(str):
    """The URL of a request, for key functions that would else take a text for an item. It shows masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(mask(self))


@understands_urls
def host(value: Any) -> str:
    """Give the key `host:port` of a URL, of a row with a "url", or of a response:
    `hr.Limit(by=hr.http.host, …)`.

    Raises InvalidUrl for anything else; the item then fails with it.
    """
    if isinstance(value, str):
        return parse(value).key
    if isinstance(value, Mapping):
        url = value.get("url")
        if isinstance(url, str):
            return parse(url).key
        raise InvalidUrl(
            'host() needs a "url" in the row; for a fetch with a url= template use by=that_fetch.host',
            phase="url",
        )
    url = getattr(value, "final_url", None)
    if isinstance(url, str):
        return parse(url).key
    raise InvalidUrl(
        f'host() takes a URL, a row with a "url" or a response, not {type(value).__name__}', phase="url"
    )
