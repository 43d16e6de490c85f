"""What a budget promises in a run: never more calls or cost than it allows, and the rest is returned, resumable."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.policies.budget import BudgetRefused
from headrace.testing import cancel_everywhere, run, run_real


async def same(number: int) -> int:
    await asyncio.sleep(random.Random(number).random())
    return number


def plain(number: int) -> int:
    return number


def briefly(number: int) -> int:
    time.sleep(0.0005)
    return number


def text_of(report: hr.Report) -> str:
    return (report.stopped or "").replace("\u202f", " ")


def test_a_run_makes_the_calls_of_its_budget_and_returns_the_rest() -> None:
    """A thousand of five thousand are done, the rest is returned, and the report says why."""
    budget = hr.Budget(calls=1000, name="tokens")
    report = run(lambda: hr.Flow(range(5000)).map(same, budget=budget).run())
    assert report.done == report.stages[0].attempts == 1000
    assert report.taken == 1000 + report.returned
    assert report.exit_code == 3
    assert text_of(report) == "the budget 'tokens' is spent: 1 000 of 1 000 calls"
    assert budget.statistics().calls == 1000


def test_a_budget_that_is_just_enough_is_no_stop() -> None:
    """As many calls as items: the run ends as if there were none."""
    report = run(lambda: hr.Flow(range(100)).map(same, budget=hr.Budget(calls=100)).run())
    assert (report.done, report.exit_code, report.stopped) == (100, 0, None)


@pytest.mark.parametrize("lane", ["loop", "thread", "process", "auto"])
@pytest.mark.parametrize("kind", ["calls", "cost", "corrected"])
def test_every_lane_makes_exactly_the_calls_that_fit(lane: Any, kind: str) -> None:
    """Calls that were reserved are made, those in chunks and those handed over ahead too; not one more."""
    budget = {
        "calls": lambda: hr.Budget(calls=700),
        "cost": lambda: hr.Budget(cost=70, estimate=0.1),
        "corrected": lambda: hr.Budget(cost=71.9, estimate=2, actual=lambda value: 0.1),
    }[kind]()
    got = hr.map_sync(plain, range(20_000), lane=lane, budget=budget)
    assert got.report.done == got.report.stages[0].attempts == budget.statistics().calls == 700
    assert got.report.balanced
    assert got.exit_code == 3
    assert budget.statistics().reserved == 0.0


@pytest.mark.parametrize("lane", ["thread", "process", "auto"])
def test_a_stop_gives_back_what_was_reserved_and_never_begun(lane: Any) -> None:
    """After Ctrl-C or stop() the budget counts the calls that were made, and no others."""
    budget = hr.Budget(cost=1_000_000, estimate=1)

    async def main() -> hr.Report:
        flow = hr.Flow(range(100_000)).map(briefly, lane=lane, concurrency=2, budget=budget)
        async with flow.start() as job:
            while job.statistics().done < 400:
                await asyncio.sleep(0.001)
            job.stop()
        assert job.report is not None
        return job.report

    report = run_real(main)
    statistics = budget.statistics()
    assert statistics.calls == report.stages[0].attempts == report.done
    assert (statistics.spent, statistics.reserved) == (report.done, 0.0)


def test_repetitions_count() -> None:
    """An attempt is a call, whether it is the first one or not."""
    calls: Counter[int] = Counter()

    async def flaky(number: int) -> int:
        calls[number] += 1
        await asyncio.sleep(0.1)
        if calls[number] < 3:
            raise ConnectionError
        return number

    budget = hr.Budget(calls=100)
    retry = hr.Retry(attempts=5)
    report = run(lambda: hr.Flow(range(1000)).map(flaky, concurrency=7, retry=retry, budget=budget).run())
    assert sum(calls.values()) == 100
    assert report.failed == 0
    assert report.done < 34
    assert report.exit_code == 3


def test_two_stages_two_flows_and_two_runs_share_one_budget() -> None:
    """Together they never make more calls than it allows."""
    calls = 0

    async def call(number: int) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(random.Random(number).random())
        return number

    budget = hr.Budget(calls=333)

    async def main() -> list[hr.Report]:
        two = hr.Flow(range(1000)).map(call, budget=budget, concurrency=5).map(call, budget=budget)
        one = hr.Flow(range(1000)).map(call, budget=budget, concurrency=3)
        return [*await asyncio.gather(two.run(), one.run()), await one.run()]

    reports = run(main)
    assert calls == 333 == sum(stage.attempts for report in reports for stage in report.stages)
    assert [report.exit_code for report in reports] == [3, 3, 3]
    assert reports[2].done == 0


def test_what_is_reserved_never_exceeds_the_cost_at_a_start() -> None:
    """With estimates of all sizes, and results that cost more and less."""
    budget = hr.Budget(cost=500, estimate=lambda number: number % 7, actual=lambda number: number % 9)
    overdrawn = 0.0

    async def call(number: int) -> int:
        nonlocal overdrawn
        statistics = budget.statistics()
        assert statistics.spent + statistics.reserved <= 500 + overdrawn
        await asyncio.sleep(random.Random(number).random())
        overdrawn += max(0, number % 9 - number % 7)
        return number

    report = run(lambda: hr.Flow(range(5000)).map(call, concurrency=20, budget=budget).run())
    assert report.failed == 0
    statistics = budget.statistics()
    assert 500 - 7 < statistics.spent <= 500 + 20 * 8
    assert statistics.reserved == 0.0


def test_a_cautious_estimate_does_not_end_a_run_early() -> None:
    """Where results may give back what they reserved, the next call waits for them."""
    budget = hr.Budget(cost=100, estimate=30, actual=lambda number: 1)
    running = most = 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return number

    report = run(lambda: hr.Flow(range(1000)).map(call, concurrency=50, budget=budget).run())
    assert report.done == 71  # 70 are spent, and 30 more fit
    assert most == 3
    assert text_of(report) == "the budget is spent: 71 of 100, and the next call needs 30"


def test_waiting_for_a_reservation_leaves_pauses_and_stops_alone() -> None:
    """A stage that waits can be paused, resumed, drained and cancelled, and everything is accounted for."""

    async def main() -> hr.Report:
        budget = hr.Budget(cost=10, estimate=10, actual=lambda number: 0)
        async with hr.Flow(range(1000)).map(same, budget=budget).start() as job:
            await asyncio.sleep(10)
            job.pause()
            await asyncio.sleep(10)
            paused = job.statistics().done
            await asyncio.sleep(10)
            assert job.statistics().done == paused > 5
            job.resume()
            await asyncio.sleep(10)
            assert job.statistics().done > paused
            job.stop()
        assert job.report is not None
        assert budget.statistics().reserved == 0.0
        return job.report

    report = run(main)
    assert report.balanced
    assert report.exit_code == 3


def test_within_goes_on_while_a_repetition_waits_for_a_reservation() -> None:
    """The item fails when its time is over, and not when the reservation ends."""
    budget = hr.Budget(cost=10, estimate=float, actual=lambda number: 0)

    async def slow(number: int) -> int:
        await asyncio.sleep(100)
        return number

    async def flaky(number: int) -> int:
        await asyncio.sleep(1)
        raise ConnectionError

    async def main() -> list[hr.Outcomes[int]]:
        holding = asyncio.get_running_loop().create_task(hr.map(slow, [6], budget=budget))
        await asyncio.sleep(1)
        waits = await hr.map(flaky, [4], within=7, retry=hr.Retry(), budget=budget)
        return [await holding, waits]

    _, waits = run(main)
    assert type(waits.failed[0].error) is hr.TimedOut
    assert waits.failed[0].elapsed == pytest.approx(7, abs=0.1)


def test_what_comes_to_a_paused_stage_lets_the_loop_rest() -> None:
    """Idle workers do not wake each other while nothing may be taken: time goes on."""

    async def children(number: int) -> list[int]:
        await asyncio.sleep(number)
        return [number] * 30

    async def main() -> hr.Report:
        flow = hr.Flow(range(4)).flat_map(children, concurrency=4).map(same, concurrency=10)
        async with flow.start() as job:
            await asyncio.sleep(1.5)
            job.pause()
            await asyncio.sleep(100)
            job.resume()
        assert job.report is not None
        return job.report

    assert run(main).done == 4


def test_an_estimate_that_can_never_fit_fails_its_item() -> None:
    """With the figures; and one that raises or gives rubbish with the budget's name. The others go on."""

    def estimate(number: int) -> Any:
        return {3: 1000, 4: None, 5: 1 / (number - 5) if number != 5 else "much"}.get(number, 1)

    budget = hr.Budget(cost=100, estimate=estimate, name="euros")
    retry = hr.Retry(attempts=3, on=Exception)
    got = run(lambda: hr.map(same, range(20), budget=budget, retry=retry))
    errors = {failure.item: failure.error for failure in got.failed}
    assert set(errors) == {3, 4, 5}
    assert {type(error) for error in errors.values()} == {BudgetRefused}
    assert "an estimate of 1000 can never fit into cost=100" in str(errors[3]).replace("\u202f", "")
    assert all("'euros'" in str(error) for error in errors.values())
    assert got.report.stages[0].attempts == budget.statistics().calls == 17


