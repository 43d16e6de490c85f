"""One running process per output: an flock on `OUT.lock`, which names its holder.

Rules:
1. The lock is the flock, never the file's existence: a file that a dead process left behind locks nothing.
2. A lock counts only while the path still leads to the locked file, so that its holder may remove it when it leaves.
3. The database itself is never opened here: closing any descriptor of it would drop SQLite's own locks.
"""

from __future__ import annotations

import fcntl
import os
import time

from headrace.errors import LedgerBusy, LedgerError

__all__ = ["PlaceLock", "holder_of", "lock_path"]

#: A look by `holder_of` takes a shared lock for an instant; a taker therefore tries again for this long (seconds).
_PATIENCE = 0.1
_STEP = 0.01


def lock_path(database: str) -> str:
    """Name the lock file of a database; the same for all links that lead to it."""
    return os.path.realpath(database) + ".lock"


class PlaceLock:
    """The right to write to one output. Blocking calls: they belong in the writer thread."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._path = ""
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock; LedgerBusy with the holder's pid if it is taken, LedgerError where no lock file can be made."""
        self._path = lock_path(self._database)
        give_up_at = time.monotonic() + _PATIENCE
        while self._descriptor is None:
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                pid = _read_pid(descriptor)
                os.close(descriptor)
                if time.monotonic() < give_up_at:
                    time.sleep(_STEP)
                    continue
                raise self._busy(pid) from error
            except OSError as error:
                os.close(descriptor)
                raise LedgerError(
                    f"{self._path} cannot be locked ({error.strerror}); put the output on a local disk"
                ) from error
            if _leads_to(self._path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                self._descriptor = descriptor
            else:  # its last holder removed it between our open and our lock
                os.close(descriptor)

    def release(self) -> None:
        """Remove the file, then let go. Repeatable."""
        if self._descriptor is None:
            return
        try:
            os.unlink(self._path)
        except OSError:
            pass  # the file alone locks nothing
        os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(
                f"the lock file {self._path} cannot be made ({error.strerror}); "
                "check that the directory exists and may be written to"
            ) from error

    def _busy(self, pid: int | None) -> LedgerBusy:
        if pid == os.getpid():
            who = f"this process (pid {pid}) has it open already"
        else:
            who = f"process {pid} is running a job there" if pid else "another process is running a job there"
        return LedgerBusy(
            f"{self._database} is held: {who}; wait for it, stop it, or choose another output", pid=pid
        )


def holder_of(database: str) -> int | None:
    """Give the pid of the process that holds this output now; 0 where it is held by one that left no pid."""
    try:
        descriptor = os.open(lock_path(database), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor) or 0
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _leads_to(path: str, descriptor: int) -> bool:
    try:
        named = os.stat(path)
    except OSError:
        return False
    locked = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino)
