"""The child program of the process lane: `python -m headrace.lanes.child`.

    read the setup ─► load the function, open resources ─► READY ─► for each chunk: call, keep the result, tell

Rules:
1. It knows no event loop and loads little: it starts as fast as the interpreter does.
2. It never outlives its parent: a thread waits for the end of a pipe that only the parent holds, and where the system can
   it kills the child with the parent, also in the middle of a call that lets no other thread run.
3. Its own descriptors may be closed or taken over by the function: it looks before it writes, and ends rather than write
   into a file of the user's.
4. What a call does to the process (exit, signals, output, fork) ends or disturbs that call only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from headrace.lanes import store, wire

__all__ = ["LOST", "Child", "main", "said"]

#: Results that are there are told after so many seconds, if the chunk still runs.
TELL_AFTER = 0.003
#: The characters of a traceback that are sent, and the frames of each exception in it.
MOST_TRACE = 8192
MOST_FRAMES = 64
#: Memory of this size is taken from the system and given back for once. By that glibc learns to keep what is freed, where it
#: would fetch the same pages anew for the values of each chunk, which takes as long as their whole way.
LESSON = 8 << 20
#: The exit codes of a child that ends by itself because it can go on no more.
LOST = 71  # its socket is gone


class Child:
    """The child's side of one socket pair."""

    def __init__(self, socket: int, control: int, memory: int) -> None:
        self._socket = socket
        self._control = control
        self._memory = memory
        self._identities = {fd: _identity(fd) for fd in (socket, control, memory)}
        os.set_inheritable(memory, False)  # what the calls start would keep it
        self._map = mmap.mmap(memory, wire.MEMORY)
        self._store = store.Store(memory)
        self._stored = 0  # results of this chunk that went to the store
        self._stored_to = store.START
        self._is_large = False  # the latest result was
        view = memoryview(self._map)
        self._words = view[: wire.AREA].cast("Q")
        self._floats = view[: wire.AREA].cast("d")
        self._lock = threading.Lock()  # a frame is written whole
        self._remaining: deque[Any] = deque()
        self._total = 0
        self._is_forked = False
        self._call: Callable[[Any], Any] | None = None
        self._tells_memory = False
        self._trouble: BaseException | None = None  # what the latest call raised
        os.register_at_fork(after_in_child=self._forked)

    # ------------------------------------------------------------------ living and dying

    def live(self, stderr: int) -> None:
        """Do as the parent says, until it says QUIT or is gone."""
        threading.Thread(target=self._watch, name="headrace parent watch", daemon=True).start()
        with contextlib.ExitStack() as stack:
            if not self._set_up(stack):
                return
            _use_output(stderr)
            self._send(wire.READY, 0)
            while True:
                kind, number, payload = self._receive()
                if kind == wire.QUIT:
                    return
                self._run(kind, number, payload)

    def _watch(self) -> None:
        """End this process with its parent, and give back calls that have not begun when it asks for them."""
        while self._is_own(self._control):
            if os.read(self._control, 1):
                self._give_back()
            else:
                _vanish()

    def _forked(self) -> None:
        """Leave the parent's socket to the one that was forked."""
        self._is_forked = True
        for fd in (self._socket, self._control):
            with contextlib.suppress(OSError):
                if self._is_own(fd):
                    os.close(fd)

    def _is_own(self, fd: int) -> bool:
        try:
            return _identity(fd) == self._identities[fd]
        except OSError:
            return False

    # ------------------------------------------------------------------ frames

    def _send(self, kind: int, number: int, *payload: Any) -> None:
        with self._lock:
            self._send_locked(kind, number, *payload)

    def _send_locked(self, kind: int, number: int, *payload: Any) -> None:
        if self._is_forked:
            os._exit(0)
        if not self._is_own(self._socket):
            os._exit(LOST)
        head = wire.HEAD.pack(kind, number, store.length_of(payload))
        try:
            for data in (head + payload[0], *payload[1:]) if payload else (head,):
                view = memoryview(data)
                while view:
                    view = view[os.write(self._socket, view) :]
        except OSError:
            os._exit(LOST)

    def _receive(self) -> tuple[int, int, bytearray]:
        kind, number, length = wire.HEAD.unpack(self._read(wire.HEAD.size))
        return kind, number, self._read(length)

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            try:
                count = os.readv(self._socket, [view]) if self._is_own(self._socket) else 0
            except OSError:
                count = 0
            if not count:
                os._exit(LOST)
            view = view[count:]
        return data

    # ------------------------------------------------------------------ the setup

    def _set_up(self, stack: contextlib.ExitStack) -> bool:
        """Become like the parent where that matters, and get the function; say whether that went well."""
        kind, _, payload = self._receive()
        assert kind == wire.SETUP
        told: dict[str, Any] = pickle.loads(payload)
        sys.argv[:] = told["argv"]
        if told["pythonpath"] is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = told["pythonpath"]
        sys.path[:] = told["path"]
        with contextlib.suppress(OSError):
            sys.path[:] = [os.path.abspath(entry) for entry in told["path"]]  # the function may go elsewhere
        # Else a name of this program could be taken for one of the parent's own `__main__`.
        sys.modules["__main__"] = types.ModuleType("__main__")
        self._tells_memory = told["tells_memory"]
        try:
            if told["memory"] is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_AS, (told["memory"], told["memory"]))
            fn, factories = pickle.loads(told["function"])
            if factories:
                from headrace.lanes.resources import open_all

                own = open_all(stack, factories)

                def call(value: Any) -> Any:
                    return fn(value, **own)

                self._call = call
            else:
                self._call = fn
        except BaseException as error:  # noqa: BLE001 - the parent is told
            self._call = None
            self._trouble = error
        else:
            return True
        assert self._trouble is not None
        text = f"{said(self._trouble)}\n{_trace(self._trouble)}"
        self._send(wire.BROKEN, 0, text.encode("utf-8", "replace"))
        return False

    # ------------------------------------------------------------------ the calls

    def _run(self, kind: int, stored: int, payload: bytearray) -> None:
        if stored and not self._is_own(self._memory):
            os._exit(LOST)
        self._words[wire.LOADING] = 1
        self._floats[wire.BEGAN] = time.monotonic()
        try:
            values = self._store.load() if stored else pickle.loads(payload)
        except BaseException as error:  # noqa: BLE001 - the parent sends them again, one by one
            self._trouble = error
            self._words[wire.LOADING] = 0
            self._send(wire.UNREADABLE, 0)
            return
        del payload
        self._words[wire.LOADING] = 0
        with self._lock:
            self._remaining = deque(values)
            self._total = len(values)
        del values
        self._stored, self._stored_to = 0, store.START
        began = time.monotonic()
        at = self._call_all(self._call if kind == wire.CHUNK else self._load_and_call, began)
        spent = wire.SPENT.pack(time.monotonic() - began, _held() if self._tells_memory else 0)
        with self._lock:
            self._remaining.clear()  # a recall that is late finds nothing of this chunk
            self._send_locked(wire.OVER, at, spent)

    def _load_and_call(self, data: bytes) -> Any:
        assert self._call is not None
        if not data:
            return None  # it could not be pickled: the parent knows
        try:
            value = pickle.loads(data)
        except Exception as error:
            from headrace.errors import CallError

            raised = CallError(
                f"the item cannot be unpickled in the child process: {said(error)}. Give it as plain data"
            )
            raise raised from error
        return self._call(value)

    def _call_all(self, call: Any, now: float) -> int:
        """Call for what remains, in order; give the offset that the results reach up to."""
        words, floats, area, monotonic = self._words, self._floats, self._map, time.monotonic
        plain, plain_part, most = wire.PLAIN, wire.plain_part, wire.AREA_END
        take = self._remaining.popleft
        at, done, told = wire.AREA, 0, now
        while not words[wire.STOP]:
            try:
                value = take()
            except IndexError:
                break
            floats[wire.BEGAN] = now
            words[wire.STARTED] = done + 1
            self._trouble = None
            try:
                result = call(value)
            except BaseException as error:  # noqa: BLE001 - it becomes the outcome of its item
                self._trouble = error
                result = None
            if self._is_forked:
                os._exit(0)  # the call forked, and what it forked came back from it
            kind = type(result)
            if self._trouble is None and (kind in plain or (kind is str and len(result) <= wire.TEXT_MOST)):
                part = plain_part(result)
                end = at + len(part)
                if end <= most:
                    area[at:end] = part
                    words[wire.BYTES] = at = end
                else:
                    self._send(wire.LARGE, at, *self._packed(result))
            else:
                at = self._keep(at, result)
            value = result = None
            done += 1
            words[wire.DONE] = done
            now = monotonic()
            if now - told >= TELL_AFTER:
                told = now
                self._send(wire.WRITTEN, at)
        return at

    def _keep(self, at: int, result: Any) -> int:
        """Keep what a call gave or raised, where it is no plain value; give the offset after it."""
        if self._trouble is None:
            content = self._packed(result)
        else:
            content = (_packed_error(self._trouble),)
            self._trouble = None
        length = store.length_of(content)
        self._is_large = length > wire.RECORD_MOST
        if not self._is_large:
            part = wire.wrapped_part(b"".join(content))
            end = at + len(part)
            if end <= wire.AREA_END:
                self._map[at:end] = part
                self._words[wire.BYTES] = end
                return end
        place = self._placed(content[1:]) if length >= store.LEAST else None
        if place is None:
            self._send(wire.LARGE, at, *content)
        else:
            self._send(wire.STORED, at, place + content[0])
        return at

    def _placed(self, pickled: Sequence[Any]) -> bytes | None:
        """Put a result into the store, behind those that the parent has not read yet; say where it is, if it is there."""
        if self._words[wire.TAKEN] == self._stored:
            self._stored_to = store.START
        at, length = self._stored_to, store.length_of(pickled)
        if at > store.START and at + length > store.START + store.MOST:
            return None
        if not pickled or not self._is_own(self._memory) or not self._store.put(pickled, at):
            return None
        self._stored += 1
        self._stored_to = at + length
        return wire.PLACE.pack(at, length)

    def _packed(self, result: Any) -> tuple[Any, ...]:
        if type(result) is types.CoroutineType:
            result.close()
            return (
                _packed_error(
                    TypeError("the function gave a coroutine: pass it to a lane of async functions")
                ),
            )
        name = type(result).__qualname__
        try:
            data = _dumped(result) if self._is_large else (_dumps(result),)
        except Exception as error:  # noqa: BLE001 - it is the item's failure
            from headrace.errors import CallError

            raised = CallError(
                f"the result, of type {name}, cannot be pickled: {said(error)}. Return what can be, plain data at best"
            )
            raised.ambiguous = True
            raised.__cause__ = error
            return (_packed_error(raised),)
        label = name.encode("utf-8", "replace")[:255]
        return (wire.VALUE + bytes((len(label),)) + label, *data)

    def _give_back(self) -> None:
        """Give the calls that have not begun back to the parent."""
        with self._lock:
            count = 0
            while self._remaining:
                try:
                    self._remaining.pop()
                except IndexError:
                    break
                count += 1
            if count:
                self._send_locked(wire.RECALLED, self._total - count)
            self._total -= count


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _dumps(value: Any) -> bytes:
    """Pickle a value; by its own definition where it cannot be found by name, as what `__main__` defines."""
    try:
        return pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001 - the second way says what is wrong
        import cloudpickle

        data: bytes = cloudpickle.dumps(value, 5)
        return data


