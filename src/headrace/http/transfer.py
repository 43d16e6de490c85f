"""One request over one libcurl handle.

Rules:
1. A handle belongs to a profile and a method for life. Per request only what differs is set; nothing is
   reset.
2. Callbacks append and set flags, never more: libcurl must not be called from within itself.
3. A request goes out once. libcurl would silently send it again on a kept-alive connection that died; PREREQ
   stops that.
4. A handle is free for the next request only when libcurl has let go of it: after its future is done,
   cancelled or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from collections.abc import Callable
from typing import Any, Final

import pycurl  # type: ignore[import-untyped]

from headrace.http.profile import Profile, milliseconds
from headrace.http.sockets import watch_sockets
from headrace.http.translate import Progress
from headrace.http.url import Url

__all__ = ["Handle", "Multi", "MultiFailed", "Opened"]

REDIRECT_BODY: Final = 65_536
_BLANK: Final = (b"\r\n", b"\n")


class MultiFailed(Exception):
    """libcurl's multi handle is in a bad state: every transfer on it failed."""


class Multi(pycurl.AsyncCurlMulti):  # type: ignore[misc]
    """`AsyncCurlMulti` that says when it is broken, ends single transfers with an error of ours, and costs less.

    libcurl tells its sockets and its next due time anew for every transfer. The sockets are watched by `http.sockets`, and
    a timer that is early looks again when it fires: cheaper than an object a socket and a timer a transfer.
    """

    def __init__(self, connections: int) -> None:
        super().__init__()
        self.broken = False
        self._due = math.inf
        self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._ensure_loop()
        self._sockets = watch_sockets(self._loop, self._drive)
        self.setopt(pycurl.M_MAXCONNECTS, connections)

    async def aclose(self) -> None:
        """End all transfers and close all connections. Repeatable."""
        try:
            await super().aclose()
        finally:
            self._sockets.close()

    # ---------------------------------------------------------------------------------------------- libcurl asks

    def _on_socket(self, what: int, fd: int, _multi: Any, _state: Any) -> None:
        """Watch a socket for what libcurl waits for now."""
        if what in (pycurl.POLL_REMOVE, pycurl.POLL_NONE):
            self._sockets.watch(fd, 0)
        elif not self._closing:
            self._sockets.watch(fd, what)

    def _on_timer(self, timeout_ms: int) -> None:
        """Wake libcurl in so many milliseconds, in the place of what it asked for before; -1: not at all."""
        if self._closing:
            return
        self._due = math.inf
        if timeout_ms == 0:
            # libcurl must not be called from within itself.
            if self._soon is None:
                self._soon = self._loop.call_soon(self._fire_soon)
        elif timeout_ms > 0:
            self._due = self._loop.time() + timeout_ms / 1000.0
            if self._due < self._timer_at:
                self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._due
        self._timer = self._loop.call_at(self._due, self._fire_due)

    def _fire_due(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._loop.time() >= self._due:
            self._due = math.inf
            self._drive(pycurl.SOCKET_TIMEOUT, 0)
        elif self._due < math.inf:
            self._arm()

    def _fire_soon(self) -> None:
        self._soon = None
        self._drive(pycurl.SOCKET_TIMEOUT, 0)

    def _cancel_timer(self) -> None:
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None

    # ---------------------------------------------------------------------------------------------- transfers

    def _fail_all_pending(self, exc: BaseException) -> None:
        self.broken = True
        super()._fail_all_pending(MultiFailed(str(exc)))

    def start(self, curl: Any) -> asyncio.Future[Any]:
        """Start a transfer. Who awaits the future calls `let_go` afterwards, whatever came of it.

        `add_handle` does the same with a callback for each transfer, which costs more than all of this.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._futures[curl] = future
        try:
            self._multi.add_handle(curl)
        except pycurl.error as error:
            del self._futures[curl]
            self.broken = True
            raise MultiFailed(str(error)) from error
        return future

    def let_go(self, curl: Any) -> None:
        """Take a handle back whose transfer may be under way (its caller was cancelled): its connection
        closes now. Not from within a callback of libcurl.
        """
        if self._futures.pop(curl, None) is not None:
            with contextlib.suppress(pycurl.error):
                self._multi.remove_handle(curl)

    def end(self, curl: Any, error: Exception) -> None:
        """End one transfer: its connection closes now and its future raises `error`. Not from within a
        callback of libcurl.
        """
        self._resolve(curl, error)


class Opened:
    """A new socket for libcurl, which makes a copy of its descriptor; the original is closed with this object."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


class Handle:
    """A pooled libcurl handle with what its current transfer has brought so far."""

    __slots__ = (
        "_anew",
        "_clock",
        "_entry",
        "_has_body",
        "_headers",
        "_shortened",
        "_waits",
        "began",
        "chunks",
        "curl",
        "fresh",
        "head",
        "hungry",
        "limit",
        "mark",
        "method",
        "on_ready",
        "paused",
        "profile",
        "refused",
        "seen",
        "sends",
        "sent",
        "sent_mark",
        "shares",
        "size",
        "url",
        "usable",
    )

    def __init__(self, profile: Profile, method: str, has_body: bool, clock: Any) -> None:
        self.profile = profile
        self.method = method
        self.head: list[bytes] = []
        self.chunks: list[bytes] = []
        self.size = 0
        self.limit: int | None = None
        self.sends = 0
        self.seen = self.sent = -1
        self.mark = self.sent_mark = self.began = 0.0
        self.usable = True
        self.paused = False  #: who reads the body is behind, so that it stands still on our account
        self.hungry = False  #: the rest of the body to send is not there yet
        self.shares = False  #: it uses the cookies that the client keeps
        self.refused: str | None = None  #: why the guard did not let it connect
        self.fresh: Any = None  #: what of its name libcurl did not know before
        self.url: Url
        self.on_ready: Callable[[str], None] | None = None  #: told the key when the connection is up
        self._anew = False
        self._entry: str | None = None
        self._headers: tuple[str, ...] = ()
        self._has_body = has_body
        self._shortened = False
        self._waits = False
        self._clock = clock
        self.curl = curl = pycurl.Curl()
        profile.configure(curl, method)
        self._set_method(method, has_body)
        curl.setopt(pycurl.HEADERFUNCTION, self.head.append)
        curl.setopt(pycurl.WRITEFUNCTION, self._write)
        curl.setopt(pycurl.PREREQFUNCTION, self._about_to_send)
        if profile.guard is not None:
            curl.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)

    def _set_method(self, method: str, has_body: bool) -> None:
        setopt = self.curl.setopt
        if method == "HEAD":
            setopt(pycurl.NOBODY, 1)
        elif has_body:
            setopt(pycurl.POST, 1)
            if method != "POST":
                setopt(pycurl.CUSTOMREQUEST, method)
        elif method != "GET":
            setopt(pycurl.CUSTOMREQUEST, method)

    # ---------------------------------------------------------------------------------------------- callbacks

    def _write(self, chunk: bytes) -> int | None:
        size = self.size
        if not size and self.head[0][9:10] == b"3" and self.head[0][9:12] != b"304":
            # Nobody reads the body of a redirect: neither wait for a large one nor decode it.
            self.limit = REDIRECT_BODY if self.limit is None else min(self.limit, REDIRECT_BODY)
        self.size = size = size + len(chunk)
        if self.limit is not None and size > self.limit:
            self.chunks.append(chunk[: len(chunk) - (size - self.limit)])
            return 0
        self.chunks.append(chunk)
        return None

    def _open_socket(self, purpose: int, address: Any) -> Any:
        assert self.profile.guard is not None
        family, kind, protocol, where = address
        why = self.profile.guard.refusal(where[0]) if isinstance(where, tuple) else "it is no IP address"
        if why is not None or purpose != pycurl.SOCKTYPE_IPCXN:
            self.refused = f"{where[0]}: {why}"
            return pycurl.SOCKET_BAD
        return Opened(socket.socket(family, kind, protocol).detach())

    def _about_to_send(self, to: str, _from: str, _to_port: int, _from_port: int) -> int:
        guard = self.profile.guard
        if guard is not None and (why := guard.refusal(to)) is not None:
            self.refused = f"{to}: {why}"
            return pycurl.PREREQFUNC_ABORT  # type: ignore[no-any-return]
        self.sends += 1
        self.mark = self._clock()
        if self.on_ready is not None:
            self.on_ready(self.url.key)
        return pycurl.PREREQFUNC_OK if self.sends == 1 else pycurl.PREREQFUNC_ABORT  # type: ignore[no-any-return]

    # -------------------------------------------------------------------------------------------- one request

    def prepare(
        self,
        url: Url,
        headers: tuple[str, ...],
        body: bytes | None,
        limit: int | None,
        entry: str | None,
        wait_for_connection: bool = False,
    ) -> None:
        """Set what this request needs. `entry` has the addresses of its name; None where libcurl knows
        them already.
        """
        setopt = self.curl.setopt
        if wait_for_connection is not self._waits:
            setopt(pycurl.PIPEWAIT, int(wait_for_connection))
            self._waits = wait_for_connection
        self.url = url
        self.limit = limit
        setopt(pycurl.URL, url.text)
        if headers is not self._headers:
            if headers:
                setopt(pycurl.HTTPHEADER, headers)
            else:
                # An empty list would change nothing: pycurl ignores it, and the last request's would go out
                # again.
                self.curl.unsetopt(pycurl.HTTPHEADER)
            self._headers = headers
        if entry is not self._entry:
            if entry is None:
                self.curl.unsetopt(pycurl.RESOLVE)
            else:
                setopt(pycurl.RESOLVE, [entry])
            self._entry = entry
        if self._has_body:
            setopt(pycurl.POSTFIELDS, body)

    def limit_time(self, total: float | None) -> None:
        """Change the total limit of the next transfer alone (seconds), as for what a redirect has left."""
        self._shortened = total is not None
        self.curl.setopt(pycurl.TIMEOUT_MS, milliseconds(total, 0))

    def connect_anew(self) -> None:
        """Let the next transfer take no kept connection."""
        self._anew = True
        self.curl.setopt(pycurl.FRESH_CONNECT, 1)

    def take_body(self) -> bytes:
        """Give the body."""
        chunks = self.chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def clear(self) -> None:
        """Forget the transfer. The lists stay: libcurl holds on to their methods."""
        self.head.clear()
        self.chunks.clear()
        self.size = self.sends = 0
        self.seen = self.sent = -1
        self.on_ready = self.refused = None
        if self._anew:
            self.curl.setopt(pycurl.FRESH_CONNECT, 0)
            self._anew = False
        if self._shortened:
            self.limit_time(self.profile.timeouts.total)
            self._shortened = False
        if self._has_body:
            self.curl.setopt(pycurl.POSTFIELDS, b"")

    def head_is_whole(self) -> bool:
        """Whether the answer's headers came to their end. libcurl takes a connection that ends in them for
        an answer.
        """
        head = self.head
        if head and head[-1] in _BLANK:
            return True
        # Trailers come after the blank line, and so does the answer after an interim one.
        last = max((at for at, line in enumerate(head) if line.startswith(b"HTTP/")), default=0)
        return any(line in _BLANK for line in head[last:])

    def multiplexed(self) -> bool:
        """Whether the answer came over a connection that others can share at the same time."""
        if self.head[0].startswith(b"HTTP/2"):
            return True
        # The first line may be a proxy's.
        return self.profile.proxy is not None and any(line.startswith(b"HTTP/2") for line in self.head)

    @property
    def sends_body(self) -> bool:
        """Whether the request has a body."""
        return self._has_body

    def still_sending(self) -> bool:
        """Whether the request has not gone out in full."""
        return self.sends_body and self.curl.getinfo(pycurl.POSTTRANSFER_TIME_T) == 0

    def uploaded(self) -> int:
        """Give the bytes of the body that went out so far."""
        return int(self.curl.getinfo(pycurl.SIZE_UPLOAD_T))

    def progress(self, elapsed: float) -> Progress:
        """Say how far the transfer got."""
        return Progress(
            method=self.method,
            url=self.url,
            sends=self.sends,
            answered=self.head_is_whole(),
            size=self.size,
            limit=self.limit,
            connected=self.curl.getinfo(pycurl.CONNECT_TIME) > 0,
            elapsed=elapsed,
            refused=self.refused,
        )

    def close(self) -> None:
        """Let libcurl free the handle."""
        self.curl.close()
