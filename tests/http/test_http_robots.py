"""robots.txt: asked once, obeyed before anything is requested, and never a reason to lose an item or to hang."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import CLOSE, Handler, Request, Server, answer, serve

import headrace as hr
from headrace import http
from headrace.http import Client, RobotsUnavailable, Timeouts, fetch
from headrace.http.profile import default_user_agent
from headrace.http.robots import MOST_READ, _parse, applicable, product_token
from headrace.http.url import parse
from headrace.policies.classify import load_signal

Run = Callable[..., Any]


def site(robots: bytes | str | Handler, **pages: str) -> Handler:
    """Answer /robots.txt with a text, an answer, or a handler; a page redirects where it has a target, and is "ok" else."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        path = request.target.partition("?")[0]
        if path == "/robots.txt":
            if callable(robots):
                return await robots(request, writer)
            writer.write(robots if isinstance(robots, bytes) else answer(robots.encode()))
        elif path[1:] in pages:
            writer.write(answer(b"", "302 Found", f"Location: {pages[path[1:]]}\r\n"))
        else:
            writer.write(answer(b"ok"))
        return None

    return handler


def asked(server: Server) -> Counter[str]:
    return Counter(request.target for request in server.requests)


def reasons(result: Any) -> list[str]:
    return [outcome.reason for outcome in result.skipped]


RULES = """
User-agent: other
Disallow: /

User-agent: *
Disallow: /

User-Agent: HeadRace/2.0
Allow: /private/open
Disallow: /private
Disallow: /*.pdf$
Disallow: /search?q=
"""


def test_what_is_disallowed_is_skipped(run: Run) -> None:
    """The longest rule of the own group counts; what it disallows is Skipped, and never requested."""

    async def main() -> None:
        async with serve(site(RULES)) as server:
            paths = [
                "/",
                "/private/x",
                "/private/open/y",
                "/a.pdf",
                "/a.pdf?x",
                "/search?q=secret",
                "/robots.txt",
            ]
            limit = hr.Limit(by=http.host, concurrency=2)
            got = await hr.map(fetch(robots=True, limits=[limit]), [server.url(path) for path in paths])
            host = f"127.0.0.1:{server.port}"
            assert reasons(got) == [f"robots.txt of {host} disallows it for headrace"] * 3
            assert [outcome.position for outcome in got.skipped] == [1, 3, 5]
            assert asked(server) == Counter({"/robots.txt": 2, "/": 1, "/private/open/y": 1, "/a.pdf?x": 1})
            assert all(request.headers["user-agent"].startswith("headrace/") for request in server.requests)
            assert limit.statistics().running == 0

    run(main)


@pytest.mark.parametrize("limits", ["none", "keyed", "one"])
def test_it_is_asked_once_for_many(run: Run, limits: str) -> None:
    """Fifty items of a host, all at once, ask once and wait for the one who does."""

    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(answer(b"User-agent: *\nDisallow: /x\n"))

    async def main() -> None:
        async with serve(site(slowly)) as server:
            limit = {
                "none": [],
                "keyed": [hr.Limit(by=http.host, concurrency=8)],
                "one": [hr.Limit(by=http.host, concurrency=1)],
            }[limits]
            urls = [server.url(f"/{'x' if n % 5 else 'y'}{n}") for n in range(50)]
            got = await hr.map(fetch(robots=True, limits=limit), urls, concurrency=30)
            assert (len(got.done), len(got.skipped)) == (10, 40)
            assert asked(server)["/robots.txt"] == 1
            assert all(each.statistics().running == each.statistics().waiting == 0 for each in limit)

    run(main)


