"""`headrace fetch` with rows: templates checked before anything is sent, columns that travel along, calls made once."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing

import pytest


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text)


def rows(tmp_path, query, place="out.db"):
    with closing(sqlite3.connect(tmp_path / place)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


USERS = 'id,name,count\n1,Ann,5\n2,"B & ""C""",7\n3,Cé,0\n'


def test_a_row_fills_every_part_of_its_request(headrace, recorder, tmp_path):
    """URL, query, header, JSON and form, each encoded in its own way; a body makes it a POST."""
    write(tmp_path, "users.csv", USERS)
    ended = headrace(
        "fetch", "users.csv", "--url", recorder.url("/users/{id}?q={name}"), "--header", "X-User: u{id}",
        "--json", '{"q": "{name}!", "n": "{json:count}", "id": "{id}"}', "-o", "out.db", "--concurrency", "1",
    )  # fmt: skip
    assert ended.returncode == 0
    assert [(method, path, headers["x-user"]) for method, path, headers in recorder.seen] == [
        ("POST", "/users/1?q=Ann", "u1"),
        ("POST", "/users/2?q=B%20%26%20%22C%22", "u2"),
        ("POST", "/users/3?q=C%C3%A9", "u3"),
    ]
    assert json.loads(recorder.bodies[1]) == {"q": 'B & "C"!', "n": 7, "id": "2"}
    assert recorder.seen[0][2]["content-type"] == "application/json"
    headrace(
        "fetch",
        "users.csv",
        "--url",
        recorder.url("/f/{id}"),
        "--data",
        "a={name}",
        "--data",
        "b=1",
        "--method",
        "PUT",
        "-q",
    )
    assert recorder.seen[-1][0] == "PUT"
    assert b"a=B%20%26%20%22C%22&b=1" in recorder.bodies


def test_bodies_come_from_files(headrace, recorder, tmp_path):
    """--json @FILE and --data @FILE, as curl has them; what the file held is kept with the job."""
    write(tmp_path, "users.jsonl", '{"id": 1, "tags": ["a"]}\n{"id": 2, "tags": []}\n')
    write(tmp_path, "body.json", '{\n  "tags": "{tags}"\n}\n')
    write(tmp_path, "form.txt", "a={id}\n&b=2\n")
    url = recorder.url("/echo/{id}")
    assert (
        headrace(
            "fetch", "users.jsonl", "--url", url, "--json", "@body.json", "-o", "out.db", "--take", "1"
        ).returncode
        == 0
    )
    (tmp_path / "body.json").unlink()
    assert headrace("resume", "out.db").returncode == 0
    assert [json.loads(body) for body in recorder.bodies] == [{"tags": ["a"]}, {"tags": []}]
    headrace("fetch", "users.jsonl", "--url", url, "--data", "@form.txt", "-q")
    assert sorted(recorder.bodies[2:]) == [b"a=1&b=2", b"a=2&b=2"]


def test_the_columns_of_the_input_travel_along(headrace, origin, tmp_path):
    """Beside those of the answer; where both have a name, the input's is called input_NAME. Nothing is lost."""
    write(tmp_path, "users.csv", "id,status,_position,URL\n1,old,9,u\n")
    headrace("fetch", "users.csv", "--url", origin.url("/n/{id}"), "-o", "out.db")
    [row] = rows(tmp_path, "SELECT * FROM pages")
    assert (row["id"], row["status"], row["input_status"]) == ("1", 200, "old")
    assert (row["input__position"], row["_position"], row["input_URL"]) == ("9", 1, "u")


