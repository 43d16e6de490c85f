"""What the room decides without a network: statuses, redirects, headers, secrets, templates."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import Disposition, PlanError
from headrace.http import Headers, InvalidUrl, RedirectRefused, Response, Secret, StatusError, Timeouts
from headrace.http.headers import compile_headers, split_head
from headrace.http.redirects import Hop, next_hop
from headrace.http.status import parse_accept, refuse
from headrace.http.template import fields_of, fill_json, fill_url
from headrace.http.url import parse
from headrace.policies.classify import classify


def response(
    status: int, head: tuple[bytes, ...] = (), body: bytes = b"", url: str = "http://h/a"
) -> Response:
    """Make an answer by hand."""
    lines = (f"HTTP/1.1 {status} X\r\n".encode(), *head, b"\r\n")
    return Response(url, status, lines, body, (0.0,) * 5, 1_700_000_000.0)


# ------------------------------------------------------------------------------------------------- statuses


@pytest.mark.parametrize(
    ("accept", "inside", "outside"),
    [
        ("2xx", [200, 204, 299], [199, 300, 404]),
        ("2xx,404", [200, 404], [403]),
        ("200-204, 301", [200, 204, 301], [205, 302]),
        ("any", [100, 200, 599], [600]),
    ],
)
def test_accept(accept: str, inside: list[int], outside: list[int]) -> None:
    """accept= takes codes, classes and ranges."""
    codes = parse_accept(accept)
    assert codes.issuperset(inside)
    assert codes.isdisjoint(outside)


@pytest.mark.parametrize("accept", ["", "2x", "2xx;404", "600", "99", "ok", "200-", "6xx"])
def test_accept_refuses_rubbish(accept: str) -> None:
    """A wrong accept= is refused before anything moves, with the right form."""
    with pytest.raises(PlanError, match="2xx,404"):
        parse_accept(accept)


class _Foreign(Exception):
    """An error of another client, as the policies see it."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


@pytest.mark.parametrize("retry_after", [None, "7", "Tue, 14 Nov 2023 22:13:27 GMT"])
@pytest.mark.parametrize("status", range(400, 600))
def test_statuses_mean_what_they_mean_from_other_clients(status: int, retry_after: str | None) -> None:
    """A refused status leads to the same decision whichever client saw it; Retry-After has both forms."""
    head = () if retry_after is None else (b"Retry-After: " + retry_after.encode() + b"\r\n",)
    date = b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
    error = refuse("GET", response(status, (*head, date)), b"")
    headers = {"date": "Tue, 14 Nov 2023 22:13:20 GMT"} | (
        {"retry-after": retry_after} if retry_after else {}
    )
    foreign = classify(_Foreign(status, headers))
    ours = classify(error)
    assert (ours.disposition, ours.ambiguous, ours.hold) == (
        foreign.disposition,
        foreign.ambiguous,
        foreign.hold,
    )
    if ours.disposition is not Disposition.PERMANENT and retry_after:
        assert ours.retry_after == 7.0


def test_status_error_keeps_evidence() -> None:
    """A refused status keeps status, headers without cookies, and 4 KiB of the body; its URL is masked."""
    error = refuse(
        "GET", response(500, (b"Set-Cookie: s=1\r\n", b"X: y\r\n"), b"", "http://h/a?key=hush"), b"z" * 9000
    )
    assert (error.status, len(error.body), dict(error.headers)) == (500, 4096, {"x": "y"})
    assert "hush" not in str(error) + error.url
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, StatusError)
    assert (again.status, str(again), again.disposition) == (500, str(error), Disposition.TRANSIENT)


# ------------------------------------------------------------------------------------------------ redirects


def hop(method: str = "GET", url: str = "https://h/a", body: bytes | None = None) -> Hop:
    """Make a request with a credential, a user's secret and a plain header."""
    headers = compile_headers(
        {"Authorization": "Bearer x", "X-Mine": Secret("s"), "Accept": "a/b", "Content-Type": "t/u"}
    )
    return Hop(method, parse(url), headers, body)


def redirect(status: int, location: str) -> Response:
    """Make a redirect."""
    return response(status, (f"Location: {location}\r\n".encode(),))


