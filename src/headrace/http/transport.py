"""One libcurl multi with its handles, the resolver and the watch: one request in, one answer out.

Rules:
1. Whatever ends a request (answer, error, cancellation) frees its connection at once, and its handle serves
   the next one.
2. A multi that fails takes its transfers with it, as transient failures, and is replaced.
3. Nothing is queued in libcurl and nothing is resolved by it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from time import perf_counter
from typing import Any, Final, NamedTuple

import pycurl  # type: ignore[import-untyped]

from headrace.aio.disk import Disk
from headrace.aio.tasks import TaskOwner
from headrace.http.errors import ClientClosed, HttpError, ResolveFailed
from headrace.http.exchange import Pool, closed, head_cut, time_left
from headrace.http.guard import Guard
from headrace.http.headers import NO_HEADERS
from headrace.http.profile import Profile
from headrace.http.redirects import REDIRECTS, Hop
from headrace.http.resolver import Addresses, Resolver
from headrace.http.response import Response
from headrace.http.scouting import Scouts
from headrace.http.streaming import GRACE, StreamedResponse, StreamHandle, pump
from headrace.http.transfer import Handle, Multi, MultiFailed
from headrace.http.translate import translate
from headrace.http.url import Url, mask
from headrace.http.watch import Watch

__all__ = ["CurlTransport"]

IDLE_HANDLES: Final = 1024
MAX_LOADED: Final = 10_000
LOOKED_AT_WITHIN: Final = 1.2  # seconds; libcurl looks for dead connections among idle ones once a second
SOON: Final = 0.01  # seconds of a call that are not worth a change of its total limit


class _Located(NamedTuple):
    """Addresses that libcurl is told with a request: `entry` is their text, `key` host:port."""

    key: str
    addresses: Addresses
    entry: str


class CurlTransport:
    """The part of a client that touches the network. Bound to one event loop.

    `connections` is how many are kept open when idle.
    """

    clock = staticmethod(perf_counter)

    def __init__(self, loop: asyncio.AbstractEventLoop, resolver: Resolver, connections: int) -> None:
        self.loop = loop
        self.disk = Disk()
        self.requests = 0
        self.connects = 0
        self.received = 0
        self.rebuilt = 0
        self._resolver = resolver
        self._connections = connections
        self._pools: dict[tuple[Profile, str, bool], Pool] = {}
        self._loaded: dict[str, Addresses] = {}
        self._scouts = Scouts()
        self._watch = Watch(self._end)
        self._flying = self._watch.flying
        self._multi = Multi(connections)
        self._cookies: Any = None
        self._suspects: dict[
            str, float
        ] = {}  # keys that may have a dead connection among the kept ones, and until when
        self._closed = False

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self._flying)

    def pool(self, profile: Profile, method: str, has_body: bool) -> Pool:
        """Give the idle handles of one kind."""
        return self._pools.setdefault((profile, method, has_body), [])

    async def exchange(
        self,
        profile: Profile,
        pool: Pool,
        hop: Hop,
        max_body: int | None,
        began: float,
        cut: bool = False,
    ) -> Response:
        """Send one request and give its answer, whatever the status. `began` (perf_counter) is when the call
        did. With `cut`, a body that is too large ends at `max_body`.

        Raises HttpError. Cancelling closes the connection at once.
        """
        waited, fresh, shared, scouting = await self._reach(hop, profile)
        handle: Handle | None = None
        try:
            if self._multi.broken:
                await self._rebuild()
            handle = pool.pop() if pool else Handle(profile, hop.method, hop.body is not None, self.loop.time)
            self._share(handle)
            self._ready(handle, hop, max_body, began, fresh, shared, scouting)
            await self._multi.start(handle.curl)
            return self._answer(handle, hop, waited, began)
        except (pycurl.error, MultiFailed) as error:
            if handle is None:
                raise
            if _is_cut(handle, cut):
                return self._answer(handle, hop, waited, began)
            raise self._failed(error, handle, hop, began) from error
        finally:
            if scouting:
                self._scouts.done(hop.url.key)
            if handle is not None:
                self._let_go(handle, pool)

    async def open(
        self, profile: Profile, _pool: Pool, hop: Hop, max_body: int | None, began: float, _cut: bool = False
    ) -> StreamedResponse:
        """Send one request and give its answer when the headers are there, whatever the status; who takes it closes it.

        Raises HttpError, or what reading the body of the request raised. Cancelling closes the connection at once.
        """
        waited, fresh, shared, scouting = await self._reach(hop, profile)
        handle: StreamHandle | None = None
        pumping: TaskOwner | None = None
        is_open = False
        try:
            if self._multi.broken:
                await self._rebuild()
            handle = StreamHandle(profile, hop.method, hop.body, self.loop.time)
            self._share(handle)
            handle.usable = False
            self._ready(handle, hop, max_body, began, fresh, shared, scouting)
            future = self._multi.start(handle.curl)
            future.add_done_callback(handle.transfer_ended)
            if handle.upload is not None:
                pumping = TaskOwner(on_error=functools.partial(self._multi.end, handle.curl))
                pumping.start(pump(handle.upload, handle, self.disk), "headrace-upload")
            while not handle.headed and not future.done():
                await handle.arrival()
            if not handle.headed:
                future.result()
            head = self._head(handle, hop, waited, began)
            is_open = True
            return StreamedResponse(
                handle,
                future,
                pumping,
                functools.partial(self._failed, handle=handle, hop=hop, began=began),
                functools.partial(self._end_stream, handle),
                hop.url.text,
                handle.curl.getinfo(pycurl.RESPONSE_CODE),
                tuple(handle.head),
                head,
                time.time(),
            )
        except (pycurl.error, MultiFailed) as error:
            if handle is None:
                raise
            raise self._failed(error, handle, hop, began) from error
        finally:
            if scouting:
                self._scouts.done(hop.url.key)
            if handle is not None and not is_open:
                self._let_go(handle, [])
                if pumping is not None:
                    await pumping.cancel(GRACE)

    async def _reach(self, hop: Hop, profile: Profile) -> tuple[float, _Located | None, bool, bool]:
        """Find where a hop leads: the seconds that took, what libcurl does not know of it yet, whether its connections are
        known to be shared, and whether it goes ahead of others to find that out.
        """
        url = hop.url
        waited, fresh, shared = 0.0, None, None if url.scheme == "https" and profile.may_share else False
        if (profile.proxy is not None or not url.literal) and profile.unix_socket is None:
            waited, fresh = await self._locate(hop, profile)
        if shared is None:
            shared = self._scouts.multiplexes(url.key)
        scouting = shared is None and await self._scouts.may_go_ahead(url.key)
        return waited, fresh, shared or False, scouting

    def _share(self, handle: Handle) -> None:
        """Let a handle use the cookies of all, where the client keeps them."""
        if handle.profile.cookies and not handle.shares:
            if self._cookies is None:
                self._cookies = pycurl.CurlShare()
                self._cookies.setopt(pycurl.SH_SHARE, pycurl.LOCK_DATA_COOKIE)
            handle.curl.setopt(pycurl.SHARE, self._cookies)
            handle.shares = True

    def _ready(
        self,
        handle: Handle,
        hop: Hop,
        max_body: int | None,
        began: float,
        fresh: _Located | None,
        shared: bool,
        scouting: bool,
    ) -> None:
        """Set a handle up for one request. From here on it is in flight."""
        if self._closed:
            raise closed(hop)
        self._flying.add(handle)
        gone = perf_counter() - began
        left = time_left(hop, handle.profile, gone) if gone > SOON else None
        url, headers, body = hop.url, hop.headers, hop.body
        handle.began = began
        handle.fresh = fresh
        if scouting:
            handle.on_ready = self._scouts.arrived
        self.requests += 1
        sent = body if isinstance(body, bytes) else None
        handle.prepare(url, headers.lines, sent, max_body, fresh.entry if fresh is not None else None, shared)
        if left is not None:
            handle.limit_time(left)
        if self._suspects and self._is_suspect(url.key):
            handle.connect_anew()
        self._watch.need(self.loop, handle.profile)

    def _is_suspect(self, key: str) -> bool:
        until = self._suspects.get(key)
        if until is not None and self.loop.time() >= until:
            del self._suspects[key]
            return False
        return until is not None

    def _answer(self, handle: Handle, hop: Hop, waited: float, began: float) -> Response:
        """Read what the transfer brought, before its handle serves the next one."""
        body = handle.take_body()
        self.received += len(body)
        clock = self._head(handle, hop, waited, began)
        return Response(
            hop.url.text,
            handle.curl.getinfo(pycurl.RESPONSE_CODE),
            tuple(handle.head),
            body,
            clock,
            time.time(),
        )

    def _head(
        self, handle: Handle, hop: Hop, waited: float, began: float
    ) -> tuple[float, float, float, float, float]:
        """Learn what the head of an answer tells, and give the seconds spent in each phase."""
        if not handle.head_is_whole():
            # libcurl takes that for an answer and keeps the connection, which is dead, until it looks at idle ones.
            self._suspects[hop.url.key] = self.loop.time() + LOOKED_AT_WITHIN
            raise head_cut(hop, perf_counter() - began)
        if handle.fresh is not None:
            self._remember(handle.fresh)
        getinfo = handle.curl.getinfo
        connected = getinfo(pycurl.CONNECT_TIME)
        secured = 0.0
        if connected:  # it is 0 on a kept connection
            self.connects += 1
            secured = getinfo(pycurl.APPCONNECT_TIME)
        sent = getinfo(pycurl.PRETRANSFER_TIME)
        first_byte = getinfo(pycurl.STARTTRANSFER_TIME) - sent
        if hop.url.scheme == "https":
            self._scouts.learn(hop.url.key, handle.multiplexed())
        return waited, connected, secured, first_byte, perf_counter() - began

    async def _locate(self, hop: Hop, profile: Profile) -> tuple[float, _Located | None]:
        """Resolve the host of a hop, or its proxy: the seconds that took, and what libcurl does not know
        yet.
        """
        host, port = profile.proxy_host or (hop.url.host, hop.url.port)
        key = f"{host}:{port}"
        began = perf_counter()
        try:
            addresses = self._resolver.peek(host, self.loop.time())
            if addresses is None:
                addresses = await self._resolver.resolve(host, profile.timeouts.resolve)
            if profile.guard is not None:
                addresses = self._permitted(profile.guard, hop.url, addresses)
        except ResolveFailed as error:
            error.url, error.host, error.elapsed = mask(hop.url.text), hop.url.key, perf_counter() - began
            raise
        if self._loaded.get(key) is addresses:
            return perf_counter() - began, None
        return perf_counter() - began, _Located(key, addresses, addresses.entry(host, port))

    def _permitted(self, guard: Guard, url: Url, addresses: Addresses) -> Addresses:
        """Leave out the addresses that the guard refuses. Raises AddressRefused where none is left."""
        good = guard.permitted(url, addresses.listed)
        if len(good) == len(addresses.listed):
            return addresses
        known = self._loaded.get(f"{url.host}:{url.port}")
        if known is not None and known.fresh_until == addresses.fresh_until and known.listed == tuple(good):
            return known
        return Addresses(good, addresses.fresh_until)

    def _remember(self, located: _Located) -> None:
        """Note what libcurl knows now. It forgets the oldest of 30 000 names, so we count on fewer."""
        if len(self._loaded) >= MAX_LOADED:
            self._loaded.clear()
        self._loaded[located.key] = located.addresses

    def _let_go(self, handle: Handle, pool: Pool) -> None:
        """End what may still be under way on a handle, and keep it for the next request."""
        self._multi.let_go(handle.curl)
        self._flying.discard(handle)
        handle.clear()
        if handle.usable and not self._closed and len(pool) < IDLE_HANDLES:
            pool.append(handle)
        else:
            handle.close()

    def _end_stream(self, handle: StreamHandle) -> None:
        """Close a stream; its connection is kept if the body had come to its end."""
        self.received += handle.size
        self._let_go(handle, [])

    def _failed(self, error: Exception, handle: Handle, hop: Hop, began: float) -> Exception:
        """Say why a transfer failed. An error that is not libcurl's is what it ended with itself."""
        if isinstance(error, MultiFailed):
            handle.usable = False
            shown = mask(hop.url.text)
            return ClientClosed(
                f"{hop.method} {shown}: the transport failed and is rebuilt: {error}",
                url=shown,
                host=hop.url.key,
            )
        if not isinstance(error, pycurl.error):
            return error
        return translate(error, handle.progress(perf_counter() - began))

    # ------------------------------------------------------------------------------------------------ endings

    def _end(self, handle: Handle, error: HttpError) -> None:
        """End a transfer with an error of ours."""
        self._multi.end(handle.curl, error)

    async def _rebuild(self) -> None:
        """Replace a broken multi. Its connections are closed; libcurl's table of names goes with it."""
        old, self._multi = self._multi, Multi(self._connections)
        self._loaded.clear()
        self.rebuilt += 1
        await old.aclose()

    async def aclose(self) -> None:
        """End all that is under way with ClientClosed and close every connection. Repeatable."""
        if self._closed:
            return
        self._closed = True
        self._watch.stop()
        self.disk.close()
        for handle in list(self._flying):
            self._multi.end(handle.curl, closed(Hop(handle.method, handle.url, NO_HEADERS, None)))
        await self._multi.aclose()
        for pool in self._pools.values():
            while pool:
                pool.pop().close()
        self._pools.clear()


def _is_cut(handle: Handle, cut: bool) -> bool:
    """Whether the transfer was ended by us because nobody reads more: of a redirect, or where it was asked for."""
    return (
        handle.limit is not None
        and handle.size > handle.limit
        and bool(handle.head)
        and (cut or handle.curl.getinfo(pycurl.RESPONSE_CODE) in REDIRECTS)
    )
