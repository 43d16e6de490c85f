"""Scripted HTTP: what matches, what follows what, when it comes, and what is said of requests that nobody scripted."""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.errors import Disposition, PlanError
from headrace.http.client import Client
from headrace.http.errors import HttpError, StatusError, TotalTimedOut
from headrace.http.profile import Timeouts
from headrace.testing import (
    Ending,
    ScriptedHttp,
    ScriptedReply,
    ScriptedRequest,
    UnscriptedRequest,
    cancel_everywhere,
    no_leaks,
    run,
)

URL = "https://api.example/a"


def now() -> float:
    return asyncio.get_running_loop().time()


def ask(script: ScriptedHttp, *urls: str, **options: Any) -> list[Any]:
    """GET one URL after the other in virtual time; give bodies, or errors."""

    async def main() -> list[Any]:
        got: list[Any] = []
        async with script.client(**options) as client:
            for url in urls:
                try:
                    got.append((await client.get(url)).body)
                except (HttpError, UnscriptedRequest) as error:
                    got.append(error)
        return got

    return run(main)


# ------------------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize(
    ("pattern", "url", "fields"),
    [
        ("https://api.example/users/{id}", "https://api.example/users/7", {"id": "7"}),
        (
            "https://API.example:443/u/{a}/{b}?q={q}",
            "https://api.example/u/x/y?q=z%20",
            {"a": "x", "b": "y", "q": "z%20"},
        ),
        ("https://{host}.example/a", "https://api.example/a", {"host": "api"}),
        ("https://api.example/ä", "https://api.example/%C3%A4", {}),
        ("https://api.example", "https://api.example/", {}),
        (re.compile(r"https://api\.example/(?P<rest>.*)"), "https://api.example/a/b?c", {"rest": "a/b?c"}),
        (lambda request: request.headers["host"] == "api.example", "https://api.example/any", {}),
    ],
)
def test_patterns_that_match(pattern: Any, url: str, fields: dict[str, str]) -> None:
    """URLs in their sent form, fields of one segment, compiled patterns and functions."""
    script = ScriptedHttp()
    script.on("GET", pattern).reply(body=b"ok")
    assert ask(script, url) == [b"ok"]
    assert script.requests[0].fields == fields


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("https://api.example/users/{id}", "https://api.example/users/7/posts"),
        ("https://api.example/users/{id}", "https://api.example/users/"),
        ("https://api.example/a", "https://api.example/a?b=1"),
        ("https://api.example/a.b", "https://api.example/axb"),
        ("https://api.example/a", "http://api.example/a"),
        (re.compile("https://api"), "https://api.example/a"),
        (lambda request: False, "https://api.example/a"),
    ],
)
def test_patterns_that_do_not_match(pattern: Any, url: str) -> None:
    """A whole URL is meant, query and scheme included."""
    script = ScriptedHttp()
    script.on("GET", pattern).reply()
    (error,) = ask(script, url)
    assert isinstance(error, UnscriptedRequest)


def test_the_first_pattern_and_its_method_count() -> None:
    """What stands first answers; "*" is any method."""
    script = ScriptedHttp()
    script.on("POST", URL).reply(body=b"posted")
    script.on("*", URL).reply(body=b"any")
    script.on("GET", "https://api.example/{x}").reply(body=b"field")
    assert ask(script, URL, "https://api.example/b") == [b"any", b"field"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda script: script.on("get", URL), "in capitals"),
        (lambda script: script.on("GET", "api.example/a"), "no scheme"),
        (lambda script: script.on("GET", "https://x/{}"), "must be a name"),
        (lambda script: script.on("GET", "https://x/{a}/{a}"), "be there once"),
        (lambda script: script.on("GET", 7), "give a URL"),
        (lambda script: (script.on("GET", URL), script.on("GET", URL)), "scripted already"),
        (lambda script: script.on("GET", URL).reply().reply(), "by then"),
        (lambda script: script.on("GET", URL).reply("200"), "give a status"),
        (lambda script: script.on("GET", URL).reply(ScriptedReply(), after=1), "after: not beside"),
        (lambda script: script.on("GET", URL).reply(times=0), "from 1"),
        (lambda script: ScriptedReply(99), "from 200 to 599"),
        (lambda script: ScriptedReply(after=-1), "0 or more"),
        (lambda script: ScriptedReply(every=1), "give them too"),
        (lambda script: ScriptedReply(text="a", body=b"b"), "only one of"),
        (lambda script: ScriptedReply(204, body=b"b"), "has no body"),
        (lambda script: ScriptedReply(fault="reset"), "none of: unknown host"),
        (lambda script: ScriptedReply(200, fault="connect refused"), "before any answer"),
        (lambda script: ScriptedReply(304, fault="stall"), "has none"),
    ],
)
def test_what_cannot_be_played_is_refused_where_it_is_written(bad: Any, message: str) -> None:
    """Each mistake of a script is a PlanError that says what to write."""
    with pytest.raises(PlanError, match=message):
        bad(ScriptedHttp())


