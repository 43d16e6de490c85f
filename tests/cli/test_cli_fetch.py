"""`headrace fetch` and the commands that look at and go on with what it made."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import closing

import pytest


def write_list(tmp_path, *lines):
    (tmp_path / "urls.txt").write_text("".join(f"{line}\n" for line in lines))


def rows(tmp_path, query, place="out.db"):
    with closing(sqlite3.connect(tmp_path / place)) as connection:
        return connection.execute(query).fetchall()


def test_a_list_goes_into_a_table_and_every_line_is_accounted_for(headrace, origin, tmp_path):
    """Good URLs are rows, others dead letters with their line; comments and blanks are nothing; the code is 1."""
    good = [origin.url(f"/n/{number}") for number in range(20)]
    write_list(
        tmp_path, "# a comment", *good, "", "not a url", "ftp://example.org/x", origin.url("/f/gone/a")
    )
    ended = headrace("fetch", "urls.txt", "-o", "out.db")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "taken 23 = done 20 + failed 3 + skipped 0 + parked 0 + returned 0" in ended.stderr
    assert "headrace retry out.db" in ended.stderr
    assert [url for (url,) in rows(tmp_path, "SELECT url FROM pages ORDER BY _position")] == good
    letters = headrace("failures", "out.db").stdout
    assert "urls.txt, line 23" in letters
    assert "urls.txt, line 24" in letters
    assert "urls.txt, line 25" in letters
    assert "404" in letters


def test_the_output_is_its_owners_alone(headrace, origin, tmp_path):
    """The output file has mode 0600, whatever the umask says."""
    before = os.umask(0)
    try:
        headrace("fetch", origin.url("/n/1"), "-o", "out.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "out.db").st_mode) == 0o600


def test_the_same_command_again_has_nothing_to_do(headrace, origin, tmp_path):
    """A finished job says since when, requests nothing, and keeps its exit code."""
    write_list(tmp_path, origin.url("/n/1?again"), origin.url("/n/2?again"))
    assert headrace("fetch", "urls.txt", "-o", "out.db").returncode == 0
    before = origin.counts()["requests"]
    ended = headrace("fetch", "urls.txt", "-o", "out.db")
    assert ended.returncode == 0
    assert "finished before" in ended.stderr
    assert origin.counts()["requests"] == before


def test_a_list_that_grew_goes_on_with_the_new_lines(headrace, origin, tmp_path):
    """Only the lines that were added are requested."""
    write_list(tmp_path, origin.url("/n/1?grow"))
    headrace("fetch", "urls.txt", "-o", "out.db")
    write_list(tmp_path, origin.url("/n/1?grow"), origin.url("/n/2?grow"))
    ended = headrace("resume", "out.db")
    assert ended.returncode == 0
    assert "taken 1 = done 1" in ended.stderr
    assert rows(tmp_path, "SELECT count(*) FROM pages") == [(2,)]


def test_take_leaves_the_rest_for_the_next_command(headrace, origin, tmp_path):
    """`--take 3` of ten settles three, ends with 0, and names the command for the others."""
    write_list(tmp_path, *[origin.url(f"/n/{number}?take") for number in range(10)])
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--take", "3")
    assert ended.returncode == 0
    assert "7 more in the list: headrace resume out.db" in ended.stderr
    assert "left 7" in headrace("status", "out.db").stdout
    assert headrace("resume", "out.db").returncode == 0
    assert rows(tmp_path, "SELECT count(*) FROM pages") == [(10,)]


def test_several_jobs_share_a_file(headrace, origin, tmp_path):
    """`--job` names the job and its table; `jobs` lists them; `drop` deletes one and leaves the other."""
    headrace("fetch", origin.url("/n/1"), "-o", "out.db")
    headrace("fetch", origin.url("/n/2"), origin.url("/n/3"), "-o", "out.db", "--job", "docs")
    listed = headrace("jobs", "out.db").stdout
    assert "default" in listed
    assert "docs" in listed
    assert rows(tmp_path, "SELECT count(*) FROM docs") == [(2,)]
    assert headrace("jobs", "out.db", "drop", "docs").returncode == 2  # nobody is there to be asked
    assert headrace("jobs", "out.db", "drop", "docs", "--yes").returncode == 0
    assert "docs" not in headrace("jobs", "out.db").stdout
    assert rows(tmp_path, "SELECT count(*) FROM pages") == [(1,)]
    assert headrace("jobs", "out.db", "vacuum").returncode == 0


def test_an_output_of_another_job_is_refused_with_what_differs(headrace, origin, tmp_path):
    """Another list, or another request, under the same name: code 2, the parts that differ, and what to do."""
    write_list(tmp_path, origin.url("/n/1"))
    headrace("fetch", "urls.txt", "-o", "out.db")
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--accept", "2xx,404")
    assert ended.returncode == 2
    assert 'accept: was "2xx", now "2xx,404"' in ended.stderr
    for flag in ("--job NAME", "--fresh", "--accept-changes"):
        assert flag in ended.stderr
    (tmp_path / "other.txt").write_text(f"{origin.url('/n/2')}\n")
    ended = headrace("fetch", "other.txt", "-o", "out.db")
    assert ended.returncode == 2
    assert "other.txt" in ended.stderr
    assert headrace("fetch", "urls.txt", "-o", "out.db", "--accept", "2xx,404", "--fresh").returncode == 0


def test_failures_can_be_seen_and_tried_again(headrace, origin, tmp_path):
    """What failed is a dead letter; `retry` calls it again; once it is good it is a row and no dead letter."""
    url = origin.url("/f/gone,gone/round-trip")
    write_list(tmp_path, origin.url("/n/1?rt"), url)
    assert headrace("fetch", "urls.txt", "-o", "out.db").returncode == 1
    causes = headrace("failures", "out.db", "--by-cause").stdout
    assert "StatusError" in causes
    letter = json.loads(headrace("failures", "out.db", "--json").stdout)
    assert (letter["position"], letter["status"], letter["item"]) == (1, 404, url)
    assert headrace("retry", "out.db", "--error", "TimedOut").returncode == 1  # there is none of these
    marked = headrace("retry", "out.db", "--mark-only")
    assert marked.returncode == 0
    assert "1 dead letters are marked" in marked.stderr
    assert headrace("resume", "out.db").returncode == 1  # gone a second time
    retried = headrace("retry", "out.db")
    assert retried.returncode == 0
    assert "taken 1 = done 1" in retried.stderr
    assert "no item has failed" in headrace("failures", "out.db").stderr
    assert rows(tmp_path, "SELECT count(*) FROM pages") == [(2,)]
    assert rows(tmp_path, "SELECT count(*) FROM headrace_failed") == [(0,)]


def test_a_post_whose_end_is_unknown_is_in_doubt_and_not_repeated(headrace, origin, tmp_path):
    """Such an item is shown by `failures --in-doubt`, left out by `retry`, and taken by `retry --in-doubt`."""
    url = origin.url("/f/cut/in-doubt")
    ended = headrace("fetch", url, "-o", "out.db", "--method", "POST")
    assert ended.returncode == 1
    assert "failures out.db --in-doubt" in ended.stderr
    assert "in doubt" in headrace("failures", "out.db", "--in-doubt").stdout
    left = headrace("retry", "out.db")
    assert left.returncode == 1
    assert "--in-doubt" in left.stderr
    assert origin.counts(paths=True)["paths"]["POST /f/cut/in-doubt"][0] == 1
    assert headrace("retry", "out.db", "--in-doubt").returncode == 0


def test_status_tells_programs_too(headrace, origin, tmp_path):
    """`status --json` gives one object a job with the numbers that the text shows."""
    headrace("fetch", origin.url("/n/1"), origin.url("/f/gone/st"), "-o", "out.db")
    told = json.loads(headrace("status", "out.db", "--json").stdout)
    assert (told["name"], told["state"], told["done"], told["failed"]) == ("default", "failed", 1, 1)
    assert (told["total"], told["left"], told["exit_code"], told["table"]) == (2, 0, 1, "pages")


def test_without_an_output_outcomes_are_json_lines(headrace, origin, recorder):
    """Each outcome is a line on standard output: body as text or base64, failures with their cause, no control character."""
    ended = headrace(
        "fetch", origin.url("/n/7"), origin.url("/f/gone/js"), recorder.url("/ansi"), "--no-progress"
    )
    assert ended.returncode == 1
    lines = {line["position"]: line for line in map(json.loads, ended.stdout.splitlines())}
    assert lines[0]["outcome"] == "done"
    assert json.loads(lines[0]["body"])["number"] == 7
    assert (lines[1]["outcome"], lines[1]["error"], lines[1]["status"]) == ("failed", "StatusError", 404)
    assert lines[2]["body"] == "\x1b[31mred\x1b[0m"
    assert "\x1b" not in ended.stdout
    assert "taken 3 = done 2 + failed 1" in ended.stderr


def test_a_reader_that_leaves_ends_the_run(headrace, origin, tmp_path, started):
    """When nobody reads standard output any more, the run stops by itself and complains of nothing."""
    write_list(tmp_path, *[origin.url(f"/n/{number}?pipe") for number in range(5000)])
    process = started("fetch", "urls.txt", "--no-progress")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "the reader of standard output has left" in said
    assert "Traceback" not in said


def test_a_dry_run_requests_and_writes_nothing(headrace, origin, tmp_path):
    """`--dry-run` describes the plan and the list, its bad lines too, and leaves no file and no request behind."""
    write_list(tmp_path, origin.url("/n/1?dry=secretvalue"), "not a url")
    before = origin.counts()["requests"]
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--dry-run", "--per-host", "3")
    assert ended.returncode == 0
    assert "concurrency=3" in ended.stdout
    assert "line 2 would fail" in ended.stdout
    assert "secretvalue" not in ended.stdout
    assert not (tmp_path / "out.db").exists()
    assert origin.counts()["requests"] == before


@pytest.mark.parametrize(
    ("words", "shown"), [((), "Adaptive(1, 16)"), (("--per-host", "2-32"), "Adaptive(2, 32)")]
)
def test_the_level_of_a_host_finds_itself(headrace, words, shown):
    """Each host begins with one request at a time, up to 16; `--per-host` sets other bounds."""
    ended = headrace("fetch", "http://127.0.0.1:1/", "--dry-run", *words)
    assert f"concurrency={shown}" in ended.stdout


def test_bodies_can_be_left_out(headrace, origin, tmp_path):
    """`--body none` keeps everything but the body."""
    headrace("fetch", origin.url("/n/1"), "-o", "out.db", "--body", "none")
    columns = [row[1] for row in rows(tmp_path, "PRAGMA table_info(pages)")]
    assert "status" in columns
    assert "body" not in columns


def test_an_empty_list_is_all_done(headrace, tmp_path):
    """A list without URLs ends with 0, and says that it holds none."""
    write_list(tmp_path, "# nothing", "")
    ended = headrace("fetch", "urls.txt", "-o", "out.db")
    assert ended.returncode == 0
    assert "holds no URL" in ended.stderr


def test_carriage_returns_and_a_byte_order_mark_do_no_harm(headrace, origin, tmp_path):
    """A list from elsewhere, with CR LF and a BOM, is read like any other."""
    text = f"\ufeff{origin.url('/n/1?crlf')}\r\n\r\n{origin.url('/n/2?crlf')}\r\n"
    (tmp_path / "urls.txt").write_bytes(text.encode())
    assert headrace("fetch", "urls.txt", "-o", "out.db", "--quiet").returncode == 0
    assert rows(tmp_path, "SELECT count(*) FROM pages") == [(2,)]


def test_quiet_is_quiet_where_all_is_done(headrace, origin):
    """`--quiet` says nothing at all after a run without failures, and accounts for one with failures."""
    ended = headrace("fetch", origin.url("/n/1"), "-o", "out.db", "--quiet")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    ended = headrace("fetch", origin.url("/f/gone/quiet"), "-o", "bad.db", "--quiet")
    assert ended.returncode == 1
    assert "headrace retry bad.db" in ended.stderr


@pytest.mark.parametrize(("cap", "code"), [("1", 0), ("0", 1), ("50%", 0), ("10%", 1)])
def test_accepted_failures_are_no_failure_of_the_run(headrace, origin, cap, code):
    """With one failure in two, `--max-failures` decides between 0 and another code."""
    ended = headrace(
        "fetch", origin.url("/n/1"), origin.url("/f/gone*/cap"), "-o", f"{code}.db", "--max-failures", cap
    )
    assert ended.returncode in ({0} if code == 0 else {1, 3})  # 3 where the cap stopped the run early


def test_servers_are_told_who_calls_and_whom_to_ask(headrace, recorder):
    """The User-Agent has name, version and URL; `--contact` adds an address, `--user-agent` replaces it."""
    for more in (
        (),
        ("--contact", "me@example.org"),
        ("--user-agent", "mine/1", "--contact", "me@example.org"),
    ):
        assert headrace("fetch", recorder.url("/a"), "--quiet", *more).returncode == 0
    usual, contact, own = (headers["user-agent"] for _, _, headers in recorder.seen)
    assert usual.startswith("headrace/")
    assert "(+https://" in usual
    assert "; me@example.org)" in contact
    assert own == "mine/1 (me@example.org)"


def test_the_limit_of_a_host_holds(headrace, recorder):
    """`--per-host 1` never has two requests to one host under way, however many are in flight in all."""
    headrace("fetch", *[recorder.url(f"/slow{number}") for number in range(12)], "--quiet", "--per-host", "1")
    assert len(recorder.seen) == 12
    assert recorder.most_at_once == 1


def test_robots_are_obeyed_where_it_is_asked_for(headrace, recorder, tmp_path):
    """--robots skips what the host does not want, without a request to it; the job remembers, and resumes so."""
    write_list(
        tmp_path,
        recorder.url("/a"),
        recorder.url("/private/b"),
        recorder.url("/c"),
        recorder.url("/private/d"),
    )
    ended = headrace(
        "fetch", "urls.txt", "-o", "out.db", "--robots", "--take", "3", "--contact", "me@example.org"
    )
    assert ended.returncode == 0
    assert "done 2 + failed 0 + skipped 1" in ended.stderr
    assert headrace("resume", "out.db").returncode == 0
    assert [path for _, path, _ in recorder.seen] == ["/robots.txt", "/a", "/c", "/robots.txt"]
    assert all("me@example.org" in headers["user-agent"] for *_, headers in recorder.seen)
    refused = headrace("fetch", "urls.txt", "-o", "out.db", "--contact", "me@example.org")
    assert refused.returncode == 2
    assert "robots" in refused.stderr


def test_without_robots_nothing_more_is_asked(headrace, recorder, tmp_path):
    """It is off by default; without an output its reason is in the outcome."""
    assert headrace("fetch", recorder.url("/private/x")).returncode == 0
    assert [path for _, path, _ in recorder.seen] == ["/private/x"]
    ended = headrace("fetch", recorder.url("/private/y"), "--robots")
    assert f"robots.txt of 127.0.0.1:{recorder.port} disallows it for headrace" in ended.stdout


def test_what_would_wait_too_long_is_parked_and_resumed(headrace, origin, tmp_path):
    """`--wait 200ms`: a 429 for a second parks its host's URLs; the command says until when, and `resume` ends the job."""
    throttled = origin.url("/f/throttle/parked")
    write_list(tmp_path, throttled, *[origin.url(f"/n/{number}?parked") for number in range(5)])
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--wait", "200ms", "--per-host", "1")
    assert ended.returncode == 3
    assert "taken 6 = done 0 + failed 0 + skipped 0 + parked 6 + returned 0" in ended.stderr
    assert "6 parked until " in ended.stderr
    assert "to go on:         headrace resume out.db" in ended.stderr
    told = headrace("status", "out.db")
    assert "parked 6" in told.stdout
    assert "the next parked item is due " in told.stdout
    assert "to go on:         headrace resume out.db" in told.stdout
    assert json.loads(headrace("status", "out.db", "--json").stdout)["parked"] == 6
    assert headrace("jobs", "out.db").stdout.split()[12] == "6"
    assert (
        headrace("retry", "out.db").returncode == 0
    )  # there is no dead letter, and it leaves the others alone
    ended = headrace("resume", "out.db", "--wait", "10s")
    assert ended.returncode == 0
    assert "parked until" not in ended.stderr
    assert rows(tmp_path, "SELECT count(*) FROM pages") == [(6,)]


def test_a_wait_that_is_no_time_is_refused(headrace, tmp_path):
    """`--wait soon` is wrong usage."""
    write_list(tmp_path, "http://localhost/")
    for command in (["fetch", "urls.txt", "-o", "out.db"], ["fetch", "urls.txt"], ["run", "x.py:flow"]):
        ended = headrace(*command, "--wait", "soon")
        assert ended.returncode == 2
        assert "--wait 'soon'" in ended.stderr


def test_parked_urls_are_lines_too(headrace, origin, tmp_path):
    """Without an output, a URL that would wait too long is a line with its date, and the code is 3."""
    ended = headrace("fetch", origin.url("/f/throttle/line"), "--wait", "200ms")
    assert ended.returncode == 3
    (line,) = map(json.loads, ended.stdout.splitlines())
    assert (line["outcome"], line["attempts"]) == ("parked", 1)
    assert line["due"] > 1e9
