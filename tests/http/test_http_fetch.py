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


def test_rows_fill_every_part_of_a_request(run: Run) -> None:
    """Headers, forms and JSON are filled as the URL is, each encoded in its own way."""

    async def main() -> None:
        async with serve(_mirror) as server, Client(headers={"X-User": "nobody", "X-Own": "o"}) as client:
            row = {
                "id": 7,
                "name": "x y&z=é",
                "at": {"city": "Bern"},
                "tags": ["a", {"n": 1}],
                "First Name": "F",
                "no": "",
            }
            request = fetch(
                server.url("/u/{at.city}/{tags.1.n}?f={First Name}"),
                method="POST",
                headers={"X-User": "u-{id}", "X-Braces": "{{}}"},
                data="a={name}&b={no}&c=d%20e",
            )
            got = (await request(row, client=client)).json()
            assert got["target"] == "/u/Bern/1?f=F"
            assert got["headers"]["x-user"] == "u-7"
            assert got["headers"]["x-own"] == "o"
            assert got["headers"]["x-braces"] == "{}"
            assert got["body"] == "a=x%20y%26z%3D%C3%A9&b=&c=d%20e"
            assert got["headers"]["content-type"] == "application/x-www-form-urlencoded"
            mapping = fetch(
                server.url(), method="POST", data={"a b": "{name}", "list": [1, "{id}"], "flag": True}
            )
            got = (await mapping(row, client=client)).json()
            assert got["body"] == "a%20b=x%20y%26z%3D%C3%A9&list=1&list=7&flag=true"
            body = fetch(
                server.url(), method="POST", json={"id": "{id}", "tags": "{tags}", "hi": "hi {at.city}"}
            )
            got = (await body(row, client=client)).json()
            assert json.loads(got["body"]) == {"id": 7, "tags": ["a", {"n": 1}], "hi": "hi Bern"}
            items = fetch(server.url("/{item.0}"), method="POST", json={"whole": "{item}"})
            got = (await items(["a", 1], client=client)).json()
            assert (got["target"], json.loads(got["body"])) == ("/a", {"whole": ["a", 1]})

    run(main)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\0b", "é", None, "", {"a": 1}])
def test_a_row_cannot_smuggle_a_header(run: Run, value: object) -> None:
    """What cannot be the value of a header fails its row, without sending anything and without the template's text."""

    async def main() -> None:
        async with serve(_mirror) as server, Client() as client:
            request = fetch(server.url(), headers={"X-A": "hush {v}"})
            with pytest.raises(InvalidUrl, match="'X-A'") as caught:
                await request({"v": value}, client=client)
            assert "hush" not in str(caught.value)
            assert (await request({"v": "fine"}, client=client)).json()["headers"]["x-a"] == "hush fine"
            assert client.statistics().requests == 1

    run(main)


def test_the_credentials_of_a_row_stay_with_its_origin(run: Run) -> None:
    """A secret header that a row fills is not sent on to another origin; another one is."""

    async def main() -> None:
        async with serve(_mirror) as there:

            async def moved(request: Request, writer: asyncio.StreamWriter) -> None:
                writer.write(answer(b"", "302 Found", f"Location: {there.url('/there')}\r\n"))

            async with serve(moved) as here, Client() as client:
                request = fetch(
                    here.url("/{id}"), headers={"Authorization": "Bearer {token}", "X-Id": "{id}"}
                )
                got = (await request({"id": 1, "token": "t"}, client=client)).json()
                assert got["target"] == "/there"
                assert "authorization" not in got["headers"]
                assert got["headers"]["x-id"] == "1"

    run(main)


def test_an_own_idempotency_key_replaces_ours(run: Run) -> None:
    """A header of that name, from a row or not, is the only one that is sent."""

    async def main() -> None:
        async with serve(_mirror) as server, Client() as client:
            token = current_call.set(_Call())  # type: ignore[arg-type]
            try:
                for headers, key in (({}, "stable-key"), ({"idempotency-key": "order-{id}"}, "order-7")):
                    request = fetch(server.url("/{id}"), method="POST", headers=headers)
                    got = (await request({"id": 7}, client=client)).json()
                    assert got["headers"]["idempotency-key"] == key
            finally:
                current_call.reset(token)

    run(main)


