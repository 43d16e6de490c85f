"""Parking: what has long to wait is put aside, and taken up again when it is due."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from parking_kit import START, Calendar, dead, parked, positions, virtual_jobs

import headrace as hr
from headrace.events import Event, ItemsParked
from headrace.testing import run


@pytest.fixture(autouse=True)
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    """Let jobs take no time."""
    return virtual_jobs(monkeypatch)


def now() -> float:
    """Give the loop's time."""
    return asyncio.get_running_loop().time()


def by_tens(number: int) -> int:
    """Give the key of a number."""
    return number % 10


class Service:
    """A function that asks to wait, for some numbers, and remembers when it was called."""

    def __init__(self, waits: dict[int, list[float]], *, hold: bool = False) -> None:
        self.waits = {number: list(seconds) for number, seconds in waits.items()}
        self.hold = hold
        self.calls: list[tuple[int, float]] = []
        self.__name__ = "service"

    async def call(self, number: int) -> dict[str, int]:
        """Give a row."""
        self.calls.append((number, now()))
        await asyncio.sleep(0.01)
        if self.waits.get(number):
            raise hr.RetryAfter(self.waits[number].pop(0), hold=self.hold)
        return {"n": number}

    def numbers(self) -> list[int]:
        """Give what was called, in order."""
        return [number for number, _ in self.calls]


def job(place: Path, service: Service, count: int = 20, **options: Any) -> hr.Flow[Any]:
    """Make a job."""
    options.setdefault("concurrency", 4)
    return hr.Flow(range(count)).map(service.call, **options).into(hr.sqlite.table(place))


# ---------------------------------------------------------------------------------------------------- what parks


def test_a_repetition_that_is_far_off_parks_its_item(tmp_path: Path) -> None:
    """A wait of more than `wait` is a date in the ledger: the run ends at once, with 3, and says when to come back."""
    place = tmp_path / "out.db"
    service = Service({3: [3000.0], 7: [20.0]})

    async def main() -> hr.Report:
        report = await job(place, service).run()
        assert 20.0 <= now() < 30.0
        return report

    report = run(main)
    assert (report.taken, report.done, report.parked, report.returned) == (20, 19, 1, 0)
    assert (report.exit_code, report.balanced, report.job_parked) == (3, True, 1)
    assert report.next_due is not None
    assert 3000 <= report.next_due - START <= 3301
    assert "1 parked until " in str(report)
    assert f"run the same again, or headrace resume {place}" in str(report)
    with pytest.raises(hr.ItemsFailed, match="1 parked"):
        report.check()
    assert parked(place) == [3]
    status = hr.open(place).job().status()
    assert (status.state, status.parked, status.done, status.next_due) == (
        "unfinished",
        1,
        19,
        report.next_due,
    )


def test_wait_is_an_option_of_the_run(tmp_path: Path) -> None:
    """`wait=` takes seconds or a text, and says what waits in the run; nonsense is refused."""
    place = tmp_path / "out.db"
    report = run(lambda: job(place, Service({3: [3000.0]})).run(wait="2h"))
    assert (report.done, report.exit_code) == (20, 0)
    report = run(lambda: job(tmp_path / "b.db", Service({3: [30.0]})).run(wait=10))
    assert (report.done, report.parked) == (19, 1)
    for nonsense in (0, -1, "soon", True):
        with pytest.raises(hr.PlanError, match="wait="):
            job(place, Service({})).start(wait=nonsense)


def test_a_held_key_parks_all_that_queues_for_it_and_what_comes_later(tmp_path: Path) -> None:
    """A 429 for an hour parks the items of its key, before and after, with that date; the others go on."""
    place = tmp_path / "out.db"
    service = Service({3: [3600.0]}, hold=True)
    limits = [hr.Limit(by=by_tens, concurrency=1)]

    async def main() -> hr.Report:
        report = await job(place, service, 1000, limits=limits, concurrency=8).run(window=40)
        assert now() < 60
        return report

    report = run(main)
    held = list(range(3, 1000, 10))
    assert parked(place) == held
    assert (report.done, report.parked, report.exit_code) == (900, 100, 3)
    assert [number for number in service.numbers() if by_tens(number) == 3] == [3]
    job_in_place = hr.open(place).job().status()
    assert job_in_place.next_due == pytest.approx(START + 3600, abs=10)


