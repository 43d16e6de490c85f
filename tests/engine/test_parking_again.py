"""Taking up again what is parked: in the same run, in a later one, and never while a run is stopped or paused."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from parking_kit import Calendar, Service, job, now, parked, positions, virtual_jobs

import headrace as hr
from headrace.aio.iterables import SequenceSource
from headrace.ports import Bookmark
from headrace.testing import run


@pytest.fixture(autouse=True)
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    """Let jobs take no time."""
    return virtual_jobs(monkeypatch)


def test_a_run_waits_for_what_is_due_soon(tmp_path: Path) -> None:
    """After the source's end the run waits for parked items that are due within `wait`, and leaves the others."""
    place = tmp_path / "out.db"
    service = Service({2: [100.0], 3: [100.0, 100.0], 5: [5000.0]})

    async def slow(number: int) -> dict[str, int]:
        row = await service.call(number)
        await asyncio.sleep(95.0 if number == 19 else 0.0)
        return row

    flow = hr.Flow(range(20)).map(slow, concurrency=20).into(hr.sqlite.table(place))

    async def main() -> hr.Report:
        async with flow.start(wait=90) as running:
            await asyncio.sleep(98)
            statistics = running.statistics()
            assert (statistics.parked, statistics.job_parked, statistics.open) == (3, 3, 0)
            assert statistics.source_ended
            return await running.wait()

    report = run(main)
    # 3 asks for another 100 s when it comes back, and nothing else is open then
    assert (report.taken, report.done, report.parked) == (20, 18, 2)
    assert parked(place) == [3, 5]


def test_due_items_are_first_in_the_next_run(tmp_path: Path, calendar: Calendar) -> None:
    """Before they are due a run takes no parked item, and ends with 3; after it, they come before the rest of the source."""
    place = tmp_path / "out.db"
    service = Service({2: [3000.0], 3: [9000.0]})
    report = run(lambda: job(place, service, 20).run())
    assert report.parked == 2
    calendar.epoch += 1000
    report = run(lambda: job(place, service, 20).run())
    assert (report.taken, report.exit_code, report.job_parked, report.balanced) == (0, 3, 2, True)
    assert hr.open(place).job().status().state == "unfinished"
    service.calls.clear()
    calendar.epoch += 3000
    report = run(lambda: job(place, service, 30).run())
    assert service.numbers()[0] == 2
    assert sorted(service.numbers()) == [2, *range(20, 30)]
    assert (report.taken, report.done, report.parked, report.job_parked) == (11, 11, 0, 1)
    calendar.epoch += 9000
    report = run(lambda: job(place, service, 30).run())
    assert (report.taken, report.done, report.exit_code) == (1, 1, 0)
    assert hr.open(place).job().status().state == "finished"
    assert positions(place) == list(range(30))


def test_a_job_of_earlier_parkings_waits_where_they_are_due_soon(tmp_path: Path, calendar: Calendar) -> None:
    """A run that comes back a little early waits for what is due within `wait`."""
    place = tmp_path / "out.db"
    service = Service({2: [3000.0]})
    run(lambda: job(place, service).run())
    calendar.epoch += 2900

    async def main() -> hr.Report:
        report = await job(place, service).run()
        assert 100 <= now() <= 500
        return report

    assert run(main).exit_code == 0
    assert positions(place) == list(range(20))


def test_attempts_before_parking_count(tmp_path: Path, calendar: Calendar) -> None:
    """An item that is parked again and again has its attempts and no more, in all runs together."""
    place = tmp_path / "out.db"
    service = Service({2: [1000.0] * 9})
    flow = job(place, service, retry=hr.Retry(attempts=3))
    run(lambda: flow.run())
    calendar.epoch += 2000
    assert run(lambda: flow.run()).parked == 1
    calendar.epoch += 2000
    report = run(lambda: flow.run())
    assert (report.taken, report.failed, report.exit_code) == (1, 1, 1)
    assert service.numbers().count(2) == 3
    (letter,) = hr.open(place).job().failures()
    assert letter.attempts == 3


def test_a_limit_of_items_counts_each_once(tmp_path: Path, calendar: Calendar) -> None:
    """take(n) takes n items, those that come due among them first; what was taken up again is not counted anew."""
    place = tmp_path / "out.db"
    service = Service({2: [3000.0], 3: [3000.0]})

    def part(n: int) -> hr.Flow[Any]:
        return hr.Flow(range(100)).take(n).map(service.call, concurrency=4).into(hr.sqlite.table(place))

    report = run(lambda: part(10).run())
    assert (report.taken, report.done, report.parked, report.exit_code) == (10, 8, 2, 3)
    calendar.epoch += 5000
    report = run(lambda: part(10).run())
    assert (report.taken, report.done, report.job_parked) == (10, 10, 0)
    assert positions(place) == list(range(18))


