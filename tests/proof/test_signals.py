"""Real signals to a real script: drain, cancel, exit; handlers put back; and the job resumes.

    parent ─► child: map_sync / run_sync / asyncio.run over a job whose calls take as long as its mode says
       └─ waits for «calling», sends signals, measures until the end

Rules:
1. The grace of the children is 1 s where a call outlives it, 30 s where nothing may wait for it.
2. A child's last line is what it can say for itself: exit code, counts, and whether the handlers are back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import headrace as hr

ITEMS = 60
SLACK = 2.0  # seconds beyond the grace, as promised


# ---------------------------------------------------------------------------------------------------- the child


def calling() -> None:
    """Tell the parent that calls are under way."""
    print("calling", flush=True)


async def short(n: int) -> dict[str, int]:
    """Take 50 ms."""
    if n == 8:
        calling()
    await asyncio.sleep(0.05)
    return {"n": n}


async def long(n: int) -> dict[str, int]:
    """Take a minute, but for the first few items."""
    if n == 8:
        calling()
    await asyncio.sleep(60 if n >= 8 and "resumed" not in sys.argv else 0.001)
    return {"n": n}


async def stubborn(n: int) -> dict[str, int]:
    """Take a minute, and no cancellation for an answer."""
    if n == 8:
        calling()
    until = time.monotonic() + (60 if n >= 8 and "resumed" not in sys.argv else 0.001)
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue
    return {"n": n}


def blocking(n: int) -> dict[str, int]:
    """Hold a thread for a minute."""
    if n == 8:
        calling()
    time.sleep(60 if n >= 8 and "resumed" not in sys.argv else 0.001)
    return {"n": n}


async def interrupting(n: int) -> dict[str, int]:
    """Raise KeyboardInterrupt in the middle, as a second Ctrl-C without our handlers would."""
    if n == 20 and "resumed" not in sys.argv:
        raise KeyboardInterrupt
    await asyncio.sleep(0.001)
    return {"n": n}


FUNCTIONS: dict[str, Any] = {fn.__name__: fn for fn in (short, long, stubborn, blocking, interrupting)}


def own_handler(number: int, frame: object) -> None:
    """Stand for a handler that the script had before."""


def child(how: str, name: str, place: str, grace: float) -> int:
    """Run the job and say how it ended."""
    fn = FUNCTIONS[name]
    terminate = signal.signal(signal.SIGTERM, own_handler)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    flow = hr.Flow(range(ITEMS)).map(fn, concurrency=4, name="call")
    if how == "map":
        got = hr.map_sync(fn, range(ITEMS), concurrency=4, out=place, grace=grace)
        report = got.report
    elif how == "run":
        report = flow.into(hr.sqlite.table(place)).run_sync(grace=grace)
    else:
        signal.signal(signal.SIGTERM, terminate)
        asyncio.run(flow.into(hr.sqlite.table(place)).run(grace=grace))
        return 0
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    told = {
        "code": report.exit_code,
        "done": report.done,
        "returned": report.returned,
        "back": before == after,
    }
    print(json.dumps(told), flush=True)
    return report.exit_code


# ---------------------------------------------------------------------------------------------------- the parent


class Ended:
    """How a child ended: exit code, the seconds from the first signal to the end, its words."""

    def __init__(self, code: int, seconds: float, out: str) -> None:
        self.code = code
        self.seconds = seconds
        self.out = out
        last = out.strip().rpartition("\n")[2]
        self.told: dict[str, Any] = json.loads(last) if last.startswith("{") else {}


def start(how: str, name: str, place: Path, grace: float, *more: str) -> subprocess.Popen[str]:
    """Start a child."""
    command = [sys.executable, __file__, how, name, str(place), str(grace), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def interrupted(
    how: str, name: str, place: Path, grace: float, signals: Sequence[int], pause: float = 0.3
) -> Ended:
    """Start a child, send it the signals when it is calling, and wait for its end."""
    process = start(how, name, place, grace)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "calling\n"
        time.sleep(0.1)
        began = time.monotonic()
        for number in signals:
            os.kill(process.pid, number)
            time.sleep(pause)
        try:
            code = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return Ended(code, time.monotonic() - began, process.stdout.read())


def resumed(how: str, name: str, place: Path) -> None:
    """Run the job again, to its end, and check that everything is there once."""
    with start(how, name, place, 8, "resumed") as process:
        out = process.communicate(timeout=60)[0]
        assert process.returncode == 0, out
    with closing(sqlite3.connect(place)) as connection:
        positions = connection.execute("SELECT _position FROM results ORDER BY 1").fetchall()
        assert [n for (n,) in positions] == list(range(ITEMS))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["map", "run"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_drains(how: str, number: int, code: int, tmp_path: Path) -> None:
    """Running calls finish, no new ones start, the code says which signal it was, and resume completes."""
    place = tmp_path / "out.db"
    ended = interrupted(how, "short", place, 30, [number], pause=0)
    assert (ended.code, ended.told["code"], ended.told["back"]) == (code, code, True)
    assert ended.seconds < SLACK
    assert 8 <= ended.told["done"] < ITEMS
    resumed(how, "short", place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "name"), [("map", "long"), ("run", "long"), ("run", "stubborn"), ("run", "blocking")]
)
def test_the_grace_bounds_a_drain(how: str, name: str, tmp_path: Path) -> None:
    """Calls that outlive the grace of 1 s are cancelled, or left to themselves: the script ends within 2 s more."""
    place = tmp_path / "out.db"
    ended = interrupted(how, name, place, 1, [signal.SIGINT], pause=0)
    assert (ended.code, ended.told["code"], ended.told["back"]) == (130, 130, True)
    assert 1.0 <= ended.seconds < 1 + SLACK
    resumed(how, name, place)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["map", "run"])
def test_the_second_signal_cancels(how: str, tmp_path: Path) -> None:
    """With a grace of 30 s, a second Ctrl-C ends calls of a minute at once; what is done is kept."""
    place = tmp_path / "out.db"
    ended = interrupted(how, "long", place, 30, [signal.SIGINT, signal.SIGINT])
    assert (ended.code, ended.told["back"]) == (130, True)
    assert ended.seconds < SLACK
    assert ended.told["done"] == 8
    resumed(how, "long", place)


@pytest.mark.slow
def test_the_third_signal_exits_at_once(tmp_path: Path) -> None:
    """A function that swallows its cancellation: the third Ctrl-C does not wait for it. The job resumes all the same."""
    place = tmp_path / "out.db"
    ended = interrupted("run", "stubborn", place, 30, [signal.SIGINT] * 3)
    assert ended.code == 130
    assert ended.seconds < 0.9 + SLACK
    assert "third signal" in ended.out
    resumed("run", "stubborn", place)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", ["long", "blocking"])
def test_ctrl_c_under_asyncio_run(name: str, times: int, tmp_path: Path) -> None:
    """Without our handlers asyncio's own cancel the program: the run ends, keeps what is done, and resumes."""
    place = tmp_path / "out.db"
    ended = interrupted("asyncio", name, place, 30, [signal.SIGINT] * times, pause=0.05)
    assert ended.code in (-signal.SIGINT, 130, 1)
    assert "KeyboardInterrupt" in ended.out
    assert ended.seconds < SLACK + 0.1
    resumed("asyncio", name, place)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["run", "asyncio"])
def test_a_keyboard_interrupt_inside_a_call(how: str, tmp_path: Path) -> None:
    """It goes through to the program and hangs nothing; the job resumes."""
    place = tmp_path / "out.db"
    with start(how, "interrupting", place, 8) as process:
        out = process.communicate(timeout=20)[0]
    assert "KeyboardInterrupt" in out
    assert process.returncode != 0
    letters = list(hr.open(place).job().failures())
    assert [letter.position for letter in letters] in ([], [20])
    if letters:
        hr.open(place).job().retry()
    resumed(how, "interrupting", place)


@pytest.mark.slow
def test_a_stopped_process_goes_on(tmp_path: Path) -> None:
    """SIGSTOP for a while, then SIGCONT: the run goes on where it was, and nothing is lost or doubled."""
    place = tmp_path / "out.db"
    process = start("run", "short", place, 8)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "calling\n"
        for _ in range(3):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.4)
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.05)
        assert process.wait(timeout=20) == 0
    resumed("run", "short", place)


if __name__ == "__main__":
    sys.exit(child(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
