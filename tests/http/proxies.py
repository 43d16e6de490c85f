"""Small proxies on loopback: HTTP (plain and CONNECT) and SOCKS, which look names up in a table of their own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from collections.abc import AsyncIterator

__all__ = ["Proxy", "proxy"]


class Proxy:
    """A proxy; `asked` are the targets it was asked for, `hosts` where names lead, `login` what it wants, if anything."""

    def __init__(self, login: str | None = None) -> None:
        self.asked: list[str] = []
        self.hosts: dict[str, tuple[str, int]] = {}
        self.login = login
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, whichever protocol it speaks."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            first = await reader.readexactly(1)
            if first == b"\x05":
                await self._socks5(reader, writer)
            elif first == b"\x04":
                await self._socks4(reader, writer)
            else:
                await self._http(first, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        """End all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _http(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = first + await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.asked.append(target)
        if self.login is not None:
            wanted = b"proxy-authorization: basic " + base64.b64encode(self.login.encode()).lower()
            if wanted not in head.lower():
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
        if method == "CONNECT":
            name, _, port = target.rpartition(":")
            there = await self._connect(name, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._join((reader, writer), there)
            return
        name = target.partition("://")[2].partition("/")[0]
        host, _, port = name.partition(":")
        there = await self._connect(host, int(port or 80))
        there[1].write(head)
        await self._join((reader, writer), there)

    async def _socks5(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        if self.login is None:
            writer.write(b"\x05\x00")
        elif 2 in methods:
            writer.write(b"\x05\x02")
            await reader.readexactly(1)
            user = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            good = f"{user.decode()}:{password.decode()}" == self.login
            writer.write(b"\x01" + (b"\x00" if good else b"\x01"))
            if not good:
                return
        else:
            writer.write(b"\x05\xff")
            return
        assert await reader.readexactly(4) == b"\x05\x01\x00\x03"  # by name: never resolved here
        name = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        [port] = struct.unpack(">H", await reader.readexactly(2))
        self.asked.append(f"{name}:{port}")
        there = await self._connect(name, port)
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await self._join((reader, writer), there)

    async def _socks4(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, port, _ = struct.unpack(">BHI", await reader.readexactly(7))
        await reader.readuntil(b"\0")
        name = (await reader.readuntil(b"\0"))[:-1].decode()
        self.asked.append(f"{name}:{port}")
        there = await self._connect(name, port)
        writer.write(b"\x00\x5a" + bytes(6))
        await self._join((reader, writer), there)

    async def _connect(self, name: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.hosts.get(name, (name, port)))

    async def _join(
        self,
        one: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        other: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        try:
            await asyncio.gather(copy(one[0], other[1]), copy(other[0], one[1]))
        finally:
            other[1].close()


@contextlib.asynccontextmanager
async def proxy(login: str | None = None) -> AsyncIterator[Proxy]:
    """Run a proxy for the time of a block."""
    running = Proxy(login)
    listener = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.port = listener.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        listener.close()
        await asyncio.sleep(0.01)
        await running.stop()
        await asyncio.sleep(0.01)
