"""The process lane: plain functions run in child processes of this lane's own.

    values ─► Place ─► a child: fn(value, **resources) for each, in turn ─► shared memory ─► answers, many at a time
                 └─ the child dies: the call that ran is to blame, those before it are answered, those after it not begun

Rules:
1. Each place has one child, and one chunk of calls in it. Chunks take a few milliseconds: they grow where calls are short,
   and calls that have not begun are recalled from behind one that takes long.
2. A death costs the call that ran, and is told in its error. A child that dies before it has called anything costs no call;
   a lane whose children do nothing but die fails.
3. A time limit ends the child, for there is no other way to end a call; it is looked at again right before.
4. Nothing is shared: the function is sent once to each child, each opens its own resources, context variables stay behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.errors import CallError, LaneError, PlanError, WorkerDied
from headrace.lanes import wire
from headrace.lanes.child import LOST, said
from headrace.lanes.pickling import by_value, unwrapped
from headrace.lanes.store import length_of, parts_of
from headrace.lanes.supervisor import Supervised, death_text
from headrace.plan import Processes
from headrace.ports import Raised

__all__ = ["Place", "ProcessLane"]

#: How long a chunk is to take, in seconds, and the most calls in one.
CHUNK_SECONDS = 0.004
CHUNK_MOST = 4096
#: The bytes of values and results in a chunk, beyond which chunks get shorter, and beyond which the rest of one is recalled.
CHUNK_BYTES = 1 << 20
MOST_BYTES = 4 << 20
#: How much longer the next chunk may be.
GROWTH = 4
#: So many children in a row that died without an answer fail the lane.
FRUITLESS = 3
#: How long children may take to end and to close their resources, in seconds.
QUIT_GRACE = 5.0
#: How long a child that was killed may take to be gone, in seconds.
KILL_GRACE = 5.0
#: Between the decision to end a call and the kill, in seconds: long enough to see whether it has ended by itself.
SECOND_LOOK = 0.001


class ProcessLane:
    """Up to `places` child processes, each started when it has something to do."""

    name = "process"
    abandoned = 0

    def __init__(
        self,
        places: int,
        name: str,
        on_trouble: Callable[[LaneError], None],
        options: Processes | None = None,
    ) -> None:
        self.options = options or Processes()
        self.label = f"headrace-{name}"
        self.fruitless = 0  # deaths since the last answer
        self.singly = False  # values go by their own definition, as plain pickles could not be loaded
        self._on_trouble = on_trouble
        self.loop = asyncio.get_running_loop()
        self._places: list[Place] = []
        self._children: set[Supervised] = set()
        self._child_over = asyncio.Event()
        self._is_closed = False
        self._setup = b""
        self._size = 1.0
        #: A loop in virtual time must not jump over what happens in a child.
        self.standstill: Callable[[], contextlib.AbstractContextManager[None]] = getattr(
            self.loop, "outside", contextlib.nullcontext
        )

    def load(self, fn: Callable[..., Any], factories: Mapping[str, Callable[[], Any]]) -> None:
        """Take the function and what opens its resources. Raises PlanError where they cannot be sent."""
        try:
            function = by_value((fn, dict(factories)))
        except Exception as error:
            raise PlanError(
                f"{self.label[9:]} cannot be sent to a child process: {said(error)}. What a function refers to goes "
                f"with it: let it open connections, files and locks itself, or by uses="
            ) from error
        self._setup = pickle.dumps(
            {
                "path": list(sys.path),
                "argv": sys.argv,
                "pythonpath": os.environ.get("PYTHONPATH"),
                "memory": self.options.memory,
                "tells_memory": self.options.recycle_memory is not None,
                "function": function,
            },
            5,
        )

    def place(self) -> Place:
        """Make one more place for calls."""
        place = Place(self)
        self._places.append(place)
        return place

    # ------------------------------------------------------------------ for its places

    def start_child(self, place: Place) -> Supervised:
        """Start a child process, and send it the function."""
        child = Supervised(
            self.label,
            self.options.nice,
            lambda kind, number, payload: place.heard(child, kind, number, payload),
            lambda status: self._child_ended(place, child, status),
        )
        self._children.add(child)
        child.send(wire.SETUP, 0, self._setup)
        return child

    def _child_ended(self, place: Place, child: Supervised, status: int | None) -> None:
        self._children.discard(child)
        self._child_over.set()
        try:
            place.lost(child, status)
        finally:
            child.close()

    def fail(self, text: str) -> None:
        """Tell the run that no calls can be made here any more."""
        if not self._is_closed:
            self._on_trouble(LaneError(text))

    @property
    def size(self) -> int:
        """How many calls make a chunk of a few milliseconds."""
        return int(self._size)

    def took(self, calls: int, seconds: float, travelled: int) -> None:
        """Learn from a chunk that is over how long the next ones should be."""
        if not calls:
            self._size = 1.0
            return
        fits = calls * CHUNK_SECONDS / seconds if seconds > 0.0 else CHUNK_MOST
        if travelled:
            fits = min(fits, calls * CHUNK_BYTES / travelled)
        # A short chunk says little: it lets the size grow from where it was, and a long one shrinks it at once.
        self._size = max(1.0, min(fits, self._size * GROWTH, CHUNK_MOST))

    # ------------------------------------------------------------------ the end

    async def close(self, grace: float) -> int:
        """End the children; give the number of those that could not be ended."""
        self._is_closed = True
        for place in self._places:
            place.leave()
        with self.standstill():
            await self._wait_until(lambda: not self._children, QUIT_GRACE)
            for child in tuple(self._children):
                child.kill()
            await self._wait_until(lambda: not self._children, KILL_GRACE)
        return len(self._children)

    async def _wait_until(self, reached: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not reached():
                    self._child_over.clear()
                    await self._child_over.wait()
        except TimeoutError:
            pass


class Place:
    """A child process and the chunk of calls in it. The engine sees it as `ports.ChunkPlace`."""

    def __init__(self, lane: ProcessLane) -> None:
        self._lane = lane
        self._child: Supervised | None = None
        self._calls = 0  # that the child has made
        self.length = 0
        self.answered = 0
        self._values: Sequence[Any] = ()  # kept while they may have to be sent again
        self._travelled = 0  # bytes of values and results
        self._refused: dict[int, Raised] = {}  # those that could not be pickled
        self._read_to = wire.AREA
        self._answers: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None
        self._has_news = False
        self._is_running = False
        self._is_single = False
        self._is_killed = False
        self._doom: Exception | None = None
        self._standstill = contextlib.ExitStack()

    # ------------------------------------------------------------------ for the engine

    def room(self) -> int:
        """How many calls to give it at a time."""
        most = self._lane.options.recycle_items
        return self._lane.size if most is None else max(1, min(self._lane.size, most - self._calls))

    @property
    def is_free(self) -> bool:
        """Whether the chunk is over, and another one may start."""
        return not self._is_running

    def start(self, values: Sequence[Any]) -> None:
        """Begin a chunk of calls, one after the other."""
        self._standstill.enter_context(self._lane.standstill())
        self._is_running = True
        self.length = len(values)
        self.answered = 0
        self._values = values
        self._refused = {}
        self._answers = []
        self._has_news = False
        self._doom = None
        self._is_killed = False
        self._send(self._lane.singly)

    async def answers(self) -> list[Any]:
        """Wait for news and give the answers that have come, in order."""
        if self._is_running and not self._has_news:
            self._waiter = self._lane.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._has_news = False
        found, self._answers = self._answers, []
        return found

    def running(self) -> tuple[int, float] | None:
        """Give the number of the call that runs and for how long it has, in seconds; None between calls."""
        child = self._child
        return child.running() if child is not None and self._is_running and not child.is_over else None

    def recall(self) -> None:
        """Take back the calls that have not begun, as soon as the child can say which these are."""
        if self._is_running and self._child is not None:
            self._child.recall()

    def kill(self, number: int, error: Exception) -> None:
        """End call `number` with `error`, and the child with it, unless it ends by itself at this moment."""
        child = self._child
        if child is not None and self._is_running:
            child.words[wire.STOP] = 1  # so that no other call can have begun when it is killed
            self._lane.loop.call_later(SECOND_LOOK, self._kill_if_still, child, number, error)

    def _kill_if_still(self, child: Supervised, number: int, error: Exception) -> None:
        if child is self._child and not child.is_over and self._is_running:
            at = child.running()
            if at is not None and at[0] == number:
                self._doom = error
                child.kill()

    def kill_now(self) -> None:
        """End the child, whatever it does; `answers` says so."""
        self._is_killed = True
        if self._child is not None:
            self._child.kill()

    def leave(self) -> None:
        """Let the child end, as soon as it has nothing to do."""
        child, self._child = self._child, None
        self._calls = 0
        if child is None or child.is_over:
            return
        if self._is_running:
            self._over()
            child.kill()
        elif not child.is_ready:
            child.kill()
        else:
            child.send(wire.QUIT, 0)

    # ------------------------------------------------------------------ to the child

    def _send(self, singly: bool) -> None:
        child = self._child
        if child is None:
            child = self._child = self._lane.start_child(self)
            self._calls = 0
        words = child.words
        words[wire.STARTED] = words[wire.DONE] = words[wire.STOP] = words[wire.LOADING] = words[
            wire.TAKEN
        ] = 0
        words[wire.BYTES] = self._read_to = wire.AREA
        parts: list[Any] | None = None
        if not singly:
            try:
                parts = parts_of(self._values)
            except Exception:  # noqa: BLE001 - which of them it is comes out when they are pickled one by one
                parts = None
        self._is_single = parts is None
        if parts is None:
            parts = parts_of([self._pickled(at, value) for at, value in enumerate(self._values)])
        self._travelled = length_of(parts)
        child.send_values(wire.SINGLY if self._is_single else wire.CHUNK, parts, self._travelled)

    def _pickled(self, at: int, value: Any) -> bytes:
        try:
            data = by_value(value)
        except Exception as error:  # noqa: BLE001 - it is the item's failure
            raised = CallError(
                f"the item, of type {type(value).__qualname__}, cannot be pickled for the child process: {said(error)}. "
                f"Give what can be, plain data at best"
            )
            raised.__cause__ = error
            self._refused[at] = Raised(raised)
            return b""
        return data

    # ------------------------------------------------------------------ from the child

    def heard(self, child: Supervised, kind: int, number: int, payload: bytearray) -> None:
        """Take a frame."""
        if child is not self._child:
            return  # it was left to end
        if kind == wire.BROKEN:
            text = payload.decode("utf-8", "replace")
            first, _, trace = text.partition("\n")
            self._child = None
            self._over()
            self._lane.fail(
                f"the child processes of {self._lane.label[9:]} cannot start: {first}\n{trace.rstrip()}"
            )
            return
        if kind == wire.READY or not self._is_running:
            return
        if kind == wire.UNREADABLE:
            self._unreadable()
            return
        if kind == wire.RECALLED:
            self.length = max(number, self.answered)
            self._wake()
            return
        self._collect(child, number)
        if kind in (wire.LARGE, wire.STORED):
            content, length = memoryview(payload), len(payload)
            if kind == wire.LARGE:
                self._answer(unwrapped(content))
            else:
                at, length = wire.PLACE.unpack_from(content)
                self._answer(unwrapped(content[wire.PLACE.size :], lambda _: child.store.load(at, length)))
                child.words[wire.TAKEN] += 1
            self._travelled += length
            if self._travelled > MOST_BYTES and self.answered + 1 < self.length:
                self.recall()  # so that no more of these come than are dealt with
        elif kind == wire.OVER:
            child.store.trim()
            self._calls += self.answered
            seconds, held = wire.SPENT.unpack(payload)
            self._lane.took(self.answered, seconds, self._travelled + number - wire.AREA)
            self._over()
            options = self._lane.options
            if (options.recycle_items is not None and self._calls >= options.recycle_items) or (
                options.recycle_memory is not None and held >= options.recycle_memory
            ):
                self.leave()
        if self._answers:
            self._wake()

    def _unreadable(self) -> None:
        """Send the values again, each pickled for itself; and where there is no memory for these, one at a time."""
        if not self._is_single:
            self._lane.singly = True
            self._send(singly=True)
            return
        self._lane.took(0, 0.0, 0)
        if self.length == 1:
            error = CallError(
                "the item cannot be loaded in the child process: it has no memory for it. Raise memory= of hr.Processes"
            )
            self._answer(Raised(error))
        self._over()

    def _collect(self, child: Supervised, end: int) -> None:
        """Read the results in shared memory, up to offset `end`."""
        start, self._read_to = self._read_to, end
        if start >= end:
            return
        self._lane.fruitless = 0
        found = wire.read_parts(child.memory[start:end])
        if bytes in set(map(type, found)):
            for number, value in enumerate(found):
                if type(value) is bytes:
                    found[number] = unwrapped(memoryview(value))
        if self._refused:
            for value in found:
                self._answer(value)
        else:
            self.answered += len(found)
            self._answers += found

    def _answer(self, value: Any) -> None:
        self._lane.fruitless = 0
        self._answers.append(self._refused.pop(self.answered, value))
        self.answered += 1

    def _over(self) -> None:
        """End the chunk: what has no answer was not begun."""
        self.length = self.answered
        self._is_running = False
        self._values = ()
        self._standstill.close()
        self._wake()

    def _wake(self) -> None:
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lost(self, child: Supervised, status: int | None) -> None:
        """Take a child's death."""
        if child is not self._child:
            return
        self._child = None
        if not self._is_running:
            return
        lane, words = self._lane, child.words
        self._collect(child, words[wire.BYTES])
        is_loading = bool(words[wire.LOADING]) and not self._is_killed
        doom, self._doom = self._doom, None
        if is_loading and not self._is_single and self.length > 1:
            self._send(singly=True)  # one of them kills who loads it: which one comes out
            return
        if words[wire.STARTED] > self.answered or is_loading:
            error = doom or WorkerDied(f"the child process died of it: {_how(status)}")
            self._answers.append(Raised(error, died=True))
            self.answered += 1
            lane.fruitless = 0
            self._over()
            return
        if not self.answered and not self._is_killed:
            lane.fruitless += 1
        self._over()
        if lane.fruitless >= FRUITLESS:
            said_last = child.tail()
            why = said(child.trouble) if child.trouble is not None else death_text(status)
            lane.fail(
                f"{lane.fruitless} child processes of {lane.label[9:]} died before they had called anything, the last of "
                f"{why}" + (f"; it said:\n{said_last}" if said_last else "")
            )


def _how(status: int | None) -> str:
    text = death_text(status)
    if status == LOST:
        return f"{text} (its own descriptors were closed)"
    if status == -9:
        return f"{text} (the system sends it where memory runs out)"
    return text
