"""Secrets: what is given as one is in no byte of the output, the database or the job's record."""

from __future__ import annotations

import json


def everything(tmp_path, *ended):
    """All bytes that a run left anywhere."""
    files = [path.read_bytes() for path in tmp_path.iterdir() if path.name != "urls.txt"]
    return b"".join(files) + "".join(one.stdout + one.stderr for one in ended).encode()


def test_headers_are_sent_and_never_kept(headrace, recorder, tmp_path):
    """Literal secrets reach the server and nothing else; their names are enough for `resume` to ask for them."""
    (tmp_path / "urls.txt").write_text(f"{recorder.url('/a')}\n{recorder.url('/404')}\n")
    given = (
        "--header", "Authorization: Bearer CANARY-1", "--secret-header", "X-Plain: CANARY-2",
        "--header", "X-Api-Key: CANARY-3",
    )  # fmt: skip
    ended = headrace("fetch", "urls.txt", "-o", "out.db", *given, "--header", "X-Open: shown")
    assert ended.returncode == 1
    _, _, headers = recorder.seen[0]
    names = ("authorization", "x-plain", "x-api-key")
    assert [headers[name] for name in names] == ["Bearer CANARY-1", "CANARY-2", "CANARY-3"]
    looked = [headrace(*words, "out.db", "--json") for words in (("status",), ("failures",), ("jobs",))]
    refused = headrace("retry", "out.db")
    assert refused.returncode == 2
    for name in ("Authorization", "X-Plain", "X-Api-Key"):
        assert name in refused.stderr
    assert "--secret-header 'X-Plain: …'" in refused.stderr
    assert b"CANARY" not in everything(tmp_path, ended, refused, *looked)
    assert b"shown" in everything(tmp_path)
    again = headrace("retry", "out.db", *given)
    assert again.returncode == 1
    assert b"CANARY" not in everything(tmp_path, again)


def test_a_reference_is_resolved_at_every_run_and_never_kept(headrace, recorder, tmp_path):
    """`{env:NAME}` in a header or in the query of a URL is stored as such; resume finds the value in the environment."""
    secret = {"MY_TOKEN": "CANARY-env"}
    url = recorder.url("/404?key={env:MY_TOKEN}")
    ended = headrace(
        "fetch", url, "-o", "out.db", "--header", "Authorization: Bearer {env:MY_TOKEN}", env=secret
    )
    assert ended.returncode == 1
    _, path, headers = recorder.seen[0]
    assert path == "/404?key=CANARY-env"
    assert headers["authorization"] == "Bearer CANARY-env"
    without = headrace("retry", "out.db")
    assert without.returncode == 2
    assert "MY_TOKEN" in without.stderr
    again = headrace("retry", "out.db", env={"MY_TOKEN": "CANARY-new"})
    assert again.returncode == 1
    assert recorder.seen[-1][1] == "/404?key=CANARY-new"
    assert b"CANARY" not in everything(tmp_path, ended, without, again)


def test_userinfo_is_sent_and_never_kept(headrace, recorder, tmp_path):
    """A password in a URL of the command line goes to the server; the job keeps neither it nor the URL."""
    ended = headrace("fetch", recorder.url("/a", "bob:CANARY@"), "-o", "out.db", "--take", "1")
    assert ended.returncode == 0
    assert recorder.seen[0][2]["authorization"].startswith("Basic ")
    resumed = headrace("resume", "out.db")
    assert resumed.returncode == 2
    assert "same URLs" in resumed.stderr
    assert b"CANARY" not in everything(tmp_path, ended, resumed)


def test_screens_hide_passwords_and_query_values(headrace, recorder, tmp_path):
    """What is shown of a URL that failed has neither; the values of a query are data and stay in the results."""
    urls = [recorder.url(path, "bob:CANARY-p@") + "?q=CANARY-q" for path in ("/404", "/503")]
    urls += ["http://bob:CANARY-p@127.0.0.1 8/?q=CANARY-q", "http://bob:CANARY-p@127.0.0.1:99999/?q=CANARY-q"]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    ended = headrace("fetch", "urls.txt", "-o", "out.db", "--attempts", "1")
    streamed = headrace("fetch", "urls.txt", "--attempts", "1")
    dry = headrace("fetch", "urls.txt", "--dry-run")
    looked = [
        headrace("failures", "out.db"),
        headrace("failures", "out.db", "--by-cause"),
        headrace("status", "out.db"),
    ]
    shown = "".join(one.stdout + one.stderr for one in (ended, dry, *looked)) + streamed.stderr
    assert "CANARY" not in shown
    assert "CANARY-p" not in streamed.stdout
    assert "CANARY-p" not in headrace("failures", "out.db", "--json").stdout


def test_passwords_of_failed_urls_are_not_in_the_database(headrace, recorder, tmp_path):
    """A dead letter does not keep user and password of its URL: the list has them."""
    (tmp_path / "urls.txt").write_text(recorder.url("/404", "bob:CANARY@"))
    headrace("fetch", "urls.txt", "-o", "out.db")
    assert b"CANARY" not in everything(tmp_path)


def test_cookies_of_answers_are_not_kept(headrace, recorder, tmp_path):
    """`Set-Cookie` is in neither the table nor the lines."""
    ended = headrace("fetch", recorder.url("/a"), "-o", "out.db")
    lines = headrace("fetch", recorder.url("/a"))
    assert json.loads(lines.stdout)["status"] == 200
    assert b"CANARY" not in everything(tmp_path, ended, lines)


def test_a_bad_header_is_refused_without_its_value(headrace):
    """The message names the header and never repeats what stood in it."""
    ended = headrace(
        "fetch", "http://127.0.0.1/", "-o", "x.db", "--header", "Authorization: CAN\x07ARY",
        "--header", "CANARY without colon",
    )  # fmt: skip
    assert ended.returncode == 2
    assert "Authorization" in ended.stderr
    assert "CAN" not in ended.stderr


def test_what_a_server_writes_cannot_drive_the_terminal(headrace, tmp_path):
    """Control characters of a bad line are shown as escapes."""
    (tmp_path / "urls.txt").write_text("http://127.0.0.1/\x1b[2J\x9b31m\u202e\n")
    ended = headrace("fetch", "urls.txt", "-o", "out.db")
    shown = headrace("failures", "out.db")
    for text in (ended.stderr, shown.stdout):
        assert not set(text) & set("\x1b\x9b\u202e")
    assert "1 " in shown.stdout