def test_select_is_jmespath(run: Run) -> None:
    """An expression gives what it finds; nothing at all, or no JSON, fails the item with the reason."""

    async def main() -> None:
        async def tell(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(b"no json" if request.target == "/text" else request.body))

        async with serve(tell) as server, Client() as client:

            async def select(expression: Any, body: object, path: str = "") -> Any:
                request = fetch(server.url(path), method="POST", json=body, select=expression)
                return await request({"id": 9, "name": "input"}, client=client)

            document = {"data": [{"name": "a", "n": 1}, {"name": "b", "n": None}], "zero": 0, "null": None}
            assert await select("data[0].name", document) == "a"
            assert await select("data[].name", document) == ["a", "b"]
            assert await select("zero", document) == 0
            assert await select("data[1].{name: name, n: n}", document) == {"name": "b", "n": None}
            for expression, says in (
                ("null", "nothing is there; the JSON has data, zero, null"),
                ("data[7]", "nothing is there"),
                ("length(zero)", "cannot be applied"),
                ("nosuch(@)", "cannot be applied"),
            ):
                with pytest.raises(BadResponse, match=says):
                    await select(expression, document)
            with pytest.raises(BadResponse, match="not the JSON"):
                await select("a", {}, "/text")
            row = await select(http.columns("data[1].{name: name, n: n}"), document)
            assert list(row) == ["name", "n", "url", "status", "attempts", "fetched_at", "id", "input_name"]
            assert (row["name"], row["n"], row["id"], row["input_name"]) == ("b", None, 9, "input")
            row = await select(http.columns("data[].name", body=True), document)
            assert (row["value"], json.loads(row["body"])) == (["a", "b"], document)
            row = await select(http.columns("{status: `7`, URL: `8`, input_id: `9`}"), document)
            assert [row[name] for name in ("status", "response_status", "URL", "input_id", "id")] == [
                7,
                200,
                8,
                9,
                9,
            ]

    run(main)


def test_a_preview_shows_what_would_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request of an item with references and *** in the places of secrets; nothing of the environment is needed."""
    monkeypatch.delenv("HEADRACE_TEST_TOKEN", raising=False)
    request = fetch(
        "https://h/{id}?key={env:HEADRACE_TEST_TOKEN}",
        method="POST",
        headers={"Authorization": "hush", "X-A": "{id}", "X-B": "{env:HEADRACE_TEST_TOKEN}"},
        json={"id": "{id}", "token": "t {env:HEADRACE_TEST_TOKEN}"},
    )
    shown = request.preview({"id": "a b"})
    assert shown.url == "https://h/a%20b?key={env:HEADRACE_TEST_TOKEN}"
    assert dict(shown.headers) == {"Authorization": "***", "X-A": "a b", "X-B": "{env:HEADRACE_TEST_TOKEN}"}
    assert json.loads(shown.body or "") == {"id": "a b", "token": "t {env:HEADRACE_TEST_TOKEN}"}
    assert request.fields == ("id",)
    assert fetch(json={"a": "{b.c}"}, method="POST").fields == ("url", "b.c")


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
        {"url": "http://h/{a[0]}"},
        {"url": "http://h/{env:X}/"},
        {"json": {"a": "{a!r}"}, "method": "POST"},
        {"json": {}},
        {"headers": {"a b": "x"}},
        {"headers": {"a": "x\r\ny"}},
        {"select": 7},
        {"select": "a..b"},
        {"select": "data.0.name"},
        {"data": "a={x", "method": "POST"},
        {"data": "a=b"},
        {"data": ["a"], "method": "POST"},
        {"data": "a=b", "json": {}, "method": "POST"},
        {"json": {"a": object()}, "method": "POST"},
        {"headers": {"X-A": "a{"}},
        {"headers": {"X-A": "é"}},
        {"headers": {"Content-Type": "{type}"}},
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
