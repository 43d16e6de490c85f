"""The local origin server as a program, and the handle that starts it from Python.

    python -m headrace.demo.origin --root DIR --faults 7
    python -m headrace.demo.origin --fast 10000

Its first line of output is a JSON object with `port`, `pid` and `documents`. It ends when its standard
input, if that is a pipe, is closed: with its parent, however that dies.

    GET /__list__               every path, one a line
    GET /__counts__[?paths]     requests, complete final answers, requests repeated after one; by path too
    GET /f/KIND[,KIND…][*]/…    faults by name (see headrace.demo.faults)
    GET /to/PATH                a redirect to /PATH

Rules:
1. It listens on 127.0.0.1 only.
2. The handle leaves nothing behind: its process is waited for and its pipes are closed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.demo.faults import Faults
from headrace.demo.server import Connection, Documents, Server

__all__ = ["Origin", "main", "serve", "standard_library"]


def standard_library() -> Path:
    """Give the directory of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


class Origin:
    """An origin server in its own process. Make it with `start`; use it as a context manager."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, documents: int) -> None:
        self._process = process
        self.pid = process.pid
        self.port = port
        self.documents = documents

    @classmethod
    def start(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        fast: int = 0,
        seed: int | None = None,
        options: Sequence[str] = (),
    ) -> Origin:
        """Start an origin over the files under `root`, or over `fast` synthetic documents, or both.

        With `seed` it has faults. `options` are further ones of the command line, as ("--stall", "2"). Raises
        RuntimeError where the server does not come up.
        """
        command = [sys.executable, "-m", "headrace.demo.origin", "--fast", str(fast), *options]
        if root is not None:
            command += ["--root", os.fspath(root)]
        if seed is not None:
            command += ["--faults", str(seed)]
        # In its own process group: a Ctrl-C on the terminal is for the job, not for the server that it asks.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            cls(process, 0, 0).close()
            raise RuntimeError(
                f"the origin did not start: {' '.join(command)} ended with {process.returncode}"
            )
        told = json.loads(line)
        return cls(process, told["port"], told["documents"])

    def url(self, path: str) -> str:
        """Give the URL of a path."""
        return f"http://127.0.0.1:{self.port}/{path.removeprefix('/')}"

    def urls(self) -> list[str]:
        """Give the URL of every document, in the origin's order."""
        return [self.url(path) for path in self._get("/__list__").decode().splitlines()]

    def counts(self, *, paths: bool = False) -> Mapping[str, Any]:
        """Give the origin's account: `requests`, `complete` final answers, `repeated` after one, `faults`.

        With `paths=True` also `paths`: for each path asked (with its method, but for GET) these three
        numbers.
        """
        counts: Mapping[str, Any] = json.loads(self._get("/__counts__" + ("?paths" if paths else "")))
        return counts

    def _get(self, path: str) -> bytes:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(self.url(path), timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def close(self) -> None:
        """End the server and wait for its process; repeatable. One that takes over 5 seconds is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Origin:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def serve(server: Server, port: int, ready: Callable[[int], None]) -> None:
    """Listen and answer until SIGTERM, or the end of a piped standard input; `ready` is told the port."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", port, backlog=4096)
    if stat.S_ISFIFO(os.fstat(0).st_mode):

        def heard() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                over.set()

        loop.add_reader(0, heard)
    ready(listener.sockets[0].getsockname()[1])
    await over.wait()
    listener.close()
    for connection in tuple(server.connections):
        connection.abort()
    await asyncio.sleep(0)  # the transports close their sockets in the next round


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server, as the command line says, until it is told to end."""
    options = _options().parse_args(arguments)
    if options.root is not None and not options.root.is_dir():
        sys.exit(f"--root {options.root}: not a directory")
    faults = Faults(options.faults, options.first, options.second, options.gone, options.stall)
    documents = Documents(options.root, suffix=options.suffix, count=options.fast)
    server = Server(documents, faults, delay=options.delay)
    with contextlib.suppress(
        ValueError, OSError
    ):  # as many as we may; where we may not, the clients will see
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def ready(port: int) -> None:
        print(json.dumps({"port": port, "pid": os.getpid(), "documents": len(documents)}), flush=True)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(server, options.port, ready))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.SelectorEventLoop
    return uvloop.new_event_loop


def _options() -> argparse.ArgumentParser:
    usual = Faults()
    parser = argparse.ArgumentParser(
        prog="headrace.demo.origin", description="A local origin server with faults."
    )
    parser.add_argument("--root", type=Path, help="serve the files below this directory")
    parser.add_argument("--suffix", default=".py", help="only those that end so")
    parser.add_argument(
        "--fast", type=int, default=0, metavar="N", help="serve N small documents at /n/0 …, no disk"
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--faults", type=int, metavar="SEED", help="have faults, decided by this seed")
    parser.add_argument("--first", type=float, default=usual.first, help="share of first asks that fail")
    parser.add_argument(
        "--second", type=float, default=usual.second, help="share of second asks that fail after them"
    )
    parser.add_argument(
        "--gone", type=float, default=usual.gone, help="share of paths that are 404 or 500 for ever"
    )
    parser.add_argument("--stall", type=float, default=usual.stall, help="seconds of a stall")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    return parser


if __name__ == "__main__":
    main()
