"""One libcurl multi with its handles, the resolver and the watch: one request in, one answer out.

Rules:
1. Whatever ends a request (answer, error, cancellation) frees its connection at once, and its handle serves
   the next one.
2. A multi that fails takes its transfers with it, as transient failures, and is replaced.
3. Nothing is queued in libcurl and nothing is resolved by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from time import perf_counter
from typing import Final

import pycurl  # type: ignore[import-untyped]

from headrace.http.errors import ClientClosed, ConnectionLost, HttpError, ResolveFailed, TotalTimedOut
from headrace.http.headers import NO_HEADERS
from headrace.http.profile import Profile
from headrace.http.redirects import REDIRECTS, Hop
from headrace.http.resolver import Addresses, Resolver
from headrace.http.response import Response
from headrace.http.scouting import Scouts
from headrace.http.transfer import Handle, Multi, MultiFailed
from headrace.http.translate import translate
from headrace.http.url import mask
from headrace.http.watch import Watch

__all__ = ["Pool", "Transport"]

IDLE_HANDLES: Final = 1024
MAX_LOADED: Final = 10_000
SOON: Final = 0.01  # seconds of a call that are not worth a change of its total limit

Pool = list[Handle]


class Transport:
    """The part of a client that touches the network. Bound to one event loop.

    `connections` is how many are kept open when idle.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, resolver: Resolver, connections: int) -> None:
        self.loop = loop
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
        self._closed = False

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self._flying)

    def pool(self, profile: Profile, method: str, has_body: bool) -> Pool:
        """Give the idle handles of one kind."""
        return self._pools.setdefault((profile, method, has_body), [])

    async def exchange(
        self, profile: Profile, pool: Pool, hop: Hop, max_body: int | None, began: float
    ) -> Response:
        """Send one request and give its answer, whatever the status. `began` (perf_counter) is when the call
        did.

        Raises HttpError. Cancelling closes the connection at once.
        """
        url = hop.url
        entry: str | None = None
        addresses: Addresses | None = None
        waited = 0.0
        if profile.proxy is not None or not url.literal:
            host, port = profile.proxy_host or (url.host, url.port)
            addresses, waited = await self._resolve(host, hop, profile)
            if self._loaded.get(f"{host}:{port}") is not addresses:
                entry = addresses.entry(host, port)
        if url.scheme == "https" and profile.http2:
            response = await self._scout(profile, pool, hop, max_body, began, waited, entry)
        else:
            response = await self._fly(profile, pool, hop, max_body, began, waited, entry)
        if addresses is not None and entry is not None:
            self._remember(f"{host}:{port}", addresses)
        return response

    async def _scout(
        self,
        profile: Profile,
        pool: Pool,
        hop: Hop,
        max_body: int | None,
        began: float,
        waited: float,
        entry: str | None,
    ) -> Response:
        """Send a request to a host that may speak HTTP/2, as its scout where it is unknown."""
        scouts, key = self._scouts, hop.url.key
        shared = scouts.multiplexes(key)
        scouting = shared is None and await scouts.may_go_ahead(key)
        try:
            response = await self._fly(
                profile,
                pool,
                hop,
                max_body,
                began,
                waited,
                entry,
                shared=bool(shared),
                on_ready=scouts.arrived if scouting else None,
            )
            scouts.learn(key, response.multiplexed)
            return response
        finally:
            if scouting:
                scouts.done(key)

    async def _fly(
        self,
        profile: Profile,
        pool: Pool,
        hop: Hop,
        max_body: int | None,
        began: float,
        waited: float,
        entry: str | None,
        *,
        shared: bool = False,
        on_ready: Callable[[str], None] | None = None,
    ) -> Response:
        """Run one transfer on a handle of the pool, from its start to its answer."""
        multi = self._multi
        if self._closed:
            raise _closed(hop)
        if multi.broken:
            multi = await self._rebuild()
        gone = perf_counter() - began
        left = _left(hop, profile, gone) if gone > SOON else None
        method, url, headers, body = hop
        handle = pool.pop() if pool else Handle(profile, method, body is not None, self.loop.time)
        keep = True
        try:
            handle.prepare(url, headers.lines, body, max_body, entry, shared)
            handle.began, handle.on_ready = began, on_ready
            if left is not None:
                handle.limit_time(left)
            self.requests += 1
            self._flying.add(handle)
            self._watch.need(self.loop, profile)
            await multi.add_handle(handle.curl)
            if not handle.head_is_whole():
                raise _head_cut(hop, perf_counter() - began)
            return self._answer(handle, waited, began)
        except pycurl.error as error:
            if _is_cut_redirect(handle):
                return self._answer(handle, waited, began)
            raise translate(error, handle.progress(perf_counter() - began)) from error
        except MultiFailed as error:
            keep = False
            raise self._broken(hop, error) from error
        finally:
            self._flying.discard(handle)
            self._give_back(handle, pool, keep)

    def _answer(self, handle: Handle, waited: float, began: float) -> Response:
        """Read what the transfer brought, before its handle serves the next one."""
        getinfo = handle.curl.getinfo
        body = handle.take_body()
        self.received += len(body)
        self.connects += getinfo(pycurl.NUM_CONNECTS)
        return Response(
            handle.url.text,
            getinfo(pycurl.RESPONSE_CODE),
            tuple(handle.head),
            body,
            (
                waited,
                getinfo(pycurl.NAMELOOKUP_TIME),
                getinfo(pycurl.CONNECT_TIME),
                getinfo(pycurl.APPCONNECT_TIME),
                getinfo(pycurl.PRETRANSFER_TIME),
                getinfo(pycurl.STARTTRANSFER_TIME),
                perf_counter() - began,
            ),
            getinfo(pycurl.INFO_HTTP_VERSION),
            time.time(),
        )

    async def _resolve(self, host: str, hop: Hop, profile: Profile) -> tuple[Addresses, float]:
        """Give the addresses of a name and the seconds that it took."""
        began = perf_counter()
        try:
            addresses = self._resolver.peek(host, self.loop.time())
            if addresses is not None:
                return addresses, 0.0
            addresses = await self._resolver.resolve(host, profile.timeouts.resolve)
        except ResolveFailed as error:
            error.url, error.host, error.elapsed = mask(hop.url.text), hop.url.key, perf_counter() - began
            raise
        return addresses, perf_counter() - began

    def _remember(self, key: str, addresses: Addresses) -> None:
        """Note what libcurl knows now. It forgets the oldest of 30 000 names, so we count on fewer."""
        if len(self._loaded) >= MAX_LOADED:
            self._loaded.clear()
        self._loaded[key] = addresses

    def _give_back(self, handle: Handle, pool: Pool, keep: bool) -> None:
        handle.clear()
        if keep and not self._closed and len(pool) < IDLE_HANDLES:
            pool.append(handle)
        else:
            handle.close()

    # ------------------------------------------------------------------------------------------------ endings

    def _end(self, handle: Handle, error: HttpError) -> None:
        """End a transfer with an error of ours."""
        self._multi.end(handle.curl, error)

    def _broken(self, hop: Hop, error: MultiFailed) -> ClientClosed:
        shown = mask(hop.url.text)
        return ClientClosed(
            f"{hop.method} {shown}: the transport failed and is rebuilt: {error}", url=shown, host=hop.url.key
        )

    async def _rebuild(self) -> Multi:
        """Replace a broken multi. Its connections are closed; libcurl's table of names goes with it."""
        old, self._multi = self._multi, Multi(self._connections)
        self._loaded.clear()
        self.rebuilt += 1
        await old.aclose()
        return self._multi

    async def aclose(self) -> None:
        """End all that is under way with ClientClosed and close every connection. Repeatable."""
        if self._closed:
            return
        self._closed = True
        self._watch.stop()
        for handle in list(self._flying):
            self._multi.end(handle.curl, _closed(Hop(handle.method, handle.url, NO_HEADERS, None)))
        await self._multi.aclose()
        for pool in self._pools.values():
            while pool:
                pool.pop().close()
        self._pools.clear()


