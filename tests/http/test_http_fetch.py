"""`fetch`: a request as the function of a stage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from server import Request, answer, serve

import headrace.http as http
from headrace.errors import PlanError
from headrace.http import BadResponse, Client, InvalidUrl, Secret, StatusError, fetch
from headrace.policies.limits import Limit
from headrace.ports import Configured, current_call

Run = Callable[[Callable[[], Any]], Any]


async def _mirror(request: Request, writer: asyncio.StreamWriter) -> None:
    """Answer with what was asked."""
    told = {"target": request.target, "body": request.body.decode(), "headers": request.headers}
    status = "404 Not Found" if request.target.startswith("/missing") else "200 OK"
    writer.write(answer(json.dumps(told).encode(), status))


class _Call:
    position, attempt, deadline, idempotency_key, is_limited = 0, 3, None, "stable-key", True

    def covers(self, value: Any, item: Any = None) -> bool:
        return True

    def hint(self, hint: Any) -> None:
        raise AssertionError("no rate was told of")


def test_items(run: Run) -> None:
    """An item is a URL, a row with a "url", or a row or value that fills the template; the answer keeps it."""

    async def main() -> None:
        async with serve(_mirror) as server, Client() as client:
            plain, template = fetch(), fetch(server.url("/u/{id}?q={q}"))
            for request, item, target in (
                (plain, server.url("/a"), "/a"),
                (plain, {"url": server.url("/b"), "id": 7}, "/b"),
                (template, {"id": "a/b", "q": "x y&z"}, "/u/a%2Fb?q=x%20y%26z"),
                (fetch(server.url("/n/{item}")), 7, "/n/7"),
                (fetch("{link}"), {"link": server.url("/l?m=n")}, "/l?m=n"),
            ):
                got = await request(item, client=client)
                assert got.json()["target"] == target
                assert got.item == item
            row = (await plain({"url": server.url("/b"), "id": 7}, client=client)).as_row()
            assert row["id"] == 7
            with pytest.raises(InvalidUrl, match="no field 'q'"):
                await template({"id": 1}, client=client)
            with pytest.raises(InvalidUrl, match="Give a template"):
                await plain({"id": 1}, client=client)
            assert template.host({"id": 1, "q": 2}) == f"127.0.0.1:{server.port}"

    run(main)


def test_accept_and_select(run: Run) -> None:
    """accept= says what is an answer, select= what to take from it."""

    async def main() -> None:
        async with serve(_mirror) as server, Client() as client:
            url = server.url("/missing")
            with pytest.raises(StatusError):
                await fetch()(url, client=client)
            assert (await fetch(accept="2xx,404")(url, client=client)).status == 404
            assert await fetch(accept="any", select="headers.host")(url, client=client) == server.url()[7:-1]
            assert await fetch(select=lambda r: r.status)(server.url(), client=client) == 200
            with pytest.raises(BadResponse, match=r"headers\.nothing") as caught:
                await fetch(select="headers.nothing")(server.url(), client=client)
            assert not caught.value.ambiguous

    run(main)


def test_json_and_the_idempotency_key(run: Run) -> None:
    """A POST carries its filled body, and inside a flow the key that is the same for every attempt; a GET has none."""

    async def main() -> None:
        async with serve(_mirror) as server, Client() as client:
            post = fetch(server.url("/p"), method="POST", json={"id": "{id}", "hi": "hi {name}"})
            item = {"id": 7, "name": "x"}
            outside = (await post(item, client=client)).json()
            assert json.loads(outside["body"]) == {"id": 7, "hi": "hi x"}
            assert "idempotency-key" not in outside["headers"]
            token = current_call.set(_Call())  # type: ignore[arg-type]
            try:
                inside = await post(item, client=client)
                got = await fetch()(server.url(), client=client)
                silent = await fetch(server.url(), method="POST", idempotency_key=None)(item, client=client)
            finally:
                current_call.reset(token)
            assert inside.json()["headers"]["idempotency-key"] == "stable-key"
            assert inside.attempts == 3
            assert "idempotency-key" not in {**got.json()["headers"], **silent.json()["headers"]}

    run(main)


@pytest.mark.parametrize(
    ("options", "effect"),
    [
        ({}, "safe"),
        ({"method": "HEAD"}, "safe"),
        ({"method": "QUERY"}, "safe"),
        ({"method": "PUT"}, "idempotent"),
        ({"method": "DELETE"}, "idempotent"),
        ({"method": "POST"}, "once"),
        ({"method": "PATCH"}, "once"),
        ({"method": "POST", "idempotent": True}, "idempotent"),
        ({"method": "POST", "effect": "safe"}, "safe"),
        ({"method": "GET", "effect": "once"}, "once"),
    ],
)
def test_effects(options: dict[str, Any], effect: str) -> None:
    """The method says what a repeated request would do, unless somebody who knows says otherwise."""
    assert fetch(**options).stage_defaults.effect == effect


def test_stage_defaults() -> None:
    """A stage learns name, retries, limits, columns and the client's factory from it."""
    limit = Limit(concurrency=8, by=http.host)
    made = fetch(limits=[limit])
    assert isinstance(made, Configured)
    defaults = made.stage_defaults
    assert (defaults.name, list(defaults.limits), defaults.retry.attempts) == ("fetch", [limit], 4)  # type: ignore[union-attr]
    assert list(defaults.uses) == ["client"]
    assert "body" in defaults.columns
    assert fetch(select="a").stage_defaults.columns == ()
    assert fetch(client=Client()).stage_defaults.uses == {}


