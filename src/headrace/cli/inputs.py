"""The words after `headrace fetch`: one file that holds a list, or URLs.

Rules:
1. A word with :// is a URL. A word without names a file, and there is at most one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from headrace.cli.options import Problems
from headrace.cli.screen import shown_item

__all__ = ["is_text", "read_inputs"]


def read_inputs(words: Sequence[str], problems: Problems) -> tuple[str | None, list[str]]:
    """Give the path of the list, or the URLs; every problem is noted."""
    for word in words:
        if not is_text(word):
            problems.add(
                f"{shown_item(word)}: it is not all UTF-8; write such bytes as %XX, or rename the file"
            )
            return None, []
    urls = [word for word in words if "://" in word]
    files = [word for word in words if "://" not in word]
    if urls and files:
        problems.add(
            f"{shown_item(files[0])}: give either one list or URLs, not both"
            + (f" (for a URL write https://{files[0]})" if not os.path.exists(files[0]) else "")
        )
    elif len(files) > 1:
        problems.add(f"{len(files)} lists were given: give one, as in: cat {files[0]} {files[1]} … > all.txt")
    elif files and files[0] == "-":
        problems.add("-: a list is read from a file: write it to one first")
    elif files and not os.path.exists(files[0]) and _looks_like_url(files[0]):
        problems.add(f"{files[0]} does not exist; for a URL write https://{files[0]}")
    return (files[0] if files and not urls else None), urls


def is_text(word: str) -> bool:
    """Whether a word of the command line is text, and so can be kept with a job."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _looks_like_url(word: str) -> bool:
    host, slash, _ = word.partition("/")
    return "." in host.strip(".") and (
        bool(slash) or not host.endswith((".txt", ".csv", ".list", ".urls", ".lst"))
    )
