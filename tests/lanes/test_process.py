"""What the process lane promises of calls that go well, or fail by themselves: any function, any value, any error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import calls, marked

import headrace as hr


def program(text: str, *arguments: str, timeout: float = 30) -> str:
    """Run a program given as `python -c` and give what it prints."""
    ended = subprocess.run(
        [sys.executable, "-c", text, *arguments], capture_output=True, text=True, timeout=timeout
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# ---------------------------------------------------------------------------------------------------- functions


def test_calls_run_in_other_processes(run: Callable[..., Any]) -> None:
    """Calls run in child processes, at most `concurrency` of them, at a lower priority; the values come back aligned."""
    got = run(
        lambda: hr.map(
            lambda n: (n, os.getpid(), os.nice(0), time.sleep(0.002)),
            range(100),
            lane="process",
            concurrency=2,
        )
    )
    assert [value[0] for value in got.values] == list(range(100))
    pids = {value[1] for value in got.values}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {value[2] for value in got.values} == {min(19, os.nice(0) + 5)}
    stage = got.report.stages[0]
    assert (stage.lane, stage.concurrency, stage.attempts, stage.failures) == ("process", 2, 100, 0)


def test_functions_of_main_lambdas_and_closures(tmp_path: Path) -> None:
    """A script without a `__main__` guard: its functions, classes, lambdas and closures work, and its classes come back."""
    script = tmp_path / "script.py"
    script.write_text(
        "import headrace as hr\n"
        "import helper\n"
        "class Point:\n"
        "    def __init__(self, x): self.x = x\n"
        "class Bad(Exception): pass\n"
        "def move(point):\n"
        "    if point.x == 3: raise Bad('three')\n"
        "    return Point(point.x + helper.STEP)\n"
        "got = hr.map_sync(move, [Point(n) for n in range(5)], lane='process', concurrency=1)\n"
        "assert all(type(done.value) is Point for done in got.done)\n"
        "assert type(got.failed[0].error) is Bad, got.failed\n"
        "by = 10\n"
        "def adder(by):\n"
        "    return lambda n: n + by\n"
        "print([done.value.x for done in got.done], hr.map_sync(adder(by), range(3), lane='process').values)\n"
    )
    (tmp_path / "helper.py").write_text("STEP = 100\n")
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=30, cwd=tmp_path.parent
    )
    assert ended.stdout == "[100, 101, 102, 104] [10, 11, 12]\n", ended.stderr


def test_python_dash_c() -> None:
    """It works in a program that has no file."""
    assert (
        program("import headrace as hr\nprint(hr.map_sync(lambda n: n * n, range(4), lane='process').values)")
        == "[0, 1, 4, 9]\n"
    )


def test_functions_of_a_module_that_is_no_file() -> None:
    """A module that was made while the program runs, as notebooks and test tools do, is sent by value."""
    text = (
        "import sys, types, headrace as hr\n"
        "module = types.ModuleType('made_up')\n"
        "sys.modules['made_up'] = module\n"
        "exec('class Point:\\n    x = 1\\ndef f(n): return Point() if n else helper()\\ndef helper(): return 7',"
        " vars(module))\n"
        "first, second = hr.map_sync(module.f, range(2), lane='process').values\n"
        "print(first, type(second) is module.Point)\n"
    )
    assert program(text) == "7 True\n"


def test_modules_in_the_working_directory_do_not_hinder(tmp_path: Path) -> None:
    """A file of the user's that has the name of a standard module does not keep a child from starting."""
    for name in ("struct", "mmap", "signal"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not me')\n")
    text = "import headrace as hr\nprint(hr.map_sync(lambda n: n, range(2), lane='process').values)"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", text], capture_output=True, text=True, timeout=30, cwd=tmp_path
    )
    assert ended.stdout == "[0, 1]\n", ended.stderr


def test_a_function_that_cannot_be_sent(run: Callable[..., Any]) -> None:
    """A function that holds what cannot be pickled is a PlanError that says so, before anything moves."""
    import threading

    lock = threading.Lock()

    def locked(number: int) -> int:
        with lock:
            return number

    with pytest.raises(
        hr.PlanError, match="locked cannot be sent to a child process: TypeError: cannot pickle"
    ):
        run(lambda: hr.map(locked, range(3), lane="process"))


