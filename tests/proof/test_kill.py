"""kill -9 at any moment, and again: each input ends exactly once in the results or the dead letters.

    parent ─► child (the job, as a script would run it) ─► SQLite        the origin counts what it answered
       └─ looks at the ledger, and kills when as much is settled as was drawn

Rules:
1. The moments are drawn by a seed, in settled items; some are at the very start, and some a few milliseconds later,
   inside commits.
2. What is proved is read from the outside: from the file, and from the origin's own account.
3. A job of calls cannot end while it is to be killed, however fast the machine: its last items wait for a file, which the
   parent makes before the last run.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.demo.origin import Origin

KILLS = 25
CALL = 0.004  # how long a call takes, in seconds: some are under way at any moment
WINDOW = 128
URLS = 10_000
IDS = 2_000
PARENTS = 600


# ---------------------------------------------------------------------------------------------------- the children


async def take_time(number: int, total: int, called: str) -> None:
    """Wait as long as a call takes; the last twentieth of the items wait for the last run."""
    await asyncio.sleep(CALL)
    while number >= total * 19 // 20 and not last_run(called).exists():
        await asyncio.sleep(CALL)


def last_run(called: str) -> Path:
    """Name the file that lets the job come to its end."""
    return Path(f"{called}.last")


def fetch_all(listed: str, place: str) -> int:
    """Run the job of 10 000 URLs, or what is left of it."""
    limits = hr.http.Timeouts(resolve=5, connect=5, first_byte=1.0, stall=1.0, total=10)
    report = (
        hr.Flow(hr.files.lines(listed))
        .map(
            hr.http.fetch(timeouts=limits, accept="2xx"),
            concurrency=64,
            retry=hr.Retry(attempts=4, base=0.01, cap=0.05, overload_base=0.01, overload_cap=0.05),
        )
        .into(hr.sqlite.table(place))
        .run_sync(window=WINDOW)
    )
    print(json.dumps({"code": report.exit_code, "trouble": report.trouble}))
    return report.exit_code


def map_all(called: str, place: str) -> int:
    """Run the kept map of 2 000 ids; each call appends its id to a file."""
    with open(called, "ab", buffering=0) as file:

        async def note(number: int) -> int:
            file.write(b"%d\n" % number)
            await take_time(number, IDS, called)
            if number % 50 == 7:
                raise ValueError(f"{number} is never good")
            return number * number

        got = hr.map_sync(note, range(IDS), out=place, concurrency=32, window=WINDOW)
    assert [outcome.value for outcome in got.done] == [n * n for n in range(IDS) if n % 50 != 7]
    assert [outcome.position for outcome in got.failed] == list(range(7, IDS, 50))
    return got.exit_code


def spread_all(called: str, place: str) -> int:
    """Run a job whose items fan out: a kill falls between the children of a root."""

    async def three(number: int) -> list[int]:
        return [number * 3, number * 3 + 1, number * 3 + 2]

    with open(called, "ab", buffering=0) as file:

        async def child(number: int) -> dict[str, int]:
            file.write(b"%d\n" % number)
            await asyncio.sleep(CALL / 8 * (number % 3))
            await take_time(number, 3 * PARENTS, called)
            return {"n": number}

        report = (
            hr.Flow(range(PARENTS))
            .flat_map(three, concurrency=8, fanout=3)
            .map(child, concurrency=16)
            .into(hr.sqlite.table(place))
            .run_sync(window=WINDOW)
        )
    return report.exit_code


def pay_all(called: str, place: str) -> int:
    """Run a job of calls that must not be made twice."""
    with open(called, "ab", buffering=0) as file:

        async def pay(number: int) -> dict[str, int]:
            file.write(b"%d\n" % number)
            await take_time(number, IDS, called)
            return {"n": number}

        report = (
            hr.Flow(range(IDS))
            .map(pay, effect="once", retry=hr.Retry(attempts=4, base=0.01), concurrency=32)
            .into(hr.sqlite.table(place))
            .run_sync(window=WINDOW)
        )
    return report.exit_code


def pay_batches(called: str, place: str) -> int:
    """Run a job whose batches must not be sent twice."""
    with open(called, "ab", buffering=0) as file:

        async def pay(numbers: list[int]) -> dict[str, int]:
            file.write(b"".join(b"%d\n" % number for number in numbers))
            await take_time(numbers[-1], IDS, called)
            return {"n": numbers[0]}

        report = (
            hr.Flow(range(IDS))
            .batch(10)
            .map(pay, effect="once", concurrency=4)
            .into(hr.sqlite.table(place))
            .run_sync(window=WINDOW)
        )
    return report.exit_code


def park_all(called: str, place: str) -> int:
    """Run a job of calls that ask for longer waits than there are in a run, and come back until it ends."""
    asked = set()

    async def call(number: int) -> dict[str, int]:
        await take_time(number, IDS, called)
        if number % 20 == 3 and number not in asked:
            asked.add(number)
            raise hr.RetryAfter(0.3, hold=number % 200 == 3)
        return {"n": number}

    # More places than items that wait for the last run: what comes due is called while these wait.
    limits = [hr.Limit(by=lambda number: number % 8, concurrency=32)]
    flow = hr.Flow(range(IDS)).map(call, concurrency=IDS // 16, limits=limits, retry=hr.Retry(attempts=40))
    code = 3
    while code == 3:
        code = flow.into(hr.sqlite.table(place)).run_sync(window=WINDOW, wait=0.2).exit_code
    return code


CHILDREN: dict[str, Callable[[str, str], int]] = {
    child.__name__: child for child in (fetch_all, map_all, spread_all, pay_all, pay_batches, park_all)
}

# ---------------------------------------------------------------------------------------------------- the parent


def settled(place: Path) -> int:
    """Count the settled items from outside, without a lock; 0 where there is no job yet."""
    try:
        with closing(sqlite3.connect(f"file:{place}?mode=ro", uri=True)) as connection:
            done = connection.execute("SELECT total(done + skipped) FROM headrace_progress").fetchone()[0]
            return int(done) + int(connection.execute("SELECT count(*) FROM headrace_failed").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def moments(total: int, generator: random.Random) -> Sequence[int]:
    """Draw when to kill, in settled items, ascending: some at the very start, none too near to the end."""
    return sorted([0, 0, 0, 1, *(generator.randrange(2, total * 9 // 10) for _ in range(KILLS - 4))])


def run_killed(name: str, source: str, place: Path, total: int, seed: int) -> None:
    """Run a child, kill it at each of the `KILLS` moments, and let the last one finish."""
    generator = random.Random(seed)
    command = [sys.executable, __file__, name, source, str(place)]
    for moment in moments(total, generator):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        with process.stdout:
            give_up = time.monotonic() + 60
            if moment == 0:  # before anything, while it imports, opens, or makes the file
                time.sleep(generator.uniform(0.05, 0.45))
            while process.poll() is None and settled(place) < moment:
                assert time.monotonic() < give_up, "the job does not get on"
                time.sleep(0.005)
            # anywhere in the work for the next commit, or in the commit
            time.sleep(generator.uniform(0.0, 0.02))
            process.kill()
            assert process.wait() == -signal.SIGKILL, process.stdout.read().decode()
        if place.exists():
            with closing(sqlite3.connect(place)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    last_run(source).touch()
    last = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
    assert last.returncode in (0, 1), last.stdout.decode()


def accounts(place: Path) -> tuple[list[int], list[int], list[int]]:
    """Read the positions of all results (of first children), of all dead letters, and of those in doubt."""
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        done = [n for (n,) in connection.execute("SELECT _position FROM results WHERE _child = 0 ORDER BY 1")]
        failed = connection.execute("SELECT position, in_doubt FROM headrace_failed ORDER BY 1").fetchall()
        assert connection.execute("SELECT count(*) FROM headrace_intents").fetchone() == (0,)
        assert connection.execute("SELECT state FROM headrace_jobs").fetchone()[0] in ("finished", "failed")
    return done, [n for n, _ in failed], [n for n, doubt in failed if doubt]


def calls_of(path: Path) -> Counter[int]:
    """Count how often each number was called; a line that a kill cut short counts for nothing."""
    return Counter(int(line) for line in path.read_bytes().split(b"\n")[:-1])


@pytest.mark.slow
def test_ten_thousand_urls_survive_25_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10 000 URLs from a faulty origin, killed 25 times: each exactly once in results or dead letters, few asked again."""
    listed, place = tmp_path / "urls.txt", tmp_path / "out.db"
    # Little to wait for: two cores have better things to do.
    options = ("--stall", "1.5", "--first", "0.1", "--second", "0.2")
    with Origin.start(fast=URLS, seed=11, options=options) as origin:
        listed.write_text("".join(f"{url}\n" for url in origin.urls()))
        began = time.monotonic()
        run_killed("fetch_all", str(listed), place, URLS, seed=1)
        counts: dict[str, Any] = dict(origin.counts())
    done, failed, doubtful = accounts(place)
    assert sorted([*done, *failed]) == list(range(URLS))
    assert not doubtful
    assert counts["repeated"] <= KILLS * WINDOW
    with capsys.disabled():
        print(
            f"\n{KILLS} kills, {len(done)} done, {len(failed)} dead; asked again after a complete final answer: "
            f"{counts['repeated']} (at most {KILLS * WINDOW}); {counts['requests']} requests, "
            f"faults {counts['faults']}, {time.monotonic() - began:.1f} s"
        )


