"""The server of the bench `manners`, as a program: several ports, each with a limit a second, and one that may hang.

    python -m bench.manners_server '{"ports": 1, "limits": [200, 100], "turn": 15}'

Its first line of output is a JSON list of its ports. It ends when its standard input is closed.

Rules:
1. Every port counts for itself: starts in the second that runs, from its first request on. What is beyond the limit gets
   429 with `Retry-After: 1`, at once; the rest 200 after `latency` seconds.
2. From second `turn` on the second of the two limits holds.
3. A request of port number `hangs` is never answered.
4. `GET /__counts__` gives, for each port, what was let in and what was refused in each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
TAKEN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


class Host:
    """What one port counts."""

    def __init__(self, limits: list[float], turn: float, latency: float, hangs: bool) -> None:
        self.limits = limits
        self.turn = turn
        self.latency = latency
        self.hangs = hangs
        self.began: float | None = None
        self.seconds: list[list[int]] = []

    def ask(self, now: float) -> bool:
        """Count a request; say whether it is let in."""
        if self.began is None:
            self.began = now
        second = int(now - self.began)
        while len(self.seconds) <= second:
            self.seconds.append([0, 0])
        counts = self.seconds[second]
        refused = counts[0] >= self.limits[second >= self.turn]
        counts[refused] += 1
        return not refused


class Connection(asyncio.Protocol):
    """One connection: requests without bodies, one after the other."""

    def __init__(self, host: Host, hosts: list[Host]) -> None:
        self.host = host
        self.hosts = hosts
        self.loop = asyncio.get_running_loop()
        self.head = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self.transport = transport

    def answer(self) -> None:
        """Answer, if there is still somebody to answer to."""
        if not self.transport.is_closing():
            self.transport.write(TAKEN)

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self.head += data
        while (end := self.head.find(b"\r\n\r\n")) >= 0:
            head, self.head = self.head[:end], self.head[end + 4 :]
            if head.startswith(b"GET /__counts__"):
                body = json.dumps([host.seconds for host in self.hosts]).encode()
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            elif self.host.hangs:
                return
            elif self.host.ask(self.loop.time()):
                self.loop.call_later(self.host.latency, self.answer)
            else:
                self.transport.write(REFUSED)


async def serve(
    ports: int = 1,
    limits: tuple[float, float] = (1e9, 1e9),
    turn: float = 1e9,
    latency: float = 0.01,
    hangs: int | None = None,
) -> None:
    """Listen until the standard input ends."""
    loop = asyncio.get_running_loop()
    hosts = [Host(list(limits), turn, latency, number == hangs) for number in range(ports)]
    servers = [
        await loop.create_server(lambda host=host: Connection(host, hosts), "127.0.0.1", 0) for host in hosts
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    over = asyncio.Event()
    os.set_blocking(0, False)
    loop.add_reader(0, lambda: over.set() if os.read(0, 1) == b"" else None)
    await over.wait()


@contextlib.contextmanager
def server(**options: Any) -> Iterator[list[int]]:
    """Run one in a process of its own for the time of a block, on the first core; give its ports."""
    command = [sys.executable, "-m", "bench.manners_server", json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {0})
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def counts(port: int) -> list[list[list[int]]]:
    """Give what each port counted: [let in, refused] for each second."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}/__counts__", timeout=10) as answer:
        found: list[list[list[int]]] = json.loads(answer.read())
    return found


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(**json.loads(sys.argv[1])))