def _dumped(value: Any) -> Sequence[Any]:
    """Pickle a value in parts, as `_dumps` does whole: faster where it is large, slower where it is small."""
    try:
        return store.parts_of(value)
    except Exception:  # noqa: BLE001 - as above
        return (_dumps(value),)


def _dumps_error(error: Exception) -> bytes:
    try:
        data = _dumps(error)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - as with many whose __init__ takes other arguments than they keep
        return _dumps(wire.Remade(type(error), error.args, vars(error)))
    return data


def said(error: BaseException) -> str:
    """Say an error in a line."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an error that cannot be said is an error all the same
        return type(error).__name__


def _trace(error: BaseException) -> str:
    import traceback

    try:
        trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
        lines = traceback.format_exception(type(error), error, trace, limit=-MOST_FRAMES)
        return "".join(lines)[-MOST_TRACE:]
    except Exception:  # noqa: BLE001 - as above
        return said(error)


def _packed_error(error: BaseException) -> bytes:
    trace = _trace(error)
    data: bytes | None = None
    if isinstance(error, StopIteration):
        error = RuntimeError("the function raised StopIteration")
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):  # then its words are sent
            data = _dumps_error(error)
        text = said(error)
    else:
        text = f"the function ended with {said(error)}"
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    return wire.ERROR + pickle.dumps((data, text, trace, notes), 5)


def _held() -> int:
    """Give the bytes of memory that this process holds, as far as the system tells."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _vanish() -> NoReturn:
    """End at once, and with it what the calls have started and not waited for."""
    if os.getpgrp() == os.getpid():
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(LOST)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, where it can."""
    if sys.platform == "linux":
        try:
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        except (ImportError, OSError, AttributeError):
            pass  # the watching thread is there all the same
    if os.getppid() != parent:
        _vanish()


def _use_output(stderr: int) -> None:
    """Let output go to the parent's stderr from now on; so far it was kept in case this process would not start."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(Exception):
                stream.flush()
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with contextlib.suppress(OSError):
        said_so_far = os.pread(2, 1 << 16, 0)
        if said_so_far:
            os.write(stderr, said_so_far)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    os.close(stderr)


def main() -> None:
    """Be the child of the parent whose descriptors and pid the command line gives."""
    socket, control, memory, stderr, parent, niceness = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, lambda number, frame: None
    )  # a handler, so that what calls start does not inherit it
    faulthandler.enable()  # a crash says where it was
    _die_with(parent)
    with contextlib.suppress(OSError):
        os.nice(niceness)
    bytes(LESSON)
    Child(socket, control, memory).live(stderr)


if __name__ == "__main__":
    main()