def test_a_lone_call_goes_out_at_once(run: Callable[..., Any]) -> None:
    """Calls that come one at a time are not held back for others, on a warm child."""

    async def main() -> float:
        inbox: hr.Inbox[int] = hr.Inbox()
        times = []
        async with hr.Flow(inbox).map(abs, lane="process", concurrency=1).stream() as outcomes:
            for number in range(30):
                began = time.perf_counter()
                await inbox.put(number)
                await anext(outcomes)
                times.append(time.perf_counter() - began)
            inbox.close()
            async for _ in outcomes:
                pass
        return sorted(times)[len(times) // 2]

    assert run(main) < 0.02


def test_results_come_while_the_chunk_runs(run: Callable[..., Any]) -> None:
    """A result is handed on within milliseconds, not when the last call of its chunk is over."""

    async def main() -> float:
        last = 0.0
        gaps = []
        fn = lambda n: time.sleep(0.05 if n >= 600 else 0)  # noqa: E731
        async with hr.Flow(range(620)).map(fn, lane="process", concurrency=1).stream() as outcomes:
            async for _ in outcomes:
                now = time.perf_counter()
                gaps.append(now - last if last else 0.0)
                last = now
        return max(gaps)

    assert run(main) < 0.4


def test_calls_behind_a_long_one_go_elsewhere(run: Callable[..., Any], tmp_path: Path) -> None:
    """When a call of a long chunk takes its time, those behind it are called by another child meanwhile, and once."""
    place = tmp_path / "calls"

    def slow_once(number: int) -> int:
        if number == 2000:
            time.sleep(1.5)
        return number

    async def main() -> list[int]:
        order = []
        async with (
            hr.Flow(range(4000))
            .map(marked(place, slow_once), lane="process", concurrency=2)
            .stream() as outcomes
        ):
            async for outcome in outcomes:
                order.append(outcome.item)
        return order

    order = run(main)
    assert order[-1] == 2000
    assert calls(place) == dict.fromkeys(range(4000), 1)


# ---------------------------------------------------------------------------------------------------- values


def test_huge_values_and_results(run: Callable[..., Any]) -> None:
    """Items and results of tens of megabytes go through, several at once, beside small ones."""
    megabytes = 40
    items = [bytes(megabytes << 20) if n % 4 == 0 else n for n in range(16)]

    def grow(value: Any) -> Any:
        return len(value) if isinstance(value, bytes) else b"x" * ((value % 3) * megabytes << 18)

    got = run(lambda: hr.map(grow, items, lane="process", concurrency=2, name="grow"))
    assert [v if isinstance(v, int) else len(v) for v in got.values] == [
        megabytes << 20 if n % 4 == 0 else (n % 3) * megabytes << 18 for n in range(16)
    ]


def test_many_results_larger_than_the_shared_memory(run: Callable[..., Any]) -> None:
    """A chunk may give more than fits into what parent and child share."""
    got = run(
        lambda: hr.map(
            lambda n: b"%d" % n * 5000 if n >= 1500 else n, range(3000), lane="process", concurrency=1
        )
    )
    assert got.values == [b"%d" % n * 5000 if n >= 1500 else n for n in range(3000)]


@pytest.mark.slow
def test_huge_results_take_bounded_memory() -> None:
    """Hundreds of megabytes, a result at a time: the program holds a few of them, however many come."""
    text = (
        "import asyncio, headrace as hr\n"
        "async def main():\n"
        "    fn = lambda n: n if n < 2000 else bytes(20_000_000)\n"
        "    total = 0\n"
        "    async with hr.Flow(range(2030)).map(fn, lane='process', concurrency=2).stream() as outcomes:\n"
        "        async for outcome in outcomes:\n"
        "            total += outcome.item >= 2000 and len(outcome.value)\n"
        "    print(total)\n"
        "asyncio.run(main())\n"
        "print(next(int(l.split()[1]) // 1024 for l in open('/proc/self/status') if l.startswith('VmHWM')))\n"
    )
    total, megabytes = map(int, program(text, timeout=60).split())
    assert total == 600_000_000
    assert megabytes < 350


def test_every_kind_of_plain_result(run: Callable[..., Any]) -> None:
    """What comes back is what was returned, in type and value."""
    results = [
        0, -1, 2**70, True, None, 1.5, float("inf"), "", "ä\ud800", "x" * 5000, b"", b"l.", [b"v"], (1, "1"),
        {"a": [1, None]}, {1, 2}, {"s": "s", "t": "s"}, range(3), Path("/x"), b"v\x00", 10**5000,
    ]  # fmt: skip
    got = run(lambda: hr.map(lambda n: results[n], range(len(results)), lane="process", concurrency=1))
    assert [(type(value), value) for value in got.values] == [(type(value), value) for value in results]


def test_a_result_that_cannot_be_pickled(run: Callable[..., Any]) -> None:
    """It fails its item and names its type; so does one that fails to load, and a coroutine."""

    class Sour:
        def __reduce__(self) -> Any:
            return int, ("sour",)

    async def coroutine() -> None: ...

    def odd(number: int) -> Any:
        if number == 1:
            return iter(list(range(3)).__iter__, None)
        if number == 2:
            return (n for n in range(3))
        if number == 3:
            return Sour()
        if number == 4:
            return coroutine()
        return number

    got = run(lambda: hr.map(odd, range(6), lane="process", concurrency=1))
    assert [done.value for done in got.done if done.position != 1] == [0, 5]
    told = [str(failed.error) for failed in got.failed if failed.position != 1]
    assert "the result, of type generator, cannot be pickled: TypeError" in told[0]
    assert "Sour, cannot be unpickled here: ValueError" in told[1]
    assert "gave a coroutine" in told[2]


def test_what_a_call_prints(tmp_path: Path) -> None:
    """What a call prints, by whatever way, goes to the parent's stderr; the results are as they were."""
    text = (
        "import os, sys, headrace as hr\n"
        "def say(n):\n"
        "    print('printed', n); os.write(1, b'written\\n'); os.system('echo echoed')\n"
        "    print('to stderr', file=sys.stderr)\n"
        "    return n\n"
        "print(hr.map_sync(say, range(3), lane='process', concurrency=1).values)\n"
    )
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30)
    assert ended.stdout == "[0, 1, 2]\n"
    for words in ("printed 1", "written", "echoed", "to stderr"):
        assert ended.stderr.count(words) == (1 if words[-1].isdigit() else 3), ended.stderr


