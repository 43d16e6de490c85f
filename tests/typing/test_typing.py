"""Types flow through the public names, in the eyes of both checkers; api.py says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def check(*command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_mypy_agrees():
    """`mypy --strict` infers what api.py asserts, and refuses what it says must be refused."""
    check("mypy", "--strict", str(HERE / "api.py"))


def test_pyright_agrees():
    """pyright, strict, does too."""
    check("pyright", "--pythonpath", sys.executable, "--project", str(HERE))