def test_a_hold_that_begins_while_others_wait_for_permits_is_noticed(tmp_path: Path) -> None:
    """Items that queue at a permit of another limit, or for their rate, are parked when their key is held."""
    place = tmp_path / "out.db"
    once = hr.Limit(concurrency=1, name="one by one")
    slow = hr.Limit(rate="1/s", by=by_tens, name="pace")

    async def call(number: int) -> dict[str, int]:
        if number == 13:
            raise hr.RetryAfter(3600, hold=True)
        await asyncio.sleep(5.0 if number == 5 else 0.01)
        return {"n": number}

    flow = hr.Flow([3, 13, 5, *range(23, 200, 10)]).map(call, concurrency=8, limits=[once, slow])

    async def main() -> hr.Report:
        async with flow.into(hr.sqlite.table(place)).start() as running:
            await asyncio.sleep(7)
            assert running.statistics().parked == 19
            return await running.wait()

    report = run(main)
    assert (report.done, report.parked) == (2, 19)


def test_a_rate_or_a_permit_parks_nobody(tmp_path: Path) -> None:
    """However long the wait for a rate or a permit is, the item waits for it in the run."""
    place = tmp_path / "out.db"
    limits = [hr.Limit(rate="2/h", by=by_tens), hr.Limit(concurrency=1)]
    report = run(lambda: job(place, Service({}), 40, limits=limits).run(window=12))
    assert (report.done, report.parked) == (40, 0)


def test_without_a_ledger_the_outcome_is_parked() -> None:
    """A map and a stream hand out Parked, with the date and the attempts, for what would wait too long."""
    service = Service({3: [0.5, 3000.0]})

    async def main() -> None:
        got = await hr.map(service.call, range(6), wait=60)
        assert [type(outcome).__name__ for outcome in got] == [
            "Done",
            "Done",
            "Done",
            "Parked",
            "Done",
            "Done",
        ]
        (left,) = got.unfinished
        assert isinstance(left, hr.Parked)
        assert (left.position, left.attempts) == (3, 2)
        assert left.due >= START + 3000
        assert (got.report.parked, got.report.exit_code, got.report.balanced) == (1, 3, True)
        service.waits[3] = [3000.0]
        async with hr.Flow(range(6)).map(service.call).stream(wait=60) as stream:
            kinds = Counter([type(outcome).__name__ async for outcome in stream])
        assert kinds == {"Done": 5, "Parked": 1}
        assert stream.report is not None
        assert stream.report.parked == 1

    run(main)


def test_what_may_have_taken_effect_is_not_parked(tmp_path: Path) -> None:
    """An item whose *once* call went out waits on in the run, however long; one of which it is certain is parked."""
    place = tmp_path / "out.db"

    async def pay(number: int) -> int:
        if number == 1:
            raise hr.RetryAfter(5000)  # asked for by the function: nothing has happened
        return number

    asked = Counter[int]()

    async def ship(number: int) -> dict[str, int]:
        asked[number] += 1
        if asked[number] == 1:
            raise hr.RetryAfter(4000)
        return {"n": number}

    flow = hr.Flow(range(3)).map(pay, effect="once").map(ship).into(hr.sqlite.table(place))

    async def main() -> hr.Report:
        report = await flow.run()
        assert now() >= 4000
        return report

    report = run(main)
    assert (report.done, report.parked, report.failed) == (2, 1, 0)
    assert parked(place) == [1]


def test_a_child_that_parks_parks_its_root(tmp_path: Path) -> None:
    """Failed outweighs parked; a parked item has no rows, and is made whole when it is taken up again."""
    place = tmp_path / "out.db"
    asked = Counter[tuple[int, int]]()

    async def spread(number: int) -> list[tuple[int, int]]:
        return [(number, part) for part in range(3)]

    async def call(pair: tuple[int, int]) -> dict[str, int]:
        asked[pair] += 1
        await asyncio.sleep(pair[1] / 10)
        if pair == (1, 0) and asked[pair] == 1:
            raise hr.RetryAfter(1000)
        if pair[0] == 2 and pair[1] == 0:
            raise hr.RetryAfter(1000)
        if pair == (2, 1):
            raise ValueError("bad")
        return {"n": pair[0], "part": pair[1]}

    flow = hr.Flow(range(4)).flat_map(spread).map(call).into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.done, report.failed, report.parked) == (2, 1, 1)
    assert (positions(place), dead(place), parked(place)) == ([0, 0, 0, 3, 3, 3], [2], [1])
    report = run(lambda: flow.run(wait="1h"))
    assert (report.taken, report.done, report.job_parked) == (1, 1, 0)
    assert positions(place) == [0, 0, 0, 1, 1, 1, 3, 3, 3]


