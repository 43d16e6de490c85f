"""The demo: its parse function, and the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from headrace.demo.job import parse


def answer(body: bytes) -> SimpleNamespace:
    return SimpleNamespace(url="http://127.0.0.1:1/package/module.py", body=body, attempts=2)


def test_parse_counts_what_a_file_defines():
    """Functions and classes count wherever a definition can stand."""
    body = b"""
class A:
    def f(self):
        async def g(): pass
try:
    def a(): pass
except ValueError:
    def b(): pass
else:
    def c(): pass
finally:
    def d(): pass
match 1:
    case 1:
        class B: pass
"""
    assert parse(answer(body)) == {
        "path": "package/module.py",
        "bytes": len(body),
        "lines": 15,
        "functions": 6,
        "classes": 2,
        "attempts": 2,
    }


def test_what_is_no_python_is_a_syntax_error():
    """The item fails with the error of the file."""
    with pytest.raises(SyntaxError):
        parse(answer(b"print 'two'\n"))


@pytest.mark.slow
def test_the_demo_accounts_for_everything(tmp_path):
    """It ends with 0 in under 30 s, has killed and resumed the job, and removes its directory."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", "import sys; from headrace.demo.run import main; sys.exit(main())"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,  # beyond what it allows its job, so that it is the demo that says what hangs
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert time.monotonic() - began < 30
    assert f"In {tmp_path}/headrace-demo-" in ended.stdout
    assert "kill -9 with" in ended.stdout
    assert "each exactly once; integrity check: ok" in ended.stdout
    assert "hr.Flow(hr.files.lines(urls))" in ended.stdout
    assert list(tmp_path.iterdir()) == []