@pytest.mark.parametrize("lane", ["process", "thread"])
def test_a_refused_estimate_costs_its_own_item_in_every_lane(lane: Any) -> None:
    """Of a chunk, only that item fails."""
    budget = hr.Budget(cost=10_000, estimate=lambda number: 1 if number % 10 else -1)
    got = hr.map_sync(plain, range(2000), lane=lane, budget=budget)
    assert (len(got.done), len(got.failed)) == (1800, 200)
    assert budget.statistics().spent == 1800.0


def test_where_actual_fails_the_result_counts_and_the_estimate_stands() -> None:
    """A good answer is not lost to bad bookkeeping."""
    budget = hr.Budget(cost=100, estimate=2, actual=lambda number: number["tokens"])
    got = run(lambda: hr.map(same, range(10), budget=budget))
    assert len(got.values) == 10
    assert (budget.statistics().spent, budget.statistics().unsettled) == (20.0, 10)


def test_failed_and_timed_out_calls_cost_their_estimate() -> None:
    """What they really cost nobody says."""

    async def call(number: int) -> int:
        if number % 2:
            raise ValueError
        await asyncio.sleep(1000)
        return number

    budget = hr.Budget(cost=100, estimate=2, actual=lambda number: 0)
    run(lambda: hr.map(call, range(10), timeout=5, budget=budget))
    assert budget.statistics().spent == 20.0
    assert budget.statistics().reserved == 0.0


