"""Progress while a run goes on: a live display on a terminal, a line every few seconds elsewhere.

Rules:
1. What listens to a run must not hurt it: nothing here raises, and a screen that cannot be written to is left alone.
2. Progress goes to standard error, so that standard output stays data; in a notebook, below the cell.
3. The cursor is never left hidden, however the process ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from headrace.events import Event, RunStateChanged
from headrace.ports import Subscriber
from headrace.terminal.figures import Figures

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["LinesProgress", "LiveProgress", "in_notebook", "progress_for_here"]

#: Seconds between two lines, and between two drawings of the display.
LINE_EVERY = 5.0
DRAW_EVERY = 0.2


def progress_for_here(stream: TextIO | None = None) -> Subscriber:
    """Give what suits the place where the program runs: a live display on a terminal, else lines.

    `stream` is standard error unless given; in a notebook it is standard output, which is shown below the cell.
    """
    if in_notebook():
        return LinesProgress(stream or sys.stdout)
    stream = stream or sys.stderr
    if _is_terminal(stream):
        return LiveProgress(stream)
    return LinesProgress(stream)


def in_notebook() -> bool:
    """Whether this is an IPython kernel, as notebooks run it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    except (AttributeError, ValueError):  # a closed stream, or one that is no file
        return False


class LinesProgress:
    """Writes a line every few seconds of the run's own time, one when it begins to stop, and one at its end."""

    def __init__(self, stream: TextIO, *, every: float = LINE_EVERY) -> None:
        self.figures = Figures()
        self._stream = stream
        self._every = every
        self._next: float | None = None
        self._broken = False

    def __call__(self, events: Sequence[Event]) -> None:
        """Take a batch of events. Never raises: a stream that cannot be written to is given up."""
        if self._broken:
            return
        try:
            self._take(events)
        except Exception:  # noqa: BLE001 - progress must not cost a run anything, whatever is wrong with the stream
            self._broken = True

    def _take(self, events: Sequence[Event]) -> None:
        figures = self.figures
        before = figures.state
        figures.take(events)
        if self._next is None:
            self._next = figures.at + self._every
        if figures.finished:
            self._write(figures.line())
            return
        changed = any(isinstance(event, RunStateChanged) for event in events) and figures.state != before
        if changed and (notice := figures.notice()):
            self._write(notice)
        if figures.at >= self._next:
            self._next = figures.at + self._every
            self._write(figures.line())

    def _write(self, text: str) -> None:
        self._stream.write(f"headrace: {text}\n")
        self._stream.flush()


class LiveProgress:
    """Draws a few lines again and again in one place of the terminal, until the run is over."""

    def __init__(self, stream: TextIO, *, every: float = DRAW_EVERY) -> None:
        self.figures = Figures()
        self._stream = stream
        self._every = every
        self._next = 0.0
        self._live: Live | None = None
        self._broken = False

    def __call__(self, events: Sequence[Event]) -> None:
        """Take a batch of events. Never raises: a terminal that cannot be drawn on is put right and given up."""
        if self._broken:
            return
        try:
            self.figures.take(events)
            if self.figures.finished:
                self._draw()
                self._end()
            elif self.figures.started is not None and self.figures.at >= self._next:
                self._next = self.figures.at + self._every
                self._draw()
        except Exception:  # noqa: BLE001 - progress must not cost a run anything, whatever is wrong with the terminal
            self._broken = True
            self._give_up()

    def _draw(self) -> None:
        if self._live is None:
            self._live = self._begin()
        width = self._live.console.width
        self._live.update(_text("\n".join(self.figures.screen(width))), refresh=True)

    def _begin(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        live = Live(
            console=console,
            auto_refresh=False,
            # What the program prints to the terminal goes above the display; what it prints elsewhere is data.
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=True,
            vertical_overflow="crop",
        )
        live.start()
        # rich hides the cursor; after a kill it would stay hidden, and nobody could put it back.
        console.show_cursor(True)
        return live

    def _end(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _give_up(self) -> None:
        try:
            self._end()
        except Exception:  # noqa: BLE001 - it is broken already; there is nobody left to tell
            self._live = None


def _text(content: str) -> Any:
    from rich.text import Text

    return Text(content, no_wrap=True, overflow="ellipsis")
