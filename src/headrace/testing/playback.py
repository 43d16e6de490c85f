"""The transport of a client that asks a script, not a network: replies come in the loop's time, under the client's limits.

Rules:
1. The limits of a request are those of the real transport; here they end it at their exact time.
2. What failed is judged by the same code as libcurl's failures.
3. Nothing that was played is left behind: each transfer is a task of this transport, and closing ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import pycurl  # type: ignore[import-untyped]

from headrace.aio.disk import Disk
from headrace.aio.tasks import TaskOwner
from headrace.errors import Disposition, PlanError
from headrace.http.bodies import Upload
from headrace.http.errors import ClientClosed, FirstByteTimedOut, HttpError, ResolveFailed, Stalled
from headrace.http.exchange import Pool, closed, head_cut, time_left
from headrace.http.headers import Headers
from headrace.http.profile import Profile, default_user_agent
from headrace.http.redirects import REDIRECTS, Hop
from headrace.http.response import Response
from headrace.http.streaming import GRACE, MOST_BUFFERED, StreamedResponse
from headrace.http.transfer import REDIRECT_BODY
from headrace.http.translate import Progress, translate
from headrace.http.url import mask
from headrace.http.watch import LEAST_RATE, too_late
from headrace.ports import current_call
from headrace.testing.replies import FaultMeaning, ScriptedReply, ScriptedRequest, Step

__all__ = ["Script", "ScriptedTransport"]

T = TypeVar("T")
CLOSE: Final = GRACE  # seconds that what is played has to end


class Script(Protocol):
    """Where a transport looks up what to play."""

    def take(self, request: ScriptedRequest) -> Step:
        """Record a request and give what answers it. Raises where nothing does."""
        ...


class _Limit(NamedTuple):
    """A moment in the loop's time, and the error of a request that passes it."""

    at: float
    error: Callable[[], Exception]


class _Cut(Exception):
    """Nobody reads more of this body: what is there is the answer."""


