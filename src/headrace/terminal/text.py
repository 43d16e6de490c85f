"""Words and numbers for people: durations, counts, and text from outside that a terminal must not obey.

Rules:
1. Text that came from a server or a file goes through `clean` before it is shown.
2. A number reads the same on every screen: thin groups of three, seconds in the largest two units.
"""

from __future__ import annotations

import math
import re
import time
import unicodedata

__all__ = ["clean", "count", "duration", "fit", "moment", "rate"]

_GAP = "\N{NARROW NO-BREAK SPACE}"
#: Controls, format characters (direction marks among them), separators of lines, and lone surrogates.
_PLAIN = re.compile(r"[\x20-\x7e]*")
_DANGEROUS = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(text: object) -> str:
    """Write control and format characters as escapes, so that foreign text can neither move the cursor nor hide itself."""
    raw = str(text)
    if _PLAIN.fullmatch(raw):
        return raw
    return "".join(_escaped(c) if unicodedata.category(c) in _DANGEROUS else c for c in raw)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def fit(text: str, width: int) -> str:
    """Cut text to `width` characters, with an ellipsis where something is lost."""
    if len(text) <= width:
        return text
    return text[: max(0, width - 1)] + "…"


def count(value: int) -> str:
    """Write a whole number in groups of three."""
    return f"{value:,}".replace(",", _GAP)


def rate(per_second: float) -> str:
    """Write a rate: "95/s", "3.2/s", "14/min"."""
    if per_second <= 0 or not math.isfinite(per_second):
        return "0/s"
    if per_second >= 10:
        return f"{count(round(per_second))}/s"
    if per_second >= 1:
        return f"{per_second:.1f}/s"
    if per_second * 60 >= 1:
        return f"{per_second * 60:.0f}/min"
    return f"{per_second * 3600:.0f}/h"


def duration(seconds: float) -> str:
    """Write a time span in its largest two units: "0.4 s", "12 s", "3m 05s", "2h 07m", "4d 03h"."""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02}h"


def moment(at: float) -> str:
    """Write epoch seconds as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
