"""Errors in words, for reports and dead letters."""

from __future__ import annotations

import re
import traceback
from typing import Any

#: The characters of an error's text that are looked at: more would hold the loop up.
MOST_TEXT = 4096

__all__ = ["chain_text", "item_text", "one_line", "peek"]


def one_line(error: BaseException) -> str:
    """Say an error in one line, without control characters that a terminal would obey."""
    try:
        text = " ".join(str(error)[:MOST_TEXT].split()) or type(error).__name__
    except Exception as unreadable:  # noqa: BLE001 - what went wrong matters more than that it cannot be said
        text = f"(its text cannot be made: {type(unreadable).__name__})"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


#: The frames that are told of each exception of a chain: the last ones.
MOST_FRAMES = 64
#: The user and password of a URL, wherever it stands in a text.
_USERINFO = re.compile(r"://[^/?#\s]*@")


def item_text(item: Any) -> str:
    """Give an item as a dead letter shows it, a row as JSON: without the user and password of a URL."""
    try:
        text = item if isinstance(item, str) else _json(item) if type(item) is dict else repr(item)
        return _USERINFO.sub("://***@", text)
    except Exception as unreadable:  # noqa: BLE001 - an item that cannot be shown is accounted for all the same
        return f"<{type(item).__qualname__} whose repr raises {type(unreadable).__name__}>"


def _json(row: dict[Any, Any]) -> str:
    """Give a row as JSON, or as Python shows it where it holds what JSON has not."""
    import json

    try:
        return json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return repr(row)


def chain_text(error: BaseException, limit: int = 8192) -> str:
    """Give the chain of exceptions as text, the last `limit` characters of it."""
    try:
        return "".join(traceback.format_exception(error, limit=-MOST_FRAMES))[-limit:]
    except Exception as unreadable:  # noqa: BLE001 - as for one line
        return f"{type(error).__name__} (its text cannot be made: {type(unreadable).__name__})"


def peek(error: BaseException, name: str) -> Any:
    """Give an attribute that a user's error may have; None too where it raises."""
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - as for one line
        return None