# ------------------------------------------------------------------------------------------------ sequences


def test_each_url_goes_through_the_replies_by_itself() -> None:
    """Concurrent items of one pattern do not take each other's replies; the last one stays."""
    script = ScriptedHttp()
    script.on("GET", "https://api.example/{x}").reply(body=b"1", times=2).then(body=b"2").then(body=b"3")
    a, b = "https://api.example/a", "https://api.example/b"
    assert ask(script, a, b, a, a, b, a, a, b) == [b"1", b"1", b"1", b"2", b"1", b"3", b"3", b"2"]
    assert [request.nth for request in script.requests] == [1, 1, 2, 3, 2, 4, 5, 3]


def test_a_function_replies() -> None:
    """A function, asynchronous or not, is given the request; what it raises ends the request; its reply takes its time."""

    async def slowly(request: ScriptedRequest) -> ScriptedReply:
        await asyncio.sleep(1)
        return ScriptedReply(body=request.fields["x"].encode(), after=1)

    def broken(request: ScriptedRequest) -> ScriptedReply:
        raise HttpError("mine")

    script = ScriptedHttp()
    script.on("GET", "https://api.example/f/{x}").reply(slowly)
    script.on("GET", "https://api.example/broken").reply(broken)
    script.on("GET", "https://api.example/none").reply(lambda request: None)

    async def main() -> None:
        async with script.client() as client:
            assert (await client.get("https://api.example/f/seven")).body == b"seven"
            assert now() == 2
            with pytest.raises(HttpError, match="mine"):
                await client.get("https://api.example/broken")
            with pytest.raises(PlanError, match=r"return a headrace\.testing\.ScriptedReply"):
                await client.get("https://api.example/none")

    run(main)


