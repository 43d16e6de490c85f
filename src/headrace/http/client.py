"""The client: one libcurl multi, its handles, one resolver, for one event loop.

Rules:
1. Requests are admitted by limits, never queued in libcurl.
2. A call is one or more hops. Each of them is admitted by limits, under its own host's key, and charged to rates.
3. Whatever ends a request (answer, error, cancellation) frees its connection at once, and its handle serves
   the next one.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from random import Random
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from headrace.aio.disk import Disk
from headrace.aio.gate import Gate
from headrace.errors import CallError, PlanError
from headrace.http.bodies import UNSET, Body, Unset, Upload, encode
from headrace.http.errors import ClientClosed, TooManyRedirects
from headrace.http.exchange import Connector, Pool, Transport, stand_in
from headrace.http.guard import Guard
from headrace.http.headers import HeaderValue, Outgoing, compile_headers
from headrace.http.multipart import FileContent, encode_form
from headrace.http.permits import Permits, rate_hint
from headrace.http.profile import SAFE_METHODS, Profile, Timeouts, idle_connections
from headrace.http.redirects import REDIRECTS, Hop, next_hop
from headrace.http.resolver import Resolver
from headrace.http.response import Response, ResponseHead
from headrace.http.secrets import Secret
from headrace.http.status import Accept, parse_accept, refuse
from headrace.http.streaming import Answer, Answered, Exchange, StreamedCall, StreamedResponse
from headrace.http.transport import CurlTransport
from headrace.http.url import Url, mask, parse
from headrace.policies.limits import Limit
from headrace.ports import Call, current_call

if TYPE_CHECKING:
    from headrace.http.robots import Robots

__all__ = ["Client", "ClientStatistics", "Template", "check_method"]

MAX_BODY: Final = 32 * 1024 * 1024

AskFirst = Callable[[Url], Awaitable[None]]
HeadersLike = Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]]


@dataclasses.dataclass(frozen=True, slots=True)
class ClientStatistics:
    """A client at one moment. `connections` counts those opened so far, `rebuilt` failures of the
    transport as a whole.
    """

    requests: int
    in_flight: int
    failures: int
    connections: int
    bytes_received: int
    rebuilt: int
    resolver_threads: int


@dataclasses.dataclass(slots=True, eq=False)
class Template:
    """What many requests of one client have in common, checked and compiled once. Made by
    `Client.prepare`.

    `ask_first` is awaited before each hop. With `cut`, of a body that is too large the beginning is the answer.
    """

    method: str
    headers: Outgoing
    accept: Accept
    profile: Profile
    max_body: int | None
    follow: bool
    has_body: bool
    pool: Pool
    most_redirects: int
    ask_first: AskFirst | None = None
    cut: bool = False


class Client:
    """An HTTP client over libcurl; use it with `async with`, in one event loop.

    Args:
        headers: Sent with every request. `Secret` values and `{env:NAME}` are never shown, and not sent to another origin
            by a redirect.
        auth: The credentials of every request: `hr.http.basic(user, password)` or `hr.http.bearer(token)`.
        cookies: Keep cookies and send them where they belong (libcurl's jar, in memory, one a client). Off, since a bulk
            of requests seldom is one visitor.
        proxy: http://, https://, socks4a:// or socks5h://, with user and password where it wants them. The environment's
            variables are not read.
        unix_socket: The path of a socket that takes all requests, whatever their host.
        http_version: The highest to speak: "2" where the server offers it over TLS, "3" where libcurl has it.
        ca_file, certificate, key, key_password: PEM files: who is trusted, and who we are. `certificate` may hold the key.
        guard: Refuses addresses that are not public.
        max_body: The cap on the decoded body in bytes; None for none.
        limits: Taken around each request, but for those that the flow which makes the call has taken for it.
        downgrade: Allow redirects from https to http.
        connections: How many are kept open when idle.
        transport: What takes the place of the network, as `headrace.testing.ScriptedHttp` does.

    Raises PlanError for options that cannot work.
    """

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        headers: HeadersLike | None = None,
        user_agent: str = "",
        proxy: str | Secret | None = None,
        http_version: Literal["1.1", "2", "3"] = "2",
        auth: Secret | None = None,
        cookies: bool = False,
        ca_file: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        key_password: str | Secret | None = None,
        unix_socket: str | None = None,
        guard: Guard | None = None,
        max_body: int | None = MAX_BODY,
        max_redirects: int = 10,
        downgrade: bool = False,
        limits: Sequence[Limit] = (),
        connections: int | None = None,
        resolver: Resolver | None = None,
        transport: Connector | None = None,
    ) -> None:
        self._profile = Profile(
            timeouts=timeouts or Timeouts(),
            user_agent=user_agent,
            proxy=proxy,
            http_version=http_version,
            ca_file=ca_file,
            certificate=certificate,
            guard=guard,
            key=key,
            key_password=key_password,
            unix_socket=unix_socket,
            cookies=cookies,
        )
        self._profiles = {self._profile.timeouts: self._profile}
        self._headers = tuple(headers.items() if isinstance(headers, Mapping) else headers or ())
        if auth is not None:
            self._headers = (*self._headers, ("Authorization", auth))
        self._max_body = max_body
        self._max_redirects = max_redirects
        self._downgrade = downgrade
        self._limits = tuple(limits)
        self._connections = connections or idle_connections()
        self._resolver = resolver
        self._owns_resolver = resolver is None
        self._templates: dict[str, Template] = {}
        self._robots: dict[tuple[str, Profile], Robots] = {}
        self._transport: Transport | None = None
        self._connector = transport
        self._clock: Callable[[], float] = perf_counter
        self._gate = Gate()
        self._rng = Random()
        self._closed = False
        self._disk: Disk | None = None
        self._failures = 0
        compile_headers(self._headers)
        self._profile.check()
        if transport is not None and not callable(getattr(transport, "connect", None)):
            raise PlanError(f"transport={transport!r}: give a headrace.testing.ScriptedHttp, or leave it out")

    # ----------------------------------------------------------------------------------------------- requests

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersLike | None = None,
        body: Body | None = None,
        data: Mapping[str, Any] | None = None,
        files: Mapping[str, FileContent] | None = None,
        json: Any = UNSET,
        accept: str = "2xx",
        timeouts: Timeouts | None = None,
        max_body: int | Unset | None = UNSET,
        follow: bool = True,
        item: Any = None,
    ) -> Response:
        """Make one call and give its answer, redirects followed.

        At most one of `body`, `data` (a form) and `json` is sent. A `body` is bytes or text as they are, or what is read
        while it is sent: a file by its path, or an iterable of bytes, asynchronous or not. With `files` the form has files:
        name → path, bytes, or (file name, contents or path[, content type]). Raises StatusError for a status that
        `accept` does not list ("any" takes them all), another HttpError where there is no answer,
        PlanError for arguments that cannot work. Cancelling closes the connection at once; the server may
        have processed the request all the same.
        """
        sent, content_type = encode_form(data, files, body, json) if files else encode(body, data, json)
        plain = sent is None and headers is None and timeouts is None and max_body is UNSET
        if plain and follow and accept == "2xx":
            template = self._templates.get(method) or self.prepare(method)
            self._templates[method] = template
        else:
            template = self.prepare(
                method,
                headers=headers,
                accept=accept,
                timeouts=timeouts,
                max_body=max_body,
                follow=follow,
                has_body=sent is not None,
                content_type=content_type,
            )
        if isinstance(sent, Upload):
            async with self._stream(template, url, sent, item) as streamed:
                return await streamed.whole()
        return await self.send(template, url, body=sent, item=item)

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersLike | None = None,
        body: Body | None = None,
        data: Mapping[str, Any] | None = None,
        files: Mapping[str, FileContent] | None = None,
        json: Any = UNSET,
        accept: str = "2xx",
        timeouts: Timeouts | None = None,
        max_body: int | None = None,
        follow: bool = True,
        item: Any = None,
    ) -> StreamedCall:
        """Make one call whose answer is read while it comes: `async with client.stream("GET", url) as response:`, then
        `async for chunk in response`.

        The block begins when the headers are there; limits are held until it ends. Leaving it closes the connection at once,
        unless the body was read to its end. There is no `total` limit unless `timeouts` sets one, and no cap on the body
        unless `max_body` does. Otherwise as `request`.
        """
        sent, content_type = encode_form(data, files, body, json) if files else encode(body, data, json)
        template = self.prepare(
            method,
            headers=headers,
            accept=accept,
            timeouts=timeouts or self._profile.timeouts.without_total(),
            max_body=max_body,
            follow=follow,
            has_body=sent is not None,
            content_type=content_type,
        )
        return self._stream(template, url, sent, item)

    def _stream(
        self,
        template: Template,
        url: str,
        body: bytes | Upload | None,
        item: Any,
        extra: Sequence[str] = (),
        keyed_by: Any = None,
    ) -> StreamedCall:
        async def begin() -> Answered[StreamedResponse]:
            return await self._call(self._bound().open, template, url, body, (extra, ()), item, keyed_by)

        return StreamedCall(begin, self._rng)

    def open(
        self,
        template: Template,
        url: str,
        *,
        extra: Sequence[str] = (),
        item: Any = None,
        keyed_by: Any = None,
    ) -> StreamedCall:
        """Make one call from a template whose answer is read while it comes: what `stream` is to `request`, this is to
        `send`.
        """
        return self._stream(template, url, None, item, extra, keyed_by)

    @property
    def disk(self) -> Disk:
        """Threads for what waits for a disk; they end with the client."""
        if self._disk is None:
            self._disk = Disk()
        return self._disk

    async def get(self, url: str, **options: Any) -> Response:
        """GET; see `request`."""
        return await self.request("GET", url, **options)

    async def head(self, url: str, **options: Any) -> Response:
        """HEAD; see `request`."""
        return await self.request("HEAD", url, **options)

    async def post(self, url: str, **options: Any) -> Response:
        """POST; see `request`."""
        return await self.request("POST", url, **options)

    async def put(self, url: str, **options: Any) -> Response:
        """PUT; see `request`."""
        return await self.request("PUT", url, **options)

    async def patch(self, url: str, **options: Any) -> Response:
        """PATCH; see `request`."""
        return await self.request("PATCH", url, **options)

    async def delete(self, url: str, **options: Any) -> Response:
        """DELETE; see `request`."""
        return await self.request("DELETE", url, **options)

    def prepare(
        self,
        method: str,
        *,
        headers: HeadersLike | None = None,
        accept: str = "2xx",
        timeouts: Timeouts | None = None,
        max_body: int | Unset | None = UNSET,
        follow: bool = True,
        has_body: bool = False,
        content_type: str | None = None,
    ) -> Template:
        """Check and compile what many requests have in common, for `send`. Raises PlanError."""
        check_method(method)
        own = headers.items() if isinstance(headers, Mapping) else headers or ()
        own = tuple(own)
        replaced = {name.lower() for name, _ in own}
        merged = compile_headers((*(pair for pair in self._headers if pair[0].lower() not in replaced), *own))
        if has_body:
            # libcurl would wait for «100 Continue» before large bodies, and call every body a form.
            merged = merged.plus(["Expect:"])
            if "content-type" not in merged.names:
                merged = merged.plus([f"Content-Type: {content_type}" if content_type else "Content-Type:"])
        profile = self._profile if timeouts is None else self._profiles.get(timeouts)
        if profile is None:
            assert timeouts is not None
            profile = self._profiles[timeouts] = dataclasses.replace(self._profile, timeouts=timeouts)
        return Template(
            method=method,
            headers=merged,
            accept=parse_accept(accept),
            profile=profile,
            max_body=self._max_body if isinstance(max_body, Unset) else max_body,
            follow=follow,
            has_body=has_body,
            pool=self._bound().pool(profile, method, has_body),
            most_redirects=self._max_redirects,
        )

    def obey_robots(self, template: Template) -> None:
        """Let each request of a template ask robots.txt before; what that says is kept with the client."""
        from headrace.http.robots import MOST_READ, MOST_REDIRECTS, Robots

        named = next((line for line in template.headers.public if line[:11].lower() == "user-agent:"), None)
        agent = named[11:].strip() if named else self._profile.user_agent
        key = (agent, template.profile)
        robots = self._robots.get(key)
        if robots is None:
            asking = self.prepare(
                "GET",
                headers=None if named is None else {"User-Agent": agent},
                timeouts=template.profile.timeouts,
                max_body=MOST_READ + 1,  # so that it can be seen that there is more
            )
            asking.most_redirects, asking.cut = MOST_REDIRECTS, True
            robots = self._robots[key] = Robots(self, asking, agent)
        template.ask_first = robots.check

    async def send(
        self,
        template: Template,
        url: str,
        *,
        body: bytes | Upload | None = None,
        extra: Sequence[str] = (),
        secret: Sequence[str] = (),
        item: Any = None,
        keyed_by: Any = None,
    ) -> Response:
        """Make one call from a template; `extra` are header lines of this call alone and `secret` those of them that are
        credentials, `keyed_by` is the value of a stage whose keys are those of the URL. Otherwise as `request`.
        """
        lines = (extra, secret)
        answered = await self._call(self._bound().exchange, template, url, body, lines, item, keyed_by)
        if answered.permits is not None:
            answered.permits.leave("success")
        return answered.response

    async def _call(
        self,
        exchange: Exchange[Answer],
        template: Template,
        url: str,
        body: bytes | Upload | None,
        lines: tuple[Sequence[str], Sequence[str]],
        item: Any,
        keyed_by: Any,
    ) -> Answered[Answer]:
        """Make one call to its answer. What it holds of limits is given with the answer; raising, it holds nothing."""
        hop = _first_hop(template, url, body, *lines)
        guard = template.profile.guard
        if guard is not None:
            guard.check(hop.url)
        if template.ask_first is not None:
            await template.ask_first(hop.url)
        call = current_call.get(None)
        permits: Permits | None = None
        if self._limits or (call is not None and not call.covers(url, keyed_by)):
            permits = Permits(self._gate, self._limits, call)
            await permits.enter(hop.url.text)
        try:
            began = self._clock()
            response = await exchange(
                template.profile, template.pool, hop, template.max_body, began, template.cut
            )
            if permits is not None or (call is not None and call.is_limited):
                self._heed(response, permits, call)
            if response.status in REDIRECTS and template.follow:
                permits = permits or Permits(self._gate, (), call)
                response = await self._follow(exchange, template, hop, response, began, permits, call)
            elif response.status not in template.accept:
                raise refuse(hop.method, response, await response.beginning())
        except BaseException as error:
            if isinstance(error, CallError):
                self._failures += 1
            if permits is not None:
                permits.fail(error, self._rng)
            raise
        response.item = item
        if hop.url.userinfo is None:
            response.url = url
        if call is not None:
            response.attempts = call.attempt
        return Answered(response, permits)

    # ------------------------------------------------------------------------------------------------ hops

    async def _follow(
        self,
        exchange: Exchange[Answer],
        template: Template,
        hop: Hop,
        response: Answer,
        began: float,
        permits: Permits,
        call: Call | None,
    ) -> Answer:
        """Follow redirects from the first answer on, each hop under its limits. The first request was sent,
        whatever becomes of the others.
        """
        url, count, profile = response.url, 0, template.profile
        try:
            while (following := next_hop(hop, response, downgrade=self._downgrade)) is not None:
                count += 1
                if count > template.most_redirects:
                    raise _too_many(hop, template.most_redirects)
                if profile.guard is not None:
                    profile.guard.check(following.url)
                await response.aclose()
                waited = self._clock()
                if template.ask_first is not None:
                    permits.leave("success")  # it makes a request itself, and may wait for another one
                    await template.ask_first(following.url)
                if self._limits or (call is not None and not call.covers(following.url.text)):
                    await permits.enter(following.url.text, is_answered=True)
                began += self._clock() - waited  # waiting for a limit is no part of the call
                hop = following
                pool = self._bound().pool(profile, hop.method, hop.body is not None)
                response = await exchange(profile, pool, hop, template.max_body, began, template.cut)
                if self._limits or (call is not None and call.is_limited):
                    self._heed(response, permits, call)
            if response.status not in template.accept:
                raise refuse(hop.method, response, await response.beginning())
        except BaseException as error:
            await response.aclose()
            if isinstance(error, CallError) and template.method not in SAFE_METHODS:
                error.ambiguous = True
            raise
        response.url, response.redirects = url, count
        return response

    def _heed(self, response: ResponseHead, permits: Permits | None, call: Call | None) -> None:
        """Tell the limits of an answer what it says of its server's rate."""
        hint = rate_hint(response)
        if hint is None:
            return
        if permits is not None:
            permits.hint(hint, self._rng)
        if call is not None:
            call.hint(hint)

    # ------------------------------------------------------------------------------------------------ life

    def _bound(self) -> Transport:
        """Give the transport, made in the loop of the first request. Raises ClientClosed, or PlanError in
        another loop.
        """
        transport = self._transport
        if transport is None:
            transport = self._transport = self._connect(asyncio.get_running_loop())
            self._clock = transport.clock
        elif transport.loop is not asyncio.get_running_loop():
            raise PlanError("a Client belongs to the event loop of its first request: open one in each loop")
        return transport

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Transport:
        if self._closed:
            raise ClientClosed("the client is closed: open another one", ambiguous=False)
        connector = self._connector or stand_in()
        if connector is not None:
            return connector.connect(loop)
        self._resolver = self._resolver or Resolver()
        return CurlTransport(loop, self._resolver, self._connections)

    async def aclose(self) -> None:
        """Close all connections; calls under way fail with ClientClosed. Repeatable; never blocks the
        loop.
        """
        self._closed = True
        if self._disk is not None:
            self._disk.close()
        if self._transport is not None:
            await self._transport.aclose()
        if self._resolver is not None and self._owns_resolver:
            await self._resolver.aclose()

    async def __aenter__(self) -> Client:
        self._bound()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def statistics(self) -> ClientStatistics:
        """Give the counts of this moment."""
        transport, resolver = self._transport, self._resolver
        return ClientStatistics(
            requests=transport.requests if transport else 0,
            in_flight=transport.in_flight if transport else 0,
            failures=self._failures,
            connections=transport.connects if transport else 0,
            bytes_received=transport.received if transport else 0,
            rebuilt=transport.rebuilt if transport else 0,
            resolver_threads=resolver.statistics().threads if resolver else 0,
        )

    def __repr__(self) -> str:
        now = self.statistics()
        state = "closed" if self._closed else f"{now.in_flight} in flight"
        return f"<Client {state}, {now.requests} requests, {now.connections} connections>"


def _first_hop(
    template: Template, url: str, body: bytes | Upload | None, extra: Sequence[str], secret: Sequence[str]
) -> Hop:
    """Give the first request of a call."""
    parsed = parse(url)
    headers = template.headers
    if extra:
        headers = headers.plus(extra)
    if secret:
        headers = headers.plus(secret, secret=True)
    if parsed.userinfo is not None and "authorization" not in headers.names:
        headers = headers.plus([_basic(parsed.userinfo)], secret=True)
    return Hop(template.method, parsed, headers, body)


def check_method(method: str) -> None:
    """Refuse what cannot be a method. Raises PlanError."""
    if not (method.isascii() and method.isalpha() and method.isupper()):
        raise PlanError(f"method {method!r} is not allowed: write it in capitals, like GET")


def _basic(userinfo: tuple[str, str]) -> str:
    return "Authorization: Basic " + base64.b64encode(":".join(userinfo).encode()).decode("ascii")


def _too_many(hop: Hop, most: int) -> TooManyRedirects:
    shown = mask(hop.url.text)
    return TooManyRedirects(f"{hop.method} {shown}: more than {most} redirects", url=shown, host=hop.url.key)
