"""What a hostile server does, by path. Each docstring says it in one line; `/ok` and its kin are as they should be.

Rules:
1. A fault is one coroutine; its name is its path, `_` written as `-` but for the first. Numbers and texts come from the
   query.
2. What ends by itself ends; what has no end stops when the client or the server does.
"""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from typing import Final

from headrace.testing.hostile.bombs import bomb
from headrace.testing.hostile.exchange import Exchange

__all__ = ["FAULTS", "UNREAD"]

Fault = Callable[[Exchange], Awaitable[None]]
FAULTS: dict[str, Fault] = {}
#: Paths whose answer does not wait for the body of the request.
UNREAD: Final = ("/early", "/early-close", "/early-reset", "/deaf")
BLOCK: Final = b"x" * 65_536


def _fault(function: Fault) -> Fault:
    """Put a fault under its path."""
    FAULTS["/" + function.__name__[1:].replace("_", "-")] = function
    return function


# ---------------------------------------------------------------------------------------------------- as it should be


@_fault
async def _ok(exchange: Exchange) -> None:
    """A good answer."""
    await exchange.answer()


@_fault
async def _echo(exchange: Exchange) -> None:
    """The body of the request."""
    await exchange.answer(exchange.request.body)


@_fault
async def _status(exchange: Exchange) -> None:
    """The status `code`, with Retry-After where `after` is given."""
    after = exchange.text("after", "")
    await exchange.answer(
        b"as asked",
        *([f"Retry-After: {after}"] if after else []),
        status=f"{exchange.text('code', '500')} As asked",
    )


@_fault
async def _payload(exchange: Exchange) -> None:
    """`size` bytes."""
    size = int(exchange.number("size", 1 << 20))
    await exchange.head(f"Content-Length: {size}")
    while size > 0:
        await exchange.raw(BLOCK[: min(size, len(BLOCK))])
        size -= len(BLOCK)


@_fault
async def _compressed(exchange: Exchange) -> None:
    """A text in gzip."""
    await exchange.answer(gzip.compress(b"unpacked " * 1000), "Content-Encoding: gzip")


@_fault
async def _early_hints(exchange: Exchange) -> None:
    """Two interim answers, and then the good one."""
    await exchange.head(status="100 Continue")
    await exchange.head("Link: </style.css>; rel=preload", status="103 Early Hints")
    await exchange.answer()


@_fault
async def _trailers(exchange: Exchange) -> None:
    """Chunks, and trailers after them."""
    await exchange.head("Transfer-Encoding: chunked", "Trailer: Digest")
    await exchange.chunk(b"ok")
    await exchange.raw(b"0\r\nDigest: x\r\nSet-Cookie: late=1\r\n\r\n")


@_fault
async def _duplicate_headers(exchange: Exchange) -> None:
    """The same header several times, in several cases."""
    await exchange.answer(b"ok", "X-Same: 1", "x-same: 2", "X-SAME: 3")


@_fault
async def _until_close(exchange: Exchange) -> None:
    """A body without a length, that ends with the connection."""
    await exchange.head()
    await exchange.raw(b"ok")
    exchange.close()


# ---------------------------------------------------------------------------------------------------- time


@_fault
async def _delay(exchange: Exchange) -> None:
    """A good answer after `s` seconds."""
    await exchange.wait(exchange.number("s", 60))
    await exchange.answer()


@_fault
async def _stall(exchange: Exchange) -> None:
    """Half of the body, and then nothing."""
    await exchange.head("Content-Length: 1000")
    await exchange.raw(b"x" * 500)
    await exchange.wait(600)


@_fault
async def _trickle(exchange: Exchange) -> None:
    """A body of one byte every `s` seconds."""
    await exchange.head("Content-Length: 100000")
    while True:
        await exchange.raw(b"x")
        await exchange.wait(exchange.number("s", 0.05))


