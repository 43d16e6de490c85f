"""The sockets of one libcurl multi, watched for what libcurl waits for.

    libcurl: watch this socket ─► epoll of our own ─► the loop watches that one descriptor ─► ready: libcurl goes on

Rules:
1. libcurl says anew for every transfer what it waits for. An event loop makes an object for each such wish; an epoll of
   our own takes it in one system call, and many sockets that are ready cost one wake-up of the loop.
2. Where there is no epoll, the loop watches each socket itself.
3. A socket that libcurl lets go of is watched no more before it can be closed, so that its number can be used again.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final, Protocol

import pycurl  # type: ignore[import-untyped]

__all__ = ["EpollSockets", "LoopSockets", "Sockets", "watch_sockets"]

#: The most sockets that are dealt with in one turn of the loop.
MOST_AT_ONCE: Final = 128

Drive = Callable[[int, int], None]


class Sockets(Protocol):
    """What watches the sockets; `watched` says for which descriptors, and for what."""

    watched: dict[int, int]

    def watch(self, fd: int, what: int) -> None:
        """Watch a socket for POLL_IN, POLL_OUT, or both; 0: for nothing any more."""
        ...

    def close(self) -> None:
        """Watch nothing any more. Repeatable."""
        ...


class EpollSockets:
    """Sockets in an epoll of their own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, drive: Drive) -> None:
        self.watched: dict[int, int] = {}
        self._loop = loop
        self._drive = drive
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        loop.add_reader(self._fd, self._ready)
        self._masks = {
            pycurl.POLL_IN: select.EPOLLIN,
            pycurl.POLL_OUT: select.EPOLLOUT,
            pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
        }
        self._out = select.EPOLLOUT
        self._in_or_broken = ~select.EPOLLOUT  # a hang-up or an error is found out by reading

    def watch(self, fd: int, what: int) -> None:
        """Watch a socket."""
        before = self.watched.get(fd, 0)
        if before == what:
            return
        if what:
            self.watched[fd] = what
            if before:
                self._epoll.modify(fd, self._masks[what])
            else:
                self._epoll.register(fd, self._masks[what])
            return
        del self.watched[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # it is closed already, and left the epoll by that

    def _ready(self) -> None:
        watched, drive = self.watched, self._drive
        for fd, events in self._epoll.poll(0, MOST_AT_ONCE):
            if fd not in watched:
                continue  # what came before it in this turn has let it go
            mask = 0
            if events & self._in_or_broken:
                mask |= pycurl.CSELECT_IN
            if events & self._out:
                mask |= pycurl.CSELECT_OUT
            drive(fd, mask)

    def close(self) -> None:
        """Close the epoll."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._fd)
            self._epoll.close()
            self.watched.clear()


class LoopSockets:
    """Sockets that the loop watches itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, drive: Drive) -> None:
        self.watched: dict[int, int] = {}
        self._loop = loop
        self._drive = drive

    def watch(self, fd: int, what: int) -> None:
        """Watch a socket."""
        before = self.watched.pop(fd, 0)
        if what:
            self.watched[fd] = what
        changed = before ^ what
        if changed & pycurl.POLL_IN:
            if what & pycurl.POLL_IN:
                self._loop.add_reader(fd, self._ready, fd, pycurl.POLL_IN, pycurl.CSELECT_IN)
            else:
                self._loop.remove_reader(fd)
        if changed & pycurl.POLL_OUT:
            if what & pycurl.POLL_OUT:
                self._loop.add_writer(fd, self._ready, fd, pycurl.POLL_OUT, pycurl.CSELECT_OUT)
            else:
                self._loop.remove_writer(fd)

    def _ready(self, fd: int, what: int, mask: int) -> None:
        if self.watched.get(fd, 0) & what:
            self._drive(fd, mask)

    def close(self) -> None:
        """Watch nothing any more."""
        for fd in list(self.watched):
            self.watch(fd, 0)


def watch_sockets(loop: asyncio.AbstractEventLoop, drive: Drive) -> Sockets:
    """Give what watches sockets at the least cost here. `drive(fd, mask)` is called for each that is ready."""
    return EpollSockets(loop, drive) if hasattr(select, "epoll") else LoopSockets(loop, drive)