def test_what_is_not_scripted_is_said_at_once_and_at_the_end() -> None:
    """The error names the request and what is scripted; a block that hid it raises, and so does the check."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(times=1)
    other = "https://api.example/b?q=1"
    _, again, unknown = ask(script, URL, URL, other)
    assert str(again) == f"request 2 of GET {URL} is not scripted: GET {URL} has no more replies"
    assert str(unknown) == f"GET {other} is not scripted. Scripted are:\n  GET {URL}"
    with pytest.raises(AssertionError, match=r"not scripted: GET https://api\.example/b") as caught:
        script.assert_all_used()
    assert "not used" not in str(caught.value)
    with pytest.raises(AssertionError, match="not scripted"), script.installed():
        pass
    with pytest.raises(KeyError), script.installed():  # what the block raises comes first
        raise KeyError


def test_what_was_not_asked_for_is_named() -> None:
    """Patterns without replies, patterns nobody asked, and replies nobody came to."""
    script = ScriptedHttp()
    script.on("GET", URL).reply().then(503, after=2)
    script.on("PUT", URL)
    ask(script, URL)
    with pytest.raises(AssertionError) as caught:
        script.assert_all_used()
    assert str(caught.value).splitlines()[1:] == [
        f"  not used: GET {URL}: reply 2 of 2, <ScriptedReply 503 after 2 s>",
        f"  not used: PUT {URL}: it has no reply",
    ]
    ask(script, URL)
    script.on("GET", "https://api.example/b").reply()
    with pytest.raises(AssertionError, match=r"b: reply 1 of 1"):
        script.assert_all_used()


# ------------------------------------------------------------------------------------------------ time

T, P = Disposition.TRANSIENT, Disposition.PERMANENT
#: Fault: class, phase, disposition, whether it may have taken effect, and the moment of it with the default limits.
FAULTS = {
    "unknown host": ("ResolveFailed", "resolve", P, False, 1),
    "resolve failed": ("ResolveFailed", "resolve", T, False, 1),
    "resolve timeout": ("ResolveFailed", "resolve", T, False, 10),
    "connect refused": ("ConnectFailed", "connect", T, False, 1),
    "connect timeout": ("ConnectTimedOut", "connect", T, False, 10),
    "tls untrusted": ("TlsFailed", "tls", P, False, 1),
    "tls reset": ("TlsFailed", "tls", T, False, 1),
    "tls timeout": ("ConnectTimedOut", "tls", T, False, 10),
    "reset before send": ("TlsFailed", "tls", T, False, 1),
    "reset during send": ("ConnectionLost", "send", T, True, 1),
    "stall during send": ("Stalled", "send", T, True, 30),
    "reset after send": ("ConnectionLost", "first byte", T, True, 1),
    "first byte timeout": ("FirstByteTimedOut", "first byte", T, True, 30),
    "bad response": ("BadResponse", "first byte", P, True, 1),
    "headers too large": ("BodyTooLarge", "first byte", P, True, 1),
    "cut in headers": ("ConnectionLost", "first byte", T, True, 1),
    "stall": ("Stalled", "body", T, True, 31),
    "reset in body": ("ConnectionLost", "body", T, True, 1),
    "truncated body": ("BodyTruncated", "body", T, True, 1),
    "bad coding": ("BadResponse", "body", T, True, 1),
    "body too large": ("BodyTooLarge", "body", P, True, 1),
    "transport failed": ("ClientClosed", "", T, True, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_comes_at_its_time_as_its_error(fault: Any) -> None:
    """Class, phase and verdict are those of a real transfer; silence ends exactly at the limit."""
    script = ScriptedHttp()
    script.on("POST", URL).reply(fault=fault, after=1).then(body=b"ok")

    async def main() -> None:
        with no_leaks():
            async with script.client() as client:
                with pytest.raises(HttpError) as caught:
                    await client.post(URL, body=iter([b"one", b"two"]))
                error = caught.value
                found = (type(error).__name__, error.phase, error.disposition, error.ambiguous, now())
                assert found == FAULTS[fault]
                assert error.url == URL
                assert error.host == "api.example:443"
                assert error.elapsed == (now() if fault != "transport failed" else 0)
                assert client.statistics().in_flight == 0
                assert client.statistics().rebuilt == (fault == "transport failed")
                assert (await client.post(URL)).body == b"ok"
        assert [request.sent for request in script.requests] == [
            FAULTS[fault][3] or "too large" in fault,
            True,
        ]

    run(main)


@pytest.mark.parametrize(
    ("limits", "reply", "kind", "at"),
    [
        (Timeouts(), ScriptedReply(after=60), "FirstByteTimedOut", 30),
        (Timeouts(first_byte=None), ScriptedReply(after=119), "", 119),
        (Timeouts(first_byte=None), ScriptedReply(after=121), "TotalTimedOut", 120),
        (Timeouts(total=5), ScriptedReply(fault="connect timeout"), "ConnectTimedOut", 5),
        (Timeouts(), ScriptedReply(after=12, fault="connect refused"), "ConnectTimedOut", 10),
        (Timeouts(resolve=2), ScriptedReply(after=12, fault="unknown host"), "ResolveFailed", 2),
        (Timeouts(), ScriptedReply(chunks=[b"x" * 2000, 29, b"x" * 2000, 29, b"x"]), "", 58),
        (Timeouts(), ScriptedReply(chunks=[b"x" * 2000, 31.0, b"x"]), "Stalled", 30),
        (
            Timeouts(),
            ScriptedReply(chunks=[b"x"] * 100, every=1),
            "Stalled",
            30,
        ),  # nearly stopped: less than 32 B/s
        (Timeouts(stall=None), ScriptedReply(chunks=[b"x"] * 100, every=1), "", 100),
        (Timeouts(), ScriptedReply(chunks=[b"x" * 100] * 200, every=1), "TotalTimedOut", 120),
    ],
)
def test_limits_end_what_takes_too_long_exactly_then(
    limits: Timeouts, reply: ScriptedReply, kind: str, at: float
) -> None:
    """The client's own limits count, each from where it counts in a real transfer."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(reply)

    async def main() -> None:
        async with script.client(timeouts=limits) as client:
            try:
                await client.get(URL)
                ended = ""
            except HttpError as error:
                ended = type(error).__name__
            assert (ended, now()) == (kind, at)

    run(main)


