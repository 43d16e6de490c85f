"""Errors in words, for reports and dead letters."""

from __future__ import annotations

import traceback

__all__ = ["chain_text", "one_line"]


def one_line(error: BaseException) -> str:
    """Say an error in one line, without control characters that a terminal would obey."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def chain_text(error: BaseException, limit: int = 8192) -> str:
    """Give the chain of exceptions as text, the last `limit` characters of it."""
    return "".join(traceback.format_exception(error))[-limit:]
