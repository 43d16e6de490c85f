"""The hostile server over HTTP/2, on top of h2: good answers, and the ways in which streams and connections end.

    /ok /echo /payload     as they should be
    /refused               RST_STREAM with REFUSED_STREAM: it was not processed
    /stream-error          RST_STREAM with INTERNAL_ERROR
    /goaway                GOAWAY that leaves this stream out, then the end of the connection
    /cut                   the connection ends under all open streams, without a word
    /delay?s=              a good answer later

Rules:
1. At most `streams` of a connection's SETTINGS are open; `/settings?streams=1` lowers it for the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

from headrace.aio.tasks import TaskOwner
from headrace.testing.hostile.exchange import Received, parse_target, reset_on_close

__all__ = ["Connection"]


class Connection:
    """One connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        number: int,
        received: list[Received],
        is_over: Callable[[Received], bool],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._number = number
        self._received = received
        self._fault_is_over = is_over
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._unsent: dict[int, bytes] = {}
        self._tasks = TaskOwner()
        self._is_over = False

    async def serve(self) -> None:
        """Serve until the connection ends."""
        self._h2.initiate_connection()
        self._flush()
        try:
            while not self._is_over and (data := await self._reader.read(65_536)):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
                if not self._is_over:
                    await self._writer.drain()
        finally:
            await self._tasks.cancel(1.0)

    def _flush(self) -> None:
        if not self._is_over:
            self._writer.write(self._h2.data_to_send())

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = {_text(name): _text(value) for name, value in event.headers}
            self._requests[event.stream_id] = (headers, bytearray())
        elif isinstance(event, h2.events.DataReceived):
            self._requests[event.stream_id][1].extend(event.data)
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._answer(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self._unsent.pop(event.stream_id, None)
        elif isinstance(event, h2.events.WindowUpdated):
            for stream in [event.stream_id] if event.stream_id else list(self._unsent):
                self._send(stream)

    def _answer(self, stream: int) -> None:
        headers, body = self._requests.pop(stream)
        path, query = parse_target(headers.get(":path", "/"))
        received = Received(
            headers.get(":method", ""), path, query, headers, bytes(body), self._number, "HTTP/2"
        )
        self._received.append(received)
        if self._fault_is_over(received):
            path = "/ok"
        answers: dict[str, Callable[[], None]] = {
            "/ok": lambda: self._give(stream, b"ok"),
            "/echo": lambda: self._give(stream, bytes(body)),
            "/payload": lambda: self._give(stream, b"x" * int(query.get("size", "65536"))),
            "/refused": lambda: self._h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM),
            "/stream-error": lambda: self._h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR),
            "/goaway": lambda: self._go_away(stream),
            "/cut": self._cut,
            "/settings": lambda: self._limit(stream, int(query.get("streams", "1"))),
            "/delay": lambda: self._later(stream, float(query.get("s", "60"))),
        }
        answers.get(path, lambda: self._give(stream, b"no such fault", "404"))()

    def _give(self, stream: int, body: bytes, status: str = "200") -> None:
        self._h2.send_headers(stream, [(":status", status), ("content-length", str(len(body)))])
        self._unsent[stream] = body
        self._send(stream)

    def _send(self, stream: int) -> None:
        """Send what the windows allow."""
        body = self._unsent.get(stream)
        while body is not None:
            size = min(
                len(body), self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size
            )
            if body and size <= 0:
                break
            self._h2.send_data(stream, body[:size], end_stream=size == len(body))
            body = body[size:] if size < len(body) else None
        if body is None:
            self._unsent.pop(stream, None)
        else:
            self._unsent[stream] = body

    def _go_away(self, stream: int) -> None:
        self._h2.close_connection(last_stream_id=max(0, stream - 2))
        self._flush()
        self._is_over = True
        self._writer.close()

    def _cut(self) -> None:
        self._flush()
        self._is_over = True
        reset_on_close(self._writer)
        self._writer.transport.abort()

    def _limit(self, stream: int, streams: int) -> None:
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: streams})
        self._give(stream, b"ok")

    def _later(self, stream: int, seconds: float) -> None:
        async def answer() -> None:
            await asyncio.sleep(seconds)
            self._give(stream, b"ok")
            self._flush()

        self._tasks.start(answer(), "headrace-hostile-later")


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
