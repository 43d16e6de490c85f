"""Files that grow, are rotated, emptied and missing for a while: every line once, and what happens is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import PlanError, SourceError
from headrace.files import follow
from headrace.logs.lines import Line
from headrace.logs.notices import Notice
from headrace.testing import no_leaks, run_real


def run(main: Callable[[], Any]) -> None:
    """Run in real time, and look for what is left."""

    async def checked() -> None:
        with no_leaks():
            await main()

    run_real(checked)


def append(path: Path, text: str) -> None:
    """Write as a logger does."""
    with path.open("a") as file:
        file.write(text)


async def texts(log: Any, count: int) -> list[str]:
    """Take so many lines."""
    got = []
    async with asyncio.timeout(20):
        rows = aiter(log)
        while len(got) < count:
            got.append((await anext(rows)).text)
    return got


def test_growing_file_gives_each_line_when_it_is_whole(tmp_path: Path) -> None:
    """A line comes once it has ended; offsets count bytes; a last line without an end comes at the end only."""
    path = tmp_path / "app.log"
    append(path, "one\nzwölf\nhal")

    async def main() -> None:
        async with follow(path, follow=0.005) as log:
            assert await texts(log, 2) == ["one", "zwölf"]
            append(path, "f\n")
            async for line in log:
                assert line == Line("half", str(path), 11)
                break
        append(path, "no end")
        async with follow(path, follow=False) as log:
            assert [line.text async for line in log] == ["one", "zwölf", "half", "no end"]

    run(main)


def test_rotated_file_is_read_to_its_end_and_the_new_one_from_its_beginning(tmp_path: Path) -> None:
    """Renamed and made anew, emptied in place, emptied and grown past the old size, missing for a while: no line is lost."""
    path = tmp_path / "app.log"
    append(path, "old 1\n")
    notices: list[Notice] = []

    async def main() -> None:
        async with follow(path, follow=0.005, on_notice=notices.append) as log:
            assert await texts(log, 1) == ["old 1"]
            append(path, "old 2\n")
            path.rename(tmp_path / "app.log.1")
            append(tmp_path / "app.log.1", "old 3, after the rename\n")
            await asyncio.sleep(0.02)  # missing for a while
            append(path, "new 1\n")
            assert await texts(log, 3) == ["old 2", "old 3, after the rename", "new 1"]
            path.write_text("")
            await asyncio.sleep(0.05)
            append(path, "emptied 1\n")
            assert await texts(log, 1) == ["emptied 1"]
            path.write_text("written anew, and longer than before\n" * 2)
            assert await texts(log, 2) == ["written anew, and longer than before"] * 2
        assert [notice.kind for notice in notices] == ["rotated"] * 3
        assert log.statistics()[str(path)].rotations == 3

    run(main)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("start", ["aaa", "bbb", "ccc"]),
        ("end", []),
        (4, ["bbb", "ccc"]),
        (5, ["ccc"]),
        (-4, []),
        (-5, ["ccc"]),
        (-99, ["aaa", "bbb", "ccc"]),
    ],
)
def test_reading_begins_where_it_is_told(tmp_path: Path, start: Any, expected: list[str]) -> None:
    """A start in mid-line passes over what is left of that line."""
    path = tmp_path / "app.log"
    append(path, "aaa\nbbb\nccc\n")

    async def main() -> None:
        async with follow(path, start=start, follow=False) as log:
            assert [line.text async for line in log] == expected
        async with follow(path, start=start, follow=0.005) as log:
            await texts(log, len(expected))
            while log.statistics()[str(path)].state != "waiting":
                await asyncio.sleep(0.001)
            append(path, "new\n")
            assert await texts(log, 1) == ["new"]
            path.write_text("aaa\nbbb\nccc\n")

    run(main)


def test_many_files_are_read_at_once(tmp_path: Path) -> None:
    """Lines say which file they are from, and keep its order."""
    paths = [tmp_path / f"{number}.log" for number in range(20)]
    for path in paths:
        append(path, "".join(f"{path.name} {number}\n" for number in range(1000)))

    async def main() -> None:
        got: dict[str, list[str]] = {}
        async with follow(*paths, follow=False) as log:
            async for line in log:
                got.setdefault(line.url, []).append(line.text)
        assert got == {str(path): [f"{path.name} {number}" for number in range(1000)] for path in paths}

    run(main)


def test_files_that_cannot_be_read_fail(tmp_path: Path) -> None:
    """Missing files and directories are SourceErrors with the reason; recorded, the others go on."""
    path = tmp_path / "app.log"
    append(path, "one\n")

    async def main() -> None:
        for bad, says in ((tmp_path / "none", "No such file"), (tmp_path, "not a regular file")):
            with pytest.raises(SourceError, match=says):
                async with follow(bad) as log:
                    await texts(log, 1)
            async with follow(bad, path, follow=False, on_failure="record") as log:
                assert [line.text async for line in log] == ["one"]
            assert list(log.failures) == [str(bad)]

    run(main)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    """The error says what may be given."""
    for arguments, options in (
        ((), {}),
        (("a", "a"), {}),
        (("a\0b",), {}),
        (("a",), {"start": "middle"}),
        (("a",), {"follow": 0.0}),
    ):
        with pytest.raises(PlanError):
            follow(*arguments, **options)


def test_leaving_waits_for_the_read_under_way(tmp_path: Path) -> None:
    """Leaving while a thread reads closes the file after it: no descriptor is closed under a read."""
    path = tmp_path / "app.log"
    path.write_bytes(b"x" * 63 + b"\n")
    os.truncate(path, 1 << 26)

    async def main() -> None:
        for number in range(20):
            async with follow(path) as log:
                await texts(log, 1)
                await asyncio.sleep(number * 0.001)

    run(main)
