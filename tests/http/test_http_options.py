"""What a client can be told: credentials, cookies, files, proxies, sockets, certificates, versions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.parser
import email.policy
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.http.proxies import proxy
from tests.http.server import Request, Server, always, answer, serve

import headrace as hr
from headrace.errors import PlanError
from headrace.http.client import Client
from headrace.http.errors import ConnectFailed, HttpError, TlsFailed
from headrace.http.resolver import Resolver
from headrace.http.secrets import Secret, basic, bearer

Run = Callable[..., Any]
AUTHORITY = trustme.CA()


def tls(client_authority: trustme.CA | None = None) -> ssl.SSLContext:
    """A server's side of TLS; with an authority, clients must show a certificate of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost", "127.0.0.1", "inside.test").configure_cert(context)
    if client_authority is not None:
        client_authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    """Whom the client is to trust."""
    path = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(path)
    return str(path)


# ------------------------------------------------------------------------------------------------ credentials


def test_credentials_go_with_each_request_and_to_no_other_origin(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Basic and bearer, from a value, the environment or a file; a redirect to another origin drops them."""
    monkeypatch.setenv("PASSWORD", "hüsh")
    token = tmp_path / "token"
    token.write_text("hush-token\n")
    token.chmod(0o600)

    auths = [basic("me", Secret(env="PASSWORD")), bearer(Secret(file=token)), bearer("hush-literal")]
    assert "hush" not in repr(auths) + "".join(map(str, auths))
    clients = [Client(auth=auth) for auth in auths]
    encoded = base64.b64encode("me:hüsh".encode()).decode()
    expected = [f"Basic {encoded}", "Bearer hush-token", "Bearer hush-literal"]

    async def main() -> None:
        async with serve(always(answer())) as other:
            moved = answer(b"", "302 Found", f"Location: {other.url('/there')}\r\n")

            async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
                writer.write(moved if request.target == "/away" else answer())
                return None

            async with serve(handler) as server:
                for each, sent in zip(clients, expected, strict=True):
                    async with each as client:
                        await client.get(server.url("/here"))
                        assert server.requests[-1].headers["authorization"] == sent
                        await client.get(server.url("/away"))
                        assert server.requests[-1].headers["authorization"] == sent
                        assert "authorization" not in other.requests[-1].headers

    run(main)


def test_secrets_that_cannot_be_had_are_said_before_anything_is_sent(tmp_path: Path) -> None:
    """A missing variable, a missing file, and a file that others can read."""
    loose = tmp_path / "loose"
    loose.write_text("hush")
    loose.chmod(0o644)
    for secret, says in (
        (Secret(env="HEADRACE_NO_SUCH_NAME"), "no variable"),
        (Secret(file=tmp_path / "none"), "cannot be read"),
        (Secret(file=loose), "chmod 600"),
    ):
        with pytest.raises(PlanError, match=says):
            Client(auth=bearer(secret))
    with pytest.raises(PlanError, match="no colon"):
        basic("a:b", "c")
    with pytest.raises(PlanError, match="either"):
        Secret("a", env="B")


def test_cookies_are_kept_on_demand_and_go_where_they_belong(run: Run) -> None:
    """Off by default; a jar holds for all handles of the client, by host and path, and never for another host."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        cookies = (
            "Set-Cookie: session=1; Path=/\r\nSet-Cookie: deep=2; Path=/deep\r\nSet-Cookie: s=3; Secure\r\n"
        )
        writer.write(answer(b"", headers=cookies if request.target == "/login" else ""))
        return None

    async def main() -> None:
        resolver = Resolver(lambda name: ["127.0.0.1"])
        async with serve(handler) as server:
            for cookies in (False, True):
                async with Client(cookies=cookies, resolver=resolver) as client:
                    await client.get(server.url("/login", host="shop.test"))
                    await asyncio.gather(*(client.get(server.url("/a", host="shop.test")) for _ in range(5)))
                    seen = {request.headers.get("cookie") for request in server.requests[-5:]}
                    assert seen == ({"session=1"} if cookies else {None})
                    await client.post(server.url("/deep/er", host="shop.test"), body=b"x")
                    sent = server.requests[-1].headers.get("cookie", "")
                    assert sorted(sent.split("; ")) == (["deep=2", "session=1"] if cookies else [""])
                    await client.get(server.url("/", host="other.test"))
                    assert "cookie" not in server.requests[-1].headers
                    async with client.stream("GET", server.url("/a", host="shop.test")):
                        assert ("cookie" in server.requests[-1].headers) is cookies
            async with Client(cookies=True, resolver=resolver) as client:
                await client.get(server.url("/a", host="shop.test"))
                assert "cookie" not in server.requests[-1].headers
        await resolver.aclose()

    run(main)