@pytest.mark.parametrize("kind", ["take", "until", "take after"])
def test_what_made_room_is_done_where_the_source_was_stopped(
    tmp_path: Path, calendar: Calendar, kind: str
) -> None:
    """take() and until() stop the source, and all that was taken is done: what was put aside for a while, too."""
    place = tmp_path / "out.db"
    early = Service({1: [9000.0]})
    run(lambda: job(place, early, 2).run())  # an item of an earlier run that is not due: it is left alone
    service = Service({2: [100.0]}, hold=True)
    flow: hr.Flow[Any] = hr.Flow(range(500))
    options: dict[str, Any] = {"limits": [hr.Limit(by=lambda n: n % 4 != 3, concurrency=4)], "concurrency": 4}
    if kind == "take":
        flow = flow.take(60).map(service.call, **options)
    elif kind == "until":
        flow = flow.until(lambda number: number == 61).map(service.call, **options)
    else:
        flow = flow.map(service.call, **options).take(60)

    async def main() -> hr.Report:
        flow_into = flow.into(hr.sqlite.table(place))
        return await flow_into.run(window=20, accept_changes=True)

    report = run(main)
    assert (report.parked, report.returned, report.job_parked) == (0, 0, 1)
    assert report.taken == report.done
    assert 60 <= report.taken <= (60 if kind == "take" else 300)
    assert max(Counter(service.numbers()).values()) == 2
    assert report.stopped is not None
    assert parked(place) == [1]


@pytest.mark.parametrize("how", ["stop", "cancel", "within", "stop_source", "event"])
def test_waiting_for_what_is_due_ends_when_the_run_is_stopped(tmp_path: Path, how: str) -> None:
    """Nothing is open while a run waits for parked items; whatever stops a run ends that at once, resumable."""
    place = tmp_path / "out.db"
    service = Service({2: [3000.0]})
    run(lambda: job(place, service).run(wait=10))

    async def main() -> hr.Report:
        event = asyncio.Event()
        options: dict[str, Any] = {"within": 5.0} if how == "within" else {"stop": event}
        async with job(place, service).start(wait="2h", **options) as running:
            await asyncio.sleep(5)
            assert running.statistics().open == 0
            if how == "stop":
                running.stop()
            elif how == "cancel":
                running.cancel()
            elif how == "stop_source":
                running._ask(lambda run: run.stop_source("enough"))
            elif how == "event":
                event.set()
            report = await running.wait()
            assert now() < 8
            return report

    report = run(main)
    assert (report.taken, report.exit_code, report.job_parked) == (0, 3, 1)
    assert run(lambda: job(place, service).run(wait="2h")).exit_code == 0


def test_pause_holds_what_comes_due(tmp_path: Path) -> None:
    """While a run is paused nothing is taken up; after it, it is."""
    place = tmp_path / "out.db"
    service = Service({2: [100.0]})
    run(lambda: job(place, service).run(wait=10))
    service.calls.clear()

    async def main() -> hr.Report:
        async with job(place, service).start() as running:
            await asyncio.sleep(5)
            running.pause()
            await asyncio.sleep(500)
            assert service.calls == []
            running.resume()
            return await running.wait()

    report = run(main)
    assert (report.done, report.exit_code) == (1, 0)


def test_batches_do_not_wait_for_what_is_parked(tmp_path: Path) -> None:
    """A batch that can get no more for now goes on while the run waits for parked items."""
    place = tmp_path / "out.db"
    service = Service({2: [100.0]})
    sizes: list[tuple[int, float]] = []

    async def send(rows: Sequence[Any]) -> list[Any]:
        sizes.append((len(rows), now()))
        return list(rows)

    def flow() -> hr.Flow[Any]:
        made = hr.Flow(range(10)).map(service.call, concurrency=10).batch(100).map(send)
        return made.into(hr.sqlite.table(place, columns=["value"]))

    run(lambda: flow().run(wait=10))
    sizes.clear()
    report = run(lambda: flow().run())
    assert [size for size, _ in sizes] == [1]
    assert report.exit_code == 0


def test_a_parked_item_that_the_source_gives_no_more_is_skipped(tmp_path: Path, calendar: Calendar) -> None:
    """Where changes are accepted and a parked item's line is gone, the job can end all the same."""
    place, urls = tmp_path / "out.db", tmp_path / "list.txt"
    urls.write_text("\n".join(map(str, range(20))) + "\n")

    async def call(line: str) -> dict[str, str]:
        if line in ("5", "19"):
            raise hr.RetryAfter(3000)
        return {"line": line}

    def flow() -> hr.Flow[Any]:
        return hr.Flow(hr.files.lines(urls)).map(call).into(hr.sqlite.table(place))

    assert run(lambda: flow().run()).parked == 2
    calendar.epoch += 5000
    urls.write_text("0\n1\n2\n3\n4\n\n6\n7\n8\n9\n")
    report = run(lambda: flow().run(accept_changes=True))
    assert (report.taken, report.skipped, report.exit_code) == (2, 2, 0)
    assert hr.open(place).job().status().state == "finished"