@_fault
async def _slow_headers(exchange: Exchange) -> None:
    """Headers of one byte every `s` seconds."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.raw(b"X")
        await exchange.wait(exchange.number("s", 0.05))


@_fault
async def _forever(exchange: Exchange) -> None:
    """A body without an end, as fast as it goes."""
    await exchange.head("Transfer-Encoding: chunked")
    while True:
        await exchange.chunk(BLOCK)


@_fault
async def _line(exchange: Exchange) -> None:
    """One line of `size` bytes without an end."""
    size = int(exchange.number("size", 1 << 30))
    await exchange.head(f"Content-Length: {size}")
    while size > 0:
        await exchange.raw(BLOCK[: min(size, len(BLOCK))])
        size -= len(BLOCK)


# ---------------------------------------------------------------------------------------------------- broken off


@_fault
async def _drop(exchange: Exchange) -> None:
    """The connection closes before any byte of an answer."""
    exchange.close()


@_fault
async def _cut_in_head(exchange: Exchange) -> None:
    """The connection closes within the headers."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Le")
    exchange.close()


@_fault
async def _partial(exchange: Exchange) -> None:
    """The connection closes in the middle of the body."""
    await exchange.head("Content-Length: 1000")
    await exchange.raw(b"x" * 500)
    exchange.close()


@_fault
async def _partial_chunks(exchange: Exchange) -> None:
    """The connection closes between two chunks."""
    await exchange.head("Transfer-Encoding: chunked")
    await exchange.chunk(b"x" * 500)
    exchange.close()


@_fault
async def _reset(exchange: Exchange) -> None:
    """A reset before any byte of an answer."""
    exchange.reset()


@_fault
async def _reset_in_status(exchange: Exchange) -> None:
    """A reset within the status line."""
    await exchange.raw(b"HTTP/1.1 20")
    await exchange.wait(0.02)
    exchange.reset()


@_fault
async def _reset_in_head(exchange: Exchange) -> None:
    """A reset within the headers."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Le")
    await exchange.wait(0.02)
    exchange.reset()


@_fault
async def _reset_in_body(exchange: Exchange) -> None:
    """A reset in the middle of the body."""
    await exchange.head("Content-Length: 1000")
    await exchange.raw(b"x" * 500)
    await exchange.wait(0.02)
    exchange.reset()


# ---------------------------------------------------------------------------------------------------- no HTTP


@_fault
async def _not_http(exchange: Exchange) -> None:
    """Bytes of another protocol."""
    await exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(range(256)) * 4)
    exchange.close()


@_fault
async def _http09(exchange: Exchange) -> None:
    """A body without a status line."""
    await exchange.raw(b"<html>hello</html>\n")
    exchange.close()


@_fault
async def _bad_header(exchange: Exchange) -> None:
    """A header line without a colon."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nthis is no header\r\nContent-Length: 2\r\n\r\nok")


@_fault
async def _nul_header(exchange: Exchange) -> None:
    """A header with a NUL."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 2\r\n\r\nok")


@_fault
async def _header_flood(exchange: Exchange) -> None:
    """`count` headers."""
    for number in range(int(exchange.number("count", 100_000))):
        await exchange.raw((b"HTTP/1.1 200 OK\r\n" if not number else b"") + b"X-Flood-%d: x\r\n" % number)
    await exchange.raw(b"Content-Length: 2\r\n\r\nok")


@_fault
async def _header_huge(exchange: Exchange) -> None:
    """One header of 4 MB."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nX-Huge: ")
    for _ in range(64):
        await exchange.raw(BLOCK)
    await exchange.raw(b"\r\nContent-Length: 2\r\n\r\nok")


@_fault
async def _interim_flood(exchange: Exchange) -> None:
    """Interim answers without an end."""
    while True:
        await exchange.head("X: y", status="103 Early Hints")


@_fault
async def _length_negative(exchange: Exchange) -> None:
    """A negative Content-Length."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nok")


@_fault
async def _length_no_number(exchange: Exchange) -> None:
    """A Content-Length that is no number."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nok")


