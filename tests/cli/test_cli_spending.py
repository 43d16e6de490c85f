"""`--max-calls` and `--fuse`: a command that spends no more than it may, and stops where all is wrong."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing


def write_list(tmp_path, *lines):
    (tmp_path / "urls.txt").write_text("".join(f"{line}\n" for line in lines))


def count_rows(tmp_path):
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        return connection.execute("SELECT count(*) FROM pages").fetchone()[0]


def test_max_calls_ends_a_fetch_resumable_and_holds_for_each_run(headrace, origin, tmp_path):
    """Each run makes so many requests, `resume` too, without being told again; the last one finishes the list."""
    write_list(tmp_path, *[origin.url(f"/n/{number}?budget") for number in range(25)])
    before = origin.counts()["requests"]
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--max-calls", "10")
    assert ended.returncode == 3
    assert "stopped: the budget '--max-calls' is spent: 10 of 10 calls" in ended.stderr
    assert "headrace resume out.db" in ended.stderr
    assert origin.counts()["requests"] == before + 10
    assert headrace("resume", "out.db").returncode == 3
    assert count_rows(tmp_path) == 20
    assert headrace("resume", "out.db").returncode == 0
    assert count_rows(tmp_path) == 25


def test_max_calls_holds_without_an_output_too(headrace, origin, tmp_path):
    """Lines of JSON for what was requested; the code says that there is more."""
    write_list(tmp_path, *[origin.url(f"/n/{number}?lines") for number in range(25)])
    ended = headrace("fetch", "urls.txt", "--max-calls", "10")
    assert ended.returncode == 3
    outcomes = [json.loads(line)["outcome"] for line in ended.stdout.splitlines()]
    assert outcomes.count("done") == 10


def test_the_fuse_stops_a_fetch_whose_every_answer_is_a_refusal(headrace, origin, tmp_path):
    """Fifty refusals stop it, in words; `--fuse 0` lets it go on, and is kept for the next run."""
    write_list(tmp_path, *[origin.url(f"/f/gone/{number}?fuse") for number in range(400)])
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--concurrency", "4")
    assert ended.returncode == 3
    assert "stopped: the first 50 items all failed in the same way, fetch: " in ended.stderr
    assert "to go on:         headrace resume out.db" in ended.stderr
    assert "to try again:     headrace retry out.db" in ended.stderr
    letters = len(headrace("failures", "out.db", "--json").stdout.splitlines())
    assert 50 <= letters < 200
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--fuse", "0")
    assert ended.returncode == 1
    assert "failed 400" in ended.stderr
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        (recorded,) = connection.execute("SELECT options FROM headrace_jobs").fetchone()
    assert json.loads(recorded)["options"] == {"fuse": "0"}


def test_the_fuse_of_a_run_is_an_option(headrace, tmp_path):
    """`headrace run` has it at 50, a job or not; `--fuse` moves it."""
    (tmp_path / "flows.py").write_text(
        "import headrace as hr\n"
        "def broken(number):\n"
        "    raise ValueError('wrong')\n"
        "flow = hr.Flow(range(1000)).map(broken, concurrency=2)\n"
    )
    ended = headrace("run", "flows.py:flow")
    assert ended.returncode == 3
    assert "the first 50 items all failed in the same way, broken: ValueError: wrong" in ended.stderr
    assert "the first 9 items" in headrace("run", "flows.py:flow", "--fuse", "9").stderr
    assert headrace("run", "flows.py:flow", "--fuse", "0").returncode == 1


def test_wrong_values_are_refused_together(headrace, tmp_path):
    """Both flags are named, and nothing is started."""
    ended = headrace("fetch", "http://localhost/", "--max-calls", "0", "--fuse", "x")
    assert ended.returncode == 2
    assert "--max-calls '0': give a whole number, 1 or more" in ended.stderr
    assert "--fuse 'x': give a whole number, 0 or more" in ended.stderr
