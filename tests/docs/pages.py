"""The pages of the documentation and the snippets in them: reading them, and running one page.

Rules:
1. A page is run in an empty directory, top to bottom, as a reader would type it; its python blocks share one namespace.
2. A ```python block runs here (`await` at its top level is allowed), a ```console block runs its `$ ` lines; ```text is
   shown, ```sh is for what installs or serves and is not run.
3. A comment right above a block says what is special about it:
   <!-- file: job.py -->    it is written into that file, and not run
   <!-- output -->          it is what the python block before it prints
   <!-- no-test: reason --> it is not run
4. In expected output `…` stands for anything; how many spaces there are does not matter.
5. After a command that is to fail, `$ echo $?` shows its exit code; all others end with 0.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headrace.testing import run_real

__all__ = ["PAGES", "ROOT", "Block", "PageRun", "blocks", "problems"]

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

#: Addresses that stand in the pages, and what of the local origin stands behind them in a test.
ADDRESSES = {
    "http://127.0.0.1:8000/": "http://{host}/",
    "127.0.0.1:8000": "{host}",
    "https://api.example/users/": "http://{host}/n/",
    "https://api.example/orders": "http://{host}/f/ok/orders",
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- ([^>]*) -->\n\Z")


class Block(NamedTuple):
    """A fenced block: the line of its first line of text, its language, its text, and the note above it."""

    line: int
    language: str
    text: str
    note: str


def blocks(page: Path) -> Iterator[Block]:
    """Give the blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        note = _NOTE.search(text[: found.start()])
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(line, found[1], found[2], note[1] if note else "")


class PageRun:
    """One run of one page, in the current directory."""

    def __init__(self, page: Path, host: str) -> None:
        self.page = page
        self.name = page.relative_to(ROOT).as_posix()
        self.printed = ""
        self._addresses = {shown: real.format(host=host) for shown, real in ADDRESSES.items()}
        self._module = types.ModuleType("snippets")
        self._environment = {**os.environ, "COLUMNS": "120"}

    def run(self) -> None:
        """Run all of it; AssertionError names the page and the line."""
        sys.modules[self._module.__name__] = self._module
        try:
            for block in blocks(self.page):
                self._run_block(block)
        finally:
            del sys.modules[self._module.__name__]

    def _run_block(self, block: Block) -> None:
        text = block.text
        for shown, real in self._addresses.items():
            text = text.replace(shown, real)
        kind, _, rest = block.note.partition(":")
        if kind == "file":
            Path(rest.strip()).write_text(text, encoding="utf-8")
        elif kind == "output":
            self._compare(text, self.printed, block.line)
        elif kind == "no-test":
            return
        elif block.language == "python":
            self._python(text, block.line)
        elif block.language == "console":
            self._console(text, block.line)

    def _python(self, text: str, line: int) -> None:
        source = "\n" * (line - 1) + text
        code = compile(source, self.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        namespace = vars(self._module)
        printed = io.StringIO()

        async def main() -> None:
            await eval(code, namespace)

        try:
            with contextlib.redirect_stdout(printed):
                if code.co_flags & inspect.CO_COROUTINE:
                    run_real(main)
                else:
                    exec(code, namespace)
        except BaseException as error:
            error.add_note(f"in the block at {self.name}:{line}")
            raise
        self.printed = printed.getvalue()

    def _console(self, text: str, line: int) -> None:
        commands: list[tuple[str, str]] = []
        for row in text.splitlines():
            if row.startswith("$ "):
                commands.append((row[2:], ""))
            else:
                command, output = commands[-1]
                commands[-1] = (command, f"{output}{row}\n")
        for number, (command, output) in enumerate(commands):
            if command == "echo $?":
                continue
            follows = commands[number + 1] if number + 1 < len(commands) else ("", "")
            code = int(follows[1]) if follows[0] == "echo $?" else 0
            self._command(command, output, code, line)

    def _command(self, command: str, output: str, code: int, line: int) -> None:
        program, *arguments = shlex.split(command)
        if program == "export":
            name, _, value = arguments[0].partition("=")
            self._environment[name] = value
            return
        start = {"headrace": [sys.executable, "-m", "headrace"], "python": [sys.executable]}
        ended = subprocess.run(
            [*start[program], *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env=self._environment,
        )
        where = f"{self.name}:{line}: $ {command}"
        assert ended.returncode == code, (
            f"{where}\nended with {ended.returncode}, not {code}:\n{ended.stdout}"
        )
        if output:
            self._compare(output, ended.stdout, line)

    def _compare(self, expected: str, printed: str, line: int) -> None:
        pattern = ".*".join(re.escape(part) for part in re.split(" ?… ?", _plain(expected)))
        assert re.fullmatch(pattern, _plain(printed), re.DOTALL), (
            f"{self.name}:{line}: the page shows\n{expected}\nand it printed\n{printed}"
        )


def _plain(text: str) -> str:
    return " ".join(text.split())


def problems(page: Path) -> list[str]:
    """Say what is wrong with the blocks of a page, without running them."""
    found: list[str] = []
    allowed: Any = ("python", "console", "text", "sh")
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}: "
        kind, _, reason = block.note.partition(":")
        if block.language not in allowed:
            found.append(where + f"the language is {block.language!r}, not one of {', '.join(allowed)}")
        if kind == "no-test" and not reason.strip():
            found.append(where + "no-test needs a reason")
        if block.language == "console" and not block.text.startswith("$ "):
            found.append(where + "a console block begins with «$ » and a command")
        if block.language == "sh":
            words = {row.split()[0] for row in block.text.splitlines() if row and not row.startswith("#")}
            if not words <= {"uvx", "pipx", "pip", "make", "git", "cd", "python", "headrace"}:
                found.append(where + "sh is for what installs or serves; put other commands into console")
    return found
