"""Calls that must not be made twice, over connections and processes that die: the origin's own count is the judge."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.demo.origin import Origin
from headrace.testing import run_real

CONNECTIONS = 500
PATIENCE = hr.http.Timeouts(
    connect=20, first_byte=20, stall=20, total=60
)  # two cores, five hundred connections


@pytest.fixture(scope="module")
def slow_origin() -> Iterator[Origin]:
    """Serve each answer after 0.3 s, so that five hundred calls at once need five hundred connections."""
    with Origin.start(options=("--delay", "0.3")) as started:
        yield started


def asked(origin: Origin, prefix: str) -> Mapping[str, int]:
    """Give how often each path that begins so was asked for."""
    paths = origin.counts(paths=True)["paths"]
    return {path: record[0] for path, record in paths.items() if path.startswith(prefix)}


async def over_kept_connections(origin: Origin, urls: list[str], fetch: Any, place: Path) -> hr.Report:
    """Open 500 connections by as many calls at once, and run the job over these, at once as well."""
    client = hr.http.Client(connections=CONNECTIONS + 50, timeouts=PATIENCE)
    async with client:
        warm = hr.http.fetch(method="POST", json={}, client=client)
        first = [origin.url(f"/f/ok/warm-{place.stem}-{number}") for number in range(CONNECTIONS)]
        got = await hr.map(warm, first, concurrency=CONNECTIONS)
        got.check()
        opened = client.statistics().connections
        flow = hr.Flow(urls).map(fetch(client), concurrency=CONNECTIONS).into(hr.sqlite.table(place))
        report = await flow.run(window=2 * CONNECTIONS)
        assert opened <= CONNECTIONS + 20
        if (
            report.taken == report.failed
        ):  # one attempt each, so what was not opened anew was a kept connection
            reused = report.taken - (client.statistics().connections - opened)
            assert reused >= report.taken * 0.9, f"only {reused} calls went over a kept connection"
    return report


@pytest.mark.slow
def test_posts_over_500_connections_that_die_are_never_sent_twice(
    slow_origin: Origin, tmp_path: Path
) -> None:
    """The connection dies when the POST was read: each item ends in doubt, and nothing but retry in doubt repeats it."""
    place = tmp_path / "dying.db"
    urls = [slow_origin.url(f"/f/cut*/dying-{number}") for number in range(CONNECTIONS)]

    def fetch(client: hr.http.Client) -> Any:
        return hr.http.fetch(method="POST", json={"amount": 1}, client=client)

    report = run_real(lambda: over_kept_connections(slow_origin, urls, fetch, place), kind="uvloop")
    once = {f"POST /f/cut*/dying-{number}": 1 for number in range(CONNECTIONS)}
    assert asked(slow_origin, "POST /f/cut*/dying-") == once
    assert (report.done, report.failed) == (0, CONNECTIONS)
    job = hr.open(place).job()
    letters = list(job.failures(in_doubt=True))
    assert [letter.position for letter in letters] == list(range(CONNECTIONS))
    assert {letter.error for letter in letters} == {"InDoubt"}
    assert {letter.attempts for letter in letters} == {1}
    assert job.retry() == 0
    again = run_real(lambda: over_kept_connections(slow_origin, urls, fetch, place))
    assert again.taken == 0
    assert asked(slow_origin, "POST /f/cut*/dying-") == once
    assert job.retry(in_doubt=True) == CONNECTIONS


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_may_be_repeated_is_sent_once_an_attempt(
    slow_origin: Origin, tmp_path: Path, method: str
) -> None:
    """GET, and POST with an honoured key, over dying connections: the origin counts as many requests as we attempts."""
    place = tmp_path / f"{method}.db"
    urls = [slow_origin.url(f"/f/cut,cut/{method}-{number}") for number in range(CONNECTIONS)]

    def fetch(client: hr.http.Client) -> Any:
        body = {} if method == "GET" else {"json": {"amount": 1}, "idempotent": True}
        return hr.http.fetch(method=method, client=client, **body)

    report = run_real(lambda: over_kept_connections(slow_origin, urls, fetch, place), kind="uvloop")
    assert (report.done, report.failed) == (CONNECTIONS, 0)
    with closing(sqlite3.connect(place)) as connection:
        attempts = connection.execute("SELECT sum(attempts) FROM results").fetchone()[0]
    prefix = f"/f/cut,cut/{method}-" if method == "GET" else f"POST /f/cut,cut/{method}-"
    assert set(asked(slow_origin, prefix).values()) == {3}
    assert attempts == 3 * CONNECTIONS


def pay(port: int, place: str) -> int:
    """Post to 300 paths, one once call each; the child that is killed."""
    urls = [f"http://127.0.0.1:{port}/f/ok/{Path(place).stem}-{number}" for number in range(300)]
    report = (
        hr.Flow(urls)
        .map(hr.http.fetch(method="POST", json={"n": 1}), concurrency=20)
        .into(hr.sqlite.table(place))
        .run_sync(window=128)
    )
    return report.exit_code


@pytest.mark.slow
def test_posts_of_a_killed_process_are_never_sent_twice(slow_origin: Origin, tmp_path: Path) -> None:
    """kill -9 with calls out: the next runs send none again, what had no end is in doubt, and all the rest is sent once."""
    place = tmp_path / "killed.db"
    command = [sys.executable, __file__, str(slow_origin.port), str(place)]
    for _ in range(3):
        before = len(asked(slow_origin, "POST /f/ok/killed-"))
        process = subprocess.Popen(command)
        limit = time.monotonic() + 30
        while len(asked(slow_origin, "POST /f/ok/killed-")) < before + 45 and time.monotonic() < limit:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    last = subprocess.run(command, timeout=60, check=False)
    assert last.returncode == 1  # the items in doubt
    counted = asked(slow_origin, "POST /f/ok/killed-")
    assert set(counted.values()) == {1}
    with closing(sqlite3.connect(place)) as connection:
        done = {n for (n,) in connection.execute("SELECT _position FROM results")}
        assert connection.execute("SELECT count(*) FROM headrace_intents").fetchone() == (0,)
    doubtful = {letter.position for letter in hr.open(place).job().failures(in_doubt=True)}
    assert doubtful
    assert done | doubtful == set(range(300))
    assert not done & doubtful
    sent = {int(path.rpartition("-")[2]) for path in counted}
    assert done <= sent
    assert sent - done <= doubtful


if __name__ == "__main__":
    sys.exit(pay(int(sys.argv[1]), sys.argv[2]))
