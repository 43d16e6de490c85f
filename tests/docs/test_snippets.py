"""Everything that the documentation shows is run, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from headrace.demo.origin import Origin
from pages import PAGES, ROOT, PageRun, blocks, problems


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def page_parameters() -> list[Any]:
    """Give the pages that have something to run; those that start processes are slow."""
    found = []
    for page in PAGES:
        languages = {block.language for block in blocks(page)}
        if languages & {"python", "console"}:
            marks = [pytest.mark.slow] if "console" in languages else []
            found.append(pytest.param(page, marks=marks, id=name(page)))
    return found


@pytest.mark.parametrize("page", page_parameters())
def test_page_runs(page: Path, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a page shows works in the order in which it stands there, with the exit codes and the output shown."""
    monkeypatch.chdir(tmp_path)
    PageRun(page, f"127.0.0.1:{origin.port}").run()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_hides_nothing(page: Path):
    """Every block is of a kind that is run or shown, and one that is not run says why."""
    assert problems(page) == []


def test_links_lead_somewhere():
    """Every relative link of a page is to a file that is there."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{name(page)}: {target}")
    assert broken == []


def test_a_wrong_snippet_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The runner sees a wrong exit code, a wrong output and an error in a block."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pages.ROOT", tmp_path)
    page = tmp_path / "page.md"
    for text in (
        "```console\n$ headrace --no-such-option\n```\n",
        "```console\n$ headrace --version\nheadrace x\n```\n",
        "```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n",
        "```python\nawait None\n```\n",
    ):
        page.write_text(text, encoding="utf-8")
        with pytest.raises((AssertionError, TypeError)):
            PageRun(page, "127.0.0.1:1").run()
