"""The guard: what is not public is refused in every form, on every way that leads there, and nothing is sent to it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.http.server import always, answer, serve

from headrace.errors import Disposition, PlanError
from headrace.http.client import Client
from headrace.http.errors import AddressRefused, InvalidUrl
from headrace.http.guard import Guard
from headrace.http.resolver import Resolver
from headrace.http.transfer import Handle, Opened
from headrace.testing import run as run_virtual

Run = Callable[..., Any]
GUARD = Guard()

PRIVATE = [
    # literals
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
    "192.0.0.1", "192.0.0.170", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "100::1", "5f00::1",
    # IPv4 within IPv6: mapped, compatible, NAT64, 6to4, Teredo, translated, ISATAP-like
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:7f00:1", "::127.0.0.1", "::7f00:1",
    "64:ff9b::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::10.0.0.1", "2002:7f00:1::", "2002:0808:0808::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "::ffff:0:127.0.0.1", "2001:2::1", "2001:10::1", "3fff::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "::ffff:8.8.8.8",
]
#: Forms that some programs read as addresses. Here they are no URL at all.
OBSCURE = [
    "2130706433", "0x7f000001", "017700000001", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "127.0.0.0x1",
    "127.0.0.1%00", "[::1%25lo]", "[::ffff:127.0.0.1", "１２７.0.0.1", "127。0。0。1", "0", "1.2.3.4.5",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_special_addresses_are_refused(address: str) -> None:
    """Every special range, and every way to write IPv4 within IPv6."""
    assert GUARD.refusal(address) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    """What anybody may reach is allowed."""
    assert GUARD.refusal(address) is None


@given(st.ip_addresses())
@example(ipaddress.ip_address("64:ff9b:1::1"))
def test_the_guard_allows_nothing_that_python_calls_special(address: Any) -> None:
    """Whatever is allowed is global unicast by the registry in Python's own library, and hides no other address."""
    if GUARD.refusal(str(address)) is None:
        inner = getattr(address, "ipv4_mapped", None) or address
        assert inner.is_global
        for special in (
            "private",
            "multicast",
            "reserved",
            "link_local",
            "loopback",
            "unspecified",
            "site_local",
        ):
            assert not getattr(inner, f"is_{special}", False), special
        assert getattr(inner, "sixtofour", None) is None
        assert getattr(inner, "teredo", None) is None


@given(st.text(max_size=20))
def test_what_is_no_address_is_refused(text: str) -> None:
    """The verdict on any text is a reason, or the text is a public address."""
    if GUARD.refusal(text) is None:
        ipaddress.ip_address(text.strip("[]"))


@pytest.mark.parametrize("address", PRIVATE)
def test_urls_with_literal_addresses_are_refused(address: str) -> None:
    """No socket is opened for them."""

    async def main() -> None:
        shown = f"[{address}]" if ":" in address else address
        async with Client(guard=Guard()) as client:
            with pytest.raises(AddressRefused) as caught:
                await client.get(f"http://{shown}/x?key=hush")
            assert caught.value.disposition is Disposition.PERMANENT
            assert not caught.value.ambiguous
            assert "hush" not in str(caught.value) + caught.value.url
            assert client.statistics().requests == 0

    run_virtual(main)


@pytest.mark.parametrize("host", OBSCURE)
def test_urls_with_obscure_addresses_are_no_urls(host: str) -> None:
    """Decimal, octal, hexadecimal and shortened forms are refused with or without a guard."""

    async def main() -> None:
        async with Client(guard=Guard()) as client:
            with pytest.raises((InvalidUrl, AddressRefused)):
                await client.get(f"http://{host}/")
            assert client.statistics().requests == 0

    run_virtual(main)


def named(*answers: list[str]) -> Resolver:
    """A resolver that gives these answers in turn, the last one for ever, and keeps none."""
    left = list(answers)
    return Resolver(lambda name: left.pop(0) if len(left) > 1 else left[0], ttl=0.0)


@pytest.mark.parametrize("listed", [["127.0.0.1"], ["::1"], ["127.0.0.1", "10.0.0.1"], ["::ffff:127.0.0.1"]])
def test_names_of_private_addresses_are_refused(run: Run, listed: list[str]) -> None:
    """A name is what it resolves to."""

    async def main() -> None:
        resolver = named(listed)
        async with (
            serve(always(answer())) as server,
            Client(guard=Guard(), resolver=resolver) as client,
        ):
            with pytest.raises(AddressRefused, match=r"inside\.test has no public address"):
                await client.get(f"http://inside.test:{server.port}/")
            assert server.connections == 0
        await resolver.aclose()

    run(main)