@pytest.mark.parametrize(
    ("status", "method", "expected"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (301, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (302, "GET", "GET"),
    ],
)
def test_method_after_a_redirect(status: int, method: str, expected: str) -> None:
    """Methods change as in browsers; a body goes along only where the method stays."""
    following = next_hop(hop(method, body=b"data"), redirect(status, "/b"))
    assert following is not None
    assert following.method == expected
    changed = expected != method
    assert following.body == (None if changed else b"data")
    assert any(line.startswith("Content-Type") for line in following.headers.lines) != changed


@pytest.mark.parametrize(
    ("location", "kept"),
    [
        ("/b", True),
        ("https://h:443/b", True),
        ("https://h:444/b", False),
        ("https://sub.h/b", False),
        ("https://other/b", False),
    ],
)
def test_credentials_belong_to_an_origin(location: str, kept: bool) -> None:
    """Scheme, host or port changed: credentials and headers marked secret stay behind, the others go along."""
    following = next_hop(hop(), redirect(302, location))
    assert following is not None
    sent = "\n".join(following.headers.lines)
    assert ("Bearer" in sent, "X-Mine" in sent, "Accept" in sent) == (kept, kept, True)


def test_credentials_do_not_come_back() -> None:
    """Once dropped, credentials are not sent again when a later redirect returns to the first origin."""
    away = next_hop(hop(), redirect(302, "https://other/"))
    assert away is not None
    back = next_hop(away, redirect(302, "https://h/"))
    assert back is not None
    assert "Bearer" not in "".join(back.headers.lines)


def test_userinfo_of_a_location_is_ignored() -> None:
    """A redirect cannot make us send credentials of its own."""
    following = next_hop(hop(), redirect(302, "https://u:p@h/b"))
    assert following is not None
    assert following.url.userinfo is None


@pytest.mark.parametrize(
    "location", ["ftp://h/", "javascript:x", "http://h\\x/", "https://h/a b", "file:///x"]
)
def test_unusable_locations(location: str) -> None:
    """A redirect to what we would not take from a user is refused."""
    with pytest.raises(RedirectRefused):
        next_hop(hop(), redirect(302, location))


def test_no_downgrade() -> None:
    """https does not become http unless that was asked for."""
    with pytest.raises(RedirectRefused, match="downgrade=True"):
        next_hop(hop(), redirect(302, "http://h/"))
    assert next_hop(hop(), redirect(302, "http://h/"), downgrade=True) is not None


def test_no_redirect() -> None:
    """A 304, and a 3xx without Location, are answers."""
    assert next_hop(hop(), response(304)) is None
    assert next_hop(hop(), response(302)) is None


# ------------------------------------------------------------------------------------ headers and secrets


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0b", "\x1b[2J", "a\rb"])
def test_header_values_cannot_inject(value: str) -> None:
    """A control character in a header is refused, and the message does not repeat the value."""
    with pytest.raises(PlanError) as caught:
        compile_headers({"X-A": f"tell-tale{value}"})
    assert "tell-tale" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "a b", "a:b", "a\r\n", "ä", "Host", "Content-Length", "transfer-encoding"]
)
def test_header_names(name: str) -> None:
    """What is no header name, or is made by the client itself, is refused."""
    with pytest.raises(PlanError):
        compile_headers({name: "x"})


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret shows as its reference; its value comes from the environment when it is sent."""
    secret = Secret(env="HEADRACE_TEST_TOKEN")
    assert "HEADRACE_TEST_TOKEN" in repr(secret)
    with pytest.raises(PlanError, match="HEADRACE_TEST_TOKEN"):
        secret.reveal()
    monkeypatch.setenv("HEADRACE_TEST_TOKEN", "tell-tale")
    headers = compile_headers({"X-Key": secret, "X-Other": "Token {env:HEADRACE_TEST_TOKEN}", "A": "b"})
    assert headers.lines == ("X-Key: tell-tale", "X-Other: Token tell-tale", "A: b")
    assert headers.public == ("A: b",)
    literal = Secret("tell-tale")
    assert "tell-tale" not in f"{literal!r}{literal}{[literal]}"
    with pytest.raises(PlanError, match="do not leave the process"):
        pickle.dumps(literal)


def test_headers_of_an_answer() -> None:
    """Names in any case; repeated headers are kept apart and shown joined; interim answers and trailers do not mix in."""
    raw = (
        b"HTTP/1.1 100 Continue\r\n", b"X: interim\r\n", b"\r\n",
        b"HTTP/1.1 200 OK\r\n", b"Set-Cookie: a\r\n", b"set-cookie: b\r\n", b"X:  y \r\n", b" folded\r\n", b"\r\n",
        b"Trailer: t\r\n", b"\r\n",
    )  # fmt: skip
    headers = Headers.from_lines(split_head(raw))
    assert headers["SET-COOKIE"] == "a, b"
    assert headers.all("set-cookie") == ("a", "b")
    assert headers["x"] == "y folded"
    assert "trailer" not in headers
    assert len(headers) == 2


@given(st.lists(st.binary(max_size=40)))
def test_headers_are_total(lines: list[bytes]) -> None:
    """Whatever lines a server sends, reading them gives headers and no error."""
    Headers.from_lines(split_head(lines))


def test_response_reads_late() -> None:
    """Text follows the named charset, JSON is checked, rows hold no cookie and the input's columns come last."""
    got = response(200, (b"Content-Type: text/html; charset=ISO-8859-1\r\n", b"Set-Cookie: s\r\n"), b"\xe4")
    got.item = {"id": 7, "status": "mine"}
    assert got.text == "ä"
    row = got.as_row()
    assert (row["id"], row["status"], row["input_status"]) == (7, 200, "mine")
    assert row["status"] == 200
    assert row["headers"] == {"content-type": "text/html; charset=ISO-8859-1"}
    assert response(200, (), b'{"a": 1}').json() == {"a": 1}
    assert response(200, (), b'{"a": 1}').json(dict[str, int]) == {"a": 1}
    with pytest.raises(Exception, match="is not the JSON"):
        response(200, (), b"<html>").json()
    assert response(200, (), b"\xef\xbb\xbfx").text == "x"
    assert response(200, (b"Content-Type: text/plain; charset=nonsense\r\n",), b"x").text == "x"
    assert len(repr(response(200, url="http://h/" + "a" * 500))) < 200


