"""One script, played twice: by `ScriptedHttp` itself, and by a server on a real socket. Both are origins of the same tests.

A reply is written to the socket as a server would send it, a fault as a server would have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trustme
from tests.http.server import CLOSE, RESET, Request, always, answer, serve

from headrace.http.client import Client
from headrace.http.headers import Headers
from headrace.http.resolver import Resolver
from headrace.testing.replies import ScriptedReply, ScriptedRequest
from headrace.testing.scripted import Route, ScriptedHttp


class Origin:
    """Two servers with one script: `url` is at the first, `url(…, other=True)` at the second one."""

    def __init__(self, script: ScriptedHttp, bases: Sequence[str]) -> None:
        self.script = script
        self._bases = bases

    def url(self, path: str = "/", *, other: bool = False) -> str:
        return self._bases[other] + path

    def on(self, method: str, path: str = "/", *, other: bool = False) -> Route:
        return self.script.on(method, self.url(path, other=other))

    def client(self, **options: Any) -> Client:
        return self.script.client(**options)

    @property
    def requests(self) -> Sequence[ScriptedRequest]:
        return self.script.requests


class SocketOrigin(Origin):
    """The one on real sockets."""

    def client(self, **options: Any) -> Client:
        return Client(**options)


@contextlib.asynccontextmanager
async def scripted_origin() -> AsyncIterator[Origin]:
    yield Origin(ScriptedHttp(), ("http://127.0.0.1:8001", "http://127.0.0.1:8002"))


@contextlib.asynccontextmanager
async def socket_origin() -> AsyncIterator[Origin]:
    script = ScriptedHttp()

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        return await _answer(script, request, writer)

    async with serve(handler) as first, serve(handler) as second:
        yield SocketOrigin(script, (first.url(""), second.url("")))


async def _answer(script: ScriptedHttp, request: Request, writer: asyncio.StreamWriter) -> str | None:
    received = ScriptedRequest(
        request.method,
        f"http://{request.headers['host']}{request.target}",
        Headers(request.headers.items()),
        request.body,
        asyncio.get_running_loop().time(),
        attempt=1,
        sent=True,
    )
    reply = script.take(received)
    if not isinstance(reply, ScriptedReply):
        reply = reply(received)
        if inspect.isawaitable(reply):
            reply = await reply
    assert isinstance(reply, ScriptedReply)
    return await _play(reply, request.method, writer)


async def _play(reply: ScriptedReply, method: str, writer: asyncio.StreamWriter) -> str | None:
    await asyncio.sleep(reply.after)
    match reply.fault:
        case "reset after send":
            return RESET
        case "first byte timeout":
            await asyncio.sleep(60)
        case "bad response":
            writer.write(b"hello, who are you?\r\n")
            return CLOSE
        case "headers too large":
            writer.write(
                b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1000) for n in range(500))
            )
            return CLOSE
        case "cut in headers":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
            return CLOSE
    head = b"".join(reply.head())
    if reply.fault == "bad coding":
        head = head[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    writer.write(head)
    if not reply.has_body(method):
        return None
    chunked = b"chunked" in head
    async for piece in reply.pieces():
        if isinstance(piece, float):
            await asyncio.sleep(piece)
        elif piece:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
    match reply.fault:
        case "stall":
            await asyncio.sleep(60)
        case "truncated body":
            return CLOSE
        case "reset in body":
            await asyncio.sleep(0.05)  # what was written shall arrive before
            return RESET
        case "bad coding":
            writer.write(b"f\r\nnot gzip at all\r\n0\r\n\r\n")
            return CLOSE
    if chunked:
        writer.write(b"0\r\n\r\n")
    return None


@contextlib.asynccontextmanager
async def unreachable(fault: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Give a URL where nothing can be sent, for that reason, and the options of the client that shall find out."""
    match fault:
        case "unknown host" | "resolve failed" | "resolve timeout":
            asked = threading.Event()

            def lookup(name: str) -> list[str]:
                if fault == "resolve timeout":
                    asked.wait(10)
                raise socket.gaierror(*RESOLVE_ERRORS.get(fault, RESOLVE_ERRORS["unknown host"]))

            resolver = Resolver(lookup)
            try:
                yield "http://nowhere.invalid/", {"resolver": resolver}
            finally:
                asked.set()
                await resolver.aclose()
        case "connect refused":
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))  # and nobody listens
                yield f"http://127.0.0.1:{taken.getsockname()[1]}/", {}
        case "connect timeout":
            with contextlib.ExitStack() as stack:
                full = stack.enter_context(socket.socket())
                full.bind(("127.0.0.1", 0))
                full.listen(0)
                for _ in range(4):  # fill the queue, so that the next SYN is not answered
                    filler = stack.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(full.getsockname())
                yield f"http://127.0.0.1:{full.getsockname()[1]}/", {}
        case "tls untrusted":
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
            async with serve(always(answer()), context) as server:
                yield server.url(), {}
        case _:
            async with _speechless(resets=fault == "tls reset") as port:
                yield f"https://127.0.0.1:{port}/", {}


RESOLVE_ERRORS = {
    "unknown host": (socket.EAI_NONAME, "Name or service not known"),
    "resolve failed": (socket.EAI_AGAIN, "Temporary failure in name resolution"),
}


@contextlib.asynccontextmanager
async def _speechless(*, resets: bool) -> AsyncIterator[int]:
    """Listen on a port; connections are reset at the first byte, or nothing is said."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if resets:
            await reader.read(1)
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        else:
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await asyncio.sleep(0.05)