def test_members_of_a_batch_park_together(tmp_path: Path) -> None:
    """A batch that has to wait parks each of its members."""
    place = tmp_path / "out.db"
    asked: list[list[int]] = []

    async def send(numbers: list[int]) -> list[int]:
        asked.append(numbers)
        if numbers == [4, 5, 6, 7]:
            raise hr.RetryAfter(1000)
        return numbers

    flow = hr.Flow(range(10)).batch(4).map(send).into(hr.sqlite.table(place, columns=["value"]))
    report = run(lambda: flow.run())
    assert (report.done, report.parked) == (6, 4)
    assert parked(place) == [4, 5, 6, 7]


def test_order_is_kept_with_a_gap(tmp_path: Path) -> None:
    """What parks in an ordered stage lets the others by; it comes last, when it is taken up."""
    service = Service({2: [100.0], 11: [3000.0]})
    came: list[int] = []

    async def note(row: dict[str, int]) -> dict[str, int]:
        came.append(row["n"])
        return row

    flow = hr.Flow(range(20)).map(service.call, ordered=True, concurrency=4).map(note, concurrency=1)
    report = run(lambda: flow.into(hr.sqlite.table(tmp_path / "out.db")).run(wait=90, window=8))
    assert (report.done, report.parked) == (18, 2)
    assert came == [n for n in range(20) if n not in (2, 11)]


# ---------------------------------------------------------------------------------------------------- a full window


def test_a_window_full_of_one_held_key_lets_the_others_go_on(tmp_path: Path) -> None:
    """While one key is held for nine minutes, 40 others are done within seconds; then it is taken up in the same run."""
    place = tmp_path / "out.db"
    ended: dict[int, float] = {}
    first = True

    async def call(number: int) -> dict[str, int]:
        nonlocal first
        await asyncio.sleep(0.01)
        if number % 2 == 0 and first:
            first = False
            raise hr.RetryAfter(540, hold=True)
        ended[number] = now()
        return {"n": number}

    def host(number: int) -> int:
        return 0 if number % 2 == 0 else 1 + number // 2 % 40

    told: list[Event] = []
    flow = hr.Flow(range(2000)).map(
        call, concurrency=40, limits=[hr.Limit(by=host, concurrency=4, name="host")]
    )
    report = run(
        lambda: flow.into(hr.sqlite.table(place)).run(window=80, progress=lambda events: told.extend(events))
    )
    assert (report.taken, report.done, report.parked, report.exit_code) == (2000, 2000, 0, 0)
    assert max(ended[number] for number in range(1, 2000, 2)) < 60
    assert min(ended[number] for number in range(0, 2000, 2)) >= 540
    parkings = [event for event in told if isinstance(event, ItemsParked)]
    assert 0 < len(parkings) < 100
    assert sum(event.count for event in parkings) > 500
    assert {event.stage for event in parkings} == {"call"}
    assert {event.key for event in parkings} == {"0", ""}  # the one that was refused waits for itself


def test_a_source_of_nothing_but_the_held_key_is_not_read_to_its_end(tmp_path: Path) -> None:
    """What is put aside to make room has a bound; then the source waits."""
    place = tmp_path / "out.db"
    service = Service({0: [300.0]}, hold=True)
    flow = job(place, service, 5000, limits=[hr.Limit(concurrency=2)])

    async def main() -> hr.Report:
        async with flow.start(window=20) as running:
            await asyncio.sleep(299)
            statistics = running.statistics()
            assert 0 < statistics.parked <= 32 * 20
            assert statistics.taken <= 33 * 20 + 4
            assert statistics.taken == statistics.done + statistics.parked + statistics.open
            return await running.wait()

    report = run(main)
    assert (report.done, report.taken, report.parked) == (5000, 5000, 0)


def test_a_window_full_of_repetitions_lets_others_go_on(tmp_path: Path) -> None:
    """Items that wait minutes for their next attempt are put aside where they fill the window; their attempts count."""
    place = tmp_path / "out.db"
    service = Service({number: [200.0, 200.0] for number in range(0, 60, 2)})
    flow = job(place, service, 200, retry=hr.Retry(attempts=3))

    async def main() -> hr.Report:
        async with flow.start(window=20) as running:
            await asyncio.sleep(150)
            assert running.statistics().done == 170
            return await running.wait()

    report = run(main)
    assert (report.done, report.failed) == (200, 0)
    assert Counter(service.numbers())[2] == 3


def test_short_waits_fill_the_window_in_peace(tmp_path: Path) -> None:
    """A hold of a few seconds parks nobody."""
    place = tmp_path / "out.db"
    service = Service({0: [4.0]}, hold=True)
    report = run(lambda: job(place, service, 500, limits=[hr.Limit(concurrency=4)]).run(window=20))
    assert (report.done, report.commits < 80) == (500, True)


# ---------------------------------------------------------------------------------------------------- taking up again


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
