"""A canary in every place where a secret can stand is in no byte that a run leaves or says, however the run ends."""

from __future__ import annotations

import asyncio
import io
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.http.proxies import proxy

import headrace as hr
from headrace.errors import HeadraceError
from headrace.http.client import Client
from headrace.http.profile import Timeouts
from headrace.http.secrets import Secret, basic, bearer
from headrace.testing import run_real
from headrace.testing.hostile import HostileServer

CANARY = "tweet-4711"

#: Where a secret can stand: what the client and the fetch are told, and what is before the path of the URL.
PLACES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "header by name": lambda tmp: {"headers": {"Authorization": f"Bearer {CANARY}"}},
    "secret header": lambda tmp: {"headers": {"X-Mine": Secret(CANARY)}},
    "header from the environment": lambda tmp: {"headers": {"X-Mine": "{env:HEADRACE_CANARY}"}},
    "client's header": lambda tmp: {"client": {"headers": {"X-Mine": Secret(CANARY)}}},
    "basic": lambda tmp: {"client": {"auth": basic("me", Secret(CANARY))}},
    "bearer from a file": lambda tmp: {"client": {"auth": bearer(Secret(file=secret_file(tmp)))}},
    "cookie": lambda tmp: {"headers": {"Cookie": f"session={CANARY}"}},
    "userinfo": lambda tmp: {"userinfo": f"me:{CANARY}@"},
    "query from the environment": lambda tmp: {"query": "&key={env:HEADRACE_CANARY}"},
    "body from the environment": lambda tmp: {"method": "PUT", "json": {"key": "{env:HEADRACE_CANARY}"}},
    "form from the environment": lambda tmp: {"method": "PUT", "data": {"key": "{env:HEADRACE_CANARY}"}},
    "proxy": lambda tmp: {"proxy": f"me:{CANARY}"},
}
#: How calls end: the path that is asked for, and the phase in which the client gives up.
ENDS = [
    "/ok",
    "/status?code=404",
    "/status?code=503",
    "/drop",
    "/partial",
    "/stall",
    "/redirect?to=/status",
    "/bad-header",
    "gone",
]


def secret_file(tmp_path: Path) -> Path:
    """A file that holds it."""
    path = tmp_path / "secret"
    path.write_text(CANARY)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    """One server for all."""
    with HostileServer() as server:
        yield server


def said_of(outcome: Any) -> list[str]:
    """All that an outcome says of itself: texts, reprs, the error with its causes and attributes, the error pickled."""
    said = [repr(outcome), repr(getattr(outcome, "value", ""))]
    error = getattr(outcome, "error", None)
    while error is not None:
        said += [str(error), repr(error), repr({k: v for k, v in vars(error).items() if k not in ("args",)})]
        said.append("".join(traceback.format_exception(error)))
        if isinstance(error, HeadraceError):
            said.append(repr(pickle.loads(pickle.dumps(error)).__dict__))
        error = error.__cause__
    return said


@pytest.mark.parametrize("place", PLACES)
def test_secrets_stay_secret_however_a_call_ends(
    hostile: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The server gets it; the results, the ledger, dead letters, events, logs, reports, errors and reprs do not."""
    monkeypatch.setenv("HEADRACE_CANARY", CANARY)
    options = PLACES[place](tmp_path)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    said: list[str] = []
    hostile.received.clear()

    async def main() -> None:
        async with proxy(options.get("proxy")) as between:
            more = dict(options.get("client", {}))
            if "proxy" in options:
                more["proxy"] = f"http://{options['proxy']}@127.0.0.1:{between.port}"
            urls = []
            for end in ENDS:
                url = "http://127.0.0.1:9/gone" if end == "gone" else hostile.url(end)
                if "userinfo" in options:
                    url = url.replace("//", f"//{options['userinfo']}")
                urls.append(url)
            timeouts = Timeouts(connect=0.5, first_byte=0.5, stall=0.1, total=5.0)
            client = Client(timeouts=timeouts, **more)
            said.append(repr(client))
            if "query" in options:
                urls = [url + ("&" if "?" in url else "?") for url in urls]
            template = {"url": "{item}"} if "query" not in options else {}
            for number, url in enumerate(urls):
                asking = hr.http.fetch(
                    url=url.replace("{", "{{").replace("}", "}}") + options["query"].lstrip("&")
                    if "query" in options
                    else template["url"],
                    headers=options.get("headers"),
                    method=options.get("method", "GET"),
                    client=client,
                    **{name: options[name] for name in ("json", "data") if name in options},
                )
                said.append(repr(asking))
                events: list[Any] = []
                flow = (
                    hr.Flow([url])
                    .map(asking, retry=hr.Retry(attempts=2, base=0.001, overload_base=0.001))
                    .into(hr.sqlite.table(tmp_path / f"out{number}.db", "pages"))
                )
                said.append(flow.explain())
                try:
                    report = await flow.run(job="canary", progress=events.extend)
                    said.append(str(report) + repr(report))
                except HeadraceError as error:
                    said.append(str(error) + repr(error) + "".join(traceback.format_exception(error)))
                said.append(repr(events))
                job = hr.open(tmp_path / f"out{number}.db").job("canary")
                said.append(repr(list(job.failures())) + repr(job.status()))
                async with hr.Flow([url]).map(asking, retry=hr.Retry(attempts=1)).stream() as outcomes:
                    async for outcome in outcomes:
                        if "userinfo" in options:
                            outcome = without_item(outcome)
                        said.extend(said_of(outcome))
            await client.aclose()
            said.append(repr(client.statistics()))
        async with asyncio.timeout(20):
            while hostile.open:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)

    try:
        run_real(main)
    finally:
        logging.getLogger().removeHandler(handler)
    sent = "".join(repr(request) for request in hostile.received)
    if place not in ("basic", "userinfo", "proxy"):  # in base64, or to another
        assert CANARY in sent
    assert len(hostile.received) >= len(ENDS) - 1
    text = "\n".join(said) + log.getvalue()
    assert CANARY not in text
    for path in tmp_path.iterdir():
        if path.name != "secret":
            assert CANARY.encode() not in path.read_bytes(), path.name


def without_item(outcome: Any) -> Any:
    """Leave out the item, which is the program's own and holds what it was given."""

    class Shown:
        value = getattr(outcome, "value", None)
        error = getattr(outcome, "error", None)

        def __repr__(self) -> str:
            return type(outcome).__name__

    return Shown()
