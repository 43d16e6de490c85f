"""What the tests of the command line share: the command as a process, and a server that remembers what it was sent."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main

Headrace = Callable[..., Any]


#: What would change a run's manners.
NOT_OURS = ("HEADRACE_DEBUG", "HEADRACE_LOOP", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")


def environment() -> dict[str, str]:
    """Give the environment of a process."""
    return {name: value for name, value in os.environ.items() if name not in NOT_OURS}


@dataclasses.dataclass
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def headrace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Headrace:
    """Run `headrace …` in the test's own directory and in this process, and give its exit code and output."""
    monkeypatch.chdir(tmp_path)
    for name in NOT_OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*words: str, env: dict[str, str] | None = None) -> Ended:
        capfd.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["headrace", *words])
            for name, value in (env or {}).items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture
def headrace_process(tmp_path: Path) -> Headrace:
    """Run `headrace …` in the test's own directory as a process of its own."""

    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headrace", *words],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, **options,
        )  # fmt: skip

    return run


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `headrace …` and give the process; it is dead and waited for when the test ends."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace", *words],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


class Recorder:
    """A server on loopback; `seen` has method, path and headers of every request and `bodies` what came with them,
    `most_at_once` what it was asked. What is under /held is answered once `release` is set, a path of digits with them as
    its status, what was sent to /echo with that.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.release = threading.Event()
        self.most_at_once = 0
        self.robots = b"User-agent: *\nDisallow: /private\n"
        self._now = 0
        self._counting = threading.Lock()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                recorder.enter()
                headers = {name.lower(): value for name, value in self.headers.items()}
                sent = self.rfile.read(int(headers.get("content-length", 0)))
                recorder.bodies.append(sent)
                recorder.seen.append((self.command, self.path, headers))
                if self.path.startswith("/held"):
                    recorder.release.wait(60)
                if self.path.startswith("/slow"):
                    time.sleep(0.02)  # long enough for a second request to be seen beside it
                recorder.leave()
                body = b"\x1b[31mred\x1b[0m" if self.path == "/ansi" else b"ok"
                if self.path == "/robots.txt":
                    body = recorder.robots
                if self.path.startswith("/echo"):
                    body = sent
                status = int(self.path[1:4]) if self.path[1:4].isdigit() else 200
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("Set-Cookie", "session=CANARY-cookie")
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # who asked was killed
                    self.close_connection = True

            do_POST = do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def enter(self) -> None:
        """Count a request that begins."""
        with self._counting:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def leave(self) -> None:
        """Count a request that ends."""
        with self._counting:
            self._now -= 1

    def url(self, path: str, userinfo: str = "") -> str:
        """Give the URL of a path."""
        return f"http://{userinfo}127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        """Stop, and wait for every thread."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Run a server that remembers what it was sent."""
    server = Recorder()
    yield server
    server.close()
