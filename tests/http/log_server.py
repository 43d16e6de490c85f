"""A server of logs that grow, with what happens to them: connections that are cut, restarts, rotations.

A log is bytes under a path. Modes: "file" (Range, Content-Length), "plain" (no ranges), "live" (an answer that stays open
and gives what is written while it is).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket

from tests.http.server import CLOSE, RESET, Request, answer

__all__ = ["LogServer"]


class LogServer:
    """The handler of `tests.http.server.serve`: `logs` are the contents, `cut` is the share of answers that break off."""

    def __init__(self, mode: str = "file", cut: float = 0.0, seed: int = 1) -> None:
        self.mode = mode
        self.cut = cut
        self.logs: dict[str, bytes] = {}
        self.answers = 0
        self.live = 0  # live answers that began
        self.is_down = False
        self._rng = random.Random(seed)
        self._grown = asyncio.Event()

    def write(self, path: str, data: bytes) -> None:
        """Append to a log."""
        self.logs[path] = self.logs.get(path, b"") + data
        self._tell()

    def rotate(self, path: str, data: bytes) -> None:
        """Put another file in a log's place."""
        self.logs[path] = data
        self._tell()

    def _tell(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> str | None:
        self.answers += 1
        if self.is_down:
            return RESET
        log = self.logs.get(request.target)
        if log is None:
            writer.write(answer(b"", "404 Not Found"))
            return None
        if self.mode == "live":
            return await self._live(request.target, writer)
        start, size, status, headers = 0, len(log), "200 OK", ""
        asked = request.headers.get("range", "").removeprefix("bytes=")
        if asked and self.mode == "file":
            first, _, _ = asked.partition("-")
            start = int(first) if first else max(0, size - int(asked[1:]))
            if start >= size:
                writer.write(answer(b"", "416 Range Not Satisfiable", f"Content-Range: bytes */{size}\r\n"))
                return None
            status = "206 Partial Content"
            headers = f"Content-Range: bytes {start}-{size - 1}/{size}\r\n"
        body = log[start:]
        if body and self._rng.random() < self.cut:
            writer.write(answer(body[: self._rng.randrange(len(body))], status, headers, length=len(body)))
            return self._rng.choice([CLOSE, RESET])
        writer.write(answer(body, status, headers))
        return None

    async def _live(self, path: str, writer: asyncio.StreamWriter) -> str | None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        at = len(self.logs[path])
        self.live += 1
        while True:
            grown = self._grown
            new = self.logs[path][at:]
            if new:
                at += len(new)
                writer.write(b"%x\r\n%b\r\n" % (len(new), new))
                await writer.drain()
                if self._rng.random() < self.cut:
                    return CLOSE
            while not grown.is_set():
                if self.is_down or has_left(writer):
                    return RESET
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await grown.wait()


def has_left(writer: asyncio.StreamWriter) -> bool:
    """Whether the other side has closed its connection."""
    sock = writer.get_extra_info("socket")
    try:
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        with copy:
            return copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