def test_select_makes_columns(headrace, origin, tmp_path):
    """An object gives a column for each key, another value one column; the body is left out; nothing found is a failure."""
    write(tmp_path, "users.csv", "id,name\n3,Ann\n4,Bob\n")
    url = origin.url("/n/{id}")
    headrace("fetch", "users.csv", "--url", url, "--select", "{name: name, sq: square}", "-o", "out.db")
    found = rows(tmp_path, "SELECT name, sq, input_name, id, status FROM pages ORDER BY _position")
    assert found == [
        {"name": "document 3", "sq": 9, "input_name": "Ann", "id": "3", "status": 200},
        {"name": "document 4", "sq": 16, "input_name": "Bob", "id": "4", "status": 200},
    ]
    assert "body" not in rows(tmp_path, "SELECT * FROM pages")[0]
    ended = headrace("fetch", "users.csv", "--url", url, "--select", "square", "-q")
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(line["value"], line["id"], line["name"]) for line in told] == [(9, "3", "Ann"), (16, "4", "Bob")]
    ended = headrace("fetch", "users.csv", "--url", url, "--select", "nobody", "-o", "none.db")
    assert ended.returncode == 1
    assert "nothing is there; the JSON has number, name, square" in ended.stderr


def test_lines_of_standard_output_keep_every_column(headrace, origin, tmp_path):
    """Columns that the lines need themselves give way; a failed row is told as a whole."""
    write(tmp_path, "users.jsonl", '{"id": 1, "outcome": "mine", "position": 7}\n{"id": "x"}\n[1]\n')
    ended = headrace("fetch", "users.jsonl", "--url", origin.url("/n/{id}"), "-q")
    told = {line["position"]: line for line in map(json.loads, ended.stdout.splitlines())}
    assert (told[0]["outcome"], told[0]["input_outcome"], told[0]["input_position"]) == ("done", "mine", 7)
    assert (told[1]["outcome"], told[1]["input"], told[1]["status"]) == ("failed", {"id": "x"}, 404)
    assert (told[2]["error"], told[2]["input"]) == ("ItemUnreadable", "[1]")