def test_total_covers_redirects_and_waits_for_limits_are_free() -> None:
    """A redirect has what the first hop left; a client's limit that makes a call wait does not count."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(302, headers={"Location": "/b"}, after=20)
    script.on("GET", "https://api.example/b").reply(after=20)

    async def main() -> None:
        async with script.client(timeouts=Timeouts(total=30)) as client:
            with pytest.raises(TotalTimedOut) as caught:
                await client.get(URL)
            assert (now(), caught.value.elapsed) == (30, 30)
        async with script.client(timeouts=Timeouts(total=50), limits=[hr.Limit(rate="1/m")]) as client:
            answer = await client.get(URL)
            assert (answer.timings.total, answer.timings.first_byte) == (40, 20)
            assert now() == 30 + 60 + 20

    run(main)


def test_time_of_answers_goes_on_with_the_loop() -> None:
    """An hour of virtual time is an hour in `fetched_at`."""
    script = ScriptedHttp()
    script.on("GET", URL).reply()

    async def main() -> None:
        async with script.client() as client:
            first = await client.get(URL)
            await asyncio.sleep(3600)
            second = await client.get(URL)
            assert second.fetched_at - first.fetched_at == pytest.approx(3600)

    run(main)


# ------------------------------------------------------------------------------------------------ streams


def test_endless_stream_is_read_as_long_as_one_likes() -> None:
    """An endless body with times between its chunks; leaving it frees it."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(chunks=itertools.repeat(b"line\n"), every=2)

    async def main() -> None:
        with no_leaks():
            async with script.client() as client:
                seen = []
                async with client.stream("GET", URL, timeouts=Timeouts(stall=None, total=None)) as response:
                    async for chunk in response:
                        seen.append((chunk, now()))
                        if len(seen) == 1000:
                            break
                assert seen[-1] == (b"line\n", 2000)
                assert client.statistics().in_flight == 0

    run(main)


def test_endless_stream_without_pauses_waits_for_its_reader() -> None:
    """What nobody reads is held back at a megabyte, for as long as it takes."""
    made = 0

    def without_end() -> Iterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * 1024

    script = ScriptedHttp()
    script.on("GET", URL).reply(chunks=without_end)

    async def main() -> None:
        async with script.client() as client, client.stream("GET", URL) as response:
            await asyncio.sleep(3600)
            assert made == 1024
            assert len(await response.read(2 << 20)) == 2 << 20
            assert 2048 <= made <= 3072 + 1024

    run(main)


def test_endless_answer_can_be_given_up() -> None:
    """A body without end or pause that is read whole does not hold the loop: cancelling ends it."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(chunks=itertools.repeat(b"x" * 65536))

    async def main() -> None:
        with no_leaks():
            async with script.client(max_body=None) as client, asyncio.TaskGroup() as group:
                asking = group.create_task(client.get(URL))
                while client.statistics().in_flight == 0:
                    await asyncio.sleep(0)
                for _ in range(5):
                    await asyncio.sleep(0)
                asking.cancel()

    run(main)


def test_threads_share_a_script() -> None:
    """Clients of several threads, each with a loop of its own, ask one script: no reply is given twice."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(lambda request: ScriptedReply(json=request.nth))

    def ask_some(number: int) -> list[int]:
        return hr.map_sync(hr.http.fetch(select=int_of), [URL] * 50).values

    with script.installed():
        got = hr.map_sync(ask_some, range(4), concurrency=4).values
    assert sorted(itertools.chain(*got)) == list(range(1, 201))


def int_of(response: Any) -> int:
    return int(response.json())


def test_chunks_that_can_be_read_once_serve_one_request() -> None:
    """A generator is not silently empty at the second request; a function makes a new one each time."""

    async def pieces() -> AsyncIterator[bytes | float]:
        yield b"one"
        yield 1.0
        yield b"two"

    script = ScriptedHttp()
    script.on("GET", URL).reply(chunks=pieces())
    script.on("GET", "https://api.example/again").reply(chunks=pieces)

    async def main() -> None:
        async with script.client() as client:
            assert (await client.get(URL)).body == b"onetwo"
            with pytest.raises(PlanError, match="read once only"):
                await client.get(URL)
            for _ in range(2):
                assert (await client.get("https://api.example/again")).body == b"onetwo"

    run(main)


# ------------------------------------------------------------------------------------------------ plugging in


@pytest.mark.parametrize("how", ["factory", "partial", "open", "installed"])
def test_ways_to_plug_a_script_in(how: str) -> None:
    """A factory, a partial Client, an open client, and a block for what cannot be given one."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(json={"n": 1})

    async def main() -> None:
        if how == "factory":
            got = await hr.map(hr.http.fetch(client=script.client, select="n"), [URL])
        elif how == "partial":
            client = functools.partial(Client, transport=script)
            got = await hr.map(hr.http.fetch(client=client, select="n"), [URL])
        elif how == "open":
            async with script.client() as client:
                got = await hr.map(hr.http.fetch(client=client, select="n"), [URL])
        else:
            with script.installed() as installed:
                assert installed is script
                got = await hr.map(hr.http.fetch(select="n"), [URL])
        assert got.values == [1]
        script.assert_all_used()

    run(main)


def test_flows_of_the_synchronous_face_are_scripted_too() -> None:
    """`map_sync` in a block asks the script, on the loop that it chooses."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(json={"n": 1})
    with script.installed():
        assert hr.map_sync(hr.http.fetch(select="n"), [URL]).values == [1]


