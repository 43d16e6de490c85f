"""The examples are programs that run."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.demo.origin import Origin
from pages import ROOT

pytestmark = pytest.mark.slow  # each starts Python anew

EXAMPLES = ROOT / "examples"


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def ask(place: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(place)) as database:
        return database.execute(query).fetchall()


def test_rows_to_sqlite(origin: Origin, tmp_path: Path):
    """Every row arrives once with the columns of item and answer, and a second run has nothing to do."""
    place = tmp_path / "users.db"
    first = run_example("rows_to_sqlite.py", origin.url("n/"), str(place))
    assert (first.returncode, first.stderr) == (0, ""), first.stderr
    assert ask(place, "SELECT count(*), count(DISTINCT id), max(square) FROM users") == [
        (300, 300, 299 * 299)
    ]
    assert ask(place, "SELECT tenant, name FROM users WHERE id = 4") == [("grace", "document 4")]
    again = run_example("rows_to_sqlite.py", origin.url("n/"), str(place))
    assert again.stdout.startswith("taken 0 "), again.stdout


def test_pages_to_sqlite(tmp_path: Path):
    """Titles and links are kept, a page without a title is skipped, a missing one is a dead letter."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.html").write_text("<title> One </title><a href='b.html'>b</a><a name='x'>", encoding="utf-8")
    (site / "b.html").write_text("<p>nothing</p>", encoding="utf-8")
    urls, place = tmp_path / "urls.txt", tmp_path / "pages.db"
    with Origin.start(root=site, options=("--suffix", ".html")) as origin:
        lines = ["# pages", origin.url("a.html"), origin.url("b.html"), origin.url("missing.html")]
        urls.write_text("\n".join(lines), encoding="utf-8")
        ended = run_example("pages_to_sqlite.py", str(urls), str(place))
        link = origin.url("b.html")
    assert (ended.returncode, ended.stderr) == (1, ""), ended.stderr
    assert ended.stdout.startswith("taken 3 = done 1 + failed 1 + skipped 1 ")
    [(title, links)] = ask(place, "SELECT title, links FROM pages")
    assert (title, json.loads(str(links))) == ("One", [link])


def test_unlike_calls(origin: Origin):
    """What is needed is shown, what failed is named in its place, and without the user there is no screen."""
    ended = run_example("unlike_calls.py", origin.url(""), "7")
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    assert ended.stdout.splitlines()[:3] == [
        "user:    document 7",
        "manager: document 8",
        "news:    not now (StatusError)",
    ]
    assert run_example("unlike_calls.py", "http://127.0.0.1:1/", "7").returncode == 1


def test_an_example_says_how_it_is_used():
    """Without arguments each prints its usage and ends with 2."""
    for example in sorted(EXAMPLES.glob("*.py")):
        ended = run_example(example.name)
        assert (ended.returncode, f"python examples/{example.name}" in ended.stdout) == (2, True), (
            example.name
        )