class _Transfer:
    """One request under way, and what its answer has brought so far."""

    def __init__(self, profile: Profile, hop: Hop, limit: int | None, began: float, streamed: bool) -> None:
        self.profile = profile
        self.hop = hop
        self.limit = limit
        self.began = began
        self.streamed = streamed
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(self._ended)
        self.tasks = TaskOwner()
        self.head: list[bytes] = []
        self.status = 0
        self.chunks: list[bytes] = []
        self.waiting = 0  #: bytes in `chunks`
        self.size = 0
        self.resolved = self.first_byte = 0.0  #: seconds
        self.connected = self.sent = self.reused = False
        self.total_at = math.inf
        self._arrived: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def _ended(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()  # who reads is told; asyncio shall not call it never retrieved
        self._wake(self._arrived)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def arrival(self) -> None:
        """Wait until something arrives, or the transfer ends."""
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None

    def take(self) -> list[bytes]:
        """Give the chunks that are there, and let more come."""
        chunks, self.chunks = self.chunks, []
        self.waiting = 0
        self._wake(self._room)
        return chunks

    def come(self, lines: list[bytes], status: int) -> None:
        """Take the head of the answer."""
        self.status = status
        self.head = lines
        self._wake(self._arrived)

    def deliver(self, chunk: bytes, cut: bool) -> bool:
        """Take a piece of the body; False where it is too large."""
        if not self.streamed and not self.size and self.status // 100 == 3 and self.status != 304:
            self.limit = REDIRECT_BODY if self.limit is None else min(self.limit, REDIRECT_BODY)
        self.size += len(chunk)
        if self.limit is not None and self.size > self.limit:
            if self.streamed or not (cut or self.status in REDIRECTS):
                return False
            self.chunks.append(chunk[: len(chunk) - (self.size - self.limit)])
            raise _Cut
        self.waiting += len(chunk)
        self.chunks.append(chunk)
        self._wake(self._arrived)
        return True

    @property
    def is_full(self) -> bool:
        """Whether no more is sent until somebody reads."""
        return self.streamed and self.waiting >= MOST_BUFFERED

    async def room(self) -> None:
        """Wait until somebody has read."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None

    def end(self, error: BaseException | None = None) -> None:
        """End it, once."""
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)


class ScriptedTransport:
    """What carries the requests of a client to a script. Bound to one event loop; made by `ScriptedHttp.connect`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, script: Script) -> None:
        self.loop = loop
        self.clock = loop.time
        self.requests = 0
        self.connects = 0
        self.received = 0
        self.rebuilt = 0
        self._script = script
        self._epoch = time.time() - loop.time()
        self._disk = Disk()
        self._flying: set[_Transfer] = set()
        self._idle: Counter[tuple[str, str, int]] = Counter()
        self._closed = False

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self._flying)

    def pool(self, profile: Profile, method: str, has_body: bool) -> Pool:
        """Give no handles: there are none."""
        return []

    async def exchange(
        self, profile: Profile, _pool: Pool, hop: Hop, max_body: int | None, began: float, cut: bool = False
    ) -> Response:
        """Play one request and give its answer, whatever the status.

        Raises HttpError. Cancelling ends it at once.
        """
        transfer = self._begin(profile, hop, max_body, began, cut, streamed=False)
        try:
            await transfer.future
            body = b"".join(transfer.chunks)
            self.received += len(body)
            return Response(
                hop.url.text, transfer.status, tuple(transfer.head), body, self._times(transfer), self._now()
            )
        finally:
            await self._end(transfer)

    async def open(
        self, profile: Profile, _pool: Pool, hop: Hop, max_body: int | None, began: float, cut: bool = False
    ) -> StreamedResponse:
        """Play one request and give its answer when the headers are there, whatever the status.

        Raises HttpError, or what reading the body of the request raised. Cancelling ends it at once.
        """
        transfer = self._begin(profile, hop, max_body, began, cut, streamed=True)
        is_open = False
        try:
            while not transfer.head and not transfer.future.done():
                await transfer.arrival()
            if not transfer.head:
                transfer.future.result()
            is_open = True
            return StreamedResponse(
                transfer,
                transfer.future,
                transfer.tasks,
                lambda error: error,
                lambda: self._end_stream(transfer),
                hop.url.text,
                transfer.status,
                tuple(transfer.head),
                self._times(transfer),
                self._now(),
            )
        finally:
            if not is_open:
                await self._end(transfer)

    def _begin(
        self, profile: Profile, hop: Hop, limit: int | None, began: float, cut: bool, *, streamed: bool
    ) -> _Transfer:
        if self._closed:
            raise closed(hop)
        call = current_call.get(None)
        body = hop.body if isinstance(hop.body, bytes) else b""
        request = ScriptedRequest(
            hop.method,
            hop.url.text,
            _sent_headers(profile, hop),
            body,
            self.loop.time(),
            1 if call is None else call.attempt,
        )
        step = self._script.take(request)
        transfer = _Transfer(profile, hop, limit, began, streamed)
        self._flying.add(transfer)
        transfer.tasks.start(self._run(transfer, request, step, cut), "headrace-scripted")
        return transfer

    def _let_go(self, transfer: _Transfer) -> None:
        """End what may still be under way."""
        self._flying.discard(transfer)
        for task in transfer.tasks:
            task.cancel()

    async def _end(self, transfer: _Transfer) -> None:
        self._let_go(transfer)
        if not transfer.future.done() or transfer.future.cancelled():
            await transfer.tasks.cancel(CLOSE)

    def _end_stream(self, transfer: _Transfer) -> None:
        self.received += transfer.size
        self._let_go(transfer)

    def _times(self, transfer: _Transfer) -> tuple[float, float, float, float, float]:
        return transfer.resolved, 0.0, 0.0, transfer.first_byte, self.loop.time() - transfer.began

    def _now(self) -> float:
        """Give the seconds since the epoch; they go on with the loop's time."""
        return self._epoch + self.loop.time()

    # ------------------------------------------------------------------------------------------------ playing

    async def _run(self, transfer: _Transfer, request: ScriptedRequest, step: Step, cut: bool) -> None:
        """Play a request to its end, and tell it who waits."""
        try:
            await self._play(transfer, request, step, cut)
        except _Cut:
            transfer.end()
        except Exception as error:  # noqa: BLE001 - it is raised where the request was made
            transfer.end(error)
        else:
            self._idle[transfer.hop.url.origin] += 1
            transfer.end()

    async def _play(self, transfer: _Transfer, request: ScriptedRequest, step: Step, cut: bool) -> None:
        hop, limits, now = transfer.hop, transfer.profile.timeouts, self.loop.time
        reply = step if isinstance(step, ScriptedReply) else None
        fault = reply.meaning if reply is not None else None
        if fault is not None and fault.stage == "resolve":
            assert reply is not None
            await self._fail_to_resolve(transfer, reply.after, fault)
        left = time_left(hop, transfer.profile, now() - transfer.began)
        if left is not None:
            transfer.total_at = now() + left
        self.requests += 1
        total = _Limit(transfer.total_at, lambda: self._judged(transfer, pycurl.E_OPERATION_TIMEDOUT, ""))
        if fault is not None and fault.stage in ("connect", "tls"):
            assert reply is not None
            transfer.connected = fault.stage == "tls"
            limit = _Limit(now() + (math.inf if limits.connect is None else limits.connect), total.error)
            await self._break(transfer, reply.after, fault, limit, total)
        origin = hop.url.origin
        transfer.reused = self._idle[origin] > 0
        if transfer.reused:
            self._idle[origin] -= 1
        transfer.connected = transfer.sent = request.sent = True
        await self._send(transfer, request, reply, total)
        sent_at = now()
        silence = math.inf if limits.first_byte is None else limits.first_byte
        first_byte = _Limit(
            sent_at + silence,
            lambda: self._late(FirstByteTimedOut, transfer, f"no byte of an answer within {silence:g} s"),
        )
        if reply is None:
            assert not isinstance(step, ScriptedReply)
            reply = await _within(_made(step, request), first_byte, total)
            if (fault := reply.meaning) is not None and fault.stage in ("resolve", "connect", "tls", "send"):
                raise PlanError(
                    f"fault={reply.fault!r} comes before the request is sent: a function cannot reply with it"
                )
        if fault is not None and fault.stage == "sent":
            await self._break(transfer, reply.after, fault, first_byte, total)
        await _within(_sleep(reply.after), first_byte, total)
        if fault is not None and fault.stage == "head":
            if reply.fault == "cut in headers":
                raise head_cut(hop, now() - transfer.began)
            raise self._judged(transfer, fault.code, fault.text)
        if not transfer.reused:
            self.connects += 1
        transfer.first_byte = now() - sent_at
        transfer.come(reply.head(), reply.status)
        if reply.has_body(hop.method):
            await self._bring(transfer, reply, total, cut)

    async def _fail_to_resolve(self, transfer: _Transfer, after: float, fault: FaultMeaning) -> None:
        url, limit = transfer.hop.url, transfer.profile.timeouts.resolve

        def failed(why: str, disposition: Disposition) -> ResolveFailed:
            return ResolveFailed(
                f"cannot resolve {url.host}: {why}",
                url=mask(url.text),
                host=url.key,
                elapsed=self.loop.time() - transfer.began,
                disposition=disposition,
            )

        at = self.loop.time() + (math.inf if limit is None else limit)
        late = _Limit(at, lambda: failed(f"no answer within {limit:g} s", Disposition.TRANSIENT))
        await _within(_sleep(after if fault.code else math.inf), late)
        permanent = "not known" in fault.text
        raise failed(fault.text, Disposition.PERMANENT if permanent else Disposition.TRANSIENT)

    async def _send(
        self, transfer: _Transfer, request: ScriptedRequest, reply: ScriptedReply | None, total: _Limit
    ) -> None:
        """Read the body of the request, and break there where that is scripted."""
        fault = reply.meaning if reply is not None and reply.meaning is not None else None
        breaks = fault is not None and fault.stage == "send"
        if isinstance(transfer.hop.body, Upload):
            async with contextlib.aclosing(transfer.hop.body.chunks(self._disk)) as chunks:
                while (chunk := await _within(anext(chunks, None), total)) is not None:
                    request.body += chunk
                    if breaks:
                        break
        if breaks:
            assert fault is not None
            assert reply is not None
            stall = transfer.profile.timeouts.stall
            limit = _Limit(
                self.loop.time() + (math.inf if stall is None else stall),
                lambda: self._late(
                    Stalled, transfer, f"only 0 bytes of the request were taken in {stall:g} s", "send"
                ),
            )
            await self._break(transfer, reply.after, fault, limit, total)

    async def _bring(self, transfer: _Transfer, reply: ScriptedReply, total: _Limit, cut: bool) -> None:
        """Let the body arrive."""
        limit = transfer.profile.timeouts.stall
        enough = 0.0 if limit is None else LEAST_RATE * limit
        seen, shown, mark, now = 0, 0, self.loop.time(), self.loop.time

        def stall() -> _Limit:
            return _Limit(
                mark + (math.inf if limit is None else limit),
                lambda: self._late(Stalled, transfer, f"only {transfer.size - seen} bytes in {limit:g} s"),
            )

        if reply.fault == "body too large" and transfer.limit is None and not transfer.streamed:
            raise PlanError('fault="body too large" has no end here: the client has no max_body=')
        async with contextlib.aclosing(reply.pieces()) as pieces:
            while (piece := await _within(anext(pieces, None), stall(), total)) is not None:
                if isinstance(piece, float):
                    await _within(_sleep(piece), stall(), total)
                    continue
                if not transfer.deliver(piece, cut):
                    raise self._judged(transfer, pycurl.E_WRITE_ERROR, "")
                if transfer.is_full:
                    await _within(transfer.room(), total)
                    seen, mark = transfer.size, now()
                elif transfer.size - seen >= enough:
                    seen, mark = transfer.size, now()
                if transfer.size - shown >= MOST_BUFFERED:
                    shown = transfer.size
                    await asyncio.sleep(
                        0
                    )  # an endless body shall not hold the loop, so that it can be cancelled
        fault = reply.meaning
        if fault is not None:
            await self._break(transfer, 0.0, fault, stall(), total)

    # ------------------------------------------------------------------------------------------------ failing

    async def _break(self, transfer: _Transfer, after: float, fault: FaultMeaning, *limits: _Limit) -> None:
        """Wait for a fault, or for ever where it is silence, and raise what it means."""
        await _within(_sleep(after if fault.code else math.inf), *limits)
        raise self._judged(transfer, fault.code, fault.text)

    def _judged(self, transfer: _Transfer, code: int, text: str) -> HttpError:
        """Say what a failure means, as for one of libcurl's."""
        hop = transfer.hop
        shown = mask(hop.url.text)
        if code < 0:
            self.rebuilt += 1
            return ClientClosed(
                f"{hop.method} {shown}: the transport failed and is rebuilt: {text}",
                url=shown,
                host=hop.url.key,
            )
        progress = Progress(
            method=hop.method,
            url=hop.url,
            sends=int(transfer.sent),
            answered=bool(transfer.head),
            size=transfer.size,
            limit=transfer.limit,
            connected=transfer.connected,
            elapsed=self.loop.time() - transfer.began,
        )
        return translate(pycurl.error(code, text), progress)

    def _late(
        self, kind: type[HttpError], transfer: _Transfer, what: str, phase: str | None = None
    ) -> HttpError:
        hop = transfer.hop
        return too_late(kind, hop.method, hop.url, what, self.loop.time() - transfer.began, phase)

    async def aclose(self) -> None:
        """End all that is under way with ClientClosed. Repeatable."""
        if self._closed:
            return
        self._closed = True
        self._disk.close()
        for transfer in list(self._flying):
            transfer.end(closed(transfer.hop))
            await transfer.tasks.cancel(CLOSE)


