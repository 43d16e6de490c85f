"""Progress suits the place, and never hurts the run that it shows."""

from __future__ import annotations

import io
import sys

import pytest

from headrace.events import (
    RunFinished,
    RunStarted,
    RunStateChanged,
    StageStatistics,
    Statistics,
    StatisticsSampled,
)
from headrace.flow.builder import Flow
from headrace.terminal.progress import LinesProgress, LiveProgress, in_notebook, progress_for_here
from headrace.testing import run


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


class Broken(io.StringIO):
    """A terminal that has gone away."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(5, "Input/output error")


def sample(at, done):
    stage = StageStatistics("work", "loop", running=3)
    return StatisticsSampled(at, Statistics(done=done, elapsed=at - 100, stages=[stage]))


START = RunStarted(100.0, "default", ["work"], 64, 100)
END = RunFinished(120.0, {})


def test_lines_come_every_few_seconds_and_at_the_end():
    """One line in five seconds of the run's time, one when a stop begins, one at the end."""
    stream = io.StringIO()
    progress = LinesProgress(stream)
    progress([START])
    for at in range(100, 112):
        progress([sample(float(at), at - 100)])
    progress([RunStateChanged(112.0, "draining", "SIGTERM")])
    progress([RunStateChanged(112.1, "draining", "SIGTERM")])
    progress([sample(113.0, 20), END])
    lines = stream.getvalue().splitlines()
    assert [line.partition(" of ")[0] for line in lines] == [
        "headrace: 5",
        "headrace: 10",
        "headrace: stopping (SIGTERM): 3 running calls may finish; the same signal again cancels them",
        "headrace: 20",
    ]


def test_a_display_leaves_its_last_line_and_a_visible_cursor(monkeypatch):
    """What was drawn is erased, the summary stays, and the last word about the cursor is «show»."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = LiveProgress(stream)
    progress([START, sample(100.5, 10)])
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")  # also while it runs
    progress([sample(101.0, 50)])
    progress([sample(102.0, 100), END])
    written = stream.getvalue()
    assert "in flight 3" in written
    assert written.rindex("100 of 100 (100%)") > written.rindex("in flight")
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_drawing_is_paced_by_the_runs_own_time(monkeypatch):
    """Batches that come faster than the eye are folded in and not drawn."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = LiveProgress(stream)
    progress([START])
    for number in range(1000):
        progress([sample(100.0 + number / 1000, number)])
    drawn = stream.getvalue().count("in flight")
    progress([END])
    assert drawn <= 6


@pytest.mark.parametrize("kind", [LinesProgress, LiveProgress])
def test_a_terminal_that_breaks_breaks_nothing_else(kind, monkeypatch):
    """A stream that raises is given up; standard error is the program's own again."""
    monkeypatch.setenv("TERM", "xterm")
    before = (sys.stdout, sys.stderr)
    progress = kind(Broken())
    progress([START, sample(100.5, 10)])
    progress([sample(110.0, 20)])
    progress([END])
    assert (sys.stdout, sys.stderr) == before


def test_a_closed_stream_breaks_nothing_either():
    """Progress for a stream that was closed is lines that nobody reads."""
    stream = io.StringIO()
    stream.close()
    progress = progress_for_here(stream)
    progress([START, sample(110.0, 20), END])


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [
        (Terminal(), "xterm", LiveProgress),
        (Terminal(), "dumb", LinesProgress),
        (io.StringIO(), "xterm", LinesProgress),
    ],
)
def test_the_place_decides(stream, term, kind, monkeypatch):
    """A display on a terminal that can move its cursor, lines everywhere else."""
    monkeypatch.setenv("TERM", term)
    assert type(progress_for_here(stream)) is kind


def test_a_notebook_gets_lines_below_its_cell(monkeypatch):
    """In an IPython kernel lines go to standard output, even where that calls itself a terminal."""

    class Kernel:
        kernel = object()

    class IPython:
        @staticmethod
        def get_ipython():
            return Kernel()

    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", IPython)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    progress = progress_for_here()
    assert isinstance(progress, LinesProgress)
    progress([START, sample(110.0, 20), END])
    assert "20 of 100" in sys.stdout.getvalue()


def test_a_real_run_is_shown_to_its_end():
    """`progress=` of a run gets events that make the right last line."""
    stream = io.StringIO()

    async def work(number):
        if number == 7:
            raise ValueError("seven")
        return number

    async def main():
        return await Flow(range(50)).map(work).run(progress=LinesProgress(stream))

    report = run(main)
    assert report.warnings == ()
    assert stream.getvalue().splitlines()[-1].startswith("headrace: 50 of 50 (100%) settled, 1 failed, in ")
