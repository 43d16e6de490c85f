"""Sabotage: hostile functions, values, errors, files and processes. No item is lost or doubled, and no run hangs.

A run that has not ended after some seconds hangs.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.engine import stage
from headrace.testing import run_real
from headrace.testing.virtual import await_chain


def run(main: Callable[[], Coroutine[Any, Any, Any]], limit: float = 10.0) -> Any:
    """Run it to its end, in real time: threads have a part in it. What takes `limit` seconds hangs."""

    async def bounded() -> Any:
        task = asyncio.create_task(main())
        await asyncio.wait({task}, timeout=limit)
        assert task.done(), f"it hangs, here: {await_chain(task.get_coro())}"
        return task.result()

    return run_real(bounded)


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give calls that do not end after a cancellation 0.2 s instead of 5."""
    monkeypatch.setattr(stage, "PATIENCE", 0.2)


def rows(place: Path) -> list[int]:
    """Read the positions of the results."""
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'results'").fetchall():
            return []  # nothing was done, so there is no table
        return [n for (n,) in connection.execute("SELECT _position FROM results ORDER BY _position")]


def dead(place: Path) -> list[int]:
    """Read the positions of the dead letters."""
    return [letter.position for letter in hr.open(place).job().failures()]


async def number(n: int) -> dict[str, int]:
    """Make a row of a number."""
    await asyncio.sleep(0)
    return {"n": n}


# ---------------------------------------------------------------------------------------------------- errors


class Unspeakable(Exception):
    """An error that nobody can print."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Thorny(Exception):
    """An error whose every attribute raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is not for you")


class Shy(ValueError):
    """An error whose attributes are there, and raise or lie."""

    @property
    def status(self) -> int:
        raise RuntimeError("no status")

    @property
    def body(self) -> bytes:
        raise RuntimeError("no body")


def in_a_circle() -> Exception:
    """Make an error that is its own cause's cause."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def deep() -> Exception:
    """Make an exception group nested deeper than the stack."""
    group: Exception = ValueError("core")
    for _ in range(5000):
        group = ExceptionGroup("g", [group])
    return group


HOSTILE = {
    "unspeakable": lambda: Unspeakable(),
    "thorny": lambda: Thorny("t"),
    "shy": lambda: Shy("s"),
    "circle": in_a_circle,
    "deep": deep,
    "surrogate": lambda: ValueError("\ud800 \x1b[31m\0"),
    "recursion": lambda: RecursionError("again and again"),
    "memory": lambda: MemoryError(),
    "stop iteration": lambda: StopAsyncIteration("x"),
    "huge": lambda: ValueError("x" * 10_000_000),
    "group": lambda: ExceptionGroup("two", [OSError(1, "a"), ValueError("b")]),
    "no arguments": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
}


@pytest.mark.parametrize("lane", ["loop", "thread"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_error_fails_its_item_and_nothing_else(kind: str, lane: Any, tmp_path: Path) -> None:
    """Whatever an error does when it is looked at, it becomes one dead letter, and the others are done."""
    place = tmp_path / "out.db"

    async def on_loop(n: int) -> int:
        if n == 3:
            raise HOSTILE[kind]()
        return n

    def in_thread(n: int) -> int:
        if n == 3:
            raise HOSTILE[kind]()
        return n

    fn: Any = on_loop if lane == "loop" else in_thread
    flow = hr.Flow(range(8)).map(fn, lane=lane, retry=hr.Retry(attempts=2, base=0.001))
    heard: list[Any] = []
    report = run(lambda: flow.into(hr.sqlite.table(place)).run(progress=heard.extend))
    assert (report.done, report.failed, report.exit_code) == (7, 1, 1)
    assert (rows(place), dead(place)) == ([0, 1, 2, 4, 5, 6, 7], [3])
    str(report)
    got = run(lambda: hr.map(fn, range(8), lane=lane))
    assert [outcome.position for outcome in got.failed] == [3]
    with pytest.raises(hr.ItemsFailed):
        got.check()


class Stranger(BaseException):
    """An error outside Exception, as pytest's and trio's are."""


@pytest.mark.parametrize("lane", ["loop", "thread"])
@pytest.mark.parametrize(
    "error",
    [Stranger("s"), GeneratorExit("g"), BaseExceptionGroup("b", [Stranger()])],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_is_no_exception_fails_its_item(
    error: BaseException, lane: Any, tmp_path: Path
) -> None:
    """A BaseException of a stranger's is that item's failure, on each lane."""
    place = tmp_path / "out.db"

    async def on_loop(n: int) -> int:
        if n == 3:
            raise error
        return n

    def in_thread(n: int) -> int:
        if n == 3:
            raise error
        return n

    fn: Any = on_loop if lane == "loop" else in_thread
    flow = hr.Flow(range(8)).map(fn, lane=lane, concurrency=2).into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.done, report.failed) == (7, 1)
    assert (rows(place), dead(place)) == ([0, 1, 2, 4, 5, 6, 7], [3])


def test_an_exit_on_the_loop_ends_the_program_and_loses_nothing(tmp_path: Path) -> None:
    """sys.exit() in an async function goes through to the program; the job can be resumed. In a thread it fails its item."""
    place = tmp_path / "out.db"
    calls: list[int] = []

    async def leave(n: int) -> int:
        calls.append(n)
        await asyncio.sleep(0.001)
        if n == 30 and calls.count(30) == 1:
            raise SystemExit(3)
        return n

    flow = hr.Flow(range(60)).map(leave, concurrency=2).into(hr.sqlite.table(place))
    with pytest.raises(SystemExit):
        run_real(lambda: flow.run())
    run(lambda: flow.run())
    assert sorted([*rows(place), *dead(place)]) == list(range(60))

    def in_thread(n: int) -> int:
        if n == 3:
            raise SystemExit(3)
        return n

    got = run(lambda: hr.map(in_thread, range(8)))
    assert [outcome.position for outcome in got.failed] == [3]


def test_one_error_object_raised_many_times_stays_cheap(tmp_path: Path) -> None:
    """A module's one error object, raised for each item, does not make each dead letter longer and slower."""
    place = tmp_path / "out.db"
    error = ValueError("always me")

    async def fail(n: int) -> int:
        raise error

    report = run(lambda: hr.Flow(range(1000)).map(fail).into(hr.sqlite.table(place)).run())
    assert report.failed == 1000
    assert len(dead(place)) == 1000


