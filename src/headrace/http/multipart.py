"""Forms with files, as browsers send them (RFC 7578): read while they are sent, in constant memory.

Rules:
1. The size is known before anything is sent, so that servers that want a Content-Length get one.
2. Names and file names cannot break out of their quotes (the HTML standard's escapes).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, NamedTuple

from headrace.aio.disk import Disk
from headrace.errors import PlanError
from headrace.http.bodies import UNSET, Upload

__all__ = ["FileContent", "Multipart", "encode_form"]

#: A file of a form: its path, its contents, or (file name, contents or path) or (file name, contents or path, content type).
FileContent = os.PathLike[str] | bytes | tuple[str, Any] | tuple[str, Any, str]
_TYPE: Final = "application/octet-stream"


class _Part(NamedTuple):
    """A piece of the body: bytes, or a file that is read when its turn comes."""

    content: bytes | Upload

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size or 0


class Multipart(Upload):
    """A form with files. `content_type` names the boundary. Raises PlanError for what cannot be sent."""

    __slots__ = ("_parts", "content_type")

    def __init__(self, data: Mapping[str, Any] | None, files: Mapping[str, FileContent]) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._parts: list[_Part] = []
        for name, value in (data or {}).items():
            for one in value if isinstance(value, list | tuple) else (value,):
                text = one if isinstance(one, str) else str(one)
                self._add(
                    f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n{text}\r\n'
                )
        for name, given in files.items():
            filename, content, kind = _read(name, given)
            self._add(
                f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"; '
                f'filename="{_quoted(filename)}"\r\nContent-Type: {kind}\r\n\r\n'
            )
            self._parts.append(_Part(content))
            self._add("\r\n")
        self._add(f"--{boundary}--\r\n")
        self.repeatable = True
        self.size = sum(part.size for part in self._parts)

    def _add(self, text: str) -> None:
        self._parts.append(_Part(text.encode()))

    async def chunks(self, disk: Disk) -> AsyncGenerator[bytes, None]:
        """Give the pieces of the body, from its beginning."""
        for part in self._parts:
            if isinstance(part.content, bytes):
                yield part.content
            else:
                async for piece in part.content.chunks(disk):
                    yield piece


def encode_form(
    data: Mapping[str, Any] | None, files: Mapping[str, FileContent], body: object, json: object
) -> tuple[Multipart, str]:
    """Give a form with files, and its content type. Raises PlanError."""
    if body is not None or json is not UNSET:
        raise PlanError("files= goes with data= only: a request has one body")
    form = Multipart(data, files)
    return form, form.content_type


def _read(name: str, given: FileContent) -> tuple[str, bytes | Upload, str]:
    kind = _TYPE
    filename: str | None = None
    content: Any = given
    if isinstance(given, tuple):
        if len(given) not in (2, 3):
            raise PlanError(
                f"files[{name!r}]: give (file name, contents) or (file name, contents, content type)"
            )
        filename, content, *rest = given
        kind = rest[0] if rest else _TYPE
    if not isinstance(kind, str) or not kind.isprintable() or "/" not in kind:
        raise PlanError(f"files[{name!r}]: {kind!r} is no content type")
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, os.PathLike):
        filename = os.path.basename(os.fspath(content)) if filename is None else filename
        return filename, Upload(content), kind
    if isinstance(content, bytes | bytearray | memoryview):
        return name if filename is None else str(filename), bytes(content), kind
    raise PlanError(f"files[{name!r}]: give a path or bytes, not {type(content).__name__}")


def _quoted(text: str) -> str:
    return str(text).replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