def test_the_shape_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job remembers of the request has references in the place of secrets, and can be written as JSON."""
    monkeypatch.setenv("HEADRACE_TEST_TOKEN", "hush")
    made = fetch(
        "https://user:hush@h/{id}?key={env:HEADRACE_TEST_TOKEN}",
        method="POST",
        headers={
            "Authorization": "Bearer hush",
            "X-A": Secret("hush"),
            "X-B": Secret(env="HEADRACE_TEST_TOKEN"),
            "X-C": "{env:HEADRACE_TEST_TOKEN}",
            "X-D": "plain",
        },
        json={"id": "{id}", "token": "{env:HEADRACE_TEST_TOKEN}"},
    )
    shape = json.dumps(made.stage_defaults.shape)
    assert "hush" not in shape + repr(made)
    assert "plain" in shape
    assert shape.count("{env:HEADRACE_TEST_TOKEN}") == 4


def test_secrets_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """{env:NAME} is sent, and neither the answer's URLs nor an error repeat it."""
    monkeypatch.setenv("HEADRACE_TEST_TOKEN", "hush hush")

    async def main() -> None:
        async with serve(_mirror) as server, Client() as client:
            template = server.url("/{id}?key={env:HEADRACE_TEST_TOKEN}")
            got = await fetch(template)({"id": "a"}, client=client)
            assert got.json()["target"] == "/a?key=hush%20hush"
            assert got.url == got.final_url == server.url("/a?key={env:HEADRACE_TEST_TOKEN}")
            with pytest.raises(StatusError) as caught:
                await fetch(template)({"id": "missing"}, client=client)
            assert "hush" not in f"{caught.value}{caught.value.url}"

    run(main)


def test_a_missing_secret_stops_the_run_before_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factory of a run's client refuses a request whose secrets are not there."""
    monkeypatch.delenv("HEADRACE_TEST_TOKEN", raising=False)
    made = fetch("http://h/", headers={"X-A": "{env:HEADRACE_TEST_TOKEN}"})
    with pytest.raises(PlanError, match="HEADRACE_TEST_TOKEN"):
        made.stage_defaults.uses["client"]()


def test_without_a_client() -> None:
    """Outside a flow it says what to give it."""
    with pytest.raises(PlanError, match="client=client"):
        asyncio.run(fetch()("http://h/"))


@pytest.mark.parametrize(
    "options",
    [
        {"accept": "2x"},
        {"url": "http://h/{a.b}"},
        {"url": "http://h/{env:X}/"},
        {"json": {"a": "{a!r}"}, "method": "POST"},
        {"json": {}},
        {"headers": {"a b": "x"}},
        {"headers": {"a": "x\r\ny"}},
        {"select": 7},
        {"select": "a..b"},
        {"effect": "twice"},
        {"idempotency_key": "a b", "method": "POST"},
        {"method": "get"},
    ],
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, Any]) -> None:
    """Wrong options raise when the request is made, before anything moves."""
    with pytest.raises(PlanError):
        fetch(**options)


def test_one_request_many_clients(run: Run) -> None:
    """A request serves one run after the other, each with its own client."""

    async def main() -> None:
        async with serve(_mirror) as server:
            request = fetch(headers={"X-A": "1"})
            for _ in range(3):
                async with request.stage_defaults.uses["client"]() as client:
                    got = await request(server.url(), client=client)
                    assert got.json()["headers"]["x-a"] == "1"

    run(main)