# ---------------------------------------------------------------------------------------------------- items and values


class Mute:
    """An item that cannot be printed, pickled, hashed or compared."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    @property
    def nbytes(self) -> int:
        raise RuntimeError("no weight")


def test_an_item_that_cannot_be_looked_at(tmp_path: Path) -> None:
    """Items without a working repr, ==, hash, truth or size are done or dead like others, in jobs and maps."""
    place = tmp_path / "out.db"
    items = [Mute() for _ in range(20)]

    async def odd(item: Mute) -> int:
        if any(item is items[at] for at in range(0, 20, 2)):
            raise ValueError("even")
        return 1

    flow = hr.Flow(items).map(odd).into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.done, report.failed) == (10, 10)
    assert (rows(place), dead(place)) == (list(range(1, 20, 2)), list(range(0, 20, 2)))
    again = run(lambda: flow.run())
    assert again.taken == 0
    got = run(lambda: hr.map(odd, items))
    assert len(got.failed) == 10
    with pytest.raises(hr.ItemsFailed):
        got.check()


def test_values_that_cannot_be_looked_at(tmp_path: Path) -> None:
    """A value without a working size or truth passes through stages and streams; a table refuses just its row."""
    place = tmp_path / "out.db"

    async def mute(n: int) -> Any:
        return Mute() if n == 3 else n

    async def same(value: Any) -> Any:
        return value

    flow = hr.Flow(range(8)).map(mute).map(same)
    report = run(lambda: flow.run())
    assert report.done == 8
    report = run(lambda: flow.into(hr.sqlite.table(place)).run())
    assert (report.done, report.failed) == (7, 1)
    assert dead(place) == [3]


def test_items_that_their_function_changes_can_be_resumed(tmp_path: Path) -> None:
    """A function that writes into its item does not make the job another one for the next run."""
    place = tmp_path / "out.db"

    async def fill(item: dict[str, Any]) -> dict[str, Any]:
        item["seen"] = True
        return item

    def flow(count: int) -> hr.Flow[Any]:
        return hr.Flow([{"n": n} for n in range(count)]).map(fill).into(hr.sqlite.table(place))

    assert run(lambda: flow(40).run()).done == 40
    assert run(lambda: flow(60).run()).done == 20
    assert rows(place) == list(range(60))


def test_keys_that_cannot_be_keys(tmp_path: Path) -> None:
    """A by= that gives an unhashable key, or raises, fails its items alone."""
    place = tmp_path / "out.db"

    def key(n: int) -> Any:
        if n == 2:
            return ["unhashable"]
        if n == 4:
            raise Unspeakable
        if n == 6:
            return Mute()
        return n % 2

    flow = hr.Flow(range(8)).map(number, limits=[hr.Limit(by=key, concurrency=1)])
    report = run(lambda: flow.into(hr.sqlite.table(place)).run())
    assert (report.done, report.failed) == (5, 3)
    assert (rows(place), dead(place)) == ([0, 1, 3, 5, 7], [2, 4, 6])


# ---------------------------------------------------------------------------------------------------- cancellation


async def stubborn(n: int) -> int:
    """Take no cancellation for an answer, and give a value in the end."""
    until = asyncio.get_running_loop().time() + 1.5
    while (left := until - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue
    return n


async def polite_but_late(n: int) -> int:
    """Swallow one cancellation, and give a value."""
    try:
        await asyncio.sleep(3)
    except asyncio.CancelledError:
        pass
    return n


@pytest.mark.parametrize("fn", [stubborn, polite_but_late])
def test_functions_that_swallow_cancellation_cannot_hold_a_timeout_up(fn: Any, tmp_path: Path) -> None:
    """Each such item fails at its time limit; the run ends, and nothing is settled twice when the calls return."""
    place = tmp_path / "out.db"
    flow = hr.Flow(range(8)).map(fn, timeout=0.05, concurrency=4).into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.taken, report.failed) == (8, 8)
    assert (rows(place), dead(place)) == ([], list(range(8)))


@pytest.mark.parametrize("fn", [stubborn, polite_but_late])
def test_functions_that_swallow_cancellation_cannot_hold_a_stream(fn: Any) -> None:
    """A left stream ends although its calls go on, or end with a value that nobody takes any more."""

    async def main() -> hr.Report | None:
        async with hr.Flow(range(8)).map(fn, concurrency=4).stream() as outcomes:
            await asyncio.sleep(0.2)
        return outcomes.report

    report = run(main)
    assert report.balanced
    assert (report.taken, report.returned) == (8, 8)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_function_that_cancels_itself_fails_alone(times: int, tmp_path: Path) -> None:
    """A function that cancels its own task, as old timeout helpers do, fails its item; its worker goes on."""
    place = tmp_path / "out.db"

    async def selfish(n: int) -> int:
        if n % 3 == 0:
            task = asyncio.current_task()
            assert task is not None
            for _ in range(times):
                task.cancel()
            await asyncio.sleep(0)
        return n

    flow = hr.Flow(range(9)).map(selfish, concurrency=1).into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.done, report.failed, report.returned) == (6, 3, 0)
    assert (rows(place), dead(place)) == ([1, 2, 4, 5, 7, 8], [0, 3, 6])


def test_a_cancellation_that_a_function_left_behind_spoils_no_later_timeout() -> None:
    """A function that cancels its task, catches that and never uncancels: later time limits are failures all the same."""

    async def careless(n: int) -> int:
        if n == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                raise TimeoutError from None
        if n == 1:
            await asyncio.sleep(100)
        return n

    got = run(lambda: hr.map(careless, range(4), concurrency=1, timeout=0.1))
    assert [type(outcome.error) for outcome in got.failed] == [TimeoutError, hr.TimedOut]
    assert [outcome.value for outcome in got.done] == [2, 3]


# ---------------------------------------------------------------------------------------------------- once


def in_doubt(place: Path) -> list[int]:
    """Read the positions of the dead letters in doubt."""
    return [letter.position for letter in hr.open(place).job().failures(in_doubt=True)]


def stopped_while_running(flow: hr.Flow[Any], *, cancel: bool, after: float = 0.4) -> hr.Report:
    """Start a job, stop or cancel it after a while, and give its report."""

    async def main() -> hr.Report:
        async with flow.start(grace=2) as job:
            await asyncio.sleep(after)
            if cancel:
                job.cancel()
            else:
                job.stop()
            return await job.wait()

    report: hr.Report = run(main)
    return report


@pytest.mark.parametrize("cancel", [True, False])
def test_siblings_that_were_not_called_do_not_take_a_once_call_back(cancel: bool, tmp_path: Path) -> None:
    """One child's *once* call is out when the run stops, its siblings wait: the item is never called again."""
    place = tmp_path / "out.db"
    calls: list[int] = []

    async def pay(n: int) -> dict[str, int]:
        calls.append(n)
        await asyncio.sleep(0.6)
        return {"n": n}

    flow = (
        hr.Flow(range(1))
        .flat_map(lambda n: [10, 11, 12], lane="loop")
        .map(pay, effect="once", concurrency=1)
        .into(hr.sqlite.table(place))
    )
    stopped_while_running(flow, cancel=cancel)
    run(lambda: flow.run())
    assert sorted(calls) == sorted(set(calls)), "a once call was made twice"
    assert (len(rows(place)), in_doubt(place)) in ((3, []), (0, [0]))