@_fault
async def _length_twice(exchange: Exchange) -> None:
    """Two Content-Lengths that contradict each other."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nok")
    exchange.close()


@_fault
async def _length_short(exchange: Exchange) -> None:
    """More bytes than the Content-Length says."""
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more")


@_fault
async def _chunk_bad_size(exchange: Exchange) -> None:
    """A chunk whose size is no number."""
    await exchange.head("Transfer-Encoding: chunked")
    await exchange.raw(b"zz\r\nok\r\n0\r\n\r\n")


@_fault
async def _chunk_huge_size(exchange: Exchange) -> None:
    """A chunk that says it has more bytes than a number can hold."""
    await exchange.head("Transfer-Encoding: chunked")
    await exchange.raw(b"f" * 40 + b"\r\nok\r\n0\r\n\r\n")


@_fault
async def _chunk_extensions(exchange: Exchange) -> None:
    """A chunk with an extension of 4 MB."""
    await exchange.head("Transfer-Encoding: chunked")
    await exchange.raw(b"2;x=")
    for _ in range(64):
        await exchange.raw(BLOCK)
    await exchange.raw(b"\r\nok\r\n0\r\n\r\n")


# ---------------------------------------------------------------------------------------------------- packed


@_fault
async def _bomb(exchange: Exchange) -> None:
    """`megabytes` of zeros, packed as `encoding` says: gzip, deflate, br, or several after each other."""
    encoding = exchange.text("encoding", "gzip")
    body = bomb(encoding, int(exchange.number("megabytes", 64)))
    await exchange.answer(body, f"Content-Encoding: {encoding}")


@_fault
async def _gzip_broken(exchange: Exchange) -> None:
    """A body that is not what its Content-Encoding says."""
    await exchange.answer(b"this is no gzip", "Content-Encoding: gzip")


@_fault
async def _gzip_partial(exchange: Exchange) -> None:
    """A packed body that ends in the middle, with the right length."""
    packed = gzip.compress(bytes(range(256)) * 1000)
    await exchange.answer(packed[: len(packed) // 2], "Content-Encoding: gzip")


@_fault
async def _encoding_unknown(exchange: Exchange) -> None:
    """A Content-Encoding that nobody knows."""
    await exchange.answer(b"ok", "Content-Encoding: rot13")


# ---------------------------------------------------------------------------------------------------- redirects


@_fault
async def _redirect(exchange: Exchange) -> None:
    """A redirect (`code`, by default 302) to `to`."""
    await exchange.answer(
        b"", f"Location: {exchange.text('to', '/ok')}", status=f"{exchange.text('code', '302')} Moved"
    )


@_fault
async def _loop(exchange: Exchange) -> None:
    """A redirect to itself."""
    await exchange.answer(b"", "Location: /loop", status="302 Found")


@_fault
async def _follow(exchange: Exchange) -> None:
    """`n` redirects, and then a good answer."""
    left = int(exchange.number("n", 3))
    if left:
        await exchange.answer(b"", f"Location: /follow?n={left - 1}", status="302 Found")
    else:
        await exchange.answer()


@_fault
async def _redirect_with_body(exchange: Exchange) -> None:
    """A redirect whose body has no end."""
    await exchange.head("Location: /ok", "Transfer-Encoding: chunked", status="302 Found")
    while True:
        await exchange.chunk(BLOCK)


# ---------------------------------------------------------------------------------------------------- uploads


@_fault
async def _early(exchange: Exchange) -> None:
    """413 before the body of the request was read; the connection stays open."""
    await exchange.answer(b"too large", status="413 Content Too Large")
    await exchange.read_on()


@_fault
async def _early_close(exchange: Exchange) -> None:
    """413 before the body of the request was read, and the connection closes."""
    await exchange.answer(b"too large", "Connection: close", status="413 Content Too Large")
    await exchange.wait(0.05)
    exchange.close()


@_fault
async def _early_reset(exchange: Exchange) -> None:
    """A reset while the body of the request is being sent."""
    await exchange.wait(0.05)
    exchange.reset()


@_fault
async def _deaf(exchange: Exchange) -> None:
    """The body of the request is not read, and nothing is said, for `s` seconds."""
    await exchange.wait(exchange.number("s", 2))
    exchange.reset()
