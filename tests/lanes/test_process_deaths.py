"""Whatever a call does to its process costs that call only: it fails with what killed it, all others are called once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import calls, marked

import headrace as hr
from headrace.errors import WorkerDied

ITEMS = 400
GUILTY = 217  # in the middle of a chunk: by then chunks are long


def _segfault(number: int) -> Any:
    ctypes.string_at(0)


def _abort(number: int) -> Any:
    os.abort()


def _exit_at_once(number: int) -> Any:
    os._exit(3)


def _kill(number: int) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit_of_a_thread(number: int) -> Any:
    threading.Thread(target=os._exit, args=(5,)).start()
    time.sleep(10)


DEATHS = {
    "segfault": (_segfault, "signal SIGSEGV"),
    "abort": (_abort, "signal SIGABRT"),
    "os._exit": (_exit_at_once, "exit code 3"),
    "kill -9": (_kill, "signal SIGKILL"),
    "another thread exits": (_exit_of_a_thread, "exit code 5"),
}


def spoiled(how: Callable[[int], Any], guilty: set[int]) -> Callable[[int], Any]:
    """Give a function that does so for the guilty, and gives the number for all others."""

    def call(number: int) -> Any:
        return how(number) if number in guilty else number

    call.__module__ = "__main__"  # sent by value, with what it uses: the child need not import the tests
    how.__module__ = "__main__"
    return call


def run_spoiled(
    run: Callable[..., Any], place: Path, how: Callable[[int], Any], guilty: set[int], **options: Any
) -> Any:
    fn = marked(place, spoiled(how, guilty))
    options = {"lane": "process", "concurrency": 2, **options}
    return run(lambda: hr.map(fn, range(ITEMS), **options))


@pytest.mark.parametrize("name", DEATHS)
def test_a_death_costs_one_item(run: Callable[..., Any], name: str, tmp_path: Path) -> None:
    """In the middle of a chunk: the item that ran fails and says how; what had finished counts; the rest is called once."""
    how, words = DEATHS[name]
    got = run_spoiled(run, tmp_path / "calls", how, {GUILTY})
    assert [(type(failed.error), failed.position) for failed in got.failed] == [(WorkerDied, GUILTY)]
    assert words in str(got.failed[0].error)
    assert [done.value for done in got.done] == [n for n in range(ITEMS) if n != GUILTY]
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)
    assert got.report.stages[0].attempts == ITEMS


def test_many_deaths_cost_as_many_items(run: Callable[..., Any], tmp_path: Path) -> None:
    """Every fortieth call kills its process: the lane goes on to the end."""
    guilty = set(range(20, ITEMS, 40))
    got = run_spoiled(run, tmp_path / "calls", _exit_at_once, guilty)
    assert {failed.position for failed in got.failed} == guilty
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)


def test_a_hang_is_ended(run: Callable[..., Any], tmp_path: Path) -> None:
    """A call that hangs past `timeout=` fails as timed out, its process is replaced, and those behind it are called once."""
    began = time.monotonic()
    got = run_spoiled(run, tmp_path / "calls", lambda n: time.sleep(60), {GUILTY, GUILTY + 40}, timeout=0.4)
    assert time.monotonic() - began < 10
    assert [(type(failed.error), failed.position) for failed in got.failed] == [
        (hr.TimedOut, GUILTY),
        (hr.TimedOut, GUILTY + 40),
    ]
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)
    assert got.report.abandoned == 0


def test_a_hang_that_lets_no_thread_run_is_ended(run: Callable[..., Any], tmp_path: Path) -> None:
    """The same where the call holds the interpreter, as a regular expression that backtracks does."""

    def backtrack(number: int) -> Any:
        import re

        re.match(r"(a|a)*$", "a" * 60 + "b")

    got = run_spoiled(run, tmp_path / "calls", backtrack, {GUILTY}, timeout=0.4)
    assert [(type(failed.error), failed.position) for failed in got.failed] == [(hr.TimedOut, GUILTY)]
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)


def test_within_ends_a_call_too(run: Callable[..., Any], tmp_path: Path) -> None:
    """`within=` holds for what runs and for what waits behind it."""
    got = run_spoiled(run, tmp_path / "calls", lambda n: time.sleep(60), {0, 1}, within=0.4)
    assert {failed.position for failed in got.failed} >= {0, 1}
    assert {type(failed.error) for failed in got.failed} == {hr.TimedOut}
    assert len(got.done) + len(got.failed) == ITEMS


def test_an_exit_of_python_is_the_items_failure(run: Callable[..., Any], tmp_path: Path) -> None:
    """sys.exit and KeyboardInterrupt in a call fail the item; the process lives on."""

    def leave(number: int) -> Any:
        if number == GUILTY:
            sys.exit(4)
        raise KeyboardInterrupt

    got = run_spoiled(run, tmp_path / "calls", leave, {GUILTY, GUILTY + 1})
    assert [str(failed.error) for failed in got.failed] == [
        "the function ended with SystemExit: 4",
        "the function ended with KeyboardInterrupt: ",
    ]
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)


def test_a_call_that_closes_descriptors(run: Callable[..., Any], tmp_path: Path) -> None:
    """A call that closes all files that it does not know, or puts others in their place, breaks and spoils nothing."""

    def close(number: int) -> int:
        os.closerange(3, 1000)
        if number % 2:
            for _ in range(10):
                os.open(str(tmp_path / "others"), os.O_RDWR | os.O_CREAT)
        return number

    got = run_spoiled(run, tmp_path / "calls", close, {GUILTY, GUILTY + 60})
    assert got.values == list(range(ITEMS))
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)
    assert (tmp_path / "others").read_bytes() == b""


def test_a_call_that_forks(run: Callable[..., Any], tmp_path: Path) -> None:
    """What a call forks, and what comes back from the call in the fork, answers nothing and stays nowhere."""

    def fork(number: int) -> int:
        pid = os.fork()
        if pid == 0 and number == GUILTY:
            time.sleep(60)  # it outlives the call: it dies with the process that forked it
        return number

    got = run_spoiled(run, tmp_path / "calls", fork, {GUILTY, GUILTY + 1})
    assert got.values == list(range(ITEMS))
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)


def test_memory_that_runs_out(run: Callable[..., Any], tmp_path: Path) -> None:
    """With a limit to its memory, a call that asks for more gets a MemoryError; the others go on."""
    got = run_spoiled(
        run,
        tmp_path / "calls",
        lambda n: len(bytearray(1 << 40)),
        {GUILTY},
        lane=hr.Processes(memory=2 << 30),
    )
    assert [(type(failed.error), failed.position) for failed in got.failed] == [(MemoryError, GUILTY)]
    assert calls(tmp_path / "calls") == dict.fromkeys(range(ITEMS), 1)


def test_a_death_outside_of_calls_costs_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    """A child that is killed while it has nothing to do is replaced; no item fails."""
    place = tmp_path / "calls"
    pids: list[int] = []

    async def main() -> Any:
        async with hr.Group(concurrency=1) as group:
            del group
        inbox: hr.Inbox[int] = hr.Inbox()
        seen = []
        async with (
            hr.Flow(inbox)
            .map(marked(place, lambda n: os.getpid()), lane="process", concurrency=1)
            .stream() as outcomes
        ):
            for number in range(5):
                await inbox.put(number)
                outcome = await anext(outcomes)
                seen.append(outcome.ok)
                if outcome.ok:
                    pids.append(outcome.value)
                    os.kill(outcome.value, signal.SIGKILL)
            inbox.close()
            async for _ in outcomes:
                pass
        return seen

    assert run(main) == [True] * 5
    assert len(set(pids)) == 5
    assert calls(place) == dict.fromkeys(range(5), 1)


def test_items_that_kill_who_loads_them(run: Callable[..., Any], tmp_path: Path) -> None:
    """An item whose unpickling kills the child is found among those that are sent with it, and fails alone."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os._exit, (9,)

    class Dud:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    items: list[Any] = list(range(100))
    items[40] = Bomb()
    items[60] = Dud()
    items[80] = threading.Lock()
    got = run(
        lambda: hr.map(
            marked(tmp_path / "calls", lambda n: n), items, lane="process", concurrency=1, name="load"
        )
    )
    assert [failed.position for failed in got.failed] == [40, 60, 80]
    killed, unread, unsent = (failed.error for failed in got.failed)
    assert isinstance(killed, WorkerDied)
    assert "exit code 9" in str(killed)
    assert "cannot be unpickled in the child process: ValueError" in str(unread)
    assert "of type lock, cannot be pickled" in str(unsent)
    assert calls(tmp_path / "calls") == dict.fromkeys(set(range(100)) - {40, 60, 80}, 1)
