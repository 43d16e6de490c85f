"""An answer whose body is read while it comes, and a request whose body is read while it goes.

    libcurl ─► StreamHandle ─► chunks ─► whoever reads          paused where that one is behind
    libcurl ◄─ StreamHandle ◄─ pump ◄─── Upload                 paused where there is nothing to send yet

Rules:
1. Memory is bounded: what is not read yet stands in the server's send buffer, but for `MOST_BUFFERED` bytes.
2. Leaving the block closes the connection at once, unless the body was read to its end; so does letting go of the object.
3. A body that stands still because nobody reads it has not stalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import pycurl  # type: ignore[import-untyped]

from headrace.aio.disk import Disk
from headrace.aio.tasks import TaskOwner
from headrace.errors import PlanError
from headrace.http.bodies import Upload
from headrace.http.errors import HttpError
from headrace.http.permits import Permits
from headrace.http.profile import Profile
from headrace.http.redirects import Hop
from headrace.http.response import Response, ResponseHead
from headrace.http.status import BODY_KEPT
from headrace.http.transfer import Handle
from headrace.http.url import Url, mask

__all__ = [
    "Answer",
    "Answered",
    "Exchange",
    "Incoming",
    "StreamHandle",
    "StreamedCall",
    "StreamedResponse",
    "pump",
]

#: Bytes of a body that may wait to be read, before its transfer is paused.
MOST_BUFFERED: Final = 1 << 20
#: Bytes of an upload that may wait to be sent, before the next piece is asked for.
MOST_UNSENT: Final = 512 << 10
#: What libcurl reads from a socket at a time, in bytes. What it has read it unpacks at once, a thousandfold where that is a
#: bomb, and it holds 64 MB at most while it is paused.
READ_AT_ONCE: Final = 256 << 10
READ_PACKED_AT_ONCE: Final = 16 << 10
#: CURLOPT_SUPPRESS_CONNECT_HEADERS, for which pycurl has no name.
SUPPRESS_CONNECT_HEADERS: Final = 265
GRACE: Final = 1.0  # seconds that the reading of an upload has to end
KEEPALIVE: Final = 60  # seconds of silence after which TCP asks whether the other side is still there


class StreamHandle(Handle):
    """A handle that hands on what comes, and asks for what is to be sent. It serves one request."""

    __slots__ = ("_arrived", "_ended", "_room", "_unsent", "_unsent_size", "headed", "upload", "waiting")

    def __init__(self, profile: Profile, method: str, body: bytes | Upload | None, clock: Any) -> None:
        super().__init__(profile, method, isinstance(body, bytes), clock)
        self.waiting = 0  #: bytes in `chunks`
        self.headed = False  #: the headers of the final answer are whole
        self.upload = body if isinstance(body, Upload) else None
        self._unsent: deque[memoryview] = deque()
        self._unsent_size = 0
        self._ended = self.upload is None  # nothing more is to be sent
        self._arrived: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        setopt = self.curl.setopt
        setopt(pycurl.HEADERFUNCTION, self._on_header)
        setopt(pycurl.TCP_KEEPALIVE, 1)
        setopt(pycurl.TCP_KEEPIDLE, KEEPALIVE)
        if profile.proxy is not None:
            setopt(SUPPRESS_CONNECT_HEADERS, 1)
        if self.upload is not None:
            setopt(pycurl.UPLOAD, 1)
            setopt(pycurl.CUSTOMREQUEST, method)
            setopt(pycurl.READFUNCTION, self._give)
            if self.upload.size is not None:
                setopt(pycurl.INFILESIZE_LARGE, self.upload.size)

    def prepare(self, url: Url, headers: tuple[str, ...], *rest: Any) -> None:
        """Set what this request needs."""
        plain = any(line.lower() == "accept-encoding: identity" for line in headers)
        self.curl.setopt(pycurl.BUFFERSIZE, READ_AT_ONCE if plain else READ_PACKED_AT_ONCE)
        super().prepare(url, headers, *rest)

    # ------------------------------------------------------------------------------------------ libcurl calls

    def _on_header(self, line: bytes) -> None:
        self.head.append(line)
        if not self.headed and line in (b"\r\n", b"\n") and not self._is_interim():
            self.headed = True
            self.arrived()

    def _is_interim(self) -> bool:
        """Whether the headers that have just ended are those of a 1xx, after which the final answer comes."""
        for line in reversed(self.head):
            if line.startswith(b"HTTP/"):
                return line.partition(b" ")[2][:1] == b"1"
        return False

    def _write(self, chunk: bytes) -> int | None:
        if self.waiting >= MOST_BUFFERED:
            self.paused = True
            return pycurl.WRITEFUNC_PAUSE  # type: ignore[no-any-return]
        self.size += len(chunk)
        if self.limit is not None and self.size > self.limit:
            return 0
        self.waiting += len(chunk)
        self.chunks.append(chunk)
        self.arrived()
        return None

    def _give(self, most: int) -> bytes | int:
        unsent = self._unsent
        if not unsent:
            if self._ended:
                return b""
            self.hungry = True
            return pycurl.READFUNC_PAUSE  # type: ignore[no-any-return]
        view = unsent.popleft()
        if len(view) > most:
            unsent.appendleft(view[most:])
            view = view[:most]
        self._unsent_size -= len(view)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return bytes(view)

    # ------------------------------------------------------------------------------------------ both sides

    @property
    def sends_body(self) -> bool:
        """Whether the request has a body."""
        return self._has_body or self.upload is not None

    def arrived(self) -> None:
        """Wake who waits for the head, for a chunk, or for the end."""
        waiter = self._arrived
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def transfer_ended(self, future: asyncio.Future[Any]) -> None:
        """Wake who waits, at the end of the transfer."""
        if not future.cancelled():
            future.exception()  # who reads is told; asyncio shall not call it never retrieved
        self.arrived()

    async def arrival(self) -> None:
        """Wait until something arrives. One at a time may wait."""
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None

    def take(self) -> list[bytes]:
        """Give the chunks that are there, and let more come."""
        chunks = self.chunks[:]
        self.chunks.clear()
        self.waiting = 0
        if self.paused:
            self.paused = False
            self._unpause()
        return chunks

    async def feed(self, chunk: bytes) -> None:
        """Send a piece of the body; wait until there is room for the next one."""
        self._unsent.append(memoryview(chunk))
        self._unsent_size += len(chunk)
        self._go_on()
        while self._unsent_size >= MOST_UNSENT:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None

    def end_body(self) -> None:
        """Nothing more is to be sent."""
        self._ended = True
        self._go_on()

    def _go_on(self) -> None:
        if self.hungry:
            self.hungry = False
            self._unpause()

    def _unpause(self) -> None:
        """Let libcurl go on, in both directions; it stops again where it must."""
        with contextlib.suppress(pycurl.error):  # the transfer has ended meanwhile
            self.curl.pause(pycurl.PAUSE_CONT)


async def pump(upload: Upload, handle: StreamHandle, disk: Disk) -> None:
    """Read a body and send it. Raises what the reading raises."""
    async with contextlib.aclosing(upload.chunks(disk)) as chunks:
        async for chunk in chunks:
            if chunk:
                await handle.feed(chunk)
    handle.end_body()


class Incoming(Protocol):
    """A body that comes in: `chunks` are there and not taken yet."""

    chunks: list[bytes]

    async def arrival(self) -> None:
        """Wait until something arrives, or the transfer ends. One at a time may wait."""
        ...

    def take(self) -> list[bytes]:
        """Give the chunks that are there, and let more come."""
        ...


class StreamedResponse(ResponseHead):
    """An answer whose body is read while it comes: `async for chunk in response`, or `await response.read()`.

    Made by `Client.stream`. A chunk is some bytes of the decoded body, as they arrived. Reading raises the HttpError that
    the transfer ends with (BodyTooLarge beyond `max_body`); what had arrived before has been given. After the block there
    is nothing to read.
    """

    __slots__ = ("_close", "_future", "_handle", "_judge", "_pumping")

    def __init__(
        self,
        handle: Incoming,
        future: asyncio.Future[Any],
        pumping: TaskOwner | None,
        judge: Callable[[Exception], Exception],
        close: Callable[[], None],
        *head: Any,
    ) -> None:
        super().__init__(*head)
        self._handle: Incoming | None = handle
        self._future = future
        self._pumping = pumping
        self._judge = judge
        self._close = close

    @property
    def is_closed(self) -> bool:
        """Whether the block was left, or the body read to its end."""
        return self._handle is None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunks := await self.some():
            for chunk in chunks:
                yield chunk

    async def some(self) -> list[bytes]:
        """Give the chunks that have arrived, waiting for one; none at the end of the body.

        Raises HttpError where the transfer failed. Cancelling takes nothing.
        """
        handle = self._handle
        if handle is None:
            return []
        while not handle.chunks:
            if self._future.done():
                error = self._future.exception()
                if error is not None:
                    judged = self._judge(error)  # type: ignore[arg-type]
                    self._let_go()
                    raise judged
                self._let_go()
                return []
            await handle.arrival()
        return handle.take()

    async def read(self, most: int | None = None) -> bytes:
        """Give what is left of the body; with `most`, about as many bytes of its beginning.

        Raises as iterating does.
        """
        parts: list[bytes] = []
        size = 0
        while (most is None or size < most) and (chunks := await self.some()):
            parts += chunks
            size += sum(map(len, chunks))
        return b"".join(parts) if most is None else b"".join(parts)[:most]

    async def beginning(self) -> bytes:
        """Give the first bytes of the body, for the error of a refused status, and close."""
        try:
            return await self.read(BODY_KEPT)
        except HttpError:
            return b""
        finally:
            await self.aclose()

    async def whole(self) -> Response:
        """Read what is left, and give it as an answer with its body. Raises as iterating does."""
        body = await self.read()
        answer = Response(self.url, self.status, self._head, body, self._clock, self.fetched_at, self.item)
        answer.final_url, answer.attempts, answer.redirects = self.final_url, self.attempts, self.redirects
        return answer

    def _let_go(self) -> None:
        """Give the connection back, or close it where the transfer is under way."""
        if self._handle is not None:
            self._handle = None
            self._close()

    async def aclose(self) -> None:
        """Close; repeatable. What is still read for the upload ends, too."""
        self._let_go()
        if self._pumping is not None:
            pumping, self._pumping = self._pumping, None
            await pumping.cancel(GRACE)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            warnings.warn(f"{self!r} was not closed: use it with «async with»", ResourceWarning, stacklevel=2)
            loop = self._future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._close)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<StreamedResponse {self.status} {mask(self.final_url)[:100]} {state}>"


Answer = TypeVar("Answer", Response, StreamedResponse)
Given = TypeVar("Given", covariant=True)


class Exchange(Protocol[Given]):
    """What sends one request and gives its answer: with its body, or when its headers are there."""

    def __call__(
        self, profile: Profile, pool: list[Handle], hop: Hop, max_body: int | None, began: float, cut: bool, /
    ) -> Awaitable[Given]: ...


class Answered(NamedTuple, Generic[Answer]):
    """An answer, and what its call still holds of limits."""

    response: Answer
    permits: Permits | None


class StreamedCall:
    """A call whose answer is read while it comes; `async with` it. Made by `Client.stream`.

    Entering raises as `Client.request` does. Leaving closes the connection at once, unless the body was read to its end.
    """

    def __init__(self, begin: Callable[[], Awaitable[Answered[StreamedResponse]]], rng: Random) -> None:
        self._begin = begin
        self._rng = rng
        self._answered: Answered[StreamedResponse] | None = None

    async def __aenter__(self) -> StreamedResponse:
        if self._answered is not None:
            raise PlanError("this call was made already: call stream() again")
        self._answered = await self._begin()
        return self._answered.response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._answered is not None
        response, permits = self._answered
        try:
            await response.aclose()
        finally:
            if permits is not None:
                if error is not None:
                    permits.fail(error, self._rng)
                else:
                    permits.leave("success")
