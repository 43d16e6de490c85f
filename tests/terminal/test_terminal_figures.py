"""What a screen says of a run follows from its events alone."""

from __future__ import annotations

import pytest

from headrace.events import (
    ItemSettled,
    KeyHeld,
    LoopHeld,
    RunFinished,
    RunStarted,
    RunStateChanged,
    StageStatistics,
    Statistics,
    StatisticsSampled,
)
from headrace.terminal.figures import Figures
from headrace.terminal.text import clean, count, duration, fit, rate


def started(total=1000, settled=0, job="default"):
    return RunStarted(100.0, job, ["fetch"], 1024, total, settled, "out.db")


def sample(elapsed, done, failed=0, running=8, waiting=0, held=0, keys=(), state="running"):
    stage = StageStatistics("fetch", "loop", held=held, running=running, waiting=waiting)
    return StatisticsSampled(
        100.0 + elapsed,
        Statistics(done=done, failed=failed, elapsed=elapsed, state=state, stages=[stage], keys=keys),
    )


def figures(*events):
    made = Figures()
    made.take([RunStateChanged(100.0, "running"), *events])
    return made


def test_the_line_says_how_far_how_fast_and_how_long_still():
    """Amount, failures, rate, time left and calls in flight stand in one line."""
    made = figures(started(), sample(0, 0), sample(2, 180, failed=20))
    gap = "\N{NARROW NO-BREAK SPACE}"
    assert made.line() == f"200 of 1{gap}000 (20%) settled, 20 failed, 100/s, 8.0 s left, 8 in flight"


def test_copies_of_slow_calls_are_shown_where_there_are_some():
    """How many were started, and how many came first."""
    event = sample(2, 180)
    event.statistics.stages[0].copies, event.statistics.stages[0].copies_won = 12, 7
    made = figures(started(), sample(0, 0), event)
    assert made.line().endswith("8 in flight, copies of slow calls 12, first 7")
    assert "copies of slow calls 12, first 7" in made.screen(100)[1]
    assert "copies" not in figures(started(), sample(0, 0), sample(2, 180)).line()


def test_what_earlier_runs_did_counts_for_the_amount_and_not_for_the_rate():
    """A resumed run shows the job's progress and its own speed."""
    made = figures(started(settled=500), sample(0, 0), sample(2, 100))
    assert made.settled_in_all == 600
    assert made.per_second() == 50
    assert made.left() == 8.0


def test_the_rate_is_that_of_the_last_seconds():
    """A fast start does not colour the rate for ever."""
    made = figures(started(None), *[sample(t, 1000 + t) for t in range(60)])
    assert made.per_second() == pytest.approx(1.0)


def test_nothing_is_guessed_from_too_little():
    """Without a total there is no time left, and without a second of samples no rate."""
    assert figures(started(), sample(0, 0), sample(0.5, 400)).per_second() is None
    assert figures(started(None), sample(0, 0), sample(5, 400)).left() is None
    assert "%" not in figures(started(None), sample(0, 0), sample(5, 400)).line()


def test_an_input_that_holds_more_than_was_counted_shows_no_nonsense():
    """More settled than the total gives the plain amount, without a share above 100."""
    assert figures(started(total=10), sample(5, 12)).amount() == "12"


def test_what_items_wait_for_is_told():
    """Retries and limits are counted apart, and a held key says how long and why, until its time is over."""
    hold = KeyHeld(101.0, "host", "a.example:443", 111.0, "status 429")
    made = figures(started(), hold, sample(2, 5, waiting=3, held=40))
    assert "waiting: 3 for their next attempt, 40 for a limit" in made.line()
    assert "held: a.example:443 for 9.0 s (status 429)" in made.line()
    made.take([sample(12, 6)])
    assert "held" not in made.line()


def test_what_holds_the_loop_is_told():
    """The time that the loop was held in all, and the last place that did it, with the lane that would help."""
    hold = LoopHeld(101.0, "parse", "fib", "/app/app.py", 17, 1.5, "computes", "process")
    made = figures(started(), sample(0, 0), hold, hold, sample(2, 100))
    assert "loop held 3.0 s" in made.line()
    line = next(line for line in made.screen(120) if "last by" in line)
    assert line == "  loop held for 3.0 s in all, last by parse, fib at /app/app.py:17: use lane='process'"
    assert "held" not in figures(started(), sample(2, 100)).line()