def test_a_slow_one_does_not_hold_up_other_hosts(run: Run) -> None:
    """While one host keeps its robots.txt waiting, few of its items wait for it, and another host goes on."""
    release = asyncio.Event()

    async def never(request: Request, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answer(b""))

    async def main() -> None:
        release.clear()
        async with serve(site(never)) as slow, serve(site("")) as fast:
            urls = [slow.url(f"/{n}") for n in range(20)] + [fast.url(f"/{n}") for n in range(20)]
            limit = hr.Limit(by=http.host, concurrency=4)
            fetching = fetch(robots=True, limits=[limit])
            flow = hr.Flow(urls).map(fetching, concurrency=8)
            async with flow.start() as job:
                async with asyncio.timeout(10):
                    while asked(fast).total() < 21:
                        await asyncio.sleep(0.01)
                assert asked(slow) == {"/robots.txt": 1}
                release.set()
                report = await job.wait()
            assert report.done == 40
            assert limit.statistics().running == 0

    run(main)


@pytest.mark.parametrize(
    ("robots", "allowed"),
    [
        (answer(b"Disallow: /", "404 Not Found"), True),
        (answer(b"Disallow: /", "403 Forbidden"), True),
        (answer(b"", "304 Not Modified"), True),
        (answer(b"User-agent: *\nDisallow: /", "206 Partial"), False),
        (answer(b"\xff\xfe\x00\x80 User\nUser-agent: *\nDisallow: /\n"), False),
        (answer(b"\xef\xbb\xbfUser-agent: *\nDisallow: /\n"), False),
        (answer(b"<html>User-agent: is a word"), True),
        (answer(b""), True),
        (answer(b"no gzip", headers="Content-Encoding: gzip\r\n"), True),
        (answer(b"", "302 Found", "Location: ftp://x/\r\n"), True),
        (answer(b"", "302 Found", "Location: /robots.txt\r\n"), True),
        (answer(b"User-agent: *\nAllow: /" + b"a" * 100 + b"\n" + b"#" * MOST_READ + b"\nDisallow: /"), True),
        (answer(b"User-agent: *\nDisallow: /\n" + b"#" * 3 * MOST_READ), False),
        (answer(b"User-agent: *\n".ljust(MOST_READ - 12, b"#") + b"\nDisallow: /not-this"), True),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_cannot_be_read_allows(run: Run, robots: bytes, allowed: bool) -> None:
    """4xx, what is no answer and endless redirects allow all; bytes that are no text are passed over, 500 KiB are read."""

    async def main() -> None:
        async with serve(site(robots)) as server:
            got = await hr.map(fetch(robots=True), [server.url("/page"), server.url("/page")])
            assert len(got.done) == (2 if allowed else 0)
            assert len(got.skipped) == (0 if allowed else 2)
            assert asked(server)["/robots.txt"] == (6 if b"/robots.txt" in robots else 1)

    run(main)


@pytest.mark.parametrize(
    ("status", "signal"),
    [("500 X", "fault"), ("501 X", "fault"), ("503 X", "overload"), ("429 X", "throttled"), ("cut", "lost")],
)
def test_what_is_not_to_be_had_now_is_asked_again(run: Run, status: str, signal: str) -> None:
    """5xx and no answer: nothing is requested, the item fails as of the moment and is repeated."""
    bad: list[bool] = []

    async def robots(request: Request, writer: asyncio.StreamWriter) -> str | None:
        if not bad:
            writer.write(answer(b""))
            return None
        bad.pop()
        if status == "cut":
            return CLOSE
        writer.write(answer(b"no", status))
        return None

    async def main() -> None:
        async with serve(site(robots)) as server:
            url, request = server.url("/page?key=hush"), fetch(robots=True)
            quick = hr.Retry(attempts=4, base=0.01, overload_base=0.01)
            bad[:] = [True] * 3
            got = await hr.map(request, [url], retry=quick)
            assert (len(got.done), asked(server)["/page?key=hush"]) == (1, 1)
            bad[:] = [True] * 9
            (failed,) = (await hr.map(request, [url], retry=hr.Retry(attempts=1))).failed
            assert isinstance(failed.error, RobotsUnavailable)
            assert failed.error.status == (None if status == "cut" else int(status[:3]))
            assert load_signal(failed.error) == signal
            assert f"robots.txt of 127.0.0.1:{server.port} is not to be had" in str(failed.error)
            assert "hush" not in f"{failed.error!r}{failed.error.__cause__!r}{failed.error.url}"
            assert asked(server)["/page?key=hush"] == 1

    run(main)


def test_redirects_of_robots_are_followed_to_other_hosts(run: Run) -> None:
    """Up to five, and each hop is admitted under its own host's limit."""

    async def main() -> None:
        async with serve(site("User-agent: *\nDisallow: /x")) as there:
            moved = answer(b"", "301 Moved", f"Location: {there.url('/robots.txt')}\r\n")
            async with serve(site(moved)) as here:
                limit = hr.Limit(by=http.host, concurrency=1)
                urls = [here.url("/x"), here.url("/y"), there.url("/x"), there.url("/y")]
                got = await hr.map(fetch(robots=True, limits=[limit]), urls * 3)
                assert (len(got.done), len(got.skipped)) == (6, 6)
                assert (asked(here)["/robots.txt"], asked(there)["/robots.txt"]) == (1, 2)
                assert limit.statistics().running == limit.statistics().waiting == 0

    run(main)


def test_hosts_whose_robots_lead_to_each_other(run: Run) -> None:
    """Two hosts with one place each whose robots.txt redirect to each other do not lock."""

    async def main() -> None:
        doors: dict[str, str] = {}

        def leads(name: str) -> Handler:
            async def robots(request: Request, writer: asyncio.StreamWriter) -> None:
                await asyncio.sleep(0.01)
                writer.write(answer(b"", "302 Found", f"Location: {doors[name]}\r\n"))

            return robots

        async with serve(site(leads("a"))) as a, serve(site(leads("b"))) as b:
            doors.update(a=b.url("/robots.txt"), b=a.url("/robots.txt"))
            limit = hr.Limit(by=http.host, concurrency=2)
            urls = [each.url(f"/{n}") for n in range(20) for each in (a, b)]
            async with asyncio.timeout(20):
                got = await hr.map(fetch(robots=True, limits=[limit]), urls, concurrency=16)
            assert len(got.done) == 40
            assert limit.statistics().running == limit.statistics().waiting == 0

    run(main)


def test_each_hop_is_checked(run: Run) -> None:
    """A redirect to a disallowed path of the same host or another one is not followed: the item is Skipped."""

    async def main() -> None:
        async with serve(site("User-agent: *\nDisallow: /no")) as there:
            pages = {"in": "/no/x", "out": there.url("/no/x"), "good": there.url("/yes")}
            async with serve(site("User-agent: *\nDisallow: /no", **pages)) as here:
                own = hr.Limit(concurrency=1)
                request = fetch(robots=True, client=lambda: Client(limits=[own]))
                got = await hr.map(request, [here.url(f"/{page}") for page in pages])
                assert [outcome.position for outcome in got.skipped] == [0, 1]
                assert [
                    str(port) in reason
                    for port, reason in zip((here.port, there.port), reasons(got), strict=True)
                ]
                assert "/no/x" not in {**asked(here), **asked(there)}
                assert own.statistics().running == 0
            async with serve(site("", **pages)) as here, Client() as client:
                with pytest.raises(hr.Skip, match=f"robots.txt of 127.0.0.1:{there.port}"):
                    await fetch(robots=True)(here.url("/out"), client=client)

    run(main)


@pytest.mark.parametrize("kind", ["keyed", "whole", "none", "bare"])
def test_a_crawl_delay_is_kept(run: Run, kind: str) -> None:
    """Starts at the host are that far apart, with limits by host, with others, without any, and without a flow."""
    times: list[float] = []

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.target == "/robots.txt":
            writer.write(answer(b"User-agent: *\nCrawl-delay: 0.1\n"))
            return
        times.append(asyncio.get_running_loop().time())
        writer.write(answer(b"ok"))

    async def main() -> None:
        times.clear()
        options = (
            {} if kind == "bare" else {"timeout": 0.35}
        )  # a turn that is waited for is no part of an attempt
        limits = {
            "keyed": [hr.Limit(by=http.host, concurrency=8)],
            "whole": [hr.Limit(concurrency=8)],
        }.get(kind, [])
        async with serve(handler) as server:
            urls = [server.url(f"/{n}") for n in range(5)]
            request = fetch(robots=True, limits=limits)
            if kind == "bare":
                async with Client() as client:
                    await asyncio.gather(*(request(url, client=client) for url in urls))
            else:
                got = await hr.map(request, urls, concurrency=8, **options)
                assert [outcome.attempts for outcome in got.done] == [1] * 5
        assert len(times) == 5
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert min(gaps) > 0.05  # starts are exact; what the server sees of them is not
        assert 0.37 < times[-1] - times[0] < 1.5

    run(main)


def test_a_cancelled_asker_is_replaced(run: Run) -> None:
    """When the call that asks is cut short, the next one asks, and nobody is left waiting."""
    first = True

    async def robots(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        if first:
            first = False
            await asyncio.sleep(30)
        writer.write(answer(b""))

    async def main() -> None:
        nonlocal first
        first = True
        async with serve(site(robots)) as server, Client() as client:
            request = fetch(robots=True)
            calls = [asyncio.create_task(request(server.url(f"/{n}"), client=client)) for n in range(5)]
            await asyncio.sleep(0.05)
            calls[0].cancel()
            got = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(got[0], asyncio.CancelledError)
            assert [each.status for each in got[1:]] == [200] * 4  # type: ignore[union-attr]
            assert asked(server)["/robots.txt"] == 2
            first = True
            limit = hr.Limit(by=http.host, concurrency=2)
            urls = [server.url(f"/{n}") for n in range(6)]
            quick = hr.Retry(attempts=2, base=0.0)
            flow = hr.Flow(urls).map(fetch(robots=True, limits=[limit]), timeout=0.1, retry=quick)
            assert (await flow.run()).done == 6
            assert limit.statistics().running == limit.statistics().waiting == 0

    run(main)


def test_cancelled_runs_give_all_permits_back(run: Run) -> None:
    """A run that is cancelled while items ask, wait and are spaced leaves no permit and no waiter."""

    async def robots(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(answer(b"User-agent: *\nCrawl-delay: 0.01\n"))

    async def main() -> None:
        async with serve(site(robots, a="/b")) as server:
            for step in range(12):
                keyed, whole, own = (
                    hr.Limit(by=http.host, concurrency=3),
                    hr.Limit(concurrency=5),
                    hr.Limit(concurrency=2),
                )
                request = fetch(
                    robots=True, limits=[keyed, whole], client=lambda own=own: Client(limits=[own])
                )
                task = asyncio.create_task(hr.map(request, [server.url("/a")] * 20, concurrency=6))
                await asyncio.sleep(0.01 * step)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                for limit in (keyed, whole, own):
                    assert (limit.statistics().running, limit.statistics().waiting) == (0, 0), step

    run(main)


def test_the_token_is_that_of_the_user_agent(run: Run) -> None:
    """Client, header or our own name: the first word of what is sent says which group is meant."""
    rules = "User-agent: mine\nDisallow: /\n\nUser-agent: theirs\nDisallow: /t\n"

    async def main() -> None:
        async with serve(site(rules)) as server:
            for options, headers, skipped in (
                ({}, None, 0),
                ({"user_agent": "Mine/1.0 (+https://x)"}, None, 1),
                ({"user_agent": "minee/1.0"}, None, 0),
                ({"user_agent": "mine"}, {"User-Agent": "theirs/3"}, 0),
                ({"headers": {"user-agent": "MINE"}}, None, 1),
            ):
                made = fetch(robots=True, headers=headers, client=lambda options=options: Client(**options))
                got = await hr.map(made, [server.url("/page")])
                assert len(got.skipped) == skipped, (options, headers)
            assert product_token(default_user_agent()) == product_token("") == "headrace"
            assert product_token("1/2") == "*"

    run(main)


def test_without_it_nothing_is_asked_and_jobs_stay_the_same(run: Run) -> None:
    """The rule is part of the stage's shape only where it is given."""
    assert "robots" not in fetch().stage_defaults.shape
    assert json.dumps(fetch(robots=True).stage_defaults.shape["robots"]) == "true"

    async def main() -> None:
        async with serve(site("User-agent: *\nDisallow: /")) as server:
            assert len((await hr.map(fetch(), [server.url("/x")])).done) == 1
            assert "/robots.txt" not in asked(server)

    run(main)


def test_a_dead_host_is_a_failure_of_the_moment(run: Run) -> None:
    """Where nobody listens nothing is known, so that the item is not disallowed and not allowed."""

    async def main() -> None:
        async with serve(site("")) as server:
            url = server.url("/x")
        request = fetch(robots=True, timeouts=Timeouts(total=5))
        (failed,) = (await hr.map(request, [url], retry=hr.Retry(attempts=2, base=0.0))).failed
        assert isinstance(failed.error, RobotsUnavailable)
        assert failed.attempts == 2

    run(main)


def allows(text: str, path: str, agent: str = "headrace") -> bool:
    parsed = _parse(text.encode(), agent)
    return parsed is None or parsed.can_fetch(parse(f"http://h{path}").text, "*")


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a", "/a", True),
        ("user-agent:headrace\nuser-agent: x\n\ndisallow: /a", "/a", False),
        ("User-agent: x\nDisallow: /a\nUser-agent: headrace\nDisallow: /b", "/a", True),
        ("User-agent: headrace\nDisallow: /b\nUser-agent: x\nDisallow: /\nUser-agent: headrace\nDisallow: /a", "/a", False),
        ("User-agent: headrace\n\nUser-agent: *\nDisallow: /", "/a", False),
        ("User-agent: headrace\nDisallow:\nUser-agent: *\nDisallow: /", "/a", True),
        ("User-agent: head\nDisallow: /", "/a", True),
        ("User-agent: headracer\nDisallow: /", "/a", True),
        ("User-agent: *\nSitemap: http://h/s\nDisallow: /a", "/a", False),
        ("User-agent: x\nSitemap: http://h/s\nUser-agent: *\nDisallow: /a", "/a", False),
        ("User agent: *\nDisallow: /a # why", "/a", False),
        ("User-agent: *\nDisallow: /%C3%A9", "/é", False),
        ("User-agent: *\nDisallow: /*x*y$", "/1x2y", False),
        ("User-agent: *\nDisallow: /*x*y$", "/1x2y3", True),
        ("Disallow: /", "/a", True),
    ],
)  # fmt: skip
def test_groups_and_rules(text: str, path: str, allowed: bool) -> None:
    """RFC 9309: own groups together before «*», the token as a whole, the longest rule, allow before disallow."""
    assert allows(text, path) == allowed


def test_a_hostile_file_takes_no_longer_than_it_must() -> None:
    """Thousands of agents for thousands of rules are not multiplied, and wildcards are not tried in every way."""
    agents = "".join(f"User-agent: bot{n}\n" for n in range(10_000)) + "User-agent: *\n"
    rules = "".join(f"Disallow: /a{n}\n" for n in range(10_000))
    assert not allows(agents + rules, "/a77")
    assert applicable(agents + rules, "headrace").count("\n") == 10_001
    assert allows("User-agent: *\nDisallow: /" + "*a" * 100_000 + "b", "/" + "a" * 5000)


@given(
    text=st.text(st.sampled_from("User-agent: *\nDisallow/$%é#Crl0.9\x00:h")),
    path=st.text(st.sampled_from("/a%$*?")),
)
def test_any_text_is_read(text: str, path: str) -> None:
    """No text raises, and what it says of a path is yes or no."""
    assert allows(text, f"/{path}") in (True, False)
