"""Logs over HTTP: many at once, over servers that cut, restart and rotate; no line twice, and none lost that is served."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from tests.http.log_server import LogServer
from tests.http.server import CLOSE, Request, always, answer, serve

from headrace.errors import PlanError
from headrace.http.client import Client
from headrace.http.errors import BadResponse, ConnectFailed, InvalidUrl, Stalled, StatusError
from headrace.http.logs import events, lines
from headrace.logs.lines import Line
from headrace.logs.notices import Notice
from headrace.policies.retry import Retry

Run = Callable[..., Any]
QUICK = Retry(attempts=50, base=0.001, cap=0.01)


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that the other side is about to notice."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


def numbered(name: str, first: int, last: int) -> bytes:
    """Lines that say what they are."""
    return b"".join(f"{name} line {number}\n".encode() for number in range(first, last))


def test_a_log_is_read_to_its_end(run: Run) -> None:
    """Lines come with their URL and offset; the last one needs no end; the end is an end."""

    async def main() -> None:
        handler = LogServer()
        handler.write("/log", "eins\r\nzwölf\n\nlast".encode())
        async with serve(handler) as server:
            url = server.url("/log")
            async with lines(url) as log:
                got = [line async for line in log]
            assert got == [
                Line("eins", url, 0),
                Line("zwölf", url, 6),
                Line("", url, 13),
                Line("last", url, 14),
            ]
            counts = log.statistics()[url]
            assert (counts.records, counts.bytes, counts.connections, counts.state) == (4, 18, 1, "ended")

    run(main)


def test_fifty_logs_over_cuts_restarts_and_rotations(run: Run) -> None:
    """Fifty logs grow while answers are cut at random bytes, the server restarts, and files are rotated.

    Of each log the lines that are still served come once, in order; rotations are told; no socket is left.
    """
    names = [f"/log{number}" for number in range(50)]

    async def main() -> None:
        handler = LogServer(cut=0.3)
        notices: list[Notice] = []
        got: dict[str, list[str]] = {}
        for name in names:
            handler.write(name, numbered(name, 0, 200))
        async with serve(handler) as server:
            urls = {server.url(name): name for name in names}

            async def write() -> None:
                for number in range(200, 400, 20):
                    for name in names:
                        handler.write(name, numbered(name, number, number + 20))
                    handler.is_down = number == 300
                    await asyncio.sleep(0.03)
                await until(lambda: sum(map(len, got.values())) == 50 * 400)
                for name in names[:10]:  # all was read: another file, shorter or longer, takes its place
                    handler.rotate(name, numbered(name + " new", 0, 10 if name < "/log5" else 1000))

            wanted = 50 * 400 + sum(10 if name < "/log5" else 1000 for name in names[:10])
            async with (
                asyncio.timeout(60),
                asyncio.TaskGroup() as tasks,
                lines(*urls, follow=0.02, retry=QUICK, on_notice=notices.append) as log,
            ):
                tasks.create_task(write())
                async for line in log:
                    got.setdefault(urls[line.url], []).append(line.text)
                    if sum(map(len, got.values())) == wanted:
                        break
            for name in names:
                expected = numbered(name, 0, 400)
                if name in names[:10]:
                    expected += numbered(name + " new", 0, 10 if name < "/log5" else 1000)
                assert got[name] == expected.decode().split("\n")[:-1]
            counts = log.statistics()
            assert [counts[server.url(name)].rotations for name in names] == [1] * 10 + [0] * 40
            assert sum(notice.kind == "rotated" for notice in notices) == 10
            assert sum(notice.kind == "broken off" for notice in notices) > 50
            await until(lambda: server.open == 0)

    run(main)


def test_leaving_after_the_first_match_leaves_no_socket_open(run: Run) -> None:
    """A break in the middle of fifty live logs closes all fifty connections."""

    async def main() -> None:
        handler = LogServer("live")
        async with serve(handler) as server:
            urls = [server.url(f"/{number}") for number in range(50)]
            for number in range(50):
                handler.write(f"/{number}", b"")
            async with lines(*urls) as log:
                await until(lambda: handler.live == 50)
                handler.write("/7", b"nothing\n")
                handler.write("/33", b"an ERROR at last\n")
                async for line in log:
                    if "ERROR" in line.text:
                        assert line.url == urls[33]
                        break
            await until(lambda: server.open == 0)

    run(main)


def test_letting_go_of_the_iteration_loses_no_line(run: Run) -> None:
    """A time limit around one line cancels the wait, and the next read gets the line."""

    async def main() -> None:
        handler = LogServer("live")
        handler.write("/log", b"")
        async with serve(handler) as server, lines(server.url("/log")) as log:
            await until(lambda: handler.live == 1)
            for number in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await anext(aiter(log))
                handler.write("/log", b"line %d\nand another\n" % number)
                assert (await anext(aiter(log))).text == f"line {number}"
                async for batch in log.batches():
                    assert [line.text for line in batch] == ["and another"]
                    break

    run(main)


def test_live_stream_that_breaks_has_a_gap_which_is_told(run: Run) -> None:
    """Where the server streams from its live end, what it wrote meanwhile is lost, and that is said."""

    async def main() -> None:
        handler = LogServer("live", cut=1.0)
        handler.write("/log", b"")
        notices: list[Notice] = []
        async with (
            serve(handler) as server,
            lines(server.url("/log"), follow=0.01, retry=QUICK, on_notice=notices.append) as log,
        ):
            rows = aiter(log)
            for number in range(3):
                await until(lambda number=number: handler.live == number + 1)  # type: ignore[misc]
                handler.write("/log", b"line %d\n" % number)
                assert (await anext(rows)).text == f"line {number}"
            await until(lambda: handler.live == 4)
            handler.write("/log", b"line 3\n")
            assert (await anext(rows)).text == "line 3"
        assert [notice.kind for notice in notices if notice.kind != "broken off"] == ["gap"] * 3

    run(main)


def test_reader_that_is_behind_bounds_memory(run: Run) -> None:
    """A log of 64 MB that nobody reads stays with the server."""
    written = 0

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        nonlocal written
        writer.write(answer(b"", length=64 << 20))
        for _ in range(64):
            writer.write((b"x" * 63 + b"\n") * (1 << 14))
            await writer.drain()
            written += 1
        return None

    async def main() -> None:
        async with serve(handler) as server, lines(server.url()) as log:
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.5)
            assert written < 50
            assert sum([len(batch) async for batch in log.batches()]) == 1 << 20

    run(main)


def test_a_log_that_fails_is_raised_or_recorded(run: Run) -> None:
    """By default the first failure is raised, after the lines that came; recorded, the other logs go on."""

    async def main() -> None:
        handler = LogServer()
        handler.write("/good", b"one\ntwo\n")
        async with serve(handler) as server:
            good, bad = server.url("/good"), server.url("/bad?key=hush")
            with pytest.raises(StatusError) as caught:
                async with lines(bad) as log:
                    await anext(aiter(log))
            assert caught.value.status == 404
            notices: list[Notice] = []
            async with lines(good, bad, on_failure="record", on_notice=notices.append) as log:
                assert [line.text async for line in log] == ["one", "two"]
            assert list(log.failures) == [server.url("/bad?key=***")]
            assert "hush" not in "".join(map(str, notices))
            assert sorted(notice.kind for notice in notices) == ["ended", "failed"]

    run(main)


def test_attempts_and_idle_time_have_an_end(run: Run) -> None:
    """A server that is gone fails after the attempts; one that is silent is asked again after the idle time."""

    async def main() -> None:
        async with serve(LogServer()) as server:
            gone = server.url("/x")
        with pytest.raises(ConnectFailed):
            async with lines(gone, retry=Retry(attempts=3, base=0.001)) as log:
                await anext(aiter(log))
        assert log.statistics()[gone].connections == 0
        handler = LogServer("live")
        handler.write("/log", b"")
        notices: list[Notice] = []
        retry = Retry(attempts=3, base=0.001)
        async with serve(handler) as server:
            with pytest.raises(Stalled, match="not a byte in"):
                async with lines(server.url("/log"), idle=0.05, retry=retry, on_notice=notices.append) as log:
                    await anext(aiter(log))
            assert handler.answers == 3
            await until(lambda: server.open == 0)

    run(main)


def test_a_missing_log_that_was_there_may_come_back(run: Run) -> None:
    """Between the two steps of a rotation a log is missing; it is asked for again."""

    async def main() -> None:
        handler = LogServer()
        handler.write("/log", b"old\n")
        async with serve(handler) as server, lines(server.url("/log"), follow=0.01, retry=QUICK) as log:
            rows = aiter(log)
            assert (await anext(rows)).text == "old"
            del handler.logs["/log"]
            answers = handler.answers
            await until(lambda: handler.answers > answers + 1)
            handler.write("/log", b"new\n")
            assert (await anext(rows)).text == "new"

    run(main)


def test_what_is_not_utf8_and_too_long_is_counted(run: Run) -> None:
    """Bytes that are not UTF-8 are replaced; a line above 16 MiB is cut, and told."""

    async def main() -> None:
        handler = LogServer()
        handler.write("/log", b"\xff\xfe\n" + b"x" * (17 << 20) + b"\nlast\n")
        notices: list[Notice] = []
        async with serve(handler) as server, lines(server.url("/log"), on_notice=notices.append) as log:
            got = [line async for line in log]
            assert [line.text for line in (got[0], got[2])] == ["\ufffd\ufffd", "last"]
            assert len(got[1].text) == 16 << 20
            counts = log.statistics()[server.url("/log")]
            assert (counts.replaced, counts.cut) == (2, 1)
            assert [notice.kind for notice in notices] == ["cut", "ended"]

    run(main)


def test_dropped_stream_closes_its_connections(run: Run) -> None:
    """A program that lets go of a stream without leaving its block leaves nothing open for long."""

    async def main() -> None:
        handler = LogServer("live")
        handler.write("/log", b"")
        async with serve(handler) as server:
            kept = [lines(server.url("/log"))]
            await kept[0].__aenter__()
            await until(lambda: handler.live == 1)
            with pytest.warns(ResourceWarning, match="was not closed"):
                _drop(kept)
            await until(lambda: server.open == 0)

    run(main)


def _drop(kept: list[Any]) -> None:
    kept.clear()
    gc.collect()


def test_a_client_of_ones_own_stays_open(run: Run) -> None:
    """The stream uses the client it is given, with its headers, and leaves it open."""

    async def main() -> None:
        handler = LogServer()
        handler.write("/log", b"one\n")
        async with serve(handler) as server, Client(headers={"X-Who": "me"}) as client:
            for _ in range(3):
                async with lines(server.url("/log"), client=client, headers={"X-What": "log"}) as log:
                    assert [line.text async for line in log] == ["one"]
            assert client.statistics().connections == 1
            assert {request.headers["x-who"] + request.headers["x-what"] for request in server.requests} == {
                "melog"
            }

    run(main)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((), {}, "at least one"),
        (("http://h/", "http://h/"), {}, "twice"),
        (("http://h/",), {"start": "middle"}, "start="),
        (("http://h/",), {"idle": 0}, "idle="),
        (("http://h/",), {"follow": float("nan")}, "follow="),
        (("http://h/",), {"on_failure": "ignore"}, "on_failure="),
    ],
)
def test_what_cannot_work_is_refused(arguments: Any, options: Any, says: str) -> None:
    """The error comes before anything is opened, and says what may be given."""
    with pytest.raises(PlanError, match=says):
        lines(*arguments, **options)
    with pytest.raises(InvalidUrl):
        lines("no url")


# ------------------------------------------------------------------------------------------------ events


def test_events_go_on_with_the_last_id(run: Run) -> None:
    """The server is told the last id after a break and after an end; 204 ends the stream."""
    last_ids: list[str | None] = []

    async def handler(request: Request, writer: asyncio.StreamWriter) -> str | None:
        last = request.headers.get("last-event-id")
        last_ids.append(last)
        number = int(last or 0)
        if number >= 6:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return None
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\nretry: 10\n\n"
        )
        for _ in range(2):
            number += 1
            writer.write(f"id: {number}\nevent: tick\ndata: event {number}\n\n".encode())
        writer.write(b"data: half of")
        return CLOSE

    async def main() -> None:
        async with serve(handler) as server, events(server.url("/events")) as stream:
            got = [(event.event, event.data, event.id) async for event in stream]
        assert got == [("tick", f"event {number}", str(number)) for number in range(1, 7)]
        assert last_ids == [None, "2", "4", "6"]

    run(main)


def test_what_is_no_stream_of_events_fails(run: Run) -> None:
    """A page instead of a stream is an error that is not tried again."""

    async def main() -> None:
        async with serve(always(answer(b"<html>", headers="Content-Type: text/html\r\n"))) as server:
            with pytest.raises(BadResponse, match="'text/html', not text/event-stream"):
                async with events(server.url()) as stream:
                    await anext(aiter(stream))
            assert len(server.requests) == 1

    run(main)
