"""Rows of files in flows: what cannot be read fails as an item, wherever it stands and however the run is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import headrace as hr
from headrace.errors import ItemUnreadable

DATA = 'id\n1\n2,3\n"4\n",\n5\n'


def ids(row: dict[str, str]) -> str:
    return row["id"]


def test_a_map_accounts_for_broken_records(tmp_path: Path) -> None:
    """Broken records fail with their text and reason, no call is made for them, and the rest is done."""
    (tmp_path / "x.csv").write_text(DATA)
    got = hr.map_sync(ids, hr.files.csv(tmp_path / "x.csv"))
    assert [outcome.value for outcome in got.done] == ["1", "5"]
    failed = [(outcome.position, outcome.item, outcome.attempts) for outcome in got.failed]
    assert failed == [(2, "2,3", 0), (3, '"4\n",', 0)]
    assert all(isinstance(outcome.error, ItemUnreadable) for outcome in got.failed)
    assert "the header names 1" in str(got.failed[0].error)


def test_a_kept_map_gives_them_back_too(tmp_path: Path) -> None:
    """With out= the same outcomes come from the file, in the first run and in later ones."""
    (tmp_path / "x.csv").write_text(DATA)
    for _ in range(2):
        got = hr.map_sync(ids, hr.files.csv(tmp_path / "x.csv"), out=tmp_path / "x.db")
        assert sorted(outcome.value for outcome in got.done) == ["1", "5"]
        assert [(outcome.position, outcome.item) for outcome in got.failed] == [(2, "2,3"), (3, '"4\n",')]


def test_every_first_stage_knows_them(tmp_path: Path) -> None:
    """Also where nothing is called, and before batches, filters and fan-outs."""
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n7\n{"id": 2}\n')

    def flows() -> list[Any]:
        flow = hr.Flow(hr.files.jsonl(tmp_path / "x.jsonl"))
        return [
            flow,
            flow.batch(2),
            flow.filter(lambda row: True),
            flow.flat_map(lambda row: [row, row]),
            flow.map(ids, ordered=True),
            flow.take(3),
        ]

    for flow in flows():
        report = flow.run_sync()
        assert (report.taken, report.done, report.failed) == (3, 2, 1)


def test_a_job_keeps_the_letter_and_retries_it(tmp_path: Path) -> None:
    """The dead letter has the place and the text of the record; a retry reads it again."""
    source = tmp_path / "x.csv"
    source.write_text(DATA)
    flow = hr.Flow(hr.files.csv(source)).map(ids).into(hr.sqlite.table(tmp_path / "x.db", "t"))
    report = flow.run_sync()
    assert (report.taken, report.done, report.failed) == (4, 2, 2)
    job = hr.open(tmp_path / "x.db").job()
    letters = list(job.failures())
    assert [(letter.position, letter.error) for letter in letters] == [
        (2, "ItemUnreadable"),
        (3, "ItemUnreadable"),
    ]
    assert letters[0].item == "2,3"
    assert job.retry() == 2
    report = flow.run_sync()
    assert (report.taken, report.failed) == (2, 2)
