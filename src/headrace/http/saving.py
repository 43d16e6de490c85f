"""Putting a body into a file so that there is either all of it or none: functions that wait for the disk, for a thread.

Rules:
1. A body goes into a hidden file beside its place, reaches the disk, and takes its name then.
2. No link is followed below the directory that was given, so that nothing is written elsewhere.
3. What is left of a body that broke off says whose it is, so that it can be gone on with.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from headrace.errors import SinkError

__all__ = ["Half", "NameTaken", "PartFile", "Saved", "is_full"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BLOCK: Final = 1 << 20


class NameTaken(Exception):
    """Another file has the name already."""


class Half(NamedTuple):
    """What is there of a body that broke off: its size, and the validator that the server must confirm."""

    size: int
    validator: str


class Saved(NamedTuple):
    """A file that is in its place: `path` is below the directory that was given."""

    path: str
    size: int
    digest: str


def is_full(error: OSError, path: str) -> SinkError | None:
    """Give the error that ends the run where the disk can take no more; None for another trouble."""
    if error.errno not in _FULL:
        return None
    return SinkError(f"{path} cannot be written: {error.strerror}; make room, then run the same again")


class PartFile:
    """A body on its way into `root` / `parts`. Each method waits for the disk; one at a time.

    `tag` tells calls apart whose files have one name, and is the same for every attempt of one.
    """

    def __init__(self, root: str, parts: Sequence[str], tag: str, replace: bool) -> None:
        self.path = os.path.join(root, *parts)
        self._root = root
        self._parts = parts
        self._replace = replace
        self._name = parts[-1]
        self._part = f".{self._name}.{tag}.part"
        self._note = f"{self._part}.json"
        self._directory = -1
        self._file = -1
        self._digest = hashlib.sha256()
        self._size = 0
        self._noted = False

    def half(self) -> Half | None:
        """Open the directory, and give what an earlier attempt left."""
        self._open_directory()
        try:
            with open(os.open(self._note, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._directory), "rb") as file:
                note: Any = json.loads(file.read())
            size = os.stat(self._part, dir_fd=self._directory, follow_symlinks=False).st_size
        except (OSError, ValueError):
            return None
        validator = note.get("validator") if isinstance(note, dict) else None
        return Half(size, validator) if isinstance(validator, str) and size else None

    def go_on(self, size: int) -> None:
        """Open what is there, read it for the digest, and write after it."""
        self._file = os.open(self._part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        os.ftruncate(self._file, size)
        while block := os.read(self._file, _BLOCK):
            self._digest.update(block)
            self._size += len(block)
        self._noted = True

    def begin(self) -> None:
        """Begin anew."""
        self._forget()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self._part, flags, 0o600, dir_fd=self._directory)

    def note(self, validator: str) -> None:
        """Leave word of which body this is."""
        if self._noted:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._note, flags, 0o600, dir_fd=self._directory)
        try:
            os.write(descriptor, json.dumps({"validator": validator}).encode())
        finally:
            os.close(descriptor)
        self._noted = True

    def write(self, chunks: Sequence[bytes]) -> None:
        """Append."""
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._file, view) :]
            self._digest.update(chunk)
            self._size += len(chunk)

    def finish(self) -> Saved:
        """Bring it to the disk and give it its name. Raises NameTaken where another file has that."""
        os.fsync(self._file)
        if self._replace:
            os.rename(self._part, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        else:
            try:
                os.link(self._part, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            except FileExistsError:
                if not self._is_the_same():
                    raise NameTaken(self.path) from None
            os.unlink(self._part, dir_fd=self._directory)
        if self._noted:
            self._unlink(self._note)
        os.fsync(self._directory)
        return Saved("/".join(self._parts), self._size, self._digest.hexdigest())

    def save(self, chunks: Sequence[bytes]) -> Saved:
        """Do all of it for a small body."""
        self.begin()
        self.write(chunks)
        return self.finish()

    def drop(self) -> None:
        """Leave nothing behind."""
        if self._directory >= 0:
            self._forget()

    def close(self) -> None:
        """Let go of file and directory; what is there stays. Repeatable."""
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._directory = -1

    def free(self) -> int:
        """Give the bytes that the disk has left for us."""
        found = os.fstatvfs(self._directory)
        return found.f_bavail * found.f_frsize

    def _open_directory(self) -> None:
        os.makedirs(self._root, exist_ok=True)
        directory = os.open(self._root, _DIRECTORY)
        try:
            for part in self._parts[:-1]:
                try:
                    os.mkdir(part, dir_fd=directory)
                except FileExistsError:
                    pass
                inner = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = inner
        except OSError:
            os.close(directory)
            raise
        self._directory = directory

    def _is_the_same(self) -> bool:
        """Whether the file that has the name already holds what this one does."""
        found = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode) or status.st_size != self._size:
                return False
            digest = hashlib.sha256()
            while block := os.read(found, _BLOCK):
                digest.update(block)
        finally:
            os.close(found)
        return digest.digest() == self._digest.digest()

    def _forget(self) -> None:
        self._unlink(self._part)
        self._unlink(self._note)
        self._noted = False

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            pass
