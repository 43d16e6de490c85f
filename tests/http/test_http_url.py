"""The URL policy: what is refused, what is canonical, what is hidden."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.http import InvalidUrl, UnsupportedScheme, host, mask
from headrace.http.url import join, parse

GOOD = {
    "http://example.com": ("http://example.com/", "example.com:80"),
    "HTTP://Example.COM:80/A?b=C#frag": ("http://example.com/A?b=C", "example.com:80"),
    "https://example.com:443/": ("https://example.com/", "example.com:443"),
    "https://example.com:8443": ("https://example.com:8443/", "example.com:8443"),
    "http://example.com?x=1": ("http://example.com/?x=1", "example.com:80"),
    "http://example.com./a": ("http://example.com/a", "example.com:80"),
    "http://srv1/": ("http://srv1/", "srv1:80"),
    "http://my_host.internal/": ("http://my_host.internal/", "my_host.internal:80"),
    "http://127.0.0.1:8080/x": ("http://127.0.0.1:8080/x", "127.0.0.1:8080"),
    "http://[::1]:8080/x": ("http://[::1]:8080/x", "[::1]:8080"),
    "http://[0:0:0:0:0:0:0:1]/": ("http://[::1]/", "[::1]:80"),
    "http://bücher.example/ä?ö=ü": (
        "http://xn--bcher-kva.example/%C3%A4?%C3%B6=%C3%BC",
        "xn--bcher-kva.example:80",
    ),
    'http://example.com/a"b<c>': ("http://example.com/a%22b%3Cc%3E", "example.com:80"),
    "http://example.com/100%25?a=%20": ("http://example.com/100%25?a=%20", "example.com:80"),
    "http://example.com:/": ("http://example.com/", "example.com:80"),
}

BAD = [
    "",
    "example.com",
    "//example.com/",
    "http:/example.com",
    "http://",
    "http:///path",
    "http://exa mple.com/",
    " http://example.com/",
    "http://example.com/\r\nX: y",
    "http://example.com/a b",
    "http://example.com/\x00",
    "http://example.com\\@evil.com/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:abc/",
    "http://example.com:८०/",
    "http://[::1/",
    "http://[zz]/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://127.0.0.256/",
    "http://a..b/",
    "http://-a.com/",
    "http://a%2eb.com/",
    "http://straße.de/",
    "http://" + "a" * 64 + ".com/",
    "http://example.com/" + "a" * 70_000,
    "http://\ud800.com/",
]


@pytest.mark.parametrize(("url", "expected"), GOOD.items())
def test_canonical(url: str, expected: tuple[str, str]) -> None:
    """A good URL has one canonical text and one key host:port."""
    parsed = parse(url)
    assert (parsed.text, parsed.key) == expected
    assert parse(parsed.text).text == parsed.text


@pytest.mark.parametrize("url", BAD)
def test_refused(url: str) -> None:
    """What two programs may read differently is refused, with a reason, before anything is sent."""
    with pytest.raises(InvalidUrl) as caught:
        parse(url)
    assert not caught.value.ambiguous
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "gopher://h/"]
)
def test_other_schemes(url: str) -> None:
    """Only http and https."""
    with pytest.raises(UnsupportedScheme, match="is not http or https"):
        parse(url)


@pytest.mark.parametrize("url", ["localhost:8080/x", "example.com:80/"])
def test_missing_scheme_is_named(url: str) -> None:
    """A forgotten scheme gets the advice to write one."""
    with pytest.raises(InvalidUrl, match="write http://"):
        parse(url)


def test_userinfo_leaves_the_text() -> None:
    """User and password are taken out of the text at once, decoded."""
    parsed = parse("http://us%40er:p%3Aw@example.com/x")
    assert parsed.text == "http://example.com/x"
    assert parsed.userinfo == ("us@er", "p:w")
    assert "p%3Aw" not in repr(parsed)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:p@h/a?k=v&x=&y", "http://***@h/a?k=***&x=&y"),
        ("http://h/a?token", "http://h/a?***"),
        ("http://h/a", "http://h/a"),
        ("http://h/a?", "http://h/a?"),
        ("rubbish", "rubbish"),
        ("http://a@b@h/?q=1#f", "http://***@h/?q=***#f"),
    ],
)
def test_mask(url: str, shown: str) -> None:
    """Messages hide userinfo and the values of the query, and keep what tells one request from another."""
    assert mask(url) == shown


@given(st.text(max_size=60))
def test_total(text: str) -> None:
    """Any text is either a canonical http(s) URL or InvalidUrl, and mask never raises."""
    mask(text)
    try:
        parsed = parse(text)
    except InvalidUrl:
        return
    assert parsed.scheme in ("http", "https")
    assert parsed.text.isascii()


@given(
    st.sampled_from(["http", "https"]),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z][a-z0-9]{0,8}){0,2}", fullmatch=True),
    st.one_of(st.none(), st.integers(1, 65_535)),
    st.from_regex(r"(/[!$-;=?-Z_a-z~]{0,20})?", fullmatch=True),
)
def test_parity_with_the_standard_library(scheme: str, name: str, port: int | None, target: str) -> None:
    """Where we accept, urllib reads the same host and port: no room for two readings."""
    url = f"{scheme}://{name}{'' if port is None else f':{port}'}{target}"
    try:
        parsed = parse(url)
    except InvalidUrl:
        return
    other = urlsplit(url)
    assert parsed.host == other.hostname
    assert parsed.port == (other.port or {"http": 80, "https": 443}[scheme])


@given(st.text(alphabet="abc:/?#@[]\\. %1", max_size=25), st.sampled_from(["http://", "https://"]))
def test_odd_authorities_never_change_hosts(tail: str, scheme: str) -> None:
    """Whatever stands around @, : and \\, the canonical text names the host that we say it names."""
    try:
        parsed = parse(scheme + tail)
    except InvalidUrl:
        return
    again = urlsplit(parsed.text)
    assert (again.hostname or "") == parsed.host.strip("[]")
    assert "@" not in again.netloc


def test_join() -> None:
    """A redirect's Location may be relative; what it becomes passes the same checks."""
    base = parse("http://h/a/b?q=1")
    assert join(base, "../c").text == "http://h/c"
    assert join(base, "//other/x").text == "http://other/x"
    with pytest.raises(InvalidUrl):
        join(base, "http://h\\evil/")


def test_host_is_a_key_for_limits() -> None:
    """host() gives host:port for a URL and for a row, and says what to do otherwise."""
    assert host("https://h/x") == "h:443"
    assert host({"url": "http://h:81/"}) == "h:81"
    with pytest.raises(InvalidUrl, match=r"by=that_fetch\.host"):
        host({"id": 1})
    with pytest.raises(InvalidUrl, match="not int"):
        host(7)
