"""The origin on real sockets: what it answers, what it does wrong, what it counts, and that it ends with its parent."""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from headrace.demo.origin import Origin
from headrace.testing import no_leaks


class Wire:
    """One connection to the origin, spoken by hand."""

    def __init__(self, origin: Origin) -> None:
        self.socket = socket.create_connection(("127.0.0.1", origin.port), timeout=10)
        self.rest = b""

    def send(self, path: str, *, method: str = "GET", fields: str = "", body: bytes = b"") -> None:
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: origin\r\n{fields}\r\n".encode() + body)

    def read(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer; EOFError where the connection ends before it does."""
        head = self._until(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(fields["content-length"])
        while len(self.rest) < length:
            self._more()
        body, self.rest = self.rest[:length], self.rest[length:]
        return int(line.split()[1]), fields, body

    def _until(self, end: bytes) -> bytes:
        while end not in self.rest:
            self._more()
        head, _, self.rest = self.rest.partition(end)
        return head

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"ended after {self.rest!r}")
        self.rest += data


@pytest.fixture
def wire(origin: Origin) -> Iterator[Wire]:
    wire = Wire(origin)
    with contextlib.closing(wire.socket):
        yield wire


def ask(origin: Origin, path: str, **options) -> tuple[int, dict[str, str], bytes]:
    wire = Wire(origin)
    with contextlib.closing(wire.socket):
        wire.send(path, **options)
        return wire.read()


def test_documents_are_served_on_a_connection_that_is_kept(wire):
    """Several requests in turn, and several at once, are answered in order on one connection."""
    for number in (1, 2):
        wire.send(f"/n/{number}")
        status, fields, body = wire.read()
        assert (status, fields["content-type"]) == (200, "application/json")
        assert json.loads(body)["square"] == number**2
    wire.send("/f/slow:0.02/in-order")
    wire.send("/n/7")
    assert b"in-order" in wire.read()[2]
    assert json.loads(wire.read()[2])["number"] == 7


def test_files_are_served_as_they_are(tmp_path):
    """Every file below the root with the suffix is listed and comes back byte for byte; nothing else does."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "ä.py").write_bytes(b"x = 1\n" * 5000)
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "secret.txt").write_bytes(b"no")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_bytes(b"no")
    with Origin.start(root=tmp_path) as origin:
        paths = [url.removeprefix(f"http://127.0.0.1:{origin.port}") for url in origin.urls()]
        assert paths == ["/a%20b/%C3%A4.py", "/empty.py"]
        assert origin.documents == 2
        assert ask(origin, paths[0])[2] == b"x = 1\n" * 5000
        assert ask(origin, paths[1])[::2] == (200, b"")
        assert ask(origin, "/secret.txt")[0] == 404
        assert ask(origin, "/../" + tmp_path.name + "/empty.py")[0] == 404


@pytest.mark.parametrize("kind", ["cut", "stall:0.01"])
def test_no_answer_at_all(origin, kind):
    """`cut` and `stall` end the connection without a byte, and the next ask is answered."""
    with pytest.raises(EOFError, match="after b''"):
        ask(origin, f"/f/{kind}/none")
    assert ask(origin, f"/f/{kind}/none")[0] == 200


def test_half_a_body_and_then_the_end(origin):
    """`truncate` ends with half the body under the full length; `reset` does the same with a reset."""
    with pytest.raises(EOFError, match="the document at /f/truncate/half"):
        ask(origin, "/f/truncate/half")
    wire = Wire(origin)
    with contextlib.closing(wire.socket), pytest.raises(ConnectionResetError):  # noqa: PT012
        wire.send("/f/reset/half")
        wire.read()
        wire.socket.recv(1)


def test_throttling_says_how_long(origin):
    """429 comes with Retry-After in whole seconds or as a date that is not in the past."""
    status, fields, _ = ask(origin, "/f/throttle:2/soon")
    assert (status, fields["retry-after"]) == (429, "2")
    status, fields, _ = ask(origin, "/f/throttle-date:1/soon")
    at = email.utils.parsedate_to_datetime(fields["retry-after"]).timestamp()
    assert status == 429
    assert -1 < at - time.time() < 3


def test_slow_answers_are_whole(origin):
    """`slow` and `drip` give the whole document, late or in pieces."""
    for kind in ("slow:0.01", "drip:0.05"):
        assert ask(origin, f"/f/{kind}/whole")[::2] == (
            200,
            f"the document at /f/{kind}/whole\n".encode() * 8,
        )