@pytest.mark.parametrize("kind", ["flat_map", "filter"])
def test_other_stages_have_budgets_too(kind: str) -> None:
    """flat_map and filter count their calls, and what they let through is accounted for."""
    budget = hr.Budget(calls=50)

    async def pair(number: int) -> list[int]:
        await asyncio.sleep(0.1)
        return [number, number]

    flow = getattr(hr.Flow(range(500)), kind)(pair, budget=budget).map(same)
    report = run(lambda: flow.run())
    assert report.done <= 50
    assert report.stages[0].attempts == budget.statistics().calls == 50
    assert report.balanced
    assert report.exit_code == 3


@pytest.mark.parametrize("then", ["map", "batch", "thread", "ordered"])
def test_what_was_paid_goes_on_through_the_later_stages(then: str) -> None:
    """The results of calls that a budget paid for are not thrown away when it is spent: they reach the end."""
    stored: list[int] = []

    async def store(value: Any) -> Any:
        await asyncio.sleep(0.5)
        stored.extend(value if isinstance(value, list) else [value])
        return value

    def store_in_thread(value: int) -> int:
        stored.append(value)
        return value

    async def prepare(number: int) -> int:
        prepared.append(number)
        await asyncio.sleep(0.1)
        return number

    prepared: list[int] = []
    budget = hr.Budget(calls=100)
    flow = hr.Flow(range(1000)).map(prepare, concurrency=20).map(same, concurrency=9)
    flow = flow.map(same, budget=budget, concurrency=30)
    flow = {
        "map": lambda: flow.map(store, concurrency=3),
        "batch": lambda: flow.batch(7).map(store, concurrency=2),
        "thread": lambda: flow.map(store_in_thread, concurrency=2),
        "ordered": lambda: flow.map(store, concurrency=3, ordered=True),
    }[then]()
    report = run(lambda: flow.run(grace=60))
    assert report.stages[1].attempts < len(prepared)  # what had not come to be paid was returned where it was
    assert report.done == len(stored) == budget.statistics().calls == 100
    assert report.balanced
    assert report.exit_code == 3


def test_children_of_a_paid_call_go_on(tmp_path: Path) -> None:
    """A fan-out that was paid for is carried to the settlement of its item."""

    async def pair(number: int) -> list[int]:
        await asyncio.sleep(random.Random(number).random())
        return [number, number]

    async def row(number: int) -> dict[str, int]:
        await asyncio.sleep(random.Random(number).random())
        return {"n": number}

    budget = hr.Budget(calls=50)
    flow = hr.Flow(range(500)).flat_map(pair, budget=budget, concurrency=20).map(row, concurrency=5)
    report = run(lambda: flow.into(hr.sqlite.table(tmp_path / "out.db")).run(grace=60))
    assert report.done == budget.statistics().calls == 50