# ---------------------------------------------------------------------------------------------------- errors


def test_errors_keep_type_message_notes_and_traceback(run: Callable[..., Any]) -> None:
    """An exception comes back as it was raised, with its traceback in the child as its cause."""

    class Odd(Exception):
        def __init__(self, code: int, *, hint: str) -> None:
            super().__init__(f"code {code}")
            self.hint = hint

    def fail(number: int) -> int:
        if number == 0:
            error = ValueError("no good")
            error.add_note("a note")
            raise error
        if number == 1:
            raise Odd(7, hint="look")
        if number == 2:
            raise StopIteration
        raise hr.Skip("not this one")

    got = run(lambda: hr.map(fail, range(4), lane="process", concurrency=1))
    plain, odd, stopped = (failed.error for failed in got.failed)
    assert (type(plain), str(plain), plain.__notes__) == (ValueError, "no good", ["a note"])
    assert "raise error\nValueError: no good" in str(plain.__cause__)
    assert f'File "{__file__}"' in str(plain.__cause__)
    assert "in fail" in str(plain.__cause__)
    assert (type(odd), str(odd), odd.hint) == (Odd, "code 7", "look")
    assert (type(stopped), str(stopped)) == (RuntimeError, "the function raised StopIteration")
    assert got.report.skipped == 1


def test_an_error_that_cannot_be_sent(run: Callable[..., Any]) -> None:
    """Then its words come, and its traceback."""

    def fail(number: int) -> int:
        import threading

        raise ValueError("with a lock", threading.Lock())

    got = run(lambda: hr.map(fail, range(1), lane="process"))
    error = got.failed[0].error
    assert type(error) is hr.CallError
    assert str(error).startswith("ValueError: ('with a lock'")
    assert "in fail" in str(error.__cause__)
