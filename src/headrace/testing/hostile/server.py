"""The hostile server: ports, a thread, an account.

Rules:
1. Each way to listen has its own port: plain, TLS as it should be, and TLS that is wrong in one way each.
2. Stopping it ends every connection and waits for the thread.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from headrace.errors import PlanError
from headrace.testing.hostile.exchange import Exchange, Received, read_request, reset_on_close
from headrace.testing.hostile.faults import FAULTS, UNREAD

__all__ = ["HostileServer"]

_TLS: Final = ("https", "expired", "wrong-host", "self-signed", "h2")
_PORTS: Final = ("http", "resetting", "silent", "tls-cut")
PATIENCE: Final = 10.0


class HostileServer:
    """A server that does what its paths say: `with HostileServer() as server: client.get(server.url("/partial"))`.

    `listener` of `url` is "http"; "https" with a certificate of `ca_file`, "h2" with HTTP/2 on top; "expired",
    "wrong-host" and "self-signed" with certificates that are wrong; "tls-cut", which closes within the handshake;
    "resetting", which resets each connection; "silent", which takes connections and says nothing. `FAULTS` has the paths.
    With `once` in the query a fault happens at the first request for its URL, and the next ones get a good answer. TLS
    needs trustme, "h2" needs h2.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.open = 0  #: connections at this moment
        self.ca_file = ""
        self._seen: Counter[str] = Counter()
        self._ports: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> HostileServer:
        began = threading.Event()
        self._directory = tempfile.TemporaryDirectory(prefix="headrace-hostile-")
        failures: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(began))
            except BaseException as error:
                failures.append(error)
                raise
            finally:
                began.set()

        self._thread = threading.Thread(target=run, name="headrace-hostile", daemon=True)
        self._thread.start()
        if not began.wait(PATIENCE) or not self._ports:
            raise RuntimeError(f"the hostile server did not start: {failures}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._ended is not None
        assert self._thread is not None
        assert self._directory is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(PATIENCE)
        self._directory.cleanup()

    def url(self, path: str = "/ok", listener: str = "http", host: str = "127.0.0.1") -> str:
        """Give the URL of a path. Raises PlanError for a listener that there is not, with the reason."""
        if listener not in self._ports:
            raise PlanError(f"listener={listener!r}: {self._missing(listener)}")
        scheme = "https" if listener in (*_TLS, "tls-cut") else "http"
        return f"{scheme}://{host}:{self._ports[listener]}{path}"

    def _missing(self, listener: str) -> str:
        if listener in _TLS:
            return "TLS needs certificates: pip install trustme" + (" h2" if listener == "h2" else "")
        return f"there are {', '.join((*_PORTS, *_TLS))}"

    def counts(self) -> Counter[str]:
        """Give how often each «METHOD /path?query» was received."""
        return Counter(f"{each.method} {each.target}" for each in list(self.received))

    # ------------------------------------------------------------------------------------------ in the thread

    async def _serve(self, began: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        listeners = []

        async def listen(name: str, handler: Callable[..., Any], tls: ssl.SSLContext | None = None) -> None:
            listener = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls, backlog=2048)
            listeners.append(listener)
            self._ports[name] = listener.sockets[0].getsockname()[1]

        await listen("http", self._connection)
        await listen("resetting", self._resetting)
        await listen("silent", self._silent)
        await listen("tls-cut", self._tls_cut)
        for name, context in self._contexts().items():
            await listen(name, self._second if name == "h2" else self._connection, context)
        began.set()
        await self._ended.wait()
        for listener in listeners:
            listener.close()
        # Not cancelled: asyncio's streams would report that as errors. Without their connections they end by themselves.
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _contexts(self) -> dict[str, ssl.SSLContext]:
        try:
            import trustme
        except ImportError:
            return {}
        assert self._directory is not None
        authority = trustme.CA()
        path = Path(self._directory.name) / "ca.pem"
        authority.cert_pem.write_to_path(str(path))
        self.ca_file = str(path)
        names = ("127.0.0.1", "localhost")
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        certificates = {
            "https": authority.issue_cert(*names),
            "expired": authority.issue_cert(*names, not_after=past),
            "wrong-host": authority.issue_cert("another.test"),
            "self-signed": trustme.CA().issue_cert(*names),
        }
        contexts = {}
        for name, certificate in certificates.items():
            contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(contexts[name])
        try:
            import h2  # noqa: F401
        except ImportError:
            return contexts
        contexts["h2"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificates["https"].configure_cert(contexts["h2"])
        contexts["h2"].set_alpn_protocols(["h2"])
        return contexts

    def _begin(self, writer: asyncio.StreamWriter) -> int:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        number, self.connections = self.connections, self.connections + 1
        self.open += 1
        self._writers.add(writer)
        return number

    def _end(self, writer: asyncio.StreamWriter) -> None:
        self.open -= 1
        self._writers.discard(writer)
        writer.close()

    def _is_over(self, request: Received) -> bool:
        """Whether a fault that is to happen `once` has happened."""
        if "once" not in request.query:
            return False
        key = f"{request.method} {request.target}"
        self._seen[key] += 1
        return self._seen[key] > 1

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._ended is not None
        number = self._begin(writer)
        try:
            while (request := await read_request(reader, number, UNREAD)) is not None:
                self.received.append(request)
                exchange = Exchange(request, reader, writer, self._ended)
                fault = FAULTS.get("/ok" if self._is_over(request) else request.path)
                if fault is None:
                    await exchange.answer(b"no such fault", status="404 Not Found")
                else:
                    await fault(exchange)
                if not exchange.is_kept:
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            self._end(writer)

    async def _resetting(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(writer)
        reset_on_close(writer)
        writer.transport.abort()
        self._end(writer)

    async def _tls_cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(writer)
        try:
            await reader.read(1)
            reset_on_close(writer)
            writer.transport.abort()
        except OSError:
            pass
        finally:
            self._end(writer)

    async def _silent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._ended is not None
        number = self._begin(writer)
        silence = Exchange(Received("", "", {}, {}, b"", number), reader, writer, self._ended)
        try:
            while await reader.read(65_536):
                pass
            await silence.wait(600)
        except OSError:
            pass
        finally:
            self._end(writer)

    async def _second(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from headrace.testing.hostile.http2 import Connection

        assert self._ended is not None
        number = self._begin(writer)
        try:
            await Connection(reader, writer, number, self.received, self._is_over).serve()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._end(writer)
