"""Parking: what has long to wait is put aside, and taken up again when it is due."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from parking_kit import START, Calendar, Service, by_tens, dead, job, now, parked, positions, virtual_jobs

import headrace as hr
from headrace.events import Event, ItemsParked
from headrace.testing import run


@pytest.fixture(autouse=True)
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    """Let jobs take no time."""
    return virtual_jobs(monkeypatch)


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
    assert job_in_place.next_due is not None
    assert START + 3600 - 10 <= job_in_place.next_due <= START + 1.1 * 3600 + 10


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


def test_a_breaker_that_pauses_its_key_for_long_parks_what_queues(tmp_path: Path) -> None:
    """Where a breaker pauses longer than the run waits, what queues is parked with no attempt lost, and is done later."""
    place = tmp_path / "out.db"
    broken = True

    async def call(number: int) -> dict[str, int]:
        await asyncio.sleep(0.1)
        if broken and number % 2 == 0:
            raise ConnectionError("nobody there")
        return {"n": number}

    def flow() -> hr.Flow[Any]:
        breaker = hr.Breaker(calls=5, pause=200.0)
        limits = [hr.Limit(by=lambda number: number % 2, concurrency=2, breaker=breaker)]
        made = hr.Flow(range(100)).map(call, concurrency=8, limits=limits, retry=hr.Retry(attempts=4))
        return made.into(hr.sqlite.table(place))

    async def main() -> hr.Report:
        report = await flow().run(wait=100)
        assert now() < 60
        return report

    report = run(main)
    assert (report.done, report.failed, report.exit_code) == (50, 0, 3)
    assert parked(place) == list(range(0, 100, 2))
    broken = False
    assert run(lambda: flow().run(wait="1h")).exit_code == 0
    assert positions(place) == list(range(100))


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


@pytest.mark.parametrize(("refusals", "failed"), [(8, 0), (9, 30)])
def test_what_was_refused_before_it_was_put_aside_counts_apart(
    tmp_path: Path, refusals: int, failed: int
) -> None:
    """Three attempts allow eight refusals for load, those included that came before the item made room for others."""
    place = tmp_path / "out.db"
    service = Service({number: [200.0] * refusals for number in range(0, 60, 2)}, hold=True)
    report = run(lambda: job(place, service, 200, retry=hr.Retry(attempts=3)).run(window=20))
    assert (report.done, report.failed) == (200 - failed, failed)
    assert Counter(service.numbers())[2] == 9


def test_short_waits_fill_the_window_in_peace(tmp_path: Path) -> None:
    """A hold of a few seconds parks nobody."""
    place = tmp_path / "out.db"
    service = Service({0: [4.0]}, hold=True)
    report = run(lambda: job(place, service, 500, limits=[hr.Limit(concurrency=4)]).run(window=20))
    assert (report.done, report.commits < 80) == (500, True)


def test_a_host_that_is_gone_for_longer_than_wait_is_parked_and_the_others_end() -> None:
    """A breaker that found nothing but failures for `wait` parks the key's items, instead of probing for ever."""

    async def call(item: tuple[str, int]) -> str:
        await asyncio.sleep(0.05)
        if item[0] == "gone":
            raise ConnectionRefusedError
        return item[0]

    items = [(host, number) for number in range(200) for host in ("gone", "well")]
    limit = hr.Limit(by=lambda item: item[0], concurrency=8, breaker=hr.Breaker())
    retry = hr.Retry(attempts=1000)

    async def main() -> tuple[hr.Outcomes[str, object], float]:
        got = await hr.map(call, items, limits=[limit], retry=retry, wait=600)
        return got, asyncio.get_running_loop().time()

    got, took = run(main)
    assert (got.report.done, got.report.failed, got.report.parked) == (200, 0, 200)
    assert 600 < took < 1000
    assert got.exit_code == 3
