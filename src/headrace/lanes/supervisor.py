"""The parent's end of one child process: its start, its frames, its death.

    a thread: start ─► wait ─► clean up ─► tell the loop         the loop: read frames as they come, write without waiting

Rules:
1. A child is started and waited for by a thread of its own, which lives as long as the child: starting takes tens of
   milliseconds, and the system kills the child with the thread that started it, not with the process.
2. The loop never waits here: it writes what the socket takes, and the rest when it takes more.
3. A child is over when its process is, not when its socket is closed: either may come first, and a process that the function
   forked may hold the socket open. Everything that it wrote is read before its death is told.
4. It is the leader of a process group: what its calls have started dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import headrace.lanes
from headrace.lanes import store, wire

__all__ = ["Supervised", "death_text"]

#: How much is read from a socket at a time, in bytes.
READ = 1 << 16
#: How much may be under way in a socket, in bytes: what is large goes faster by it.
SOCKET_BUFFER = 1 << 22
#: How often a thread whose child is over looks whether there is still a loop to take notice, in seconds.
LOOK = 0.05
#: The last characters of what a child said that did not start.
TAIL = 2000
_ROOT = str(Path(headrace.lanes.__file__).parents[2])


def death_text(status: int | None) -> str:
    """Say how a process ended: «signal SIGSEGV», «exit code 3»."""
    if status is None:
        return "an end that nobody saw"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


class Supervised:
    """One child process. `on_frame(kind, number, payload)` and `on_end(status)` are called on the loop, in this order."""

    def __init__(
        self,
        name: str,
        niceness: int,
        on_frame: Callable[[int, int, bytearray], None],
        on_end: Callable[[int | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_end = on_end
        self._niceness = niceness
        self.pid: int | None = None
        self.is_ready = False  # it has the function, and takes calls
        self.is_over = False
        self.trouble: OSError | None = None  # what kept it from being started
        self._popen: subprocess.Popen[bytes] | None = None
        self._is_reaped = False
        self._is_doomed = False
        self._reaping = threading.Lock()  # a pid is signalled only while it is ours
        self._socket, self._child_socket = socket.socketpair()
        self._control, self._child_control = socket.socketpair()
        for end in (self._socket, self._child_socket):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self._socket.setblocking(False)
        self._control.setblocking(False)
        self._memory_file = _anonymous_file()
        os.ftruncate(self._memory_file, wire.MEMORY)
        self.memory = mmap.mmap(self._memory_file, wire.MEMORY)
        self.store = store.Store(self._memory_file)
        view = memoryview(self.memory)
        self.words = view[: wire.AREA].cast("Q")
        self.floats = view[: wire.AREA].cast("d")
        self._output = _anonymous_file()
        self._head = bytearray()
        self._payload: bytearray | None = None
        self._missing = 0  # bytes of the payload that are still to come
        self._kind = self._number = 0
        self._unsent: deque[memoryview] = deque()
        self._is_let_go = threading.Event()
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._reads = True
        thread = threading.Thread(target=self._live, name=name, daemon=True)
        thread.start()

    # ------------------------------------------------------------------ to the child

    def send(self, kind: int, number: int, *payload: bytes) -> None:
        """Write a frame, as fast as the child reads."""
        parts = (wire.HEAD.pack(kind, number, sum(map(len, payload))), *payload)
        waits = bool(self._unsent)
        self._unsent += [memoryview(part) for part in parts if part]
        if not waits:
            self._writable()

    def send_values(self, kind: int, parts: Sequence[Any], length: int) -> None:
        """Write a frame of values, by the store where they are large. The chunk before must be over."""
        if length >= store.LEAST_CHUNK and self.store.put(parts):
            self.send(kind, length)
        else:
            self.send(kind, 0, b"".join(parts))

    def _writable(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                count = self._socket.sendmsg([*unsent][:16])
                while unsent and count >= len(unsent[0]):
                    count -= len(unsent.popleft())
                if count:
                    unsent[0] = unsent[0][count:]
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._writable)
            return
        except OSError:
            unsent.clear()  # its death will be told
        if self._socket.fileno() >= 0:
            self._loop.remove_writer(self._socket.fileno())

    def recall(self) -> None:
        """Ask for the calls that have not begun; RECALLED or OVER answers, when the child comes to it."""
        self.words[wire.STOP] = 1
        with contextlib.suppress(OSError):
            self._control.send(b"r")

    def kill(self) -> None:
        """End it, now."""
        with self._reaping:
            self._is_doomed = True
            if self._popen is not None and not self._is_reaped:
                _kill_group(self._popen.pid)

    def running(self) -> tuple[int, float] | None:
        """Give the number of the call that runs, and for how many seconds it has; None between calls."""
        words = self.words
        if words[wire.LOADING]:
            return 0, time.monotonic() - self.floats[wire.BEGAN]
        started = words[wire.STARTED]
        if not started or words[wire.DONE] >= started:
            return None
        return started - 1, time.monotonic() - self.floats[wire.BEGAN]

    # ------------------------------------------------------------------ from the child

    def _readable(self) -> None:
        """Read what there is, a bit of it: others want the loop too."""
        try:
            if not self._read():
                self._stop_reading()
        except BlockingIOError:
            return

    def _read(self) -> bool:
        """Read once and tell of the frames that are whole; False at the end."""
        payload = self._payload
        if payload is not None and self._missing > READ:
            try:
                count = self._socket.recv_into(memoryview(payload)[-self._missing :])
            except ConnectionError:
                count = 0
            self._missing -= count
            if not self._missing:
                self._frame_over()
            return count > 0
        try:
            data = memoryview(self._socket.recv(READ))
        except ConnectionError:
            data = memoryview(b"")
        is_open = bool(data)
        while data:
            data = self._take(data)
        return is_open

    def _take(self, data: memoryview) -> memoryview:
        """Take what `data` has of the frame under way; give the rest."""
        if self._payload is None:
            lacks = wire.HEAD.size - len(self._head)
            self._head += data[:lacks]
            if len(self._head) < wire.HEAD.size:
                return data[lacks:]
            self._kind, self._number, self._missing = wire.HEAD.unpack(self._head)
            self._head.clear()
            self._payload = bytearray(self._missing)
            data = data[lacks:]
        count = min(self._missing, len(data))
        if count:
            start = len(self._payload) - self._missing
            self._payload[start : start + count] = data[:count]
            self._missing -= count
        if not self._missing:
            self._frame_over()
        return data[count:]

    def _frame_over(self) -> None:
        payload, self._payload = self._payload, None
        assert payload is not None
        if self._kind == wire.READY:
            self.is_ready = True
        self._on_frame(self._kind, self._number, payload)

    def _stop_reading(self) -> None:
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._socket.fileno())

    # ------------------------------------------------------------------ in its thread

    def _live(self) -> None:
        """Start the child, wait for its end, and tell of it."""
        status: int | None = None
        try:
            self._start()
        except OSError as error:
            self.trouble = error
        finally:
            self._child_socket.close()
            self._child_control.close()
        popen = self._popen
        if popen is not None:
            if hasattr(os, "waitid"):  # while it is a zombie, nobody else can have its pid or its group
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
                _kill_group(popen.pid)
                with self._reaping:
                    status = popen.wait()
                    self._is_reaped = True
            else:
                status = popen.wait()
                self._is_reaped = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, status)
        # A loop that is torn down may never come to it.
        while not self._is_let_go.wait(LOOK):
            if self._loop.is_closed():
                self._let_go()

    def _start(self) -> None:
        ends = [self._child_socket.fileno(), self._child_control.fileno(), self._memory_file]
        try:
            stderr = os.dup(2)
        except OSError:
            stderr = os.open(os.devnull, os.O_WRONLY)
        try:
            numbers = [*ends, stderr, os.getpid(), self._niceness]
            environment = dict(os.environ)
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = _ROOT if not before else f"{_ROOT}{os.pathsep}{before}"
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "headrace.lanes.child", *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=environment,
                pass_fds=[*ends, stderr],
                process_group=0,
            )
        finally:
            os.close(stderr)
        with self._reaping:
            self._popen = popen
            self.pid = popen.pid
            if self._is_doomed:
                _kill_group(popen.pid)

    def _ended(self, status: int | None) -> None:
        """Read what it still said, and tell of its end."""
        self._stop_reading()
        with contextlib.suppress(BlockingIOError):
            while self._read():
                pass
        self.is_over = True
        self._on_end(status)

    # ------------------------------------------------------------------ afterwards

    def tail(self) -> str:
        """Give the last of what it said before it was ready."""
        size = os.fstat(self._output).st_size
        said = os.pread(self._output, TAIL, max(0, size - TAIL))
        return said.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Let go of everything, after its end."""
        self._stop_reading()
        if self._socket.fileno() >= 0:
            self._loop.remove_writer(self._socket.fileno())
        self._let_go()

    def _let_go(self) -> None:
        if self._is_let_go.is_set():
            return
        self._is_let_go.set()
        self._unsent.clear()
        self._socket.close()
        self._control.close()
        os.close(self._output)
        os.close(self._memory_file)
        self.words.release()
        self.floats.release()
        with contextlib.suppress(BufferError):
            self.memory.close()


def _anonymous_file() -> int:
    """Open a file that has no name and no place on a disk, where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("headrace")
    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