def test_a_killed_once_batch_leaves_all_its_members_in_doubt(tmp_path: Path) -> None:
    """The intent of a batch is the intent of each member: after a crash none of them is called again."""
    place = tmp_path / "out.db"
    calls: list[int] = []

    async def pay(batch: list[int]) -> dict[str, int]:
        calls.extend(batch)
        with closing(sqlite3.connect(place)) as connection:
            intents = connection.execute("SELECT position FROM headrace_intents ORDER BY position").fetchall()
        assert [n for (n,) in intents] == batch
        return {"n": len(batch)}

    flow = hr.Flow(range(5)).batch(5).map(pay, effect="once").into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.done, report.failed) == (5, 0)


def test_a_once_call_that_never_went_out_is_not_in_doubt(tmp_path: Path) -> None:
    """Stopped before, or between attempts that certainly did nothing, an item is taken again by the next run."""
    place = tmp_path / "out.db"
    calls: list[int] = []

    async def pay(n: int) -> dict[str, int]:
        calls.append(n)
        if len(calls) <= 2:
            raise ConnectionRefusedError("nobody there")
        return {"n": n}

    flow = (
        hr.Flow(range(1))
        .map(pay, effect="once", retry=hr.Retry(attempts=9, base=0.5, cap=0.5))
        .into(hr.sqlite.table(place))
    )

    async def main() -> hr.Report:
        async with flow.start(grace=2) as job:
            while len(calls) < 2:
                await asyncio.sleep(0.01)
            job.stop()
            return await job.wait()

    assert run(main).returned == 1
    report = run(lambda: flow.run())
    assert (report.done, report.failed) == (1, 0)
    assert calls == [0, 0, 0]


