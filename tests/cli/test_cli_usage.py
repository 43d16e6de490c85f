"""What is wrong with a command is said before anything moves, all at once, and with the right exit code."""

from __future__ import annotations

import os
import sqlite3

import pytest

from headrace.sqlite.lock import PlaceLock


def test_all_wrong_options_are_reported_at_once(headrace, tmp_path):
    """Each wrong value has its line, the code is 2, and no file was made."""
    ended = headrace(
        "fetch", "missing.txt", "-o", "out.csv", "--concurrency", "many", "--per-host", "0", "--rate", "5",
        "--timeout", "soon", "--attempts", "-1", "--accept", "fine", "--method", "TRACE", "--header", "nocolon",
        "--body", "maybe", "--max-failures", "200%", "--take", "x", "--within", "0", "--max-age", "old", "--window", "0",
    )  # fmt: skip
    assert ended.returncode == 2
    assert "16 things are wrong; nothing was started" in ended.stderr
    for part in (
        "missing.txt", "out.csv", "--concurrency 'many'", "--per-host '0'", "--rate '5'", "--timeout 'soon'",
        "--attempts '-1'", "--accept 'fine'", "--method 'TRACE'", "--header number 1", "--body 'maybe'",
        "--max-failures '200%'", "--take 'x'", "--within '0'", "--max-age 'old'", "--window '0'",
    ):  # fmt: skip
        assert part in ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-4", "give a whole number, 1 or more, or a least and a most, such as 1-16"),
        ("4-", "give a whole number"),
        ("1-2-3", "give a whole number"),
        ("9-3", "the least comes first; write 3-9"),
    ],
)
def test_a_range_for_a_host_is_checked(headrace, text, said):
    """`--per-host` takes a number, or a least and a most; what is neither is refused with the right form."""
    ended = headrace("fetch", "http://127.0.0.1:1/", "--dry-run", "--per-host", text)
    assert ended.returncode == 2
    assert f"--per-host '{text}': {said}" in ended.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"\x00\x01\x02binary", "not a text file"),
        (b"\xff\xfe\xfd\n" * 20, "not text"),
    ],
)
def test_a_list_that_is_none_is_wrong_usage(headrace, tmp_path, content, said):
    """A missing or binary list is refused with 2 before an output is made."""
    if content is not None:
        (tmp_path / "urls.txt").write_bytes(content)
    ended = headrace("fetch", "urls.txt", "-o", "out.db")
    assert ended.returncode == 2
    assert said in ended.stderr
    assert not (tmp_path / "out.db").exists()