def test_limits_and_a_budget_go_together() -> None:
    """A call that the budget refuses gives its permits back."""
    limit = hr.Limit(concurrency=3, by=lambda number: number % 2)
    budget = hr.Budget(cost=50, estimate=2, actual=lambda number: 1)
    got = run(lambda: hr.map(same, range(1000), limits=[limit], budget=budget))
    assert got.report.done == budget.statistics().calls == 49
    assert limit.statistics().running == 0


def test_a_durable_job_is_finished_by_a_second_run_with_a_new_budget(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    """What did not fit is returned, and the next run takes it: each item is called once."""
    calls: Counter[int] = Counter()

    async def call(number: int) -> dict[str, int]:
        calls[number] += 1
        await asyncio.sleep(0)
        return {"n": number}

    def flow(budget: hr.Budget) -> hr.Flow[Any]:
        table = hr.sqlite.table(tmp_path / "out.db")
        return hr.Flow(range(300)).map(call, concurrency=9, budget=budget).into(table)

    first = run(lambda: flow(hr.Budget(calls=120)).run())
    assert (first.done, first.exit_code, first.job_done) == (120, 3, 120)
    second = run(lambda: flow(hr.Budget(calls=500)).run())
    assert (second.done, second.exit_code, second.job_done) == (180, 0, 300)
    assert set(calls.values()) == {1}
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        assert [n for (n,) in connection.execute("SELECT n FROM results ORDER BY n")] == list(range(300))


def test_a_once_call_that_does_not_fit_is_returned_and_not_in_doubt(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    """No intent of it is left: the next run makes the call."""
    calls: Counter[int] = Counter()

    async def pay(number: int) -> dict[str, int]:
        calls[number] += 1
        await asyncio.sleep(0)
        return {"n": number}

    def flow(calls: int) -> hr.Flow[Any]:
        table = hr.sqlite.table(tmp_path / "out.db")
        budget = hr.Budget(calls=calls)
        return hr.Flow(range(40)).map(pay, concurrency=4, effect="once", budget=budget).into(table)

    assert run(lambda: flow(15).run()).done == 15
    report = run(lambda: flow(100).run())
    assert (report.done, report.failed, report.job_done) == (25, 0, 40)
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("times", [1, 2])
def test_a_budget_is_in_order_wherever_its_run_is_cancelled(tmp_path: Path, times: int) -> None:
    """At each await point: no call is counted as under way afterwards, and each that was made is counted."""
    budgets: list[hr.Budget] = []
    made: list[int] = []

    async def call(item: int) -> dict[str, int]:
        made.append(item)
        await asyncio.sleep(0)
        return {"n": item}

    async def job() -> None:
        made.clear()
        budgets.append(hr.Budget(cost=10, estimate=3, actual=lambda row: 1))
        table = hr.sqlite.table(tmp_path / f"{len(budgets)}.db")
        flow = hr.Flow(range(12)).map(call, concurrency=4, effect="once", budget=budgets[-1]).into(table)
        await flow.run(grace=0.2)

    def check(ending: Any) -> None:
        if budgets and ending.delivered:
            statistics = budgets[-1].statistics()
            assert statistics.reserved == 0.0
            assert statistics.calls == len(made) <= 10

    points = cancel_everywhere(job, check, times=times, runner=run_real)
    assert points > 20


def test_what_is_no_budget_is_refused_with_all_else() -> None:
    """One PlanError, nothing called."""
    flow = hr.Flow(range(3)).map(same, budget=100, timeout=-1)  # type: ignore[arg-type]
    with pytest.raises(hr.PlanError) as raised:
        run(lambda: flow.run())
    assert "budget=100: give hr.Budget(" in str(raised.value)
    assert "timeout=-1" in str(raised.value)


def test_explain_names_the_budget() -> None:
    """What may be spent stands in the plan."""
    text = hr.Flow(range(3)).map(same, budget=hr.Budget(calls=7, name="free tier")).explain()
    assert "budget   Budget 'free tier' (calls=7), repetitions included" in text


def test_a_take_is_no_reason_for_what_a_budget_left() -> None:
    """Of two reasons the report gives the one that left work."""
    report = run(lambda: hr.Flow(range(100)).take(50).map(same, budget=hr.Budget(calls=10)).run())
    assert report.stopped == "the budget is spent: 10 of 10 calls"
    assert report.exit_code == 3
