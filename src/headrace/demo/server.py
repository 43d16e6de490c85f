"""The origin's server: HTTP/1.1 over a raw protocol, with faults, and an exact account of what was asked.

Rules:
1. A request is counted when it has arrived whole; an answer when its last byte was handed to the system.
2. Final is an answer after which a correct client asks no more: 2xx, 3xx, and 4xx but 408, 425 and 429. A
   request that comes after one is counted as repeated.
3. Requests on one connection are answered in turn.
"""

from __future__ import annotations

import asyncio
import email.utils
import http
import json
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

from headrace.demo.faults import OK, Fault, Faults

__all__ = ["Connection", "Documents", "Server"]

MAX_HEAD: Final = 64 * 1024
MAX_BODY: Final = 16 * 1024 * 1024
PIECES: Final = 8  # of a drip
INTERNAL: Final = frozenset({"/__counts__", "/__list__"})  # beside real files as __future__.py
PASSING: Final = frozenset({408, 425, 429})
TEXT: Final = b"text/plain; charset=utf-8"
PYTHON: Final = b"text/x-python; charset=utf-8"
JSON: Final = b"application/json"


class Documents:
    """What there is to get: files under `root` that end in `suffix`, `count` small documents at /n/NUMBER."""

    def __init__(self, root: Path | None = None, *, suffix: str = ".py", count: int = 0) -> None:
        self.count = count
        self._files: dict[str, Path] = {}
        if root is not None:
            for file in sorted(root.rglob(f"*{suffix}")):
                below = file.relative_to(root)
                if file.is_file() and not {"site-packages", "dist-packages", "__pycache__"} & set(
                    below.parts
                ):
                    self._files["/" + quote(below.as_posix())] = file

    def __len__(self) -> int:
        return len(self._files) + self.count

    def paths(self) -> Iterable[str]:
        """List every path: the files in order of their names, then the numbered documents."""
        yield from self._files
        for number in range(self.count):
            yield f"/n/{number}"

    def get(self, path: str) -> tuple[bytes, bytes] | None:
        """Give type and body, read from disk at each call; None where there is no such document."""
        path = path.partition("?")[0]
        if path.startswith("/n/") and path[3:].isdecimal():
            number = int(path[3:])
            text = f'{{"number": {number}, "name": "document {number}", "square": {number * number}}}\n'
            return JSON, text.encode()
        if path.startswith("/f/"):
            return TEXT, f"the document at {path}\n".encode() * 8
        file = self._files.get(path)
        return None if file is None else (PYTHON, file.read_bytes())