# ------------------------------------------------------------------------------------------------ templates


@pytest.mark.parametrize(
    ("template", "item", "url"),
    [
        ("https://h/{id}", {"id": 7}, "https://h/7"),
        ("https://h/{id}?q={q}", {"id": "a/b", "q": "x&y=z ä"}, "https://h/a%2Fb?q=x%26y%3Dz%20%C3%A4"),
        ("https://h/{item}", "../x", "https://h/..%2Fx"),
        ("https://h/{{x}}", {}, "https://h/{x}"),
        ("{link}", {"link": "https://h/a?b"}, "https://h/a?b"),
        ("https://h/{flag}", {"flag": True}, "https://h/true"),
    ],
)
def test_fill_url(template: str, item: object, url: str) -> None:
    """Fields are encoded in full, so that a value cannot add a path or a query; a lone field is taken as it is."""
    assert fill_url(template, item) == url


@pytest.mark.parametrize(
    ("template", "item", "says"),
    [
        ("https://h/{id}", {"name": 1}, "no field 'id' .it has: name"),
        ("https://h/{id}", 7, "needs a row"),
        ("https://h/{id}", {"id": None}, "is empty"),
        ("https://h/{id}", {"id": ""}, "is empty"),
        ("https://h/{id}", {"id": [1]}, "is a list"),
    ],
)
def test_fill_url_says_what_is_missing(template: str, item: object, says: str) -> None:
    """A row that cannot fill the template fails with the field's name and what the row has."""
    with pytest.raises(InvalidUrl, match=says):
        fill_url(template, item)


@pytest.mark.parametrize(
    "template",
    ["https://h/{}", "https://h/{a\nb}", "https://h/{ a}", "https://h/{a[0]}", "{a!r}", "{a:>9}", "{a", "}"],
)
def test_templates_are_not_format_strings(template: str) -> None:
    """Attributes, indexes and formats are refused: they would leak."""
    with pytest.raises(PlanError):
        fields_of(template)


def test_fill_json() -> None:
    """A string that is one field alone takes the value with its type; others take its text."""
    template = {"id": "{id}", "greeting": "hi {name}", "list": ["{tags}", 1], "n": None}
    assert fill_json(template, {"id": 7, "name": "x", "tags": ["a"]}) == {
        "id": 7,
        "greeting": "hi x",
        "list": [["a"], 1],
        "n": None,
    }


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", 1e9])
def test_timeouts_are_checked(value: object) -> None:
    """A time limit is a positive number of seconds, or None."""
    with pytest.raises(PlanError, match="None for none"):
        Timeouts(total=value)  # type: ignore[arg-type]
