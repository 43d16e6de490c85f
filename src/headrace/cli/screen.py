"""What the commands say: words to standard error, data to standard output, and the commands to copy.

Rules:
1. Text from outside is cleaned; URLs are masked: neither passwords nor query values come on a screen.
2. JSON for machines is one document or one line each, with every control character escaped.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from headrace.terminal.text import clean

__all__ = [
    "columns",
    "command_line",
    "json_line",
    "page_width",
    "say",
    "shown_item",
    "tell",
    "tell_json",
    "version",
    "without_password",
]

#: User and password, also where the scheme was forgotten.
_USERINFO = re.compile(r"(//|^)[^/?#\s]*@")
#: What JSON allows as it is, and a terminal may obey: DEL and the C1 controls, as UTF-8.
_OBEYED = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


def version() -> str:
    """Give the version of the installed package."""
    from importlib import metadata

    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "unknown"


def say(text: str = "") -> None:
    """Say something to the person, on standard error. One who has gone away is not told."""
    if sys.stderr is None:  # started with it closed; print() would take standard output instead
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # a closed terminal must not turn a finished job into a failed one


def tell(text: str) -> None:
    """Give data, on standard output. Raises BrokenPipeError where its reader has left."""
    print(text, file=sys.stdout)


def tell_json(value: Any) -> None:
    """Give a value as one line of JSON, on standard output."""
    tell(json_line(value).decode().rstrip("\n"))


def json_line(value: Any) -> bytes:
    """Write a value as one line of JSON, bytes as base64, without any character that a terminal would obey."""
    import msgspec

    return _OBEYED.sub(_json_escape, msgspec.json.encode(value)) + b"\n"


def _json_escape(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found.group().decode())


def without_password(text: str) -> str:
    """Take user and password out of a URL, and write bytes that are no text as escapes; all else stays as it is."""
    return _USERINFO.sub(r"\1***@", text).encode("utf-8", "backslashreplace").decode()


def shown_item(text: str) -> str:
    """Give an item for a screen: clean, and masked where it is or holds a URL."""
    from headrace.http.url import mask

    return clean(without_password(mask(text)))


def command_line(*words: str) -> str:
    """Write a command so that it can be copied into a shell."""
    return shlex.join(words)


def page_width() -> int:
    """How many characters fit into a line of standard output; very many where that is no terminal."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 20


def columns(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> Iterable[str]:
    """Put rows into columns of at least these widths, a line each, cut where the page ends."""
    from headrace.terminal.text import fit

    width = page_width()
    for row in rows:
        cells = [cell.ljust(least) for cell, least in zip(row, widths, strict=True)]
        yield fit("  ".join(cells).rstrip(), width)