def test_every_row_is_accounted_for(headrace, origin, tmp_path):
    """Broken records, rows without a field, and answers that are none are dead letters with their rows; the rest is done."""
    write(tmp_path, "users.csv", "id,x\n1,a\n2\n,b\n4,c\nnobody,d\n6,e\n")
    ended = headrace("fetch", "users.csv", "--url", origin.url("/n/{id}"), "--accept", "2xx", "-o", "out.db")
    assert ended.returncode == 1
    assert "taken 6 = done 3 + failed 3" in ended.stderr
    shown = headrace("failures", "out.db").stdout
    for row, why in ((3, "the header names 2"), (4, "field 'id' is empty"), (6, "404")):
        assert any(f"users.csv, row {row} " in line and why in line for line in shown.splitlines())
    ended = headrace(
        "fetch", "users.csv", "--url", origin.url("/n/{id}"), "--accept", "2xx,404", "-o", "b.db"
    )
    assert "done 4 + failed 2" in ended.stderr
    found = rows(tmp_path, "SELECT id, status FROM pages ORDER BY _position", "b.db")
    assert found[2] == {"id": "nobody", "status": 404}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--url", "http://h/{idd}"],
            "{idd}: users.csv has no such column (it has: id, name, count); did you mean id?",
        ),
        ([], "users.csv has no column url (it has: id, name, count); give --url 'https://…/{id}'"),
        (["--url", "http://h/{id!r}"], "'{id!r}' at 9 is no field"),
        (["--url", "http://h/{id"], "'{' at 9 is no field"),
        (["--url", "/users/{id}"], "give a whole URL"),
        (["--url", "http://u:hush@h/{id}"], "user and password do not belong there"),
        (["--url", "http://h/{env:NOT_SET_HERE}"], "may stand in the query"),
        (["--url", "http://h/?a={env:NOT_SET_HERE}"], "no variable NOT_SET_HERE"),
        (["--url", "http://h/", "--json", '{"a": "{env:NOT_SET_HERE}"}'], "no variable NOT_SET_HERE"),
        (["--url", "http://h/", "--json", '{"a": {count}}'], '"{json:count}" for a number'),
        (["--url", "http://h/", "--json", '{"a": "x{json:count}"}'], "stands alone"),
        (["--url", "http://h/", "--json", "{}", "--data", "a=1"], "one body"),
        (["--url", "http://h/", "--data", '{"a": 1}'], "given by --json"),
        (["--url", "http://h/", "--json", "@nowhere.json"], "cannot be read"),
        (["--url", "http://h/", "--json", "{}", "--method", "get"], "--method GET sends no body"),
        (["--url", "http://h/", "--header", "X-A: {nobody}"], "{nobody}: users.csv has no such column"),
        (["--url", "http://h/", "--header", "X-A: {"], "'X-A' has a brace that begins no field"),
        (["--url", "http://h/", "--select", "a.0.b"], "brackets: 'a[0].b'"),
        (["--url", "http://h/", "--delimiter", "::"], "--delimiter '::': give one character"),
        (["--url", "http://h/", "--input-format", "xml"], "one of lines, csv, tsv, jsonl"),
        (["--url", "http://h/{id}", "--input-format", "lines"], "a line itself is {item}"),
        (["--url", "http://h/{id}", "--input-format", "jsonl"], "none of the first 4 items can be read"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(headrace, tmp_path, words, said):
    """Code 2 with the reason and what there is; no file, no request, and no secret in the words."""
    write(tmp_path, "users.csv", USERS)
    ended = headrace("fetch", "users.csv", "-o", "out.db", *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "hush" not in ended.stderr
    assert not (tmp_path / "out.db").exists()


def test_a_broken_header_is_refused_too(headrace, tmp_path):
    """The first row must name the columns; a .json file is told how it becomes lines."""
    for name, text, said in (
        ("a.csv", "id,id\n1,2\n", "both named 'id'"),
        ("b.csv", "", "is empty"),
        ("c.csv", 'id\n"1\n', "not closed before the end of the file"),
        ("d.json", "[]", "jq -c"),
        ("e.csv", "number;name\n1;x\n", "is it to be split by --delimiter ';'?"),
    ):
        write(tmp_path, name, text)
        ended = headrace("fetch", name, "--url", "http://h/{id}", "-o", "out.db")
        assert (ended.returncode, said in ended.stderr) == (2, True)


def test_other_forms_of_rows(headrace, origin, tmp_path):
    """Tabs, semicolons, packed files, a column url, and lines that are no URLs."""
    write(tmp_path, "a.tsv", "id\tx\n1\t,\n")
    write(tmp_path, "b.csv", "id;x\n1;,\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "a": {"b": [{"c": 1}]}}\n'))
    write(tmp_path, "d.csv", f"x,url\n1,{origin.url('/n/1')}\n")
    write(tmp_path, "e.txt", "# numbers\n1\n")
    for number, (name, *words) in enumerate(
        [
            ("a.tsv", "--url", origin.url("/n/{id}")),
            ("b.csv", "--url", origin.url("/n/{id}"), "--delimiter", ";"),
            ("c.jsonl.gz", "--url", origin.url("/n/{a.b.0.c}")),
            ("d.csv",),
            ("e.txt", "--url", origin.url("/n/{item}")),
        ]
    ):
        place = f"{number}.db"
        assert headrace("fetch", name, *words, "-o", place, "--select", "square").returncode == 0
        assert [row["value"] for row in rows(tmp_path, "SELECT value FROM pages", place)] == [1]
        assert headrace("status", place).returncode == 0
        assert "nothing is left" in headrace("resume", place).stderr


def test_other_encodings(headrace, origin, tmp_path):
    """What Windows writes is refused with the flag that reads it; --encoding is kept with the job."""
    (tmp_path / "users.csv").write_bytes("id,name\n1,é\n2,à\n".encode("latin-1"))
    words = ("fetch", "users.csv", "--url", origin.url("/n/{id}?{name}"), "-o", "out.db")
    ended = headrace(*words)
    assert ended.returncode == 2
    assert "--encoding 'latin-1'" in ended.stderr
    assert headrace(*words, "--encoding", "latin-1", "--take", "1").returncode == 0
    assert headrace("resume", "out.db").returncode == 0
    assert [row["name"] for row in rows(tmp_path, "SELECT name FROM pages ORDER BY _position")] == ["é", "à"]
    assert "--encoding 'utf-16'" in headrace(*words, "--encoding", "utf-16").stderr


def test_a_dry_run_shows_the_requests(headrace, tmp_path):
    """As they would be sent, secrets masked; nothing is requested and nothing written."""
    write(tmp_path, "users.csv", USERS)
    ended = headrace(
        "fetch", "users.csv", "--url", "http://127.0.0.1:1/u/{id}?q={name}&key=hush",
        "--json", '{"n": "{json:count}", "t": "{env:T}"}',
        "--header", "Authorization: hush", "--header", "X-Id: {id}", "--header", "X-T: {env:T}", "-o", "out.db", "--dry-run",
        env={"T": "hush"},
    )  # fmt: skip
    assert ended.returncode == 0
    assert "users.csv, row 3: POST http://127.0.0.1:1/u/2?q=B%20%26%20%22C%22&key=***" in ended.stdout
    for line in ('{"n":7,"t":"{env:T}"}', "Authorization: ***", "X-Id: 2", "X-T: {env:T}"):
        assert line in ended.stdout
    assert "hush" not in ended.stdout + ended.stderr
    assert os.listdir(tmp_path) == ["users.csv"]


def test_secrets_of_rows_are_not_stored(headrace, recorder, tmp_path):
    """{env:NAME} in the query, a header and a body is sent, and stands nowhere in the output, on a screen or in a letter."""
    write(tmp_path, "users.csv", "id\n1\n404\n")
    words = (
        "fetch", "users.csv", "--url", recorder.url("/{id}?key={env:CANARY}"), "--json", '{"t": "{env:CANARY}"}',
        "--header", "X-T: {id} {env:CANARY}", "-o", "out.db",
    )  # fmt: skip
    ended = headrace(*words, env={"CANARY": "hush-hush"})
    shown = ended.stdout + ended.stderr
    assert {headers["x-t"] for _, _, headers in recorder.seen} == {"1 hush-hush", "404 hush-hush"}
    assert all(b"hush-hush" in body for body in recorder.bodies)
    for command in ("failures", "status"):
        ended = headrace(command, "out.db", "--json")
        shown += ended.stdout + ended.stderr
    assert "hush-hush" not in shown
    assert not any(b"hush-hush" in path.read_bytes() for path in tmp_path.iterdir())
    assert "no variable CANARY" in headrace("retry", "out.db").stderr
    assert headrace("retry", "out.db", env={"CANARY": "hush-hush"}).returncode == 1


def test_rows_that_came_later_are_taken_by_the_next_run(headrace, origin, tmp_path):
    """A file that grew goes on with its new rows; another header is another input."""
    write(tmp_path, "users.csv", "id,x\n1,a\n")
    headrace("fetch", "users.csv", "--url", origin.url("/n/{id}"), "-o", "out.db")
    write(tmp_path, "users.csv", "id,x\n1,a\n2,b\n")
    assert "taken 1 = done 1" in headrace("resume", "out.db").stderr
    write(tmp_path, "users.csv", "id,y\n1,a\n2,b\n")
    ended = headrace("resume", "out.db")
    assert ended.returncode == 2
    assert "users.csv, line 1 differs" in ended.stderr or "between line 1" in ended.stderr


def test_standard_input_is_kept_with_the_job(headrace_process, origin, tmp_path):
    """It is copied beside the output, so that the job goes on; more of it is taken, another input is refused."""
    words = (
        "fetch",
        "-",
        "--input-format",
        "jsonl",
        "--url",
        origin.url("/n/{id}"),
        "-o",
        "out.db",
        "--no-progress",
    )
    assert headrace_process(*words, "--take", "1", input='{"id": 1}\n{"id": 2}\n').returncode == 0
    ended = headrace_process("resume", "out.db")
    assert "taken 1 = done 1" in ended.stderr
    assert "taken 1 = done 1" in headrace_process(*words, input='{"id": 1}\n{"id": 2}\n{"id": 3}\n').stderr
    ended = headrace_process(*words, input='{"id": 9}\n')
    assert ended.returncode == 2
    assert "not what the job default" in ended.stderr
    assert [row["id"] for row in rows(tmp_path, "SELECT id FROM pages ORDER BY _position")] == [1, 2, 3]
    assert sorted(os.listdir(tmp_path)) == ["out.db", "out.db.input.jsonl"]
    assert oct((tmp_path / "out.db.input.jsonl").stat().st_mode)[-3:] == "600"
    told = headrace_process(
        "fetch", "-", "--url", origin.url("/n/{item}"), "--select", "square", "-q", input="3\n4\n"
    )
    assert sorted(json.loads(line)["value"] for line in told.stdout.splitlines()) == [9, 16]
    ended = headrace_process("fetch", "-", "-o", "new.db", "--url", origin.url("/n/{id}"), input="1\n")
    assert ended.returncode == 2
    assert sorted(os.listdir(tmp_path)) == ["out.db", "out.db.input.jsonl"]


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it did not happen within 30 s"
        time.sleep(0.01)


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_post_that_was_killed(headrace, started, recorder, tmp_path, idempotent):
    """With --idempotent it is repeated with the same key; without it is in doubt, and is not repeated by itself."""
    write(tmp_path, "orders.csv", "id\n" + "".join(f"{number}\n" for number in range(6)))
    words = (
        "fetch",
        "orders.csv",
        "--url",
        recorder.url("/held/{id}"),
        "--json",
        '{"order": "{id}"}',
        "-o",
        "out.db",
        "--per-host",
        "3",
    )
    process = started(*words, *(["--idempotent"] if idempotent else []))
    wait_for(lambda: len(recorder.seen) == 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recorder.release.set()
    ended = headrace("resume", "out.db")
    keys = Counter((path, headers["idempotency-key"]) for _, path, headers in recorder.seen)
    assert (
        len({key for _, key in keys}) == len({path for path, _ in keys}) == 6
    )  # one key an order, and no two the same
    killed = {path for _, path, _ in recorder.seen[:3]}
    if idempotent:
        assert ended.returncode == 0
        assert {path: count for (path, _), count in keys.items()} == {
            f"/held/{n}": 1 + (f"/held/{n}" in killed) for n in range(6)
        }
        assert len(rows(tmp_path, "SELECT * FROM pages")) == 6
        return
    assert ended.returncode == 1
    assert set(keys.values()) == {1}
    letters = [
        json.loads(line)
        for line in headrace("failures", "out.db", "--in-doubt", "--json").stdout.splitlines()
    ]
    assert len(letters) == 3
    assert headrace("retry", "out.db").returncode == 1
    assert len(recorder.seen) == 6
    assert headrace("retry", "out.db", "--in-doubt").returncode == 0
    again = Counter((path, headers["idempotency-key"]) for _, path, headers in recorder.seen)
    assert {path for (path, _), count in again.items() if count == 2} == killed


def test_a_file_that_cannot_be_read_on_stops_the_run_and_goes_on_once_it_is_mended(
    headrace, origin, tmp_path
):
    """An open quote behind the first rows ends the run with code 4, all before it done; the mended file is gone on with."""
    good = "id\n" + "".join(f"{number}\n" for number in range(300))
    write(tmp_path, "users.csv", good + '"300\n301\n')
    ended = headrace("fetch", "users.csv", "--url", origin.url("/n/{id}"), "-o", "out.db")
    assert ended.returncode == 4
    assert 'row 302: a quote (") is opened there' in ended.stderr
    assert "done 300" in ended.stderr
    write(tmp_path, "users.csv", good + "300\n301\n")
    ended = headrace("resume", "out.db")
    assert ended.returncode == 0
    assert "taken 2 = done 2" in ended.stderr
    assert rows(tmp_path, "SELECT count(DISTINCT id) AS n FROM pages") == [{"n": 302}]
