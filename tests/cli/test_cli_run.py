"""`headrace run` and `headrace init`: flows of the user's own."""

from __future__ import annotations

import subprocess
import sys

JOB = """
import headrace as hr

async def double(n):
    if n == 3:
        raise ValueError("three")
    return {"n": n, "double": 2 * n}

flow = hr.Flow(range(10)).map(double).into(hr.sqlite.table("own.db", "doubles"))

def make():
    return hr.Flow(range(4)).map(double)

number = 7
"""


def test_a_flow_of_a_file_runs_as_a_job(headrace_process, tmp_path):
    """It is accounted for; `resume` and `retry` name the command that goes on, from wherever they are called."""
    (tmp_path / "job.py").write_text(JOB)
    ended = headrace_process("run", "job.py:flow")
    assert ended.returncode == 1
    assert "taken 10 = done 9 + failed 1" in ended.stderr
    assert "headrace failures own.db" in ended.stderr
    resumed = headrace_process("resume", "own.db")
    assert resumed.returncode == 2
    assert f"headrace run {tmp_path}/job.py:flow" in resumed.stderr
    retried = headrace_process("retry", "own.db")
    assert retried.returncode == 0
    assert "headrace run" in retried.stderr
    assert "taken 1 = done 0 + failed 1" in headrace_process("run", "job.py:flow").stderr


def test_a_function_may_make_the_flow_and_a_module_may_hold_it(headrace_process, tmp_path):
    """`MODULE:FUNCTION` is found in the current directory; without a sink nothing is kept, and nothing claimed so."""
    (tmp_path / "myjob.py").write_text(JOB)
    ended = headrace_process("run", "myjob:make")
    assert ended.returncode == 1
    assert "taken 4 = done 3 + failed 1" in ended.stderr
    assert "resume" not in ended.stderr
    assert list(tmp_path.glob("*.db")) == []


def test_what_is_no_flow_is_wrong_usage(headrace_process, tmp_path):
    """A missing name says which flows there are; another thing says what it is; a broken file shows the user's own lines."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "broken.py").write_text("import headrace\n\n1 / 0\n")
    missing = headrace_process("run", "job.py:flwo")
    assert (missing.returncode, "it has flow" in missing.stderr) == (2, True)
    other = headrace_process("run", "job.py:number")
    assert (other.returncode, "is int" in other.stderr) == (2, True)
    broken = headrace_process("run", "broken.py:flow")
    assert broken.returncode == 2
    assert "ZeroDivisionError" in broken.stderr
    assert "1 / 0" in broken.stderr
    assert "headrace/cli" not in broken.stderr


def test_a_flow_can_be_explained_without_running(headrace_process, tmp_path):
    """`--explain` prints the plan and leaves no file."""
    (tmp_path / "job.py").write_text(JOB)
    ended = headrace_process("run", "job.py:flow", "--explain")
    assert ended.returncode == 0
    assert "double on the loop lane" in ended.stdout
    assert not (tmp_path / "own.db").exists()


def test_the_starter_runs_as_it_is_both_ways(headrace_process, tmp_path):
    """What `init` writes runs by `headrace run` and as a program, and is never written over anything."""
    assert headrace_process("init", "first.py").returncode == 0
    written = (tmp_path / "first.py").read_text()
    again = headrace_process("init", "first.py")
    assert again.returncode == 2
    assert (tmp_path / "first.py").read_text() == written
    ended = headrace_process("run", "first.py:flow")
    assert ended.returncode == 1  # a few items fail on purpose
    assert "taken 500 = done 495 + failed 5" in ended.stderr
    direct = subprocess.run(
        [sys.executable, "first.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert direct.returncode == 1
    assert "failed 5" in direct.stdout
