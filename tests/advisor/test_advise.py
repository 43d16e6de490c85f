"""The advisor tells kinds of functions from each other, and makes no more calls than it said."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import headrace as hr
from headrace.advisor.steps import Steps, stepped
from headrace.testing import run

DATA = b"0123456789abcdef" * 65_536  # 1 MB
ARRAY = numpy.random.default_rng(1).random((600, 600))
LINES = json.dumps([{"n": n, "text": "x" * n} for n in range(200)])


def waits_for_a_socket(_: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.01)
        with pytest.raises(TimeoutError):
            ours.recv(1)


def sleeps(_: int) -> None:
    time.sleep(0.01)


def parses(_: int) -> int:
    return sum(len(word) for _ in range(40) for word in LINES.split(","))


def hashes(_: int) -> str:
    return hashlib.sha256(DATA).hexdigest()


def compresses(_: int) -> int:
    return len(zlib.compress(DATA))


def backtracks(_: int) -> Any:
    return re.match(r"(a+)+b", "a" * 17)


def sorts(_: int) -> float:
    return float(numpy.sort(ARRAY, axis=None)[0])


def adds(n: int) -> int:
    return n + 1


async def waits(_: int) -> None:
    await asyncio.sleep(0.01)


async def computes(_: int) -> None:
    await asyncio.sleep(0.001)
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        sum(range(100))


async def blocks(_: int) -> None:
    await asyncio.sleep(0.001)
    time.sleep(0.06)


@pytest.mark.parametrize(
    ("fn", "kind", "lane"),
    [
        (waits_for_a_socket, "blocks", "thread"),
        (sleeps, "blocks", "thread"),
        (parses, "computes, holding the GIL", "process"),
        (hashes, "computes, releasing the GIL", "thread"),
        (compresses, "computes, releasing the GIL", "thread"),
        (backtracks, "computes, holding the GIL", "process"),
        (sorts, "computes, releasing the GIL", "thread"),
        (adds, "small", "loop"),
        (waits, "waits", "loop"),
        (computes, "computes, holding the loop", "process"),
        (blocks, "waits, holding the loop", "thread"),
    ],
)
def test_kinds_are_told_apart(fn: Callable[[int], Any], kind: str, lane: str) -> None:
    """What waits, what computes with and without the GIL, what holds the loop: each is known by what was measured."""
    advice = hr.advise(fn, range(10), calls=20 if fn in (computes, blocks) else 50)
    assert (advice.kind, advice.lane) == (kind, lane), str(advice)
    assert fn.__name__ in str(advice)
    assert kind in str(advice)


@pytest.mark.parametrize("calls", [1, 2, 7, 50])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("computing", [False, True])
def test_no_more_calls_are_made_than_said(calls: int, asynchronous: bool, computing: bool) -> None:
    """The calls are the user's, with their effects: there are as many as it says, and at most `calls`."""
    made: list[int] = []

    def plain(n: int) -> int:
        made.append(n)
        if computing:
            return sum(range(20_000))
        time.sleep(0.001)
        return 0

    async def waiting(n: int) -> int:
        await asyncio.sleep(0)
        return plain(n)

    advice = hr.advise(waiting if asynchronous else plain, [1, 2, 3], calls=calls)
    assert len(made) == advice.calls <= calls
    assert set(made) <= {1, 2, 3}


def test_calls_that_raise_are_counted() -> None:
    """Some samples may be bad; where every call raises, the first error is raised."""

    def even_only(n: int) -> int:
        if n % 2:
            raise ValueError(f"{n} is odd")
        time.sleep(0.001)
        return n

    advice = hr.advise(even_only, range(6), calls=30)
    assert advice.errors > 0
    assert "failed" in str(advice)
    with pytest.raises(ValueError, match="1 is odd"):
        hr.advise(even_only, [1, 3], calls=10)


