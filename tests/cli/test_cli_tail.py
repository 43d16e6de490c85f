"""`headrace tail`: what comes out, where it ends, and that it goes on where it was."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.http.log_server import LogServer
from tests.http.server import serve

from headrace.cli.tailing import labels


@pytest.fixture
def logs() -> Iterator[LogServer]:
    """A server of logs in a thread; `logs.url(path)` is where they are."""
    ready, over, found = threading.Event(), threading.Event(), {}

    async def main() -> None:
        handler = LogServer()
        async with serve(handler) as server:
            handler.url = server.url  # type: ignore[attr-defined]
            found["logs"] = handler
            ready.set()
            while not over.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(10)
    yield found["logs"]
    over.set()
    thread.join(10)


def rows(tmp_path, query):
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        return connection.execute(query).fetchall()


def test_logs_of_both_kinds_are_merged_and_labelled(headrace, logs, tmp_path):
    """URLs and files together; each line says which log it is from, and each log keeps its order."""
    logs.logs["/web.log"] = b"web 1\nweb 2\n"
    (tmp_path / "app.log").write_text("app 1\napp 2\n")
    ended = headrace("tail", logs.url("/web.log"), "app.log", "--no-follow")
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0
    assert [line for line in lines if "web" in line] == ["web.log: web 1", "web.log: web 2"]
    assert [line for line in lines if "app" in line] == ["app.log: app 1", "app.log: app 2"]
    assert ended.stderr == "4 lines\n"
    alone = headrace("tail", "app.log", "--no-follow", "-q")
    assert (alone.stdout, alone.stderr) == ("app 1\napp 2\n", "")


def test_lines_are_filtered_and_the_end_is_where_it_is_told(headrace, logs, tmp_path):
    """--grep chooses, --until ends after its line, --lines after so many; --from end shows only what is new."""
    logs.logs["/a"] = b"".join(b"line %d %s\n" % (n, b"ERROR" if n % 10 == 9 else b"ok") for n in range(100))
    url = logs.url("/a")
    assert headrace("tail", url, "--grep", "ERROR", "--lines", "2").stdout == "line 9 ERROR\nline 19 ERROR\n"
    until = headrace("tail", url, "--until", "line 12 ", "--grep", "ERROR")
    assert (until.stdout, until.returncode) == ("line 9 ERROR\nline 12 ok\n", 0)
    missed = headrace("tail", url, "--until", "never", "--no-follow", "-q")
    assert missed.returncode == 1
    assert headrace("tail", url, "--from", "-12", "--no-follow").stdout == ""
    assert headrace("tail", url, "--from", "-30", "--no-follow").stdout == "line 98 ok\nline 99 ERROR\n"
    assert headrace("tail", url, "--from", "end", "--no-follow").stdout == ""
    record = json.loads(headrace("tail", url, "--lines", "1", "--json").stdout)
    assert record == {"url": url, "offset": 0, "text": "line 0 ok"}


def test_a_database_is_gone_on_with(headrace, logs, tmp_path):
    """The same command again appends what is new; a rotated log is read from its beginning, and that is said."""
    logs.logs["/a"] = b"one\ntwo\nhalf"
    (tmp_path / "b.log").write_text("b1\n")
    command = ("tail", logs.url("/a"), "b.log", "-o", "out.db", "--no-follow")
    assert headrace(*command).stderr == "4 lines → out.db\n"
    logs.logs["/a"] += b" of it\nthree\n"
    assert headrace(*command).returncode == 0
    texts = [text for (text,) in rows(tmp_path, "SELECT text FROM lines WHERE url LIKE 'http%' ORDER BY id")]
    assert texts == ["one", "two", "half", "three"]
    logs.logs["/a"] = b"new\n"
    ended = headrace(*command)
    assert "read from its beginning" in ended.stderr
    assert rows(tmp_path, "SELECT offset, text FROM lines ORDER BY id DESC LIMIT 1") == [(0, "new")]
    assert rows(tmp_path, "SELECT count(*) FROM lines WHERE url = 'b.log'") == [(1,)]


def test_text_and_json_files_are_appended_to(headrace, tmp_path):
    """Any other name is text; .jsonl is a line of JSON each."""
    (tmp_path / "a.log").write_text("one\n\x1b[31mred\n")
    for _ in range(2):
        headrace("tail", "a.log", "-o", "out.txt", "--no-follow")
        headrace("tail", "a.log", "-o", "out.jsonl", "--no-follow")
    assert (tmp_path / "out.txt").read_text() == "one\n\x1b[31mred\n" * 2
    read = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert read == ["one", "\x1b[31mred"] * 2


def test_what_is_given_up_is_said_and_the_others_go_on(headrace, logs, tmp_path):
    """A log that is not there is named with its reason; the code is 1; passwords and query values are in no output."""
    logs.logs["/a"] = b"one\n"
    secret = logs.url("/none?key=hush").replace("//", "//me:hush@")
    ended = headrace("tail", logs.url("/a"), secret, "--no-follow")
    assert ended.returncode == 1
    assert "404" in ended.stderr
    assert "1 logs given up" in ended.stderr
    assert "one" in ended.stdout
    logs.logs["/a?key=hush"] = b"two\n"
    secret = logs.url("/a?key=hush").replace("//", "//me:hush@")
    for output in ((), ("-o", "out.db"), ("--json",)):
        ended = headrace("tail", secret, "--no-follow", *output)
        assert "hush@" not in ended.stdout + ended.stderr
    assert "hush@" not in rows(tmp_path, "SELECT url FROM lines")[0][0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nothing.log",), "does not exist; for a URL write https://nothing.log"),
        (("a.log", "a.log"), "given twice"),
        (("http://",), "no host"),
        (("ftp://h/a",), "scheme 'ftp'"),
        (("a.log", "--grep", "("), "no regular expression"),
        (("a.log", "--from", "middle"), "--from 'middle'"),
        (("a.log", "--lines", "0"), "--lines '0'"),
        (("a.log", "-o", "a.log"), "is one of the logs"),
        (("a.log", "-o", "no/where.db"), "does not exist; make it first"),
        (("a.log", "-o", "."), "is a directory"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_read(headrace, tmp_path, words, says):
    """The code is 2, and the message says what to do."""
    (tmp_path / "a.log").write_text("one\n")
    ended = headrace("tail", *words, "--no-follow")
    assert ended.returncode == 2
    assert says in ended.stderr
    assert ended.stdout == ""


def test_ctrl_c_ends_it_with_all_that_has_come(started, logs, tmp_path):
    """What was read is written; the code is that of the signal."""
    (tmp_path / "a.log").write_text("one\n")
    process = started("tail", "a.log", "-o", "out.db")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if rows(tmp_path, "SELECT text FROM lines") == [("one",)]:
                break
        except sqlite3.Error:
            pass
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert rows(tmp_path, "SELECT text FROM lines") == [("one",)]


def test_labels_are_as_short_as_they_can_be():
    """Alone: none. The last parts where they differ; else the whole, masked."""
    assert labels(["https://h/a.log"]) == {"https://h/a.log": ""}
    assert list(labels(["https://h/a.log?x=1", "/var/log/b.log"]).values()) == ["a.log", "b.log"]
    assert list(labels(["https://u:p@h/a.log", "https://g/a.log"]).values()) == [
        "https://***@h/a.log",
        "https://g/a.log",
    ]
