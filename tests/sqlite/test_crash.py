"""A process that is killed at any moment leaves a whole file: each item exactly once, in results or dead letters."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from headrace import sqlite
from headrace.ports import Bookmark, Commit, DeadLetter, Intent, JobRequest, Parking, Row

ITEMS = 40_000
BATCH = 40
KILLS = 26


async def run_job(path: str, *, fresh: bool = False) -> None:
    """Settle all items that are left, out of order, every seventh as failed, some after having been parked."""
    ledger = sqlite.table(path, "out").ledger()
    try:
        state = await ledger.open(JobRequest("crash", {}, lambda fingerprint: None, fresh=fresh))
        print("open", flush=True)
        left = set(range(ITEMS))
        for lo, hi in state.settled:
            left.difference_update(range(lo, hi))
        order = sorted(left)
        generator = random.Random(len(order))
        for start in range(0, len(order), 512):
            part = order[start : start + 1024]
            generator.shuffle(part)
            order[start : start + 1024] = part
        for start in range(0, len(order), BATCH):
            positions = order[start : start + BATCH]
            failed = [position for position in positions if position % 7 == 0]
            done = [position for position in positions if position % 7]
            await ledger.commit(
                Commit(parked=[Parking(positions[0], 1.0, 1, "")], intents=[Intent(done[0], "s")])
            )
            await ledger.commit(
                Commit(
                    [
                        Row(p, child, {"value": p, "body": b"x" * 50})
                        for p in done
                        for child in range(1 + p % 2)
                    ],
                    done=done,
                    failed=[DeadLetter(p, str(p), "s", 1, "E", "c") for p in failed],
                    bookmarks=[Bookmark(min(positions), start)],
                    fingerprint={"size": start},
                )
            )
        await ledger.finish(0, complete=True, report={})
    finally:
        await ledger.close()


def check(path: Path, *, complete: bool) -> int:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count, distinct = connection.execute(
            "SELECT count(*), count(DISTINCT _position) FROM out WHERE _child = 0"
        ).fetchone()
        assert count == distinct
        wrong = "SELECT _position FROM out GROUP BY _position HAVING count(*) != 1 + _position % 2"
        assert connection.execute(wrong).fetchall() == []
        both = "SELECT count(*) FROM out JOIN headrace_failed ON position = _position"
        assert connection.execute(both).fetchone() == (0,)
        failed = connection.execute("SELECT count(*) FROM headrace_failed").fetchone()[0]
        settled = connection.execute("SELECT sum(done) FROM headrace_progress").fetchone()[0]
        assert settled == count
        if complete:
            assert (count, failed) == (ITEMS - len(range(0, ITEMS, 7)), len(range(0, ITEMS, 7)))
            assert connection.execute("SELECT count(*) FROM headrace_parked").fetchone() == (0,)
            assert connection.execute("SELECT count(*) FROM headrace_intents").fetchone() == (0,)
        return int(count) + int(failed)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL at 26 random moments: the file is whole after each, and in the end each item is there exactly once."""
    path = tmp_path / "out.db"
    generator = random.Random(2)
    settled, interrupted = 0, 0
    for _ in range(KILLS):
        child = subprocess.Popen([sys.executable, __file__, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout:
            child.stdout.readline()
            time.sleep(generator.uniform(0.0, 0.06))
            os.kill(child.pid, signal.SIGKILL)
            interrupted += child.wait() == -signal.SIGKILL
        if (tmp_path / "out.db").exists() and table_exists(path):
            now = check(path, complete=False)
            assert now >= settled
            settled = now
    assert interrupted == KILLS
    assert 0 < settled < ITEMS, f"the kills did not fall into the work: {settled} of {ITEMS} were settled"
    asyncio.run(run_job(str(path)))
    check(path, complete=True)


def table_exists(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'out'").fetchall())


if __name__ == "__main__":
    asyncio.run(run_job(sys.argv[1]))
