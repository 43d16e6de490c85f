"""Ctrl-C and SIGTERM: the run ends in time, says how to go on, and the rest is done by that command."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing

import pytest

GRACE = 8.0


def wait_for_requests(origin, number, since):
    until = time.monotonic() + 15
    while origin.counts()["requests"] - since < number:
        assert time.monotonic() < until, "the run did not begin"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_drains_and_resume_completes(started, headrace, origin, tmp_path, number, code):
    """Running calls finish, the code is 130 or 143, the command that goes on is printed, and it completes the job."""
    urls = [origin.url(f"/f/slow:0.7/{code}-{n}") for n in range(24)]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    before = origin.counts()["requests"]
    process = started("fetch", "urls.txt", "-o", "out.db", "--no-progress", "--per-host", "8")
    wait_for_requests(origin, 8, before)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=GRACE + 5)
    assert time.monotonic() - sent < GRACE + 2
    assert process.returncode == code
    assert "to go on:         headrace resume out.db" in said
    assert "failed 0" in said
    assert headrace("resume", "out.db").returncode == 0
    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT _position) FROM pages").fetchone() == (
            24,
            24,
        )


@pytest.mark.slow
def test_calls_that_outlast_the_grace_are_cancelled(started, origin, tmp_path):
    """URLs that hang do not hold up the end for longer than the grace period and 2 seconds."""
    (tmp_path / "urls.txt").write_text("\n".join(origin.url(f"/f/stall:60/hang-{n}") for n in range(20)))
    before = origin.counts()["requests"]
    process = started("fetch", "urls.txt", "-o", "out.db", "--no-progress", "--per-host", "8")
    wait_for_requests(origin, 8, before)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=GRACE + 5)
    assert time.monotonic() - sent < GRACE + 2
    assert process.returncode == 130
    assert "headrace resume out.db" in said


@pytest.mark.slow
def test_a_second_signal_does_not_wait(started, origin, tmp_path):
    """The second Ctrl-C cancels what runs: the end comes at once, and nothing is lost from the account."""
    (tmp_path / "urls.txt").write_text("\n".join(origin.url(f"/f/stall:60/twice-{n}") for n in range(20)))
    before = origin.counts()["requests"]
    process = started("fetch", "urls.txt", "-o", "out.db", "--no-progress", "--per-host", "8")
    wait_for_requests(origin, 8, before)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # two signals of one kind that are both pending are one
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert time.monotonic() - sent < 3
    assert process.returncode == 130
    assert "returned 20" in said


@pytest.mark.slow
def test_a_stream_to_standard_output_ends_at_a_signal_too(started, origin, tmp_path):
    """Without an output the running calls still come out, and the code is 130."""
    (tmp_path / "urls.txt").write_text("\n".join(origin.url(f"/f/slow:0.5/out-{n}") for n in range(24)))
    before = origin.counts()["requests"]
    process = started("fetch", "urls.txt", "--no-progress")
    wait_for_requests(origin, 8, before)
    process.send_signal(signal.SIGINT)
    data, said = process.communicate(timeout=GRACE + 5)
    assert process.returncode == 130
    assert data.count('"outcome":"done"') >= 8
    assert "DOES NOT ADD UP" not in said