def test_a_whole_flow_in_virtual_time(tmp_path: Path) -> None:
    """Retry, Retry-After, dead letters and SQLite: minutes of trouble, and each item is where it belongs."""
    script = ScriptedHttp()
    users = script.on("GET", "https://api.example/users/{id}")
    users.reply(lambda request: ScriptedReply(json={"id": int(request.fields["id"])}, after=0.1))
    busy = ScriptedHttp()
    busy.on("GET", "https://api.example/users/1").reply(429, retry_after=120).then(json={"id": 1})
    busy.on("GET", "https://api.example/users/2").reply(404, text="gone").then(json={"id": 2})
    busy.on("GET", "https://api.example/users/3").reply(fault="reset after send").then(503).then(
        json={"id": 3}
    )
    busy.on("GET", "https://api.example/users/4").reply(fault="first byte timeout", times=4).then(
        json={"id": 4}
    )
    out = tmp_path / "users.db"

    async def once(script: ScriptedHttp) -> tuple[hr.Report, float]:
        fetch = hr.http.fetch("https://api.example/users/{id}", client=script.client)
        rows = [{"id": number} for number in (1, 2, 3, 4)]
        flow = hr.Flow(rows).map(fetch).into(hr.sqlite.table(out, "users"))
        return await flow.run(job="users"), now()

    report, ended = run(functools.partial(once, busy))
    assert (report.job_done, report.job_failed) == (2, 2)
    assert ended >= 120
    first, second = [request.at for request in busy.requests if request.url.endswith("/1")]
    assert 120 <= second - first <= 132
    assert [request.attempt for request in busy.requests if request.url.endswith("/4")] == [1, 2, 3, 4]
    dead = hr.open(out).job("users").failures()
    assert [(letter.position, letter.status) for letter in dead] == [(1, 404), (3, None)]
    hr.open(out).job("users").retry()
    report, _ = run(functools.partial(once, busy))
    assert (report.job_done, report.job_failed) == (4, 0)
    busy.assert_all_used()


def test_cancelling_everywhere_leaves_nothing_behind() -> None:
    """Wherever a call, its upload or its stream is cancelled, the request is gone and no task is left."""
    clients: list[Client] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(1)
        yield b"two"

    async def job() -> None:
        script = ScriptedHttp()
        script.on("GET", URL).reply(302, headers={"Location": "/b"}, after=1)
        script.on("GET", "https://api.example/b").reply(chunks=[b"one", 1.0, b"two"])
        script.on("POST", URL).reply(after=1)
        async with script.client(limits=[hr.Limit(concurrency=1)]) as client:
            clients.append(client)
            await client.get(URL)
            await client.post(URL, body=body())
            async with client.stream("GET", URL) as response:
                assert await response.read() == b"onetwo"

    def check(ending: Ending) -> None:
        assert clients.pop().statistics().in_flight == 0
        clients.clear()

    assert cancel_everywhere(job, check) > 10
    cancel_everywhere(job, check, times=2)


def test_many_requests_take_little_time() -> None:
    """Two thousand scripted requests with an hour of latency each are a matter of a second, and all are recorded."""
    script = ScriptedHttp()
    script.on("GET", "https://api.example/{n}").reply(after=3600)

    async def main() -> None:
        limits = Timeouts(first_byte=None, total=None)
        fetch = hr.http.fetch(
            "https://api.example/{item}", client=functools.partial(script.client, timeouts=limits)
        )
        got = await hr.map(fetch, range(2000), concurrency=100)
        assert len(got.done) == 2000
        assert now() == pytest.approx(20 * 3600)

    run(main)
    assert len(script.requests) == 2000


def test_a_refused_status_carries_what_was_scripted() -> None:
    """A StatusError has the scripted headers and body."""
    script = ScriptedHttp()
    script.on("GET", URL).reply(404, json={"error": "gone"}, headers={"X-Id": "7"})
    (error,) = ask(script, URL)
    assert isinstance(error, StatusError)
    assert (error.status, error.body, error.headers["x-id"]) == (404, b'{"error":"gone"}', "7")
