"""What `headrace tail` does: logs to lines, lines to where they are wanted.

Rules:
1. A slow reader slows the logs down; a reader that leaves ends the command.
2. Labels are as short as they can be: the last part of a URL or path where that tells the logs apart.
3. A line is shown on a terminal without what it could obey; into a pipe or a file it goes as it is.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from headrace.cli.screen import json_line, say, without_password
from headrace.errors import HeadraceError, PlanError
from headrace.terminal.text import clean

if TYPE_CHECKING:
    from headrace.logs.lines import Line
    from headrace.logs.notices import Notice
    from headrace.logs.stream import LogStream

__all__ = ["TailOptions", "Tailing", "labels"]

_COLOURS = (36, 33, 32, 35, 34, 31)
_DATABASE = (".db", ".sqlite", ".sqlite3")
_JSON = (".jsonl", ".ndjson")


@dataclasses.dataclass(slots=True, kw_only=True)
class TailOptions:
    """The options of the command, read."""

    inputs: Sequence[str]
    out: str | None
    grep: re.Pattern[str] | None
    until: re.Pattern[str] | None
    lines: int | None
    start: Any
    follow: bool
    idle: float
    attempts: int
    headers: Sequence[tuple[str, Any]]
    json: bool
    quiet: bool

    def check(self) -> None:
        """Raise PlanError for what cannot work, before anything is opened."""
        from headrace.http.url import parse

        for word in self.inputs:
            if "://" in word:
                try:
                    parse(word)
                except HeadraceError as error:
                    raise PlanError(str(error)) from error
            elif not os.path.exists(word):
                raise PlanError(f"{word} does not exist; for a URL write https://{word}")
        if len(set(self.inputs)) < len(self.inputs):
            raise PlanError("a log is given twice: each is read once")
        if self.out is None:
            return
        if os.path.isdir(self.out):
            raise PlanError(f"-o {self.out} is a directory: give the name of a file")
        if not os.path.isdir(os.path.dirname(self.out) or "."):
            raise PlanError(
                f"-o {self.out}: the directory {os.path.dirname(self.out)} does not exist; make it first"
            )
        if any(os.path.exists(word) and _same(word, self.out) for word in self.inputs):
            raise PlanError(f"-o {self.out} is one of the logs: give another file")


def _same(one: str, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(one, other)


def labels(names: Sequence[str]) -> dict[str, str]:
    """Give each log its label: nothing for one alone; its last part where those differ; else all of its name, masked."""
    from headrace.http.url import mask

    if len(names) == 1:
        return {names[0]: ""}
    short = {name: _last_part(name) for name in names}
    if len(set(short.values())) < len(names) or not all(short.values()):
        short = {name: mask(name) for name in names}
    return short


def _last_part(name: str) -> str:
    if "://" in name:
        name = name.partition("://")[2].partition("?")[0].partition("#")[0]
    return name.rstrip("/").rpartition("/")[2]


def _open_appended(path: str) -> int:
    """Open a file to append to, for its owner only where it is new."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PlanError(f"-o {path} cannot be written: {error.strerror}") from error


