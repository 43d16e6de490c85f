"""A fetch without -o: each outcome as a line of JSON on standard output, as it comes.

Rules:
1. A slow reader slows the run down; it never blocks the loop, on which time limits are kept.
2. A reader that leaves ends the run; nothing is kept, so nothing is lost but what it did not want.
"""

from __future__ import annotations

import asyncio
import base64
import os
import select
import sys
from typing import Any

from headrace.cli.request import FetchRequest
from headrace.cli.running import account, allow_files, progress_of, report_of
from headrace.cli.screen import json_line, without_password
from headrace.errors import HeadraceError, ItemUnreadable, PlanError
from headrace.item import Done, Failed, Outcome, Parked, Skipped
from headrace.report import Report

__all__ = ["fetch_to_stdout", "write_out"]

#: A pipe that has room at all takes this much without blocking (POSIX: PIPE_BUF).
PIECE = select.PIPE_BUF
#: What a line says of each outcome: columns of the same name give way.
_OURS = frozenset({"outcome", "position", "elapsed"})
#: Seconds between two looks at a reader that is behind.
PATIENCE = 0.001


def fetch_to_stdout(
    request: FetchRequest,
    *,
    take: int | None,
    within: float | None,
    wait: float,
    quiet: bool,
    no_progress: bool,
) -> int:
    """Fetch and write outcomes until the end, a signal, or the reader leaves; give the exit code."""
    from headrace.flow.main import run_sync

    # A display between lines of data on the same terminal would tear both.
    progress = progress_of(quiet=quiet, no_progress=no_progress or _is_terminal())
    if sys.stdout is None:
        raise PlanError("standard output is closed: give an output, as -o pages.db")
    sys.stdout.flush()
    allow_files()
    flow = request.flow(take)

    async def main() -> Report:
        stream = flow.stream(
            window=request.window, within=within, wait=wait, fuse=request.fuse, progress=progress
        )
        return await _write_all(stream, request.fetch.takes_urls)

    try:
        report = run_sync(main)
    except HeadraceError as error:
        report = report_of(error)
    if not quiet or report.exit_code:
        account(report, None)
    return report.exit_code


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


async def _write_all(stream: Any, takes_urls: bool) -> Report:
    from headrace.flow.main import signals_to

    output = sys.stdout.fileno()
    with signals_to(stream.job):
        async with stream as outcomes:
            try:
                async for outcome in outcomes:
                    await write_out(output, json_line(_plain(outcome, takes_urls)))
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
                stream.job.cancel("the reader of standard output has left")
    report: Report = stream.report
    return report


async def write_out(output: int, data: bytes) -> None:
    """Write to a pipe, a terminal or a file without blocking the loop. Raises BrokenPipeError where its reader has left."""
    view = memoryview(data)
    while view:
        if not select.select((), (output,), (), 0)[1]:
            await asyncio.sleep(PATIENCE)
            continue
        view = view[os.write(output, view[:PIECE]) :]


def _plain(outcome: Outcome[Any], takes_urls: bool) -> dict[str, Any]:
    """Give an outcome as a line says it."""
    common = {
        "position": outcome.position,
        "attempts": outcome.attempts,
        "elapsed": round(outcome.elapsed, 6),
    }
    about = _about(outcome, takes_urls)
    if isinstance(outcome, Done):
        value = outcome.value
        row = dict(value) if isinstance(value, dict) else {**value.as_row(), **_body(value)}
        line = {"outcome": "done", "position": outcome.position}
        for name, cell in row.items():
            line[f"input_{name}" if name in _OURS else name] = cell
        return {**line, "elapsed": common["elapsed"]}
    if isinstance(outcome, Failed):
        error = outcome.error
        return {
            "outcome": "failed",
            **about,
            **common,
            "error": type(error).__name__,
            "cause": without_password(str(error)),
            "status": getattr(error, "status", None),
        }
    if isinstance(outcome, Parked):
        return {"outcome": "parked", **about, **common, "due": outcome.due}
    reason = outcome.reason if isinstance(outcome, Skipped) else ""
    return {"outcome": type(outcome).__name__.lower(), **about, **common, "reason": reason}


def _about(outcome: Outcome[Any], takes_urls: bool) -> dict[str, Any]:
    """Say which item it was: its URL, or what stood in the input, the columns of a row in one place."""
    item = outcome.item
    if not isinstance(item, str):
        return {"input": item}
    unread = isinstance(outcome, Failed) and isinstance(outcome.error, ItemUnreadable)
    return {"url" if takes_urls and not unread else "input": without_password(item)}


def _body(response: Any) -> dict[str, Any]:
    """Give the body as text where it is text in its charset, else as base64."""
    try:
        return {"body": response.body.decode(response.charset)}
    except UnicodeDecodeError:
        return {"body": None, "body_base64": base64.b64encode(response.body).decode()}
