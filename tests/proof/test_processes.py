"""Child processes and the end of the program: Ctrl-C, kill -9, resume; never an orphan.

    test ─► program (a job whose calls run in processes, as a script would run it) ─► SQLite      each call leaves a mark
       └─ waits until calls are under way, then signals or kills the program, and looks for its children

Rules:
1. The calls of the programs work (they hold the interpreter), wait, or sit in one long step of C.
2. A child is known by its parent; it counts as gone when the system has no such process, or only a zombie.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.testing import cancel_everywhere, run_real

ITEMS = 400
SLACK = 2.0  # seconds beyond the grace, as promised
TRIES = int(os.environ.get("HEADRACE_TRIES", "10"))


# ---------------------------------------------------------------------------------------------------- the programs


def mark(place: str, number: int) -> None:
    """Note a call."""
    file = os.open(f"{place}.called", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\n" % number)
    os.close(file)


def work(place: str, number: int) -> None:
    """Compute for 10 ms."""
    until = time.monotonic() + 0.01
    while time.monotonic() < until:
        sum(range(200))


def sleep(place: str, number: int) -> None:
    """Wait for a minute, but for the first calls and those of a run that resumes."""
    time.sleep(0.001 if number < 8 or Path(f"{place}.resumed").exists() else 60)


def backtrack(place: str, number: int) -> None:
    """Sit in one step that lets no other thread run, in the same way."""
    if number >= 8 and not Path(f"{place}.resumed").exists():
        re.match(r"(a|a)*$", "a" * 60 + "b")


def quick(place: str, number: int) -> None:
    """Do nothing: chunks are long."""


FUNCTIONS: dict[str, Any] = {fn.__name__: fn for fn in (work, sleep, backtrack, quick)}


def program(name: str, place: str, grace: float, effect: str, total: int) -> int:
    """Run the job, or what is left of it."""
    fn = FUNCTIONS[name]

    def call(number: int) -> dict[str, int]:
        mark(place, number)
        fn(place, number)
        return {"n": number}

    report = (
        hr.Flow(range(total))
        .map(call, lane="process", concurrency=2, effect=effect)  # type: ignore[arg-type]
        .into(hr.sqlite.table(place))
        .run_sync(grace=grace)
    )
    print(
        json.dumps({"code": report.exit_code, "done": report.done, "returned": report.returned}), flush=True
    )
    return report.exit_code


# ---------------------------------------------------------------------------------------------------- the tests' side


def start(
    name: str, place: Path, grace: float = 8.0, effect: str = "idempotent", total: int = ITEMS
) -> subprocess.Popen[str]:
    """Start a program."""
    command = [sys.executable, __file__, name, str(place), str(grace), effect, str(total)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def called(place: Path) -> Counter[int]:
    """Count the calls so far."""
    file = Path(f"{place}.called")
    return Counter(map(int, file.read_text().split())) if file.exists() else Counter()


def wait_until_called(process: subprocess.Popen[str], place: Path, number: int) -> None:
    """Wait until so many calls were made."""
    give_up = time.monotonic() + 30
    while called(place).total() < number:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < give_up, "no calls are made"
        time.sleep(0.002)


def children(pid: int) -> set[int]:
    """List the children of a process."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found.update(map(int, file.read_text().split()))
    return found