def test_the_busiest_hosts_are_named():
    """Keys with calls under way, most first."""
    keys = [
        {"limit": "host", "key": key, "running": n, "held": 0.0} for key, n in (("a", 2), ("b", 8), ("c", 0))
    ]
    assert "  busiest: b 8 · a 2" in figures(started(), sample(1, 5, keys=keys)).screen(80)
    for key, level in zip(keys, (None, 12, 1), strict=True):
        key["level"] = level
    assert "  busiest: b 8 of 12 · a 2" in figures(started(), sample(1, 5, keys=keys)).screen(80)
    keys = [{**key, "rate": 190.04 if key["key"] == "b" else None} for key in keys]
    assert "  busiest: b 8 of 12 at 190/s · a 2" in figures(started(), sample(1, 5, keys=keys)).screen(80)


def test_a_stop_explains_what_goes_on():
    """Draining says that running calls may finish and what the signal does again; the end says nothing of it."""
    made = figures(started(), sample(1, 5), RunStateChanged(102.0, "draining", "SIGINT"))
    assert (
        "stopping (SIGINT): 8 running calls may finish; the same signal again cancels them"
        in made.screen(120)[-1]
    )
    made.take([RunFinished(103.0, {})])
    assert made.notice() == ""
    assert len(made.screen(120)) == 1


def test_no_line_is_wider_than_the_screen():
    """Whatever the width, the display does not wrap."""
    error = "StatusError: " + "x" * 300
    failure = ItemSettled(101.0, 3, "failed", "fetch", 4, 1.0, error)
    hold = KeyHeld(101.0, "host", "h" * 200, 111.0, "r" * 200)
    made = figures(started(job="j" * 60), failure, hold, sample(2, 5, waiting=3, held=40))
    for width in (10, 40, 80, 200):
        assert all(len(line) <= width for line in made.screen(width))


def test_foreign_text_is_shown_and_not_obeyed():
    """Escapes, line breaks and direction marks in errors, keys and names come out as text."""
    evil = "\x1b[2J\r\n\x9b\u202eabc"
    failure = ItemSettled(101.0, 3, "failed", "fetch", 4, 1.0, evil)
    made = figures(started(job=evil), failure, KeyHeld(101.0, "host", evil, 111.0, evil), sample(2, 5))
    shown = "".join(made.screen(500)) + made.line()
    assert not set(shown) & set("\x1b\r\n\x9b\u202e")
    assert "abc" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1m 00s"), (3599.7, "1h 00m"),
        (7620, "2h 07m"),
        (86_400 * 4 + 3 * 3600, "4d 03h"), (float("inf"), "?"), (-1, "0.0 s"),
    ],
)  # fmt: skip
def test_durations_read_well(seconds, text):
    """The two largest units, and no 60 seconds in a minute."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(0, "0/s"), (95.4, "95/s"), (3.21, "3.2/s"), (0.25, "15/min"), (0.01, "36/h"), (float("nan"), "0/s")],
)  # fmt: skip
def test_rates_read_well(per_second, text):
    """Slow rates are told per minute or hour."""
    assert rate(per_second) == text


def test_text_is_cut_with_a_mark_and_cleaned():
    """`fit` keeps the width; `clean` keeps letters of all languages and escapes what a terminal would obey."""
    assert fit("abcdef", 4) == "abc…"
    assert fit("abc", 3) == "abc"
    assert clean("Grüße, 世界\t\x00\ud800") == "Grüße, 世界\\t\\x00\\ud800"
    assert count(1234567).replace("\N{NARROW NO-BREAK SPACE}", "_") == "1_234_567"


def test_what_is_parked_stands_on_the_screen():
    """The number of parked items stands in the line and on the screen, that of the whole job where it is more."""
    parked = Statistics(done=10, parked=3, job_parked=12, elapsed=2.0)
    made = figures(started(), StatisticsSampled(102.0, parked))
    assert "12 parked" in made.line()
    assert any("parked 12" in line for line in made.screen(100))
    assert "parked" not in figures(started(), sample(2, 10)).line()