def test_of_a_name_only_the_good_addresses_are_used(run: Run) -> None:
    """One bad address among good ones is left out."""

    async def main() -> None:
        resolver = named(["127.0.0.3", "127.0.0.1"])
        async with (
            serve(always(answer())) as server,
            Client(guard=Guard(allow=["127.0.0.1"]), resolver=resolver) as client,
        ):
            for _ in range(3):
                assert (await client.get(f"http://mixed.test:{server.port}/")).status == 200
            assert client.statistics().connections == 1
        await resolver.aclose()

    run(main)


def test_rebinding_between_two_look_ups_gains_nothing(run: Run) -> None:
    """A name that is good at the first look and bad at the second is refused then, over the kept connection too."""

    async def main() -> None:
        resolver = named(["127.0.0.1"], ["127.0.0.2"])
        async with (
            serve(always(answer())) as server,
            Client(guard=Guard(allow=["127.0.0.1"]), resolver=resolver) as client,
        ):
            url = f"http://rebound.test:{server.port}/"
            assert (await client.get(url)).status == 200
            with pytest.raises(AddressRefused):
                await client.get(url)
            assert len(server.requests) == 1
        await resolver.aclose()

    run(main)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "http://[::1]:{port}/",
        "http://inside.test:{port}/",
        "http://169.254.169.254/latest/",
    ],
)
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect"])
def test_redirects_to_private_addresses_are_refused(run: Run, location: str, status: str) -> None:
    """From an allowed address to one that is not, by any redirect, as a request and as a stream."""

    async def main() -> None:
        resolver = named(["127.0.0.2"])
        async with serve(always(b"")) as server:
            to = location.format(port=server.port)
            server.handler = always(answer(b"", status, f"Location: {to}\r\n"))
            async with Client(guard=Guard(allow=["127.0.0.1"]), resolver=resolver) as client:
                with pytest.raises(AddressRefused):
                    await client.get(server.url())
                with pytest.raises(AddressRefused):
                    async with client.stream("GET", server.url()):
                        pass
            assert len(server.requests) == 2
        await resolver.aclose()

    run(main)


@pytest.mark.parametrize("layer", ["socket", "connection"])
def test_each_layer_stops_it_alone(run: Run, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the looks before it switched off, the socket is not opened; without that one either, nothing is sent."""
    monkeypatch.setattr(Guard, "check", lambda guard, url: None)
    monkeypatch.setattr(Guard, "permitted", lambda guard, url, listed: list(listed))
    if layer == "connection":
        monkeypatch.setattr(
            Handle,
            "_open_socket",
            lambda handle, purpose, address: Opened(socket.socket(*address[:3]).detach()),
        )

    async def main() -> None:
        async with serve(always(answer())) as server, Client(guard=Guard()) as client:
            with pytest.raises(AddressRefused, match=r"127\.0\.0\.1: it is not a public address"):
                await client.get(server.url())
            assert server.requests == []
            assert layer == "connection" or server.connections == 0

    run(main)


def test_ports_and_networks_can_be_chosen() -> None:
    """`deny` goes before `allow`, and both before the list; only listed ports are reached."""
    guard = Guard(allow=["10.0.0.0/8"], deny=["10.9.0.0/16", "8.8.8.8"])
    assert guard.refusal("10.1.2.3") is None
    assert guard.refusal("::ffff:10.1.2.3") is None
    assert guard.refusal("10.9.0.1") == "it is denied"
    assert guard.refusal("8.8.8.8") == "it is denied"

    async def main() -> None:
        async with Client(guard=Guard(ports=[80, 443])) as client:
            with pytest.raises(AddressRefused, match="port 22"):
                await client.get("http://example.org:22/")

    run_virtual(main)


@pytest.mark.parametrize(
    "options",
    [
        {"allow": "10.0.0.0/8"},
        {"allow": ["inside"]},
        {"deny": ["10.0.0.1/8"]},
        {"ports": [0]},
        {"ports": ["80"]},
    ],
)
def test_guards_that_make_no_sense_are_refused(options: Any) -> None:
    """The error says what may be given."""
    with pytest.raises(PlanError, match="Guard"):
        Guard(**options)


def test_a_guard_takes_no_proxy() -> None:
    """The proxy would look names up where nobody sees it."""
    with pytest.raises(PlanError, match="the proxy would look names up"):
        Client(guard=Guard(), proxy="http://127.0.0.1:3128")
