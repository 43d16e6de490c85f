"""The command line is quick to start: it loads what it needs and nothing else."""

from __future__ import annotations

import subprocess
import sys


def loaded(*words: str) -> set[str]:
    code = (
        "import sys\n"
        f"sys.argv = ['headrace', *{list(words)!r}]\n"
        "from headrace.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ended.stderr.split())


def test_help_loads_no_client_no_database_and_no_rich():
    """`--help` needs typer and nothing heavier."""
    assert not loaded("--help") & {"pycurl", "sqlite3", "rich", "msgspec", "uvloop", "headrace.http.client"}


def test_the_version_does_not_even_load_typer():
    """`--version` answers before any command is loaded."""
    assert not loaded("--version") & {"typer", "rich", "pycurl", "sqlite3", "headrace.cli.app"}


def test_the_version_is_one_line():
    """`--version` says name and version."""
    ended = subprocess.run(
        [sys.executable, "-m", "headrace", "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("headrace ")
    assert ended.stdout.count("\n") == 1
