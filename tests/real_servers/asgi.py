"""uvicorn over the documents of the tests, http and https; POST /echo gives back what it was sent. A program of its own."""

from __future__ import annotations

import asyncio
import gzip
import pathlib
import sys
from typing import Any

import uvicorn

ROOT, HTTP, HTTPS, KEPT = sys.argv[1:]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer one request."""
    assert scope["type"] == "http"
    path, method = scope["path"], scope["method"]

    async def begin(status: int, **headers: str) -> None:
        listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": listed})

    async def body(data: bytes, more: bool = False) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    if path == "/echo":
        await begin(200, x_method=method)
        while True:
            event = await receive()
            await body(event.get("body", b""), event.get("more_body", False))
            if not event.get("more_body"):
                return
    file = pathlib.Path(ROOT, "www", path.lstrip("/"))
    if path == "/busy":
        await begin(503, retry_after="7")
        await body(b"busy")
    elif path == "/moved":
        await begin(302, location="doc")
        await body(b"")
    elif not file.is_file():
        await begin(404)
        await body(b"not here")
    elif path == "/text.txt" and any(n == b"accept-encoding" and b"gzip" in v for n, v in scope["headers"]):
        await begin(200, content_encoding="gzip")
        packed = gzip.compress(file.read_bytes())
        for at in range(0, len(packed), 1000):
            await body(packed[at : at + 1000], True)
        await body(b"")
    else:
        await begin(200, content_length=str(file.stat().st_size))
        data = b"" if method == "HEAD" else file.read_bytes()
        for at in range(0, len(data), 1 << 20):
            await body(data[at : at + (1 << 20)], True)
        await body(b"")


async def main() -> None:
    """Serve on both ports."""
    common: dict[str, Any] = {
        "host": "127.0.0.1",
        "log_level": "error",
        "timeout_keep_alive": int(KEPT),
        "lifespan": "off",
    }
    secure = uvicorn.Config(
        app, port=int(HTTPS), ssl_keyfile=f"{ROOT}/key.pem", ssl_certfile=f"{ROOT}/cert.pem", **common
    )
    servers = [uvicorn.Server(secure), uvicorn.Server(uvicorn.Config(app, port=int(HTTP), **common))]
    await asyncio.gather(*(server.serve() for server in servers))


asyncio.run(main())