async def _sleep(seconds: float) -> None:
    if seconds == math.inf:
        await asyncio.get_running_loop().create_future()
    elif seconds:
        await asyncio.sleep(seconds)


async def _within(waiting: Awaitable[T], *limits: _Limit) -> T:
    """Wait under limits. Raises the error of the one that is passed first."""
    first = min(limits, key=lambda limit: limit.at)
    try:
        async with asyncio.timeout_at(None if first.at == math.inf else first.at) as scope:
            return await waiting
    except TimeoutError:
        if scope.expired():
            raise first.error() from None
        raise


async def _made(step: Callable[[ScriptedRequest], Any], request: ScriptedRequest) -> ScriptedReply:
    reply = step(request)
    if inspect.isawaitable(reply):
        reply = await reply
    if not isinstance(reply, ScriptedReply):
        raise PlanError(f"{step!r} replied with {reply!r}: return a headrace.testing.ScriptedReply")
    return reply


def _sent_headers(profile: Profile, hop: Hop) -> Headers:
    """Give the headers that libcurl sends with a request; a line without a value leaves its own one out."""
    url, body = hop.url, hop.body
    own = {
        "Host": url.text.partition("://")[2].partition("/")[0],
        "User-Agent": profile.user_agent or default_user_agent(),
        "Accept": "*/*",
        "Accept-Encoding": "deflate, gzip",
    }
    if isinstance(body, Upload) and body.size is None:
        own["Transfer-Encoding"] = "chunked"
    elif body is not None:
        own["Content-Length"] = str(len(body) if isinstance(body, bytes) else body.size)
    lines = [
        (name.strip(), value.strip())
        for name, _, value in (line.partition(":") for line in hop.headers.lines)
    ]
    named = {name.lower() for name, _ in lines}
    pairs = [(name, value) for name, value in own.items() if name.lower() not in named]
    return Headers((*pairs, *((name, value) for name, value in lines if value)))
