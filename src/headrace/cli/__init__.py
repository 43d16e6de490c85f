"""The command line: one file a command, and each the twin of something in the library.

Rules:
1. Data goes to standard output, everything for people to standard error.
2. A command's file imports nothing heavy before the command runs: `--help` and `--version` stay quick.
3. All options are read before anything moves, and all that is wrong with them is said at once.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the program's arguments name, and exit with its code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from headrace.cli.screen import version

        print(f"headrace {version()}")
        return
    from headrace.cli.app import app

    app(prog_name="headrace")