def test_it_measures_where_a_loop_runs() -> None:
    """A notebook has a loop of its own: the measuring goes on beside it, in a thread."""

    async def main() -> Any:
        return hr.advise(waits, range(3), calls=5)

    assert asyncio.run(main()).lane == "loop"


def test_a_result_that_cannot_go_to_a_process_is_told() -> None:
    """What cannot be pickled stays in threads, and the advice says what could not go."""

    def gives_a_lambda(_: int) -> Any:
        sum(range(100_000))
        return lambda: 1

    advice = hr.advise(gives_a_lambda, range(3), calls=20)
    assert advice.lane == "thread"
    assert "cannot go" in str(advice)


@pytest.mark.parametrize(
    ("fn", "samples", "options", "what"),
    [
        (3, [1], {}, "needs a function"),
        (adds, [], {}, "no samples"),
        (adds, "text", {}, "give a list"),
        (adds, 3, {}, "give a list"),
        (adds, [1], {"calls": 0}, "calls=0"),
        (adds, [1], {"calls": True}, "calls=True"),
    ],
)
def test_what_cannot_be_measured_is_refused(fn: Any, samples: Any, options: Any, what: str) -> None:
    """The error names the value and the form that works, before any call."""
    with pytest.raises(hr.PlanError, match=re.escape(what)):
        hr.advise(fn, samples, **options)


def test_steps_pass_results_exceptions_and_cancellation_on() -> None:
    """A coroutine that is timed in steps does what it does by itself."""

    async def gives() -> int:
        await asyncio.sleep(1)
        return 3

    async def catches() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            return "caught"
        return "slept"

    async def fails() -> None:
        await asyncio.sleep(1)
        raise KeyError("x")

    async def main() -> None:
        steps = Steps()
        assert await stepped(gives(), steps) == 3
        assert 0 < steps.longest <= steps.in_all
        with pytest.raises(KeyError):
            await stepped(fails(), Steps())

        async def waiting() -> str:
            return str(await stepped(catches(), Steps()))

        task = asyncio.create_task(waiting())
        await asyncio.sleep(1)
        task.cancel()
        assert await task == "caught"

    run(main)


def test_the_command_measures_a_function_of_a_file(tmp_path: Path) -> None:
    """`headrace advise FILE.py:FUNCTION --input FILE` says how many calls it may make, and prints the advice."""
    (tmp_path / "work.py").write_text(
        "import time\n\ndef nap(line):\n    time.sleep(0.005)\n    return line\n"
    )
    (tmp_path / "samples.txt").write_text("a\nb\n\nc\n")
    command = [sys.executable, "-m", "headrace", "advise", "work.py:nap", "--input", "samples.txt"]
    done = subprocess.run(
        [*command, "--calls", "20"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "up to 20 times" in done.stderr
    assert 'lane="thread"' in done.stdout
    assert "nap (work.py:3): blocks" in done.stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["work.py:nap", "--input", "none.txt"], "none.txt"),
        (["work.py:nap", "--input", "empty.txt"], "no samples"),
        (["work.py:nap", "--input", "bad.jsonl"], "line 2"),
        (["work.py:other", "--input", "samples.txt"], "has no other"),
        (["work.py:text", "--input", "samples.txt"], "give a function"),
        (["work.py:nap", "--input", "samples.txt", "--calls", "0"], "--calls"),
        (["nowhere", "--input", "samples.txt"], "work.py:function|job.py:function"),
        (["work.py:bad", "--input", "samples.txt"], "ZeroDivisionError"),
    ],
)
def test_the_command_refuses_what_cannot_be_measured(tmp_path: Path, words: list[str], what: str) -> None:
    """Wrong usage ends with 2 and says what is wrong."""
    (tmp_path / "work.py").write_text(
        "text = 'x'\n\ndef nap(line):\n    return line\n\ndef bad(line):\n    return 1 / 0\n"
    )
    (tmp_path / "samples.txt").write_text("a\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text("1\n{\n")
    command = [sys.executable, "-m", "headrace", "advise", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert any(part in done.stderr for part in what.split("|")), done.stderr