# ------------------------------------------------------------------------------------------------ forms with files


def test_forms_with_files_arrive_as_they_were_given(run: Run, tmp_path: Path) -> None:
    """Fields, bytes, a path, names that would break out of their quotes; the length is announced."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(bytes(range(256)) * 5000)

    async def main() -> None:
        async with serve(always(answer())) as server, Client() as client:
            await client.post(
                server.url(),
                data={"name": "Zoë", "tag": ["a", "b"], "n": 7},
                files={
                    "photo": path,
                    'we"ird\r\nX: y': (b"raw"),
                    "notes": ("no\r\ntes.txt", "grüße", "text/plain"),
                },
            )
            [request] = server.requests
            assert int(request.headers["content-length"]) == len(request.body) > 1_280_000
            head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
            parts = [
                (part.get_param("name", header="content-disposition"), part.get_filename(), part.get_content_type(),
                 part.get_payload(decode=True))
                for part in message.iter_parts()
            ]  # fmt: skip
            assert parts == [
                ("name", None, "text/plain", "Zoë".encode()),
                ("tag", None, "text/plain", b"a"),
                ("tag", None, "text/plain", b"b"),
                ("n", None, "text/plain", b"7"),
                ("photo", "photo.jpg", "application/octet-stream", path.read_bytes()),
                ("we%22ird%0D%0AX: y",) * 2 + ("application/octet-stream", b"raw"),
                ("notes", "no%0D%0Ates.txt", "text/plain", "grüße".encode()),
            ]
            for wrong in (
                {"files": {"a": 7}},
                {"files": {"a": ("n", b"", "bad\r\ntype")}},
                {"files": {"a": b""}, "json": 1},
            ):
                with pytest.raises(PlanError):
                    await client.post(server.url(), **wrong)

    run(main)


# ------------------------------------------------------------------------------------------------ ways


@pytest.mark.parametrize("scheme", ["http", "socks5h", "socks4a"])
@pytest.mark.parametrize("secure", [False, True])
def test_proxies_take_requests_and_look_names_up(run: Run, ca_file: str, scheme: str, secure: bool) -> None:
    """The name goes to the proxy, which resolves it; https passes through as a tunnel."""
    login = None if scheme == "socks4a" else "me:hush"

    async def main() -> None:
        async with (
            serve(always(answer(b"through")), tls() if secure else None) as server,
            proxy(login) as between,
        ):
            between.hosts["inside.test"] = ("127.0.0.1", server.port)
            way = f"{scheme}://{'me:hush@' if login else ''}127.0.0.1:{between.port}"
            async with Client(proxy=Secret(way), ca_file=ca_file) as client:
                for _ in range(2):
                    response = await client.get(f"{server.scheme}://inside.test/")
                    assert response.body == b"through"
                async with client.stream("GET", f"{server.scheme}://inside.test/") as streamed:
                    assert await streamed.read() == b"through"
            if login:
                async with Client(
                    proxy=f"{scheme}://me:wrong@127.0.0.1:{between.port}", ca_file=ca_file
                ) as client:
                    with pytest.raises(HttpError) as caught:
                        await client.get(f"{server.scheme}://inside.test/")
                    assert "wrong" not in str(caught.value)

    run(main)


def test_proxy_that_is_not_there_is_a_failed_connection(run: Run) -> None:
    """Nothing was sent."""

    async def main() -> None:
        async with proxy() as gone:
            pass
        async with Client(proxy=f"http://127.0.0.1:{gone.port}") as client:
            with pytest.raises(ConnectFailed) as caught:
                await client.get("http://inside.test/")
            assert not caught.value.ambiguous

    run(main)


@contextlib.asynccontextmanager
async def unix_server(path: Path) -> AsyncIterator[Server]:
    server = Server(always(answer(b"from the socket")), "http")
    listener = await asyncio.start_unix_server(server._serve, str(path))
    try:
        yield server
    finally:
        listener.close()
        await server.stop()
        await asyncio.sleep(0.01)


def test_unix_sockets_take_requests_for_any_host(run: Run, tmp_path: Path) -> None:
    """No name is looked up; the connection is kept."""

    async def main() -> None:
        path = tmp_path / "s"
        async with unix_server(path) as server, Client(unix_socket=str(path)) as client:
            for _ in range(3):
                assert (await client.get("http://docker.invalid/info")).body == b"from the socket"
            assert server.requests[0].headers["host"] == "docker.invalid"
            assert server.connections == 1
        async with Client(unix_socket=str(tmp_path / "none")) as client:
            with pytest.raises(ConnectFailed):
                await client.get("http://docker.invalid/info")

    run(main)


def test_client_certificates_are_shown(run: Run, tmp_path: Path, ca_file: str) -> None:
    """In one file, or with the key in another one that has a password; without one the server refuses."""
    clients = trustme.CA()
    mine = clients.issue_cert("me@example.org")
    both, cert, key = tmp_path / "both.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    mine.private_key_and_cert_chain_pem.write_to_path(both)
    mine.cert_chain_pems[0].write_to_path(cert)
    from cryptography.hazmat.primitives import serialization

    loaded = serialization.load_pem_private_key(mine.private_key_pem.bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hush"),
        )
    )

    async def main() -> None:
        async with serve(always(answer(b"known")), tls(clients)) as server:
            options: list[dict[str, Any]] = [
                {"certificate": str(both)},
                {"certificate": str(cert), "key": str(key), "key_password": Secret("hush")},
            ]
            for given in options:
                async with Client(ca_file=ca_file, **given) as client:
                    assert (await client.get(server.url())).body == b"known"
            async with Client(ca_file=ca_file) as client:
                with pytest.raises(HttpError):
                    await client.get(server.url())
            async with Client(
                ca_file=ca_file, certificate=str(cert), key=str(key), key_password="wrong"
            ) as client:
                with pytest.raises(TlsFailed) as caught:
                    await client.get(server.url())
                assert "wrong" not in str(caught.value)
            for given in ({"certificate": "/no/such.pem"}, {"ca_file": "/no/such.pem"}):
                async with Client(**{"ca_file": ca_file} | given) as client:
                    with pytest.raises(TlsFailed, match=r"/no/such\.pem|certificate") as caught:
                        await client.get(server.url())
                    assert not caught.value.ambiguous

    run(main)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"http_version": "1.0"}, "http_version="),
        ({"proxy": "http://p", "unix_socket": "/s"}, "unix_socket= with proxy="),
        ({"guard": hr.http.Guard(), "unix_socket": "/s"}, "guard= with"),
        ({"unix_socket": "/" + "s" * 200}, "longer than"),
        ({"proxy": "socks5://p"}, "socks5h"),
    ],
)
def test_options_that_cannot_work_are_refused(options: Any, says: str) -> None:
    """Before anything is opened, with the way out."""
    with pytest.raises(PlanError, match=says):
        Client(**options)


def test_versions_are_chosen(run: Run, ca_file: str) -> None:
    """HTTP/1.1 alone is spoken where that is asked for; "3" falls back to what the server has."""

    async def main() -> None:
        async with serve(always(answer()), tls()) as server:
            for version in ("1.1", "2", "3"):
                async with Client(http_version=version, ca_file=ca_file) as client:
                    assert (await client.get(server.url())).http_version == "HTTP/1.1"

    run(main)


def test_two_stages_share_the_connections_of_one_client(run: Run) -> None:
    """A client that is passed to two fetches of a flow serves both from the same connections."""

    async def main() -> None:
        async with serve(always(answer(b"{}"))) as server, Client() as client:
            first = hr.http.fetch(client=client)
            second = hr.http.fetch(url="{final_url}", client=client)
            flow = (
                hr.Flow([server.url(f"/{n}") for n in range(50)])
                .map(first, concurrency=4)
                .map(lambda response: {"final_url": response.final_url}, lane="loop")
                .map(second, concurrency=4)
            )
            report = await flow.run()
            assert report.done == 50
            assert len(server.requests) == 100
            assert client.statistics().connections <= 8
            assert server.connections <= 8

    run(main)