def test_a_kept_map_gives_what_is_parked(tmp_path: Path, calendar: Calendar) -> None:
    """map(out=) gives Parked for items that this run parked or an earlier one did, and the value once there is one."""
    place = tmp_path / "out.db"
    service = Service({3: [3000.0]})
    for _ in range(2):
        got = run(lambda: hr.map(service.call, range(5), out=place))
        (left,) = got.unfinished
        assert isinstance(left, hr.Parked)
        assert (left.position, left.item, left.attempts, got.exit_code) == (3, 3, 1, 3)
        with pytest.raises(hr.ItemsFailed):
            got.check()
    assert service.numbers().count(3) == 1
    calendar.epoch += 5000
    got = run(lambda: hr.map(service.call, range(5), out=place))
    assert [row["n"] for row in got.values] == list(range(5))


def test_fresh_and_max_age_beside_parked_items(tmp_path: Path, calendar: Calendar) -> None:
    """max_age redoes what is old, and leaves parked items their date; fresh forgets them and takes them like all others."""
    place = tmp_path / "out.db"
    service = Service({3: [3000.0]})
    run(lambda: job(place, service).run())
    report = run(lambda: job(place, service).run(max_age=1e-9))
    assert (report.taken, report.done, report.job_parked, report.exit_code) == (19, 19, 1, 3)
    report = run(lambda: job(place, service).run(fresh=True))
    assert (report.taken, report.done, report.job_parked, report.exit_code) == (20, 20, 0, 0)
    assert (positions(place), parked(place)) == (list(range(20)), [])


def test_retry_leaves_parked_items_alone(tmp_path: Path, calendar: Calendar) -> None:
    """`retry` marks dead letters, and no parked item."""
    place = tmp_path / "out.db"
    service = Service({3: [3000.0], 4: [1.0] * 9})
    assert run(lambda: job(place, service).run()).failed == 1
    service.waits[4] = []
    assert hr.open(place).job().retry() == 1
    report = run(lambda: job(place, service).run())
    assert (report.taken, report.done, report.job_parked) == (1, 1, 1)


def test_a_pass_begins_near_what_is_due(tmp_path: Path) -> None:
    """Parked items are read for from a bookmark shortly before the first of them, and not from the very start."""
    opened: list[int] = []

    class Watched(SequenceSource):
        def open(self, bookmark: Bookmark | None = None) -> Any:
            opened.append(0 if bookmark is None else bookmark.position)
            return super().open(bookmark)

    service = Service({4500: [70.0], 4600: [70.0], 5999: [65.0]})
    source = Watched(range(6000))
    flow = hr.Flow(source).map(service.call, concurrency=100).into(hr.sqlite.table(tmp_path / "out.db"))

    async def main() -> hr.Report:
        async with flow.start(window=400, wait=60) as running:
            await asyncio.sleep(12)
            return await running.wait()

    service.waits[5998] = [30.0]  # it keeps the run until the others are due soon
    report = run(main)
    assert (report.done, report.exit_code) == (6000, 0)
    assert opened[0] == 0
    assert len(opened) >= 2
    assert min(opened[1:]) > 3500


def test_a_pass_for_parked_items_says_nothing_of_the_source(tmp_path: Path, calendar: Calendar) -> None:
    """What the ledger knows of how far the source was read stays, though a run takes up one item in its midst and ends."""
    place, urls = tmp_path / "out.db", tmp_path / "list.txt"
    urls.write_text("".join(f"{n}\n" if n % 5 else "\n" for n in range(9000)))
    refused = True
    stop = asyncio.Event()

    async def call(line: str) -> dict[str, str]:
        if line == "7001" and refused:
            raise hr.RetryAfter(3000)
        if line == "7001":
            stop.set()
        return {"line": line}

    def flow() -> hr.Flow[Any]:
        source = hr.files.lines(urls)
        return hr.Flow(source).map(call, concurrency=8).into(hr.sqlite.table(place))

    def known() -> tuple[Any, ...]:
        with closing(sqlite3.connect(place)) as connection:
            query = "SELECT fingerprint, bookmarks FROM headrace_progress WHERE fingerprint IS NOT NULL"
            return tuple(connection.execute(query).fetchall()[-1])

    assert run(lambda: flow().run(window=100)).parked == 1
    before = known()
    refused = False
    calendar.epoch += 5000
    report = run(lambda: flow().run(window=100, stop=stop))
    assert (report.taken, report.done) == (1, 1)
    assert known()[0] == before[0]
    assert run(lambda: flow().run()).exit_code == 0
