"""The demo: real files over HTTP from a faulty origin, a kill -9 half-way, and everything accounted for at the end.

Rules:
1. The job runs as a child process, as a user would run it; what is printed about it is read from its output,
   or asked from the origin, or is its own words.
2. It ends in well under 30 seconds, and leaves no process behind, whatever happens.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headrace.demo import job
from headrace.demo.origin import Origin, standard_library
from headrace.errors import LedgerError
from headrace.flow.place import open as open_place

__all__ = ["main"]

SEED: Final = 5
LOOK: Final = 0.05  # seconds between two looks at the job's ledger
LONGEST: Final = 60.0  # seconds for one run of the job; far beyond what it takes


def main(keep: bool = False) -> int:
    """Show the whole of it on standard output; give 0 if everything is accounted for, else 1.

    The temporary directory is named first, and stays with `keep=True`. Raises RuntimeError where the origin
    does not start, or the job does not get on.
    """
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    _say(f"In {directory}{'' if keep else ' (removed at the end; --keep keeps it)'}")
    try:
        good = _show(directory)
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    _say(f"\n{time.monotonic() - began:.1f} s in all." + (f" Look around in {directory}" if keep else ""))
    return 0 if good else 1


def _show(directory: Path) -> bool:
    urls, place = directory / "urls.txt", directory / "modules.db"
    with Origin.start(root=standard_library(), seed=SEED) as origin:
        urls.write_text("".join(f"{url}\n" for url in origin.urls()))
        _say(
            f"An origin on 127.0.0.1:{origin.port} serves the {origin.documents} files of this Python's standard library.\n"
            "To one request in four it answers 429 or 503, with silence, a reset, half a body or a trickle.\n\nThe job:\n"
        )
        _say(_source())
        command = [sys.executable, "-m", "headrace.demo.job", str(urls), str(place)]
        killed_at = _run_and_kill(command, place, origin.documents // 2)
        _say(f"\nkill -9 with {killed_at} items settled. Then the same command again:\n")
        code = _run(command, place, origin.documents)
        _say(f"exit code {code}: " + ("all done" if code == 0 else "there are dead letters") + "\n")
        good = _account(place, origin)
    _failures(place)
    _results(place)
    return good


def _source() -> str:
    """Give the flow as it stands in the job's file."""
    text = inspect.getsource(job.make_flow)
    return "\n".join(f"    {line}" for line in text.strip().splitlines()) + "\n"


def _done(place: Path) -> int:
    """Count the settled items in the job's ledger; 0 while there is none yet."""
    try:
        status = open_place(place).job(job.JOB).status()
    except LedgerError:
        return 0
    return status.done + status.failed + status.skipped


@contextlib.contextmanager
def _child(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the job as a child; it is dead when the block is left."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _run_and_kill(command: list[str], place: Path, half: int) -> int:
    with _child(command) as process:
        _watch(process, place, half, 2 * half)
        if process.poll() is not None:
            raise RuntimeError(f"the job ended with {process.returncode} before it was half-way")
        process.kill()
    return _done(place)


def _run(command: list[str], place: Path, total: int) -> int:
    with _child(command) as process:
        _watch(process, place, total + 1, total)
        assert process.stdout is not None
        _say("\n".join(f"    {line}" for line in process.stdout.read().splitlines()))
        return process.wait()


def _watch(process: subprocess.Popen[str], place: Path, until: int, total: int) -> None:
    """Wait until so many items are settled, or the process has ended."""
    terminal = sys.stdout.isatty()
    deadline = time.monotonic() + LONGEST
    while (done := _done(place)) < until:
        if terminal:
            print(f"\r    {done:5} of {total} settled ", end="", flush=True)
        try:
            process.wait(LOOK)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the job settled {done} items in {LONGEST:g} s and did not end") from None
        else:
            break
    if terminal:
        print("\r" + " " * 40 + "\r", end="", flush=True)


def _account(place: Path, origin: Origin) -> bool:
    """Compare the input with results and dead letters, and the origin's account with both."""
    with contextlib.closing(sqlite3.connect(f"file:{place}?mode=ro", uri=True)) as database:
        rows, positions = database.execute(
            f"SELECT count(*), count(DISTINCT _position) FROM {job.TABLE}"  # noqa: S608 - a constant
        ).fetchone()
        results = {row[0] for row in database.execute(f"SELECT _position FROM {job.TABLE}")}  # noqa: S608
        sound = database.execute("PRAGMA integrity_check").fetchone()[0]
    letters = {letter.position for letter in open_place(place).job(job.JOB).failures()}
    once = rows == positions and not results & letters
    complete = results | letters == set(range(origin.documents))
    counts = origin.counts()
    faults = sum(number for kind, number in counts["faults"].items() if kind != "gone")
    few = counts["repeated"] <= job.WINDOW
    _say(
        f"{origin.documents} URLs = {len(results)} results + {len(letters)} dead letters; "
        f"each {'exactly once' if once and complete else 'NOT EXACTLY ONCE'}; integrity check: {sound}\n"
        f"The origin was asked {counts['requests']} times, did wrong {faults} times, and was asked again"
        f" {counts['repeated']} times\nfor what it had fully answered: the work in flight at the kill"
        f" (window: {job.WINDOW})."
    )
    return once and complete and few and sound == "ok"


def _failures(place: Path) -> None:
    causes = Counter(
        (letter.stage, letter.error if letter.status is None else f"status {letter.status}")
        for letter in open_place(place).job(job.JOB).failures()
    )
    _say("\nDead letters by cause:")
    for (stage, cause), number in causes.most_common():
        _say(f"    {number:5}  {stage}: {cause}")


def _results(place: Path) -> None:
    _say("\nAnd from the results:")
    with contextlib.closing(sqlite3.connect(f"file:{place}?mode=ro", uri=True)) as database:
        cursor = database.execute(job.QUERY)
        _say("    " + "".join(f"{name[0]:>16}" for name in cursor.description))
        for row in cursor:
            _say("    " + "".join(f"{value!s:>16}" for value in row))


def _say(text: str) -> None:
    print(text, flush=True)
