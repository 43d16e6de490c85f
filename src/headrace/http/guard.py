"""Which addresses may be connected to, where strangers wrote the URLs.

    URL ─► port, literal address ─► addresses of the name ─► address of the socket ─► address of the connection

Rules:
1. Public is what the list below leaves: everything that is special, or that hides another address, is refused.
2. An address is judged where it is used: when a name was resolved, when a socket is opened and, for a kept connection, right
   before a request goes out. A name that changes its address between two looks gains nothing.
3. Of a name with good and bad addresses only the good ones are used.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from headrace.errors import PlanError
from headrace.http.errors import AddressRefused
from headrace.http.url import Url, mask

__all__ = ["Guard"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# IANA's registries of special-purpose addresses (RFC 6890 and its updates), and multicast.
_SPECIAL_4: Final = _networks(
    (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_UNICAST_6: Final = ipaddress.IPv6Network("2000::/3")
#: Within global unicast: protocol assignments (Teredo and ORCHID among them), documentation, 6to4, AS112.
_SPECIAL_6: Final = _networks(("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))


class Guard:
    """Refuse requests to what is not public: `hr.http.Client(guard=hr.http.Guard())`.

    `allow` and `deny` are networks or addresses that are judged before the list of special ones, `deny` first; `ports`,
    where given, are the only ones. Redirects are judged as the first request is. A client with a guard takes no proxy,
    which would look names up itself, and no unix socket. What is refused raises AddressRefused, permanent, and nothing was
    sent.

    Raises PlanError for what is no network or port.
    """

    def __init__(
        self,
        *,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        ports: Iterable[int] | None = None,
    ) -> None:
        self._allow = _read("allow", allow)
        self._deny = _read("deny", deny)
        self._ports = None if ports is None else frozenset(ports)
        for port in self._ports or ():
            if type(port) is not int or not 0 < port < 65_536:
                raise PlanError(f"Guard(ports=…): {port!r} is no port; give numbers from 1 to 65535")
        self._judged: dict[str, str | None] = {}

    def refusal(self, address: str) -> str | None:
        """Say why an address is refused; None where it is allowed."""
        try:
            return self._judged[address]
        except KeyError:
            pass
        if len(self._judged) > 10_000:
            self._judged.clear()
        why = self._judged[address] = self._judge(address)
        return why

    def _judge(self, text: str) -> str | None:
        try:
            address: Address = ipaddress.ip_address(text.strip("[]"))
        except ValueError:
            return "it is no IP address"
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                return "it belongs to one network interface"
            if address.ipv4_mapped is not None:
                address = address.ipv4_mapped
        if _within(address, self._deny):
            return "it is denied"
        if _within(address, self._allow):
            return None
        if isinstance(address, ipaddress.IPv4Address):
            special = _within(address, _SPECIAL_4)
        else:
            special = address not in _UNICAST_6 or _within(address, _SPECIAL_6)
        return "it is not a public address" if special or not address.is_global else None

    def check(self, url: Url) -> None:
        """Judge what a URL says itself: its port, and its host where that is an address. Raises AddressRefused."""
        if self._ports is not None and url.port not in self._ports:
            raise _refused(url, f"port {url.port} is none of those allowed")
        if url.literal and (why := self.refusal(url.host)) is not None:
            raise _refused(url, f"{url.host}: {why}")

    def permitted(self, url: Url, listed: Sequence[str]) -> list[str]:
        """Give the addresses of a name that may be used. Raises AddressRefused where there is none."""
        good = [address for address in listed if self.refusal(address) is None]
        if not good:
            shown = ", ".join(listed[:5])
            raise _refused(url, f"{url.host} has no public address (it has {shown})")
        return good

    def __repr__(self) -> str:
        given = [
            f"{name}={[str(network) for network in networks]}"
            for name, networks in (("allow", self._allow), ("deny", self._deny))
            if networks
        ]
        if self._ports is not None:
            given.append(f"ports={sorted(self._ports)}")
        return f"Guard({', '.join(given)})"


def _refused(url: Url, why: str) -> AddressRefused:
    """Say that a request was not made, and why."""
    shown = mask(url.text)
    return AddressRefused(f"{shown}: refused: {why}", url=shown, host=url.key)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _read(name: str, texts: Sequence[str]) -> tuple[Network, ...]:
    if isinstance(texts, str):
        raise PlanError(f"Guard({name}={texts!r}): give a list, as {name}=[{texts!r}]")
    try:
        return _networks(texts)
    except ValueError as error:
        raise PlanError(f"Guard({name}=…): {error}; give networks such as '10.1.0.0/16'") from error