# ---------------------------------------------------------------------------------------------------- files


def test_a_list_that_vanishes_under_the_run_stops_it_resumable(tmp_path: Path) -> None:
    """The file of lines is renamed while it is read: the run ends with words; with the file back, it goes on."""
    place, listed = tmp_path / "out.db", tmp_path / "list.txt"
    listed.write_text("".join(f"{n}\n" for n in range(500)))
    gone, renamed = tmp_path / "gone.txt", False

    async def value(line: str) -> dict[str, str]:
        if line == "100" and not renamed:
            listed.rename(gone)
        await asyncio.sleep(0.01)
        return {"n": line}

    def flow() -> hr.Flow[Any]:
        return hr.Flow(hr.files.lines(listed)).map(value, concurrency=4).into(hr.sqlite.table(place))

    try:
        with pytest.raises(hr.SourceError, match="does not exist") as raised:
            run(lambda: flow().run(window=32))
        assert raised.value.report.balanced  # type: ignore[attr-defined]
        assert raised.value.report.exit_code == 4  # type: ignore[attr-defined]
    finally:
        gone.rename(listed)
    renamed = True
    assert run(lambda: flow().run()).exit_code == 0
    assert rows(place) == list(range(500))


def test_a_list_that_is_replaced_under_the_run_is_noticed(tmp_path: Path) -> None:
    """Another file under the same name, as editors save: what was read of the old one is not taken for the new one's."""
    place, listed = tmp_path / "out.db", tmp_path / "list.txt"
    listed.write_text("".join(f"old {n}\n" for n in range(20_000)))

    async def value(line: str) -> dict[str, str]:
        if line == "old 1000":
            (tmp_path / "new.txt").write_text("".join(f"new {n}\n" for n in range(20_000)))
            (tmp_path / "new.txt").rename(listed)
        return {"n": line}

    def flow() -> hr.Flow[Any]:
        return hr.Flow(hr.files.lines(listed)).map(value, concurrency=4).into(hr.sqlite.table(place))

    with pytest.raises(hr.SourceError, match="replaced"):
        run(lambda: flow().run(window=64))
    with pytest.raises(hr.errors.IdentityChanged):
        run(lambda: flow().run())
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("SELECT count(*) FROM results WHERE n LIKE 'new%'").fetchone() == (0,)


