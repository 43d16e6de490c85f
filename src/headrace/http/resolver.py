"""Names to addresses, in own threads, so that a name that hangs delays nobody else.

Rules:
1. One look-up per name at a time; who asks meanwhile waits for the same one.
2. A thread stuck in a look-up counts as slow after `SLOW` seconds and is replaced, up to `MAX_THREADS` in
   all. It is never
   joined: getaddrinfo cannot be stopped. When it returns at last, its answer is used, and it ends if it is
   one too many.
3. Answers are kept for `ttl` seconds, failures for a short while. libcurl never resolves a name itself: it
   would stall good hosts behind dead names, and closing it would block the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from headrace.errors import Disposition
from headrace.http.errors import ResolveFailed

__all__ = ["Addresses", "Resolver", "ResolverStatistics", "system_lookup"]

THREADS = 16
MAX_THREADS = 80
SLOW = 1.0
IDLE = 10.0
MAX_NAMES = 10_000

Lookup = Callable[[str], Sequence[str]]

# The name is known not to exist, as opposed to «nobody could be asked».
_NO_SUCH_NAME = frozenset(
    code
    for code in (getattr(socket, "EAI_NONAME", None), getattr(socket, "EAI_NODATA", None))
    if code is not None
)


def system_lookup(name: str) -> Sequence[str]:
    """Ask the system, blocking. IPv4 and IPv6 addresses in the system's order of preference."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Addresses:
    """The addresses of a name, and until when (loop time) they may be used. One object is one look-up."""

    __slots__ = ("error", "fresh_until", "listed")

    def __init__(self, listed: Sequence[str], fresh_until: float, error: Exception | None = None) -> None:
        self.listed = tuple(listed)
        self.fresh_until = fresh_until
        self.error = error

    def entry(self, host: str, port: int) -> str:
        """Write them as libcurl takes them."""
        shown = ",".join(f"[{address}]" if ":" in address else address for address in self.listed)
        return f"+{host}:{port}:{shown}"


@dataclasses.dataclass(frozen=True, slots=True)
class ResolverStatistics:
    """The resolver at one moment; `stuck` are threads in a look-up for longer than a second."""

    names: int
    running: int
    queued: int
    threads: int
    stuck: int


