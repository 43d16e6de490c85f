"""`headrace fetch -o DIR/`: bodies as files, a row for each, exactly once whatever dies."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from contextlib import closing

import pytest


def rows(place, query):
    with closing(sqlite3.connect(place / "headrace.db")) as connection:
        return connection.execute(query).fetchall()


def files(place):
    found = (path for path in place.rglob("*") if path.is_file() and not path.name.startswith("headrace.db"))
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


def test_bodies_become_files_and_the_job_goes_on(headrace, origin, tmp_path):
    """Files by position; the same command, `resume` and `status` take the directory; it is its owner's alone."""
    urls = [origin.url(f"/n/{number}") for number in range(30)] + [origin.url("/f/gone*/download")]
    (tmp_path / "urls.txt").write_text("".join(f"{url}\n" for url in urls))
    first = headrace("fetch", "urls.txt", "-o", "out/", "--take", "10")
    assert first.returncode == 0, first.stderr
    assert len(files(tmp_path / "out")) == 10
    second = headrace("resume", "out")
    assert second.returncode == 1
    assert "in all: done 30, failed 1" in second.stderr
    found = files(tmp_path / "out")
    assert sorted(found) == [f"000/000/{number:09d}" for number in range(30)]
    for path, digest, size, url in rows(tmp_path / "out", "SELECT path, sha256, bytes, url FROM pages"):
        assert (hashlib.sha256(found[path]).hexdigest(), len(found[path])) == (digest, size)
        assert json.loads(found[path])["number"] == int(url.rpartition("/")[2])
    assert headrace("status", "out/").returncode == 0
    assert "urls.txt, line 31" in headrace("failures", "out").stdout
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0
    assert headrace("fetch", "urls.txt", "-o", "out").returncode == 1


def test_names_come_from_columns(headrace, origin, tmp_path):
    """--name is a template over the row; a field that is missing is said before anything is requested."""
    (tmp_path / "rows.csv").write_text("n,who\n1,Ann\n2,../Bob\n")
    command = ("fetch", "rows.csv", "--url", origin.url("/n/{n}"), "-o", "out/")
    assert headrace(*command, "--name", "{what}.json").returncode == 2
    assert not (tmp_path / "out").exists()
    assert headrace(*command, "--name", "{who}.json").returncode == 0
    assert sorted(files(tmp_path / "out")) == ["Ann.json", "_Bob.json"]
    assert rows(tmp_path / "out", "SELECT path, who FROM pages ORDER BY n") == [
        ("Ann.json", "Ann"),
        ("_Bob.json", "../Bob"),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-o", "out/", "--body", "db"), "--body db"),
        (("-o", "out/", "--body", "none"), "--body none"),
        (("-o", "x.db", "--body", "files"), "give a directory for them"),
        (("-o", "x.db", "--name", "a"), "--name is for files"),
        (("-o", "out/", "--select", "a"), "--select does not go with"),
        (("-o", "out/", "--method", "POST"), "requested by GET"),
        (("-o", "out/", "--json", "{}"), "--json does not go with"),
        (("-o", "no/such/out/"), "make it first"),
        (("-o", "out/", "--name", "../{item}"), "--name"),
        (("-o", "out/", "--body", "disk"), "--body 'disk'"),
    ],
)
def test_what_does_not_go_together_is_said(headrace, tmp_path, words, says):
    """The code is 2, and nothing is made."""
    (tmp_path / "urls.txt").write_text("http://127.0.0.1:9/\n")
    ended = headrace("fetch", "urls.txt", *words)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["urls.txt"]


@pytest.mark.slow
def test_killed_downloads_end_with_one_whole_file_each(started, headrace, origin, tmp_path):
    """Killed three times in mid-run and run again: each item has one whole file and one row, and nothing else is left."""
    count = 1500
    (tmp_path / "urls.txt").write_text("".join(origin.url(f"/n/{number}") + "\n" for number in range(count)))
    for more in range(1, 4):
        process = started("fetch", "urls.txt", "-o", "out/", "-q")
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "out").rglob("0000*"))) > 300 * more:
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert headrace("fetch", "urls.txt", "-o", "out/", "-q").returncode == 0
    found = files(tmp_path / "out")
    assert sorted(found) == [f"000/{number // 1000:03d}/{number:09d}" for number in range(count)]
    listed = rows(tmp_path / "out", "SELECT path, sha256 FROM pages")
    assert sorted(path for path, _ in listed) == sorted(found)
    assert all(hashlib.sha256(found[path]).hexdigest() == digest for path, digest in listed)