def test_a_database_that_is_removed_under_the_run_is_noticed(tmp_path: Path) -> None:
    """Results are not written into a file that nobody can find any more: the run stops and says so."""
    place = tmp_path / "out.db"
    calls: list[int] = []

    async def value(n: int) -> dict[str, int]:
        calls.append(n)
        if len(calls) == 100:
            for file in tmp_path.iterdir():
                file.unlink()
        await asyncio.sleep(0.01)
        return {"n": n}

    flow = hr.Flow(range(2000)).map(value, concurrency=4).into(hr.sqlite.table(place))
    with pytest.raises(hr.LedgerError, match="removed or replaced"):
        run(lambda: flow.run(window=32))
    assert run(lambda: flow.run()).done == 2000
    assert rows(place) == list(range(2000))


def test_a_map_of_lines_can_be_kept(tmp_path: Path) -> None:
    """map(out=) takes any source that can be read again, not only sequences."""
    listed = tmp_path / "list.txt"
    listed.write_text("a\n\nb\nc\n")

    async def shout(line: str) -> str:
        if line == "b":
            raise ValueError
        return line.upper()

    for _ in range(2):
        got = run(lambda: hr.map(shout, hr.files.lines(listed), out=tmp_path / "out.db"))
        assert [outcome.value for outcome in got.done] == ["A", "C"]
        assert [outcome.position for outcome in got.failed] == [2]
        assert got.failed[0].item == "b"


def test_a_resource_that_cannot_be_closed_takes_nothing_back(tmp_path: Path) -> None:
    """What is settled stays settled, and the report is given, when closing a resource raises."""
    place = tmp_path / "out.db"

    class Sticky:
        async def __aenter__(self) -> Sticky:
            return self

        async def __aexit__(self, *error: object) -> None:
            raise OSError("cannot be closed")

    async def use(n: int, sticky: Sticky) -> int:
        return n

    flow = hr.Flow(range(8)).map(use, uses={"sticky": Sticky}).into(hr.sqlite.table(place))
    report = run(lambda: flow.run())
    assert (report.done, report.exit_code) == (8, 0)
    assert any("cannot be closed" in warning for warning in report.warnings)
    assert run(lambda: flow.run()).taken == 0


def test_a_resource_that_opens_no_more_on_resume_moves_nothing(tmp_path: Path) -> None:
    """A factory that raises in the second run leaves the job as it was; the third run completes it."""
    place = tmp_path / "out.db"
    opened = 0

    def factory() -> object:
        nonlocal opened
        opened += 1
        if opened == 2:
            raise Unspeakable
        return object()

    async def use(n: int, thing: object) -> int:
        return n

    def flow(count: int) -> hr.Flow[Any]:
        return hr.Flow(range(count)).map(use, uses={"thing": factory}).into(hr.sqlite.table(place))

    assert run(lambda: flow(5).run()).done == 5
    with pytest.raises(hr.LaneError, match="thing"):
        run(lambda: flow(9).run())
    assert rows(place) == list(range(5))
    assert run(lambda: flow(9).run()).done == 4


def test_a_listener_that_breaks_breaks_nothing(tmp_path: Path) -> None:
    """A progress= that raises what cannot be printed is dropped; the run is as it would have been."""
    place = tmp_path / "out.db"

    class Listener:
        def __call__(self, events: Any) -> None:
            raise Unspeakable

        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    report = run(lambda: hr.Flow(range(8)).map(number).into(hr.sqlite.table(place)).run(progress=Listener()))
    assert (report.done, report.exit_code) == (8, 0)
    assert any("dropped" in warning for warning in report.warnings)


_ = os