@pytest.mark.slow
def test_a_kept_map_survives_25_kills(tmp_path: Path) -> None:
    """map_sync(out=), killed 25 times: it gives every value in the end, and called few ids again."""
    called, place = tmp_path / "called.txt", tmp_path / "out.db"
    run_killed("map_all", str(called), place, IDS, seed=2)
    done, failed, _ = accounts(place)
    assert failed == list(range(7, IDS, 50))
    assert sorted([*done, *failed]) == list(range(IDS))
    calls = calls_of(called)
    assert set(calls) == set(range(IDS))
    assert calls.total() - IDS <= KILLS * WINDOW


@pytest.mark.slow
def test_children_survive_kills_with_their_root_or_not_at_all(tmp_path: Path) -> None:
    """Killed between the children of an item: after each kill an item has all three rows or none."""
    called, place = tmp_path / "called.txt", tmp_path / "out.db"
    run_killed("spread_all", str(called), place, PARENTS, seed=3)
    done, failed, _ = accounts(place)
    assert (done, failed) == (list(range(PARENTS)), [])
    with closing(sqlite3.connect(place)) as connection:
        found = connection.execute("SELECT n, _position, _child FROM results ORDER BY n").fetchall()
    assert found == [(n, n // 3, n % 3) for n in range(3 * PARENTS)]


@pytest.mark.slow
@pytest.mark.parametrize("child", ["pay_all", "pay_batches"])
def test_once_calls_survive_kills_without_a_repetition(child: str, tmp_path: Path) -> None:
    """Killed while *once* calls are out: each of these is in doubt, each other one is done, and none was made twice."""
    called, place = tmp_path / "called.txt", tmp_path / "out.db"
    run_killed(child, str(called), place, IDS, seed=4)
    done, failed, doubtful = accounts(place)
    calls = calls_of(called)
    assert max(calls.values()) == 1
    assert failed == doubtful
    assert doubtful, "no kill fell into a call"
    if child == "pay_all":
        assert sorted([*done, *failed]) == list(range(IDS))
        assert set(done) <= set(calls)
    else:
        assert set(calls) | set(doubtful) == set(range(IDS))


@pytest.mark.slow
def test_parked_items_survive_kills(tmp_path: Path) -> None:
    """Killed while items are parked or taken up again: each is done in the end, once, and none is parked."""
    called, place = tmp_path / "called.txt", tmp_path / "out.db"
    run_killed("park_all", str(called), place, IDS, seed=5)
    done, failed, _ = accounts(place)
    assert (done, failed) == (list(range(IDS)), [])
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("SELECT count(*) FROM headrace_parked").fetchone() == (0,)


if __name__ == "__main__":
    sys.exit(CHILDREN[sys.argv[1]](sys.argv[2], sys.argv[3]))
