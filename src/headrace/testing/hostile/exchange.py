"""One request as a hostile server sees it, and the raw means to answer it wrongly."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, urlsplit

__all__ = ["Exchange", "Received", "parse_target", "read_request", "reset_on_close"]

#: Seconds between two looks whether the other side is still there.
LOOK_EVERY: Final = 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """A request that arrived: `path` without the query, `connection` counted from 0, `body` as far as it was read."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    connection: int
    version: str = "HTTP/1.1"

    @property
    def target(self) -> str:
        """Path and query."""
        query = "&".join(f"{name}={value}" for name, value in self.query.items())
        return f"{self.path}?{query}" if query else self.path


class Exchange:
    """A request whose answer is up to a fault."""

    def __init__(
        self,
        request: Received,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ended: asyncio.Event,
    ) -> None:
        self.request = request
        self.is_kept = True  #: whether the connection serves another request afterwards
        self._reader = reader
        self._writer = writer
        self._ended = ended

    def number(self, name: str, default: float) -> float:
        """Give a number of the query."""
        return float(self.request.query.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Give a text of the query."""
        return self.request.query.get(name, default)

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, *headers: str, status: str = "200 OK") -> None:
        """Send a status line and headers."""
        await self.raw("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1"))

    async def answer(self, body: bytes = b"ok", *headers: str, status: str = "200 OK") -> None:
        """Send an answer as it should be."""
        await self.head(f"Content-Length: {len(body)}", *headers, status=status)
        await self.raw(body)

    async def chunk(self, data: bytes) -> None:
        """Send a chunk."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def wait(self, seconds: float) -> None:
        """Do nothing for so long, or until the other side has left, or the server stops: ConnectionResetError then."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            if self._ended.is_set() or self._reader.at_eof() or self._writer.transport.is_closing():
                raise ConnectionResetError
            try:
                async with asyncio.timeout(min(left, LOOK_EVERY)):
                    await self._ended.wait()
            except TimeoutError:
                pass

    async def read_on(self) -> None:
        """Read and forget what comes, until the other side leaves."""
        while await self._reader.read(65_536):
            pass
        self.is_kept = False

    def close(self) -> None:
        """End the connection in order."""
        self.is_kept = False
        self._writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.is_kept = False
        reset_on_close(self._writer)
        self._writer.transport.abort()


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Make the end of a connection a reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def parse_target(target: str) -> tuple[str, dict[str, str]]:
    """Cut a target into path and query."""
    parts = urlsplit(target)
    return parts.path, {name: values[-1] for name, values in parse_qs(parts.query).items()}


async def read_request(
    reader: asyncio.StreamReader, connection: int, unread: tuple[str, ...]
) -> Received | None:
    """Read a request; its body too, unless the path is among `unread`. None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {
        name.lower(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon
    }
    path, query = parse_target(target)
    body = b""
    if path not in unread:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, query, headers, body, connection)
