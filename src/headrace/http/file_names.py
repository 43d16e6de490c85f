"""Names of files that are downloaded: from the position of the item or a template, never from the server.

Rules:
1. A field becomes letters, digits, `.`, `_` and `-`, at most 100 of them: it can neither leave the directory nor hide.
2. Names by position are sharded, so that no directory has more than a thousand entries.
3. What Windows takes for a device is no name.
"""

from __future__ import annotations

import re
from typing import Any, Final

from headrace.errors import PlanError
from headrace.http.template import fields_of, fill_text

__all__ = ["POSITION", "check_name", "file_path", "is_shared_name", "safe_part"]

#: The field that stands for the item's position.
POSITION: Final = "position"
_LONGEST: Final = 100
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)
_FIXED: Final = re.compile(r"[A-Za-z0-9._/ -]*")


def safe_part(text: str) -> str:
    """Make a name of any text: one part of a path, never empty, never hidden, never `.` or `..`."""
    name = _UNSAFE.sub("_", text)[:_LONGEST].lstrip(".") or "_"
    return f"_{name}" if _DEVICE.match(name) else name


def check_name(template: str) -> None:
    """Check a template of names. Raises PlanError."""
    names = fields_of(template)
    fixed = re.sub(r"\{[^{}]*\}", "", template)
    if not template or _FIXED.fullmatch(fixed) is None or template.startswith("/") or template.endswith("/"):
        raise PlanError(
            f"name={template!r}: write letters, digits, '.', '_', '-', '/' between directories, and fields such as {{id}}"
        )
    if any(part in ("", ".", "..") for part in template.split("/")):
        raise PlanError(f"name={template!r}: a part of the path is empty or leads elsewhere")
    if any(name.startswith("env:") for name in names):
        raise PlanError(f"name={template!r}: a secret cannot name a file")


def is_shared_name(template: str | None) -> bool:
    """Whether two items may have the same name."""
    return template is not None and f"{{{POSITION}}}" not in template


def file_path(template: str | None, item: Any, position: int) -> list[str]:
    """Give the parts of the path for an item. Raises InvalidUrl where a field is missing."""
    digits = f"{position:09d}"
    if template is None:
        return [f"{position // 1_000_000:03d}", f"{position // 1000 % 1000:03d}", digits]
    parts = []
    for part in template.split("/"):
        text = fill_text(part.replace(f"{{{POSITION}}}", digits), item)
        parts.append(safe_part(text))
    return parts
