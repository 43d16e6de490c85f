"""A server that answers exactly what a test writes, over real sockets, in the test's own loop.

A handler is `async def handler(request, writer)`; it writes raw bytes. It returns None to keep the
connection, CLOSE to end it, or RESET to end it with a TCP reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

CLOSE = "close"
RESET = "reset"


@dataclasses.dataclass(slots=True)
class Request:
    """What arrived; `connection` numbers the connection from 0, `nth` the request on it from 0."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    nth: int


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[str | None]]


def answer(
    body: bytes = b"ok", status: str = "200 OK", headers: str = "", *, length: int | None = None
) -> bytes:
    """Write an answer; `length` announces another length than the body has."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode("latin-1") + body


def always(data: bytes, then: str | None = None) -> Handler:
    """Answer everything with the same bytes."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        writer.write(data)
        return then

    return handler


class Server:
    """The server: `requests` are those received in full, `open` the connections at this moment."""

    def __init__(self, handler: Handler, scheme: str) -> None:
        self.handler = handler
        self.scheme = scheme
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """Give the URL of a path here."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        number, self.connections = self.connections, self.connections + 1
        self.open += 1
        try:
            nth = 0
            while (request := await _read(reader, number, nth)) is not None:
                self.requests.append(request)
                then = await self.handler(request, writer)
                if then == RESET:
                    _reset_on_close(writer)
                    return
                await writer.drain()
                if then == CLOSE:
                    return
                nth += 1
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self.open -= 1
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def stop(self) -> None:
        """End all connections."""
        self._stopping = True
        tasks = list(self._tasks)
        for writer in list(self._writers):
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Make the end of this connection a TCP reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


async def _read(reader: asyncio.StreamReader, connection: int, nth: int) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, connection, nth)


@contextlib.asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve on a free port of 127.0.0.1 for the time of a block."""
    server = Server(handler, "http" if tls is None else "https")
    listener = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=tls, backlog=1024)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for _ in range(3):  # a connection may have been accepted in this very turn of the loop
            await server.stop()
            await asyncio.sleep(0.001)