class Tailing:
    """One run of the command."""

    def __init__(self, options: TailOptions) -> None:
        self._options = options
        self._given = 0
        self._matched = False
        self._signal: int | None = None
        self._stream: LogStream[Line] | None = None
        #: What stands for a log in output: its name without user and password.
        self._names = {name: without_password(name) for name in options.inputs}

    def run(self) -> int:
        """Read until the end, a match, a signal, or the reader leaves; give the exit code."""
        from headrace.flow.main import run_sync

        if self._options.out is None and sys.stdout is None:
            raise PlanError("standard output is closed: give an output, as -o lines.db")
        return run_sync(self._main)

    async def _main(self) -> int:
        from headrace.flow.main import signals_to

        async with AsyncExitStack() as stack:
            write, starts = await self._open_output(stack)
            stream = self._stream = await stack.enter_async_context(self._logs(starts))
            with signals_to(self):
                try:
                    await self._read(stream, write)
                except BrokenPipeError:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._account(stream)
            if self._signal is not None:
                return 128 + self._signal
            missed = self._options.until is not None and not self._matched
            return 1 if stream.failures or missed else 0

    def stop(self, reason: str, *, signal: int | None = None) -> None:
        """End at a signal: what has arrived is still written."""
        self._signal = signal
        if self._stream is not None:
            self._stream.stop()

    def cancel(self, reason: str) -> None:
        """End now."""
        self.stop(reason, signal=self._signal)

    # ------------------------------------------------------------------------------------------ logs

    def _logs(self, starts: dict[str, int]) -> LogStream[Line]:
        """Put URLs and files together as one stream."""
        from headrace.aio.disk import Disk
        from headrace.files.growing import FileLog
        from headrace.http.client import Client
        from headrace.http.logs import http_log
        from headrace.logs.stream import LogStream
        from headrace.policies.retry import Retry

        options = self._options
        client, disk = Client(max_body=None), Disk()
        logs: dict[str, Any] = {}
        for name in options.inputs:
            # The last line that is there is passed over, and what comes after it is read.
            shown = self._names[name]
            goes_on = shown in starts and options.start is None
            begin: Any = starts[shown] + 1 if goes_on else options.start or "start"
            if "://" in name:
                logs[name] = http_log(
                    name,
                    client,
                    start=begin,
                    follow=1.0 if options.follow else None,
                    headers=dict(options.headers),
                    idle=options.idle,
                    retry=Retry(attempts=options.attempts),
                    on_notice=self._tell,
                )
            else:
                logs[name] = FileLog(
                    name, start=begin, follow=options.follow, disk=disk, on_notice=self._tell
                )

        async def close() -> None:
            disk.close()
            await client.aclose()

        return LogStream(logs, "record", self._tell, close)

    def _tell(self, notice: Notice) -> None:
        if notice.kind == "ended" or (self._options.quiet and notice.kind == "broken off"):
            return
        say(clean(str(notice)))

    # ------------------------------------------------------------------------------------------ lines

    async def _read(self, stream: LogStream[Line], write: Callable[[list[Line]], Awaitable[None]]) -> None:
        options = self._options
        async for batch in stream.batches():
            wanted, is_over = self._choose(batch)
            if wanted:
                await write(wanted)
                self._given += len(wanted)
            if is_over or (options.lines is not None and self._given >= options.lines):
                return

    def _choose(self, batch: list[Line]) -> tuple[list[Line], bool]:
        """Give the lines that are wanted, and whether the last of them ends it all."""
        options = self._options
        is_over = False
        if options.until is not None:
            for number, line in enumerate(batch):
                if options.until.search(line.text):
                    batch, is_over, self._matched = batch[: number + 1], True, True
                    break
        if options.grep is not None:
            search = options.grep.search
            kept = [line for line in batch if search(line.text)]
            if is_over and (not kept or kept[-1] is not batch[-1]):
                kept.append(batch[-1])
            batch = kept
        if options.lines is not None:
            batch = batch[: options.lines - self._given]
        return batch, is_over

    async def _open_output(
        self, stack: AsyncExitStack
    ) -> tuple[Callable[[list[Line]], Awaitable[None]], dict[str, int]]:
        """Give what takes the lines, and where each log is to be gone on with."""
        from headrace.cli.lines import write_out

        out = self._options.out
        if out is not None and out.endswith(_DATABASE):
            from headrace.sqlite.log_table import LogTable

            table = await stack.enter_async_context(LogTable(out))

            async def append(lines: list[Line]) -> None:
                await table.append([self._without_password(line) for line in lines])

            return append, await table.places()
        if out is None:
            descriptor = sys.stdout.fileno()
            form = self._form(sys.stdout.isatty(), self._options.json)
        else:
            descriptor = _open_appended(out)
            stack.callback(os.close, descriptor)
            form = self._form(False, self._options.json or out.endswith(_JSON))

        async def write(lines: list[Line]) -> None:
            await write_out(descriptor, form(lines))

        return write, {}

    def _without_password(self, line: Line) -> Line:
        name = self._names[line.url]
        return line if name is line.url else type(line)(line.text, name, line.offset)

    def _form(self, is_terminal: bool, as_json: bool) -> Callable[[list[Line]], bytes]:
        """Give what writes lines as bytes."""
        if as_json:
            return lambda lines: b"".join(
                json_line({"url": self._names[line.url], "offset": line.offset, "text": line.text})
                for line in lines
            )
        names = labels(self._options.inputs)
        colours = is_terminal and not os.environ.get("NO_COLOR")
        before: dict[str, str] = {}
        for number, (name, label) in enumerate(names.items()):
            shown = f"{clean(label)}: " if label else ""
            if shown and colours:
                shown = f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{shown}\x1b[0m"
            before[name] = shown
        show = clean if is_terminal else str

        def written(lines: list[Line]) -> bytes:
            text = "\n".join([before[line.url] + show(line.text) for line in lines])
            return (text + "\n").encode("utf-8", "replace")

        return written

    def _account(self, stream: LogStream[Line]) -> None:
        """Say what was read, where it is not the terminal that shows it."""
        options = self._options
        if options.quiet and not stream.failures:
            return
        found = list(stream.statistics().values())
        read = sum(each.records for each in found)
        lines = "1 line" if self._given == 1 else f"{self._given} lines"
        said = [lines if read == self._given else f"{lines} given of {read} read"]
        for count, word in (
            (sum(each.rotations for each in found), "rotations"),
            (sum(each.gaps for each in found), "gaps"),
            (sum(each.replaced for each in found), "characters that are not UTF-8"),
            (len(stream.failures), "logs given up"),
        ):
            if count:
                said.append(f"{count} {word}")
        say(", ".join(said) + (f" → {options.out}" if options.out is not None else ""))