def test_statuses_redirects_and_wrong_requests(origin):
    """A status can be asked for, a redirect names its target, and what is no request is refused."""
    assert ask(origin, "/f/unavailable:502/status")[0] == 502
    assert [ask(origin, "/f/gone:410*/status")[0] for _ in range(3)] == [410, 410, 410]
    assert ask(origin, "/to/n/5")[1]["location"] == "/n/5"
    assert ask(origin, "/f/nonsense/x")[0] == 400
    assert ask(origin, "no-slash")[0] == 400
    assert ask(origin, "/n/1", method="POST", fields="Content-Length: many\r\n")[0] == 411
    assert ask(origin, "/n/1", fields=f"X: {'x' * 70_000}\r\n")[0] == 431


def test_posts_are_taken_whole_and_counted_apart(wire, origin):
    """A body that comes in parts is waited for; POST and GET of one path have accounts of their own."""
    wire.send("/n/77", method="POST", fields="Content-Length: 10\r\n", body=b"01234")
    assert origin.counts(paths=True)["paths"].get("POST /n/77") is None
    wire.socket.sendall(b"56789")
    assert wire.read()[0] == 200
    assert origin.counts(paths=True)["paths"]["POST /n/77"] == [1, 1, 0]


def test_head_gets_no_body_and_close_is_honoured(wire):
    """HEAD gives the fields only; after `Connection: close` the connection ends."""
    wire.send("/n/5", method="HEAD")
    wire.send("/n/5", fields="Connection: close\r\n")
    head = wire._until(b"\r\n\r\n")
    assert b"Content-Length: " in head
    assert wire.read()[0] == 200
    with pytest.raises(EOFError):
        wire.read()


def test_the_account_is_exact(origin):
    """Per path: requests, complete final answers, and requests that came after one; a broken answer is not complete."""
    before = origin.counts()
    for path in ("/f/unavailable,cut,ok/account", "/f/gone/account", "/f/gone:500/account"):
        for _ in range(4):
            with contextlib.suppress(EOFError):
                ask(origin, path)
    after = origin.counts(paths=True)
    assert after["paths"]["/f/unavailable,cut,ok/account"] == [4, 2, 1]
    assert after["paths"]["/f/gone/account"] == [4, 4, 3]
    assert after["paths"]["/f/gone:500/account"] == [4, 3, 2]  # a 500 is not final: who asks again is right
    assert after["requests"] - before["requests"] == 12
    assert after["complete"] - before["complete"] == 9
    assert after["repeated"] - before["repeated"] == 6


def test_an_answer_that_the_client_did_not_wait_for_is_not_counted(origin):
    """A connection that is closed before its slow answer gets none."""
    wire = Wire(origin)
    wire.send("/f/slow:0.05/left")
    while "/f/slow:0.05/left" not in origin.counts(paths=True)["paths"]:
        pass
    wire.socket.close()
    assert ask(origin, "/f/slow:0.3/after")[0] == 200  # by then the other would have been answered
    assert origin.counts(paths=True)["paths"]["/f/slow:0.05/left"] == [1, 0, 0]


def test_a_seeded_origin_gives_everything_within_three_asks():
    """Every document of a seeded origin that is not gone comes whole at its third ask at the latest."""
    with Origin.start(fast=80, seed=11, options=("--stall", "0.01")) as origin:
        for number in range(80):
            last = None
            for _ in range(3):
                try:
                    last = ask(origin, f"/n/{number}")
                except (EOFError, ConnectionResetError):
                    continue
                if last[0] == 200:
                    break
            assert last is not None
            assert last[0] in (200, 404, 500)
        counts = origin.counts()
        assert counts["known"] == 80
        assert counts["faults"]["cut"] > 0


def test_the_handle_leaves_nothing_behind():
    """After the block: no process, no pipe."""
    with no_leaks():
        with Origin.start(fast=3) as origin:
            assert len(origin.urls()) == 3
        with pytest.raises(ProcessLookupError):
            os.kill(origin.pid, 0)


def test_wrong_options_are_an_error_with_the_command():
    """A server that does not come up is a RuntimeError, and no process stays."""
    with no_leaks(), pytest.raises(RuntimeError, match="--root /nowhere"):
        Origin.start(root="/nowhere")


def test_it_dies_with_a_parent_that_is_killed():
    """An origin whose parent gets kill -9 ends by itself, and its port is free."""
    program = (
        "from headrace.demo.origin import Origin\n"
        "origin = Origin.start(fast=1)\n"
        "print(origin.port, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        kept = socket.create_connection(("127.0.0.1", port), timeout=10)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    with contextlib.closing(kept), contextlib.suppress(ConnectionResetError):
        assert kept.recv(1) == b""  # the end of the server closes it