class _Lookup:
    """One look-up under way. `started` is set by the thread that took it."""

    __slots__ = ("name", "started", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.started: float | None = None
        self.waiters: set[asyncio.Future[Addresses]] = set()


class Resolver:
    """Resolve names for one event loop.

    `lookup` (blocking) is called in a daemon thread; `timeout` (seconds, None for no limit) runs from the
    question to the answer, and passing it raises ResolveFailed, transient, while the look-up goes on for
    those who ask later.
    """

    def __init__(
        self,
        lookup: Lookup = system_lookup,
        *,
        ttl: float = 60.0,
        negative_ttl: float = 5.0,
        threads: int = THREADS,
    ) -> None:
        self._lookup = lookup
        self._ttl = ttl
        self._negative_ttl = negative_ttl
        self._limit = threads
        self._cache: dict[str, Addresses] = {}
        self._running: dict[str, _Lookup] = {}
        # Threads and loop share this queue and nothing that could make the loop wait.
        self._queue: queue.SimpleQueue[_Lookup | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._check: asyncio.TimerHandle | None = None

    def peek(self, name: str, now: float) -> Addresses | None:
        """Give fresh addresses if they are known, without waiting. Raises ResolveFailed if a failure is
        known.
        """
        known = self._cache.get(name)
        if known is None or now >= known.fresh_until:
            return None
        if known.error is not None:
            raise _translate(name, known.error)
        return known

    async def resolve(self, name: str, timeout: float | None = 10.0) -> Addresses:
        """Give the addresses of a name.

        Raises ResolveFailed when there are none or the time is over. Cancelling leaves the look-up to the
        others.
        """
        loop = asyncio.get_running_loop()
        known = self.peek(name, loop.time())
        if known is not None:
            return known
        if self._closed:
            raise ResolveFailed(f"cannot resolve {name}: the client is closed", host=name)
        self._loop = loop
        lookup = self._running.get(name)
        if lookup is None:
            lookup = self._running[name] = _Lookup(name)
            self._queue.put(lookup)
            self._staff()
        waiter: asyncio.Future[Addresses] = loop.create_future()
        lookup.waiters.add(waiter)
        expiry = None if timeout is None else loop.call_later(timeout, _expire, waiter, name, timeout)
        try:
            return await waiter
        finally:
            lookup.waiters.discard(waiter)
            if expiry is not None:
                expiry.cancel()

    def _staff(self) -> None:
        """See that somebody takes what is queued: at most `_limit` threads that are not stuck. Runs on the
        loop.
        """
        if self._check is not None:
            self._check.cancel()
            self._check = None
        if self._closed or self._loop is None:
            return
        stuck = self._stuck()
        useful = len(self._threads) - stuck
        missing = len(self._running) - stuck - useful
        hire = max(0, min(missing, self._limit - useful, MAX_THREADS - len(self._threads)))
        for _ in range(hire):
            thread = threading.Thread(target=self._work, name="headrace-resolver", daemon=True)
            self._threads.add(thread)
            thread.start()
        if missing > hire:
            # More names than threads: look again when some of these may have turned out to be stuck.
            self._check = self._loop.call_later(SLOW / 4, self._staff)

    def _stuck(self) -> int:
        before = time.monotonic() - SLOW
        return sum(1 for each in self._running.values() if each.started is not None and each.started < before)

    def _work(self) -> None:
        """Take look-ups until there have been none for a while, or too many threads are at it. Runs in a
        thread.
        """
        me = threading.current_thread()
        while (lookup := self._take()) is not None:
            addresses: Sequence[str] = ()
            error: Exception | None = None
            try:
                addresses = self._lookup(lookup.name)
                if not addresses:
                    error = OSError(f"no address for {lookup.name}")
            except Exception as caught:  # noqa: BLE001 - handed to those who asked
                error = caught
            self._post(self._finish, lookup, addresses, error)
        self._post(self._left, me)

    def _take(self) -> _Lookup | None:
        if len(self._threads) > self._limit and self._queue.empty():
            return None
        try:
            lookup = self._queue.get(timeout=IDLE)
        except queue.Empty:
            return None
        if lookup is None or self._closed:
            return None
        lookup.started = time.monotonic()
        return lookup

    def _left(self, thread: threading.Thread) -> None:
        """Note that a thread ended. It may have done so just as a name was queued for it."""
        self._threads.discard(thread)
        self._staff()

    def _post(self, callback: Callable[..., object], *args: object) -> None:
        """Run something on the loop; a loop that is closed by now has nobody left who asks."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback, *args)

    def _finish(self, lookup: _Lookup, listed: Sequence[str], error: Exception | None) -> None:
        """Keep the answer and hand it to all who wait. Runs on the loop."""
        assert self._loop is not None
        self._running.pop(lookup.name, None)
        keep = self._ttl if error is None else self._negative_ttl
        answer = Addresses(listed, self._loop.time() + keep, error)
        if len(self._cache) >= MAX_NAMES:
            # Oldest first: dicts keep the order of insertion.
            for name in list(self._cache)[: MAX_NAMES // 4]:
                del self._cache[name]
        self._cache.pop(lookup.name, None)
        self._cache[lookup.name] = answer
        for waiter in lookup.waiters:
            if not waiter.done():
                if error is None:
                    waiter.set_result(answer)
                else:
                    waiter.set_exception(_translate(lookup.name, error))

    def statistics(self) -> ResolverStatistics:
        """Give the counts of this moment."""
        running = sum(1 for lookup in self._running.values() if lookup.started is not None)
        return ResolverStatistics(
            names=len(self._cache),
            running=running,
            queued=len(self._running) - running,
            threads=len(self._threads),
            stuck=self._stuck(),
        )

    async def aclose(self) -> int:
        """End the threads; those who wait get ResolveFailed. Gives the number of threads left in a stuck
        look-up.
        """
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        if self._check is not None:
            self._check.cancel()
        for lookup in list(self._running.values()):
            for waiter in lookup.waiters:
                if not waiter.done():
                    waiter.set_exception(
                        ResolveFailed(
                            f"cannot resolve {lookup.name}: the client was closed", host=lookup.name
                        )
                    )
        threads = list(self._threads)
        stuck = sum(1 for lookup in self._running.values() if lookup.started is not None)
        for _ in range(50):
            # Idle threads leave within microseconds; those in a look-up are not waited for. Nothing is
            # joined: that
            # would block the loop.
            if sum(1 for thread in threads if thread.is_alive()) <= stuck:
                break
            await asyncio.sleep(0.001)
        return sum(1 for thread in threads if thread.is_alive())


def _expire(waiter: asyncio.Future[Addresses], name: str, timeout: float) -> None:
    if not waiter.done():
        error = ResolveFailed(
            f"cannot resolve {name}: no answer within {timeout:g} s", host=name, elapsed=timeout
        )
        waiter.set_exception(error)


def _translate(name: str, error: Exception) -> ResolveFailed:
    """Say it in our words; a name that does not exist is permanent, anything else is of the moment."""
    permanent = isinstance(error, UnicodeError) or (
        isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME
    )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    failed = ResolveFailed(
        f"cannot resolve {name}: {reason}",
        host=name,
        disposition=Disposition.PERMANENT if permanent else Disposition.TRANSIENT,
    )
    failed.__cause__ = error
    return failed