class Server:
    """The account, and what each request gets. `delay` (seconds) is added before every answer."""

    def __init__(self, documents: Documents, faults: Faults, *, delay: float = 0.0) -> None:
        self.documents = documents
        self.delay = delay
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.faults_done: Counter[str] = Counter()
        self._faults = faults
        self._asked: dict[
            str, list[int]
        ] = {}  # path (with its method, but for GET) -> asked, complete, repeated
        self._plans: dict[str, tuple[tuple[Fault, ...], bool]] = {}

    def ask(self, method: str, path: str) -> tuple[Fault, list[int]]:
        """Count a request; give the fault that it gets and the record to count its answer in."""
        key = path if method == "GET" else f"{method} {path}"
        record = self._asked.get(key)
        if record is None:
            record = self._asked[key] = [0, 0, 0]
            plan = self._faults.of(path)
            if plan[0]:
                self._plans[key] = plan
        asks = record[0]
        record[0] += 1
        if record[1]:
            record[2] += 1
        if key not in self._plans:
            return OK, record
        faults, for_ever = self._plans[key]
        if asks >= len(faults) and not for_ever:
            return OK, record
        fault = faults[min(asks, len(faults) - 1)]
        self.faults_done[fault.kind] += 1
        return fault, record

    def counts(self, paths: bool) -> Mapping[str, Any]:
        """Give the account: totals, faults by kind, and if wanted what was counted for each path."""
        asked = complete = repeated = 0
        for record in self._asked.values():
            asked += record[0]
            complete += record[1]
            repeated += record[2]
        totals = {
            "requests": asked,
            "complete": complete,
            "repeated": repeated,
            "known": len(self._asked),
            "connections": self.accepted,
            "open": len(self.connections),
            "faults": dict(self.faults_done),
        }
        return {**totals, "paths": self._asked} if paths else totals


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._keep = True
        self._head_only = False

    # ------------------------------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop are none by inheritance
        self._server.connections.add(self)
        self._server.accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it; an answer that was not over is not counted."""
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Collect requests, and answer them in turn."""
        self._buffer = self._buffer + data if self._buffer else data
        while not self._busy and self._buffer and not self._transport.is_closing():
            if not self._take_request():
                return

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # ------------------------------------------------------------------------------------------ requests

    def _take_request(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end > MAX_HEAD or (end < 0 and len(self._buffer) > MAX_HEAD):
            self._refuse(431)
            return False
        if end < 0:
            return False
        line, _, rest = self._buffer[:end].partition(b"\r\n")
        words = line.split(b" ")
        if len(words) != 3 or not words[1].startswith(b"/"):
            self._refuse(400)
            return False
        fields = rest.lower()
        length = _content_length(fields)
        if length is None or length > MAX_BODY or b"transfer-encoding:" in fields:
            self._refuse(411 if length is None else 413)
            return False
        if b"expect: 100-continue" in fields and len(self._buffer) == end + 4 and length:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if len(self._buffer) < end + 4 + length:
            return False
        self._buffer = self._buffer[end + 4 + length :]
        self._keep = words[2] == b"HTTP/1.1" and b"connection: close" not in fields
        self._head_only = words[0] == b"HEAD"
        self._request(words[0].decode("latin-1"), words[1].decode("latin-1"))
        return True

    def _request(self, method: str, path: str) -> None:
        server = self._server
        if path.partition("?")[0] in INTERNAL:
            self._internal(path)
            return
        if path.startswith("/to/"):  # a redirect, to test them with
            _, record = server.ask(method, path)
            self._answer(302, TEXT, b"moved\n", record, f"Location: {path[3:]}\r\n".encode("latin-1"))
            return
        try:
            fault, record = server.ask(method, path)
        except ValueError:
            self._refuse(400)
            return
        document = server.documents.get(path)
        if document is None:
            document = TEXT, b"no such document\n"
            fault = Fault("gone", 404.0) if fault.kind == "ok" else fault
        if server.delay:
            self._after(server.delay, lambda: self._serve(fault, document, record))
        else:
            self._serve(fault, document, record)

    def _internal(self, path: str) -> None:
        if path.startswith("/__counts__"):
            body = json.dumps(self._server.counts("paths" in path)).encode()
            self._answer(200, JSON, body, None)
        else:
            self._answer(200, TEXT, "".join(f"{p}\n" for p in self._server.documents.paths()).encode(), None)

    # ------------------------------------------------------------------------------------------ answers

    def _serve(self, fault: Fault, document: tuple[bytes, bytes], record: list[int]) -> None:
        kind, measure = fault
        type_, body = document
        if kind == "ok":
            self._answer(200, type_, body, record)
        elif kind == "slow":
            self._after(measure, lambda: self._answer(200, type_, body, record))
        elif kind == "gone" or kind == "unavailable":
            status = int(measure)
            self._answer(status, TEXT, f"{status}, as it was asked for\n".encode(), record)
        elif kind == "throttle":
            self._answer(
                429, TEXT, b"too many requests\n", record, b"Retry-After: %d\r\n" % math.ceil(measure)
            )
        elif kind == "throttle-date":
            date = email.utils.formatdate(math.ceil(time.time() + measure), usegmt=True)
            self._answer(429, TEXT, b"too many requests\n", record, f"Retry-After: {date}\r\n".encode())
        elif kind == "stall":
            self._after(measure, self._transport.close)
        elif kind == "cut":
            self._transport.close()
        else:
            self._break(kind, measure, type_, body, record)

    def _break(self, kind: str, measure: float, type_: bytes, body: bytes, record: list[int]) -> None:
        head = _head(200, type_, len(body))
        if kind == "drip":
            self._transport.write(head)
            size = max(1, math.ceil(len(body) / PIECES))
            self._drip(body, size, measure / PIECES, record)
            return
        self._transport.write(head + body[: len(body) // 2])
        if kind == "reset":
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
            self._transport.abort()
        else:
            self._transport.close()

    def _drip(self, rest: bytes, size: int, pause: float, record: list[int]) -> None:
        self._transport.write(rest[:size])
        if len(rest) > size:
            self._after(pause, lambda: self._drip(rest[size:], size, pause, record))
        else:
            self._answered(200, record)

    def _answer(
        self, status: int, type_: bytes, body: bytes, record: list[int] | None, fields: bytes = b""
    ) -> None:
        head = _head(status, type_, len(body), fields)
        self._transport.write(head if self._head_only else head + body)
        self._answered(status, record)

    def _answered(self, status: int, record: list[int] | None) -> None:
        if record is not None and status < 500 and status not in PASSING:
            record[1] += 1
        if not self._keep:
            self._transport.close()

    def _refuse(self, status: int) -> None:
        self._keep = False
        self._answer(status, TEXT, b"refused\n", None, b"Connection: close\r\n")

    def _after(self, delay: float, then: Callable[[], None]) -> None:
        """Do `then` in `delay` seconds; until then, no other request of this connection is taken."""

        def go_on() -> None:
            self._busy = False
            self._timer = None
            then()
            if not self._busy and self._buffer:
                self.data_received(b"")

        self._busy = True
        self._timer = asyncio.get_running_loop().call_later(delay, go_on)


def _head(status: int, type_: bytes, length: int, fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n" % (
        status,
        REASONS.get(status, b"Unknown"),
        type_,
        length,
        fields,
    )


REASONS: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus}


def _content_length(fields: bytes) -> int | None:
    """Read the length from lower-case header fields: 0 where there is none, None where it is no number."""
    if b"content-length:" not in fields:
        return 0
    value = fields.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
    return int(value) if value.isdigit() else None