def test_a_directory_is_no_list_and_no_job(headrace, tmp_path):
    """A directory in the place of a list is named, and so is one that holds no job."""
    (tmp_path / "dir").mkdir()
    ended = headrace("fetch", "dir", "-o", "out.db")
    assert ended.returncode == 2
    assert "dir is a directory" in ended.stderr
    ended = headrace("status", "dir")
    assert ended.returncode == 2
    assert "dir is a directory without a headrace.db" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fetch", "urls.txt", "http://127.0.0.1/", "-o", "x.db"], "either one list or URLs"),
        (["fetch", "a.txt", "b.txt", "-o", "x.db"], "2 lists were given"),
        (["fetch", "-", "-o", "x.db"], "standard input is a terminal"),
        (["fetch", "example.org/page", "-o", "x.db"], "write https://example.org/page"),
        (["fetch", "http://127.0.0.1/", "--fresh", "--job", "a"], "2 things are wrong"),
        (["fetch", "http://127.0.0.1/", "-o", "x.db", "--job", "headrace_x"], "reserved name"),
        (["fetch", "http://127.0.0.1/", "-o", "nowhere/x.db"], "nowhere does not exist"),
        (["fetch", "http://127.0.0.1/", "-o", "x.db", "--header", "A: {env:NOT_SET_HERE}"], "no variable NOT_SET_HERE"),
        (["fetch", "http://127.0.0.1/?k={env:NOT_SET_HERE}", "-o", "x.db"], "no variable NOT_SET_HERE"),
        (["status", "x.db"], "does not exist"),
        (["failures", "x.db", "--limit", "0"], "--limit '0'"),
        (["fetch", "http://127.0.0.1/\udcff", "-o", "x.db"], "not all UTF-8"),
        (["fetch", "http://127.0.0.1/", "-o", "x.db", "--header", "A: \udcff"], "not UTF-8"),
        (["fetch", "http://127.0.0.1/", "-o", "x.db", "--contact", "a\nb"], "printable ASCII"),
        (["run", "nocolon"], "a colon and a name"),
        (["run", "nofile.py:flow"], "nofile.py does not exist"),
        (["run", "no_such_module_here:flow"], "there is no module"),
        (["jobs", "x.db", "burn"], "it is drop NAME, vacuum"),
        (["init", "job.txt"], "Python file"),
    ],
)  # fmt: skip
def test_wrong_usage_is_explained_in_words(headrace, tmp_path, words, said):
    """Code 2, the reason, no traceback, nothing on standard output, and no file."""
    ended = headrace(*words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert os.listdir(tmp_path) == []


def test_an_output_that_is_held_names_its_holder(headrace, tmp_path, origin):
    """Code 75 and the pid of the process that has it; looking at it is possible all the same."""
    headrace("fetch", origin.url("/n/1"), "-o", "out.db")
    lock = PlaceLock(str(tmp_path / "out.db"))
    lock.take()
    try:
        for words in (("fetch", origin.url("/n/1"), "-o", "out.db"), ("resume", "out.db")):
            ended = headrace(*words)
            assert ended.returncode == 75
            assert str(os.getpid()) in ended.stderr
        assert headrace("status", "out.db").returncode == 0
    finally:
        lock.release()


def test_an_output_that_cannot_be_made_is_the_worlds_trouble(headrace, origin):
    """Code 4 and the reason."""
    ended = headrace("fetch", origin.url("/n/1"), "-o", "/proc/sys/out.db")
    assert ended.returncode == 4
    assert "/proc/sys/out.db" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_of_something_else_is_left_alone(headrace, origin, tmp_path):
    """A file that is no database is refused with 4 and keeps its content; a database of the user's keeps its tables."""
    (tmp_path / "notes.db").write_text("not a database, but dear to me\n" * 100)
    before = (tmp_path / "notes.db").read_bytes()
    assert headrace("fetch", origin.url("/n/1"), "-o", "notes.db").returncode == 4
    assert (tmp_path / "notes.db").read_bytes() == before
    with sqlite3.connect(tmp_path / "own.db") as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    assert headrace("status", "own.db").returncode == 4
    assert headrace("fetch", origin.url("/n/1"), "-o", "own.db").returncode == 0


def test_a_full_disk_stops_the_job_resumable(headrace, headrace_process, origin, tmp_path):
    """Where no more can be written the code is 4, with the reason and the command; with room it goes on to the end."""
    import resource

    (tmp_path / "urls.txt").write_text("".join(f"{origin.url(f'/n/{n}?full')}\n" for n in range(3000)))

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    ended = headrace_process("fetch", "urls.txt", "-o", "out.db", "--window", "64", preexec_fn=small_files)
    assert ended.returncode == 4
    assert "headrace resume out.db" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = headrace("resume", "out.db")
    assert ended.returncode == 0
    with sqlite3.connect(tmp_path / "out.db") as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT _position) FROM pages").fetchone() == (
            3000,
            3000,
        )
    connection.close()


def test_help_is_there(headrace):
    """Every command explains itself, with code 0."""
    listed = headrace("--help")
    assert listed.returncode == 0
    for command in ("fetch", "run", "resume", "status", "failures", "retry", "jobs", "demo", "init"):
        assert command in listed.stdout
    assert headrace("fetch", "--help").returncode == 0
    assert "--per-host" in headrace("fetch", "--help").stdout


def test_an_unknown_option_is_wrong_usage(headrace):
    """Code 2, with the option named."""
    ended = headrace("fetch", "http://127.0.0.1/", "--conurrency", "5")
    assert ended.returncode == 2
    assert "--conurrency" in ended.stderr


def test_a_traceback_is_shown_where_it_is_asked_for(headrace):
    """HEADRACE_DEBUG=1 shows it; without it there is one clear message."""
    plain = headrace("status", "none.db")
    debug = headrace("status", "none.db", env={"HEADRACE_DEBUG": "1"})
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr
    assert debug.returncode == plain.returncode == 2