def _closed(hop: Hop) -> ClientClosed:
    shown = mask(hop.url.text)
    return ClientClosed(f"{hop.method} {shown}: the client was closed", url=shown, host=hop.url.key)


def _head_cut(hop: Hop, elapsed: float) -> ConnectionLost:
    shown = mask(hop.url.text)
    return ConnectionLost(
        f"{hop.method} {shown}: the connection ended within the headers of the answer, after {elapsed:.3g} s",
        url=shown,
        host=hop.url.key,
        elapsed=elapsed,
    )


def _left(hop: Hop, profile: Profile, gone: float) -> float | None:
    """What the call has left of its total limit, after a resolve or a redirect."""
    total = profile.timeouts.total
    if total is None:
        return None
    if gone >= total:
        shown = mask(hop.url.text)
        raise TotalTimedOut(
            f"{hop.method} {shown}: not finished within its total time limit of {total:g} s",
            url=shown,
            host=hop.url.key,
            phase="redirect",
            elapsed=gone,
        )
    return total - gone


def _is_cut_redirect(handle: Handle) -> bool:
    """Whether the transfer was ended by us because nobody reads the body of a redirect."""
    return (
        handle.limit is not None
        and handle.size > handle.limit
        and bool(handle.head)
        and handle.curl.getinfo(pycurl.RESPONSE_CODE) in REDIRECTS
    )