def alive(pids: set[int]) -> set[int]:
    """Give those that still run."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.add(pid)
    return found


def gone_within(seconds: float, pids: set[int]) -> bool:
    """Wait for processes to be gone, at most so long."""
    until = time.monotonic() + seconds
    while alive(pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def resume(name: str, place: Path, effect: str = "idempotent", total: int = ITEMS) -> str:
    """Run the program again, to its end."""
    Path(f"{place}.resumed").touch()
    with start(name, place, 8.0, effect, total) as process:
        out = process.communicate(timeout=90)[0]
    assert process.returncode in (0, 1), out
    return out


def positions(place: Path) -> list[int]:
    """Read which items have a result."""
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [n for (n,) in connection.execute("SELECT _position FROM results ORDER BY 1")]


def interrupted(
    name: str, place: Path, grace: float, signals: Sequence[int], total: int = ITEMS
) -> tuple[int, float, dict[str, Any]]:
    """Start a program, send it the signals in the middle of calls, and give its code, its time and its words."""
    process = start(name, place, grace, total=total)
    assert process.stdout is not None
    with process.stdout:
        wait_until_called(process, place, 9)
        pids = children(process.pid)
        began = time.monotonic()
        for number in signals:
            os.kill(process.pid, number)
            time.sleep(0.2)
        try:
            code = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - began
        out = process.stdout.read()
    assert pids
    assert not alive(pids)
    last = out.strip().rpartition("\n")[2]
    assert last.startswith("{"), out
    return code, seconds, json.loads(last)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["work", "quick"])
def test_ctrl_c_in_the_middle_of_calls(name: str, tmp_path: Path) -> None:
    """Ctrl-C drains: what runs finishes and counts, the rest is returned, at once; the job resumes. Ten tries of ten."""
    total = 120 if name == "work" else 30_000
    for number in range(TRIES):
        place = tmp_path / f"{number}.db"
        code, seconds, told = interrupted(name, place, 8.0, [signal.SIGINT], total)
        assert seconds < SLACK, number
        assert code == (130 if told["done"] < total else 0)
        assert told["done"] == len(positions(place)) == len(called(place)), "a call that ran did not count"
        resume(name, place, total=total)
        assert positions(place) == list(range(total))
        assert called(place) == dict.fromkeys(range(total), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleep", "backtrack"])
def test_the_grace_bounds_calls_that_do_not_end(name: str, tmp_path: Path) -> None:
    """Calls that outlive the grace of 1 s are killed: the program ends within 2 s more, and the job resumes."""
    place = tmp_path / "out.db"
    code, seconds, _ = interrupted(name, place, 1.0, [signal.SIGINT])
    assert code == 130
    assert 0.9 <= seconds < 1 + SLACK
    resume(name, place)
    assert positions(place) == list(range(ITEMS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleep", "backtrack"])
def test_the_second_signal_kills(name: str, tmp_path: Path) -> None:
    """With a grace of 30 s, a second Ctrl-C kills calls of a minute at once; what is done is kept."""
    place = tmp_path / "out.db"
    code, seconds, told = interrupted(name, place, 30.0, [signal.SIGINT, signal.SIGTERM])
    assert code in (130, 143)
    assert seconds < SLACK
    assert told["done"] == len(positions(place)) == 8
    resume(name, place)
    assert positions(place) == list(range(ITEMS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["work", "sleep", "backtrack", "quick"])
def test_children_die_with_a_program_that_is_killed(name: str, tmp_path: Path) -> None:
    """After kill -9 of the program no child is left 2 s later, whatever its call does; the job resumes."""
    total = 100 if name != "quick" else 30_000
    for number in range(3):
        place = tmp_path / f"{number}.db"
        process = start(name, place, total=total)
        assert process.stdout is not None
        with process.stdout:
            wait_until_called(process, place, 9)
            pids = children(process.pid)
            process.kill()
            process.wait()
            assert pids
            assert gone_within(2.0, pids)
    resume(name, place, total=total)
    assert positions(place) == list(range(total))


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["idempotent", "once"])
def test_a_job_survives_kills(effect: str, tmp_path: Path) -> None:
    """Killed eight times: each item ends once, few are called again, and *once* calls never are."""
    place, generator = tmp_path / "out.db", random.Random(7)
    seen: set[int] = set()
    for _ in range(8):
        process = start("work", place, effect=effect)
        assert process.stdout is not None
        with process.stdout:
            so_far = called(place).total()
            wait_until_called(process, place, so_far + generator.randrange(1, 30))
            pids = children(process.pid)
            process.kill()
            process.wait()
        assert gone_within(2.0, pids)
        seen |= pids
    resume("work", place, effect)
    counts = called(place)
    if effect == "idempotent":
        assert positions(place) == list(range(ITEMS))
        assert set(counts) == set(range(ITEMS))
        assert counts.total() - ITEMS <= 8 * 1024
        return
    letters = list(hr.open(place).job().failures())
    assert all(letter.in_doubt for letter in letters)
    assert letters, "no kill fell into a call"
    assert len(letters) <= 8 * 2
    assert sorted([*positions(place), *(letter.position for letter in letters)]) == list(range(ITEMS))
    assert max(counts.values()) == 1


@pytest.mark.slow
def test_a_signal_to_the_children_does_not_hurt(tmp_path: Path) -> None:
    """SIGINT and SIGTERM that reach the children themselves, as from a terminal or a supervisor, cost no call."""
    place = tmp_path / "out.db"
    process = start("work", place)
    assert process.stdout is not None
    with process.stdout:
        wait_until_called(process, place, 9)
        for _ in range(5):
            for pid in children(process.pid):
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.02)
        assert process.wait(timeout=60) == 0
    assert called(place) == dict.fromkeys(range(ITEMS), 1)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_cancelled_at_every_await_point(times: int, tmp_path: Path) -> None:
    """A small job on processes, cancelled anywhere, once or twice: it calls nothing twice, and leaves no child."""
    number = 0
    before = children(os.getpid())

    async def job() -> None:
        nonlocal number
        number += 1
        place = str(tmp_path / str(number))

        def call(item: int) -> int:
            mark(place, item)
            return item

        await hr.Flow(range(6)).map(call, lane="process", concurrency=1).run()

    def check(ending: Any) -> None:
        assert not ending.left
        assert not alive(children(os.getpid()) - before)
        counts = called(tmp_path / str(number))
        assert not counts or max(counts.values()) == 1

    # The store's thread makes the number of await points a matter of luck: there is none here.
    assert cancel_everywhere(job, check, times=times, runner=run_real) > 5


if __name__ == "__main__":
    sys.exit(program(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
