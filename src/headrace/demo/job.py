"""The demo's job, as a user would write it: fetch every URL of a list, parse each file, keep the counts in SQLite.

    python -m headrace.demo.job urls.txt modules.db

Rules:
1. It is a user's program: it knows the public names of headrace and nothing else, and nothing of who started
   it.
2. It can be killed at any moment; the same command goes on where it was.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import headrace as hr

__all__ = ["JOB", "QUERY", "TABLE", "WINDOW", "main", "make_flow", "parse"]

JOB: Final = "modules"
TABLE: Final = "modules"
WINDOW: Final = 128  # the most open items, and so the most that a kill -9 can cost again

#: What the demo asks of its results: the packages with the most functions.
QUERY: Final = f"""
    SELECT iif(instr(path, '/') > 0, substr(path, 1, instr(path, '/') - 1), '(single files)') AS package,
           count(*) AS files, sum(lines) AS lines, sum(classes) AS classes, sum(functions) AS functions
    FROM {TABLE} GROUP BY package ORDER BY functions DESC LIMIT 8
"""  # noqa: S608 - made of constants


def parse(response: hr.http.Response) -> dict[str, Any]:
    """Count what a Python file defines. Raises SyntaxError for what is no Python, and the item fails with it."""
    warnings.simplefilter("ignore", SyntaxWarning)  # of the file
    functions = classes = 0
    nodes: list[ast.AST] = [ast.parse(response.body)]
    while nodes:
        node = nodes.pop()
        functions += isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        classes += isinstance(node, ast.ClassDef)
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):  # where definitions can stand
            inner = getattr(node, part, None)
            if isinstance(inner, list):
                nodes += inner
    return {
        "path": urlsplit(response.url).path.lstrip("/"),
        "bytes": len(response.body),
        "lines": response.body.count(b"\n"),
        "functions": functions,
        "classes": classes,
        "attempts": response.attempts,
    }


def make_flow(urls: str, place: str) -> hr.Flow[dict[str, Any]]:
    """Put the flow together: a list of URLs, two stages, a table."""
    patience = hr.http.Timeouts(first_byte=1.5, stall=3)
    one_host = hr.Limit(by=hr.http.host, concurrency=16)
    return (
        hr.Flow(hr.files.lines(urls))
        .map(hr.http.fetch(limits=[one_host], timeouts=patience), concurrency=64)
        .map(parse, lane="process")  # it computes: on all cores
        .into(hr.sqlite.table(place, TABLE))
    )


def main(arguments: Sequence[str]) -> int:
    """Run the job, or what is left of it, print the accounting, and give its exit code."""
    urls, place = arguments
    report = make_flow(urls, place).run_sync(job=JOB, window=WINDOW)
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
