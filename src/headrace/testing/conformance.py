"""What every replayable source and every transactional sink must promise, as checks that run against any of them.

Rules:
1. A check uses the ports only: what it finds is a broken promise of the port, not a matter of taste.
2. A check raises AssertionError that names the promise. It runs its own event loop; call it from a plain test function.
3. `check_replayable` and `check_transactional` run all checks; each is also there by itself, to run as its own test.

    def test_my_source_is_replayable(tmp_path):
        check_replayable(lambda: MySource(tmp_path / "data"), [(0, "a"), (2, "b")])
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from headrace.aio.tasks import TaskOwner
from headrace.errors import HeadraceError, IdentityChanged, LedgerBusy, SinkError
from headrace.ports import (
    Bookmark,
    Chunk,
    Commit,
    DeadLetter,
    Intent,
    JobRequest,
    JobState,
    Keeping,
    Ledger,
    Parking,
    Reader,
    Replayable,
    Row,
    Transactional,
)

__all__ = [
    "TRANSACTIONAL_CHECKS",
    "ReadRows",
    "a_cancelled_commit_is_whole",
    "a_fresh_generation_replaces_the_old_one",
    "a_place_has_one_holder",
    "a_poisonous_row_changes_nothing",
    "an_item_settles_once",
    "another_identity_is_refused",
    "check_replayable",
    "check_transactional",
    "kept_values_come_back",
    "old_items_are_done_again",
    "results_and_settlements_commit_together",
    "settling_clears_parkings_and_intents",
]

MakeSource = Callable[[], Replayable]
MakeSink = Callable[[], Transactional]
#: Gives what a place holds now, as (position, child, value) in any order, read by other means than the sink's.
ReadRows = Callable[[], Sequence[tuple[int, int, Any]]]
#: Makes a new empty place: how to make a sink there, and how to read its rows.
NewPlace = Callable[[], tuple[MakeSink, ReadRows]]


# ---------------------------------------------------------------------------------------------------- sources


def check_replayable(
    make_source: MakeSource,
    expected: Sequence[tuple[int, Any]],
    *,
    grow: Callable[[], object] | None = None,
    alter: Callable[[], object] | None = None,
) -> None:
    """Check every promise of `headrace.ports.Replayable`.

    `make_source` makes a new source over the same input at each call; `expected` are its items, (position, payload).
    `grow` adds items at the end of the input, `alter` changes the part that was there: give them where they make sense.
    """
    for limit in (1, 2, 7, 10_000):
        _equal(_items(_read_all(make_source(), limit)), list(expected), f"the items, read {limit} at a time")
    source = make_source()
    chunks = _read_all(source, 2)
    for chunk in chunks[:: len(chunks) // 25 + 1]:
        if chunk.bookmark is not None:
            _equal(chunk.bookmark.position, chunk.start, "a bookmark restarts at the start of its chunk")
            token = json.loads(json.dumps(chunk.bookmark.token))
            rest = [item for item in expected if item[0] >= chunk.start]
            resumed = _items(_read_all(make_source(), 3, Bookmark(chunk.start, token)))
            _equal(resumed, rest, f"the items from the bookmark at {chunk.start} on")
    _require(
        source.total() in (None, len(expected)), f"total() is {source.total()}, there are {len(expected)}"
    )
    for position, _ in expected:
        _require(bool(source.describe(position)), f"describe({position}) names nothing")
    asyncio.run(_interrupted_reading(make_source(), expected))
    end = chunks[-1].end if chunks else 0
    prints = [json.loads(json.dumps(source.fingerprint(until))) for until in (0, end // 2, end)]
    for found in prints:
        _equal(make_source().verify(found), None, "verify() of an input that did not change")
    if grow is not None:
        grow()
        for found in prints:
            _equal(make_source().verify(found), None, "verify() of an input that has only grown")
        grown = _items(_read_all(make_source(), 5))
        _equal(grown[: len(expected)], list(expected), "the first items of an input that has grown")
        _require(len(grown) > len(expected), "an input that has grown gives no more items")
    if alter is not None:
        alter()
        _require(bool(make_source().verify(prints[-1])), "verify() says nothing of an input that was altered")


def _read_all(source: Replayable, limit: int, bookmark: Bookmark | None = None) -> list[Chunk]:
    async def read() -> list[Chunk]:
        reader = source.open(bookmark)
        chunks: list[Chunk] = []
        try:
            while (chunk := await reader.read(limit)) is not None:
                _require(len(chunk.payloads) <= limit, f"read({limit}) gave {len(chunk.payloads)} items")
                _require(chunk.end > chunk.start, f"a chunk covers nothing: {chunk.start} to {chunk.end}")
                if chunks:
                    _equal(chunk.start, chunks[-1].end, "a chunk starts where the one before it ended")
                chunks.append(chunk)
            _equal(await reader.read(limit), None, "read() after the end")
        finally:
            await reader.close()
        return chunks

    return asyncio.run(read())


async def _interrupted_reading(source: Replayable, expected: Sequence[tuple[int, Any]]) -> None:
    """Cancel every second read before it may do anything, and once it may: nothing is lost by that."""
    reader = source.open()
    chunks: list[Chunk] = []
    number = 0
    owner = TaskOwner()
    try:
        while True:
            reading = owner.start(_read_two(reader), "a read")
            number += 1
            if number % 2:
                if number % 4 == 1:
                    await asyncio.sleep(0)
                reading.cancel()
            try:
                chunk = await reading
            except asyncio.CancelledError:
                if not reading.cancelled():
                    raise
                continue
            if chunk is None:
                break
            chunks.append(chunk)
    finally:
        await reader.close()
    _equal(_items(chunks), list(expected), "the items, though every second read was cancelled")


async def _read_two(reader: Reader) -> Chunk | None:
    return await reader.read(2)


def _items(chunks: Sequence[Chunk]) -> list[tuple[int, Any]]:
    items: list[tuple[int, Any]] = []
    for chunk in chunks:
        positions = chunk.positions
        if positions is None:
            positions = range(chunk.start, chunk.start + len(chunk.payloads))
        _equal(len(positions), len(chunk.payloads), "there is one position for each payload")
        for position, payload in zip(positions, chunk.payloads, strict=True):
            _require(chunk.start <= position < chunk.end, f"position {position} lies outside of its chunk")
            items.append((position, payload))
    return items


# ---------------------------------------------------------------------------------------------------- sinks


def check_transactional(new_place: NewPlace) -> None:
    """Check every promise of `headrace.ports.Transactional` and its `Ledger`, each in a new place."""
    for check in TRANSACTIONAL_CHECKS:
        check(new_place)


class _Place:
    """A place, and the runs of a job there, one after the other."""

    def __init__(self, new_place: NewPlace) -> None:
        self.make_sink, self.rows = new_place()

    def run(
        self, steps: Callable[[Ledger, JobState], Awaitable[Any]] | None = None, **request: Any
    ) -> JobState:
        """Open the job, do the steps, close; give the state as it was when it was opened."""
        return asyncio.run(self._run(steps, request))

    async def _run(self, steps: Any, request: dict[str, Any]) -> JobState:
        ledger = self.make_sink().ledger()
        try:
            state = await ledger.open(_request(**request))
            if steps is not None:
                await steps(ledger, state)
        finally:
            await ledger.close()
            await ledger.close()
        return state

    def commit(self, *commits: Commit, **request: Any) -> JobState:
        """Open the job, commit, close."""

        async def steps(ledger: Ledger, _: JobState) -> None:
            for commit in commits:
                await ledger.commit(commit)

        return self.run(steps, **request)


def results_and_settlements_commit_together(new_place: NewPlace) -> None:
    """What was committed is there in the next run: rows, ranges, counts, parkings, intents and bookmark."""
    place = _Place(new_place)
    first = place.commit(
        Commit(_rows(0, 1, 5), done=[1, 5, 0], skipped=[3], bookmarks=[Bookmark(0, "a"), Bookmark(4, "b")]),
        Commit(
            failed=[_letter(4)],
            void=[(6, 9)],
            parked=[Parking(2, 99.0, 3, "busy")],
            intents=[Intent(11, "pay")],
        ),
        Commit(intents=[Intent(12, "pay"), Intent(13, "pay")]),
        Commit(_rows(12), done=[12], cleared=[13]),
    )
    _equal((list(first.settled), first.done, first.bookmark), ([], 0, None), "the state of a new job")
    state = place.run()
    _equal(list(state.settled), [(0, 2), (3, 9), (12, 13)], "the settled ranges")
    _equal((state.done, state.failed, state.skipped), (4, 1, 1), "done, failed and skipped")
    _equal(dict(state.parked), {2: Parking(2, 99.0, 3, "busy")}, "what is parked")
    _equal(list(state.intents), [Intent(11, "pay")], "intents without a settlement")
    _require(
        state.bookmark in (None, Bookmark(0, "a")), f"{state.bookmark} leaves an unsettled item behind it"
    )
    _equal(state.finished_at, None, "a job that did not end")
    _equal(state.generation, first.generation, "the generation of a later run")
    _equal(sorted(place.rows()), sorted(_expected(0, 1, 5, 12)), "the rows")


def settling_clears_parkings_and_intents(new_place: NewPlace) -> None:
    """An item that is settled is parked and intended no more."""
    place = _Place(new_place)
    place.commit(Commit(parked=[Parking(0, 5.0, 1, "")], intents=[Intent(0, "a"), Intent(1, "a")]))
    place.commit(Commit(_rows(0), done=[0], failed=[_letter(1)]))
    state = place.run()
    _equal((dict(state.parked), list(state.intents)), ({}, []), "parkings and intents after settling")


def a_poisonous_row_changes_nothing(new_place: NewPlace) -> None:
    """A commit with a row that cannot be stored is refused as a whole, and the ledger goes on."""
    place = _Place(new_place)

    async def steps(ledger: Ledger, _: JobState) -> None:
        poison = Commit([*_rows(0, 1), Row(2, 0, {"value": object()})], done=[0, 1, 2])
        try:
            await ledger.commit(poison)
        except SinkError as error:
            _require(error.position in (None, 2), f"position 2 is to blame, not {error.position}")
        else:
            raise AssertionError("a row that no sink can store was taken")
        await ledger.commit(Commit(_rows(0, 1), done=[0, 1], failed=[_letter(2)]))

    place.run(steps)
    state = place.run()
    _equal(
        (list(state.settled), state.done, state.failed), ([(0, 3)], 2, 1), "the state after a poisonous row"
    )
    _equal(sorted(place.rows()), sorted(_expected(0, 1)), "the rows after a poisonous one")


def an_item_settles_once(new_place: NewPlace) -> None:
    """An item that is settled cannot be settled again, in the same run or a later one."""
    place = _Place(new_place)
    place.commit(Commit(_rows(0, 1), done=[0, 1]))

    async def steps(ledger: Ledger, _: JobState) -> None:
        try:
            await ledger.commit(Commit(_rows(1, 2), done=[1, 2]))
        except HeadraceError:
            return
        raise AssertionError("an item was settled twice")

    place.run(steps)
    _equal(sorted(place.rows()), sorted(_expected(0, 1)), "the rows")


def a_place_has_one_holder(new_place: NewPlace) -> None:
    """A second run is refused while the first one is open, and let in after it."""
    place = _Place(new_place)

    async def steps(ledger: Ledger, _: JobState) -> None:
        second = place.make_sink().ledger()
        try:
            await second.open(_request())
        except LedgerBusy:
            pass
        else:
            raise AssertionError("two runs hold the same place")
        finally:
            await second.close()
        await ledger.commit(Commit(_rows(0), done=[0]))

    place.run(steps)
    _equal(place.run().done, 1, "what the first holder committed")


def another_identity_is_refused(new_place: NewPlace) -> None:
    """A job with another identity or source is refused, told apart by part, and taken where that is accepted."""
    place = _Place(new_place)
    place.commit(Commit(_rows(0), done=[0], fingerprint={"size": 3}))
    for request, word in (
        ({"identity": {"stages": ["other"]}}, "stages"),
        ({"verify_source": lambda fingerprint: f"was {fingerprint['size']} long"}, "was 3 long"),
    ):
        try:
            place.run(**request)
        except IdentityChanged as error:
            _require(any(word in line for line in error.changes), f"{error.changes} does not say {word!r}")
        else:
            raise AssertionError(f"another job was taken for this one: {word}")
    _require(bool(place.run(code={"f": "2"}).warnings), "changed code gave no warning")
    _equal(
        place.run(identity={"stages": ["other"]}, accept_changes=True).done, 1, "done, with changes accepted"
    )
    _equal(place.run(identity={"stages": ["other"]}).done, 1, "done, after changes were accepted")


def a_fresh_generation_replaces_the_old_one(new_place: NewPlace) -> None:
    """The rows of a fresh generation stay apart until it has ended well, and then take the place of the old ones."""
    place = _Place(new_place)
    old = place.commit(Commit(_rows(0, 1), done=[0, 1]))

    async def begin(ledger: Ledger, state: JobState) -> None:
        _equal((list(state.settled), state.done), ([], 0), "a fresh generation")
        _require(state.generation != old.generation, "a fresh generation has the old one's key")
        await ledger.commit(Commit([Row(0, 0, {"value": "new 0"})], done=[0]))
        await ledger.finish(3, complete=False, report={})

    async def end(ledger: Ledger, state: JobState) -> None:
        _equal(list(state.settled), [(0, 1)], "a fresh generation that is gone on with")
        await ledger.commit(Commit([Row(1, 0, {"value": "new 1"})], done=[1]))
        await ledger.finish(0, complete=True, report={})

    place.run(begin, fresh=True)
    _equal(sorted(place.rows()), sorted(_expected(0, 1)), "the rows while a fresh generation is under way")
    place.run(end, fresh=True)
    _equal(sorted(place.rows()), [(0, 0, "new 0"), (1, 0, "new 1")], "the rows after a fresh generation")
    state = place.run()
    _equal((list(state.settled), state.done), ([(0, 2)], 2), "the state after a fresh generation")
    _require(state.finished_at is not None, "a job that ended complete has no date")


def old_items_are_done_again(new_place: NewPlace) -> None:
    """With `max_age`, older items count as not settled, and their new rows replace the old ones."""
    place = _Place(new_place)
    place.commit(Commit([*_rows(0, 1), Row(1, 1, {"value": "more"})], done=[0, 1], failed=[_letter(2)]))
    _equal(place.run(max_age=3600.0).done, 2, "done within the hour")

    async def again(ledger: Ledger, state: JobState) -> None:
        _equal((list(state.settled), state.done, state.failed), ([(2, 3)], 0, 1), "everything is too old")
        await ledger.commit(Commit([Row(1, 0, {"value": "new"})], done=[1]))

    place.run(again, max_age=-1.0)
    rows = sorted(place.rows())
    _equal(rows, [*_expected(0), (1, 0, "new")], "the rows after one was replaced")
    state = place.run()
    _equal((list(state.settled), state.done), ([(1, 3)], 1), "what is still to be done again")
    place.commit(Commit(failed=[_letter(0)]))
    _equal(place.rows(), [(1, 0, "new")], "the row of an item that failed the second time")


def a_cancelled_commit_is_whole(new_place: NewPlace) -> None:
    """Cancelling whoever waits for a commit, once or twice, leaves it recorded or not, never half, and is not lost."""
    for times in (1, 2):
        place = _Place(new_place)

        async def steps(ledger: Ledger, _: JobState, times: int = times) -> None:
            task = TaskOwner().start(ledger.commit(Commit(_rows(0, 1), done=[0, 1])), "a commit")
            await asyncio.sleep(0)
            for _time in range(times):
                task.cancel()
                await asyncio.sleep(0)
            await asyncio.wait((task,))
            _require(task.cancelled(), "a commit swallowed its cancellation")
            await ledger.commit(Commit(_rows(2), done=[2]))

        place.run(steps)
        state = place.run()
        _require(list(state.settled) in ([(0, 3)], [(2, 3)]), f"half a commit is settled: {state.settled}")
        _equal(len(place.rows()), state.done, "rows and settlements after a cancelled commit")


def kept_values_come_back(new_place: NewPlace) -> None:
    """A ledger that keeps values gives each of them back by position; other ledgers are not asked."""
    place = _Place(new_place)
    if not isinstance(place.make_sink().ledger(), Keeping):
        return
    values: list[Any] = [None, "a\0é", [1, {"b": 2.5}], {"value": 1}, True, 1 << 70]

    async def steps(ledger: Ledger, _: JobState) -> None:
        positions = range(len(values))
        await ledger.commit(Commit([Row(p, 0, values[p]) for p in positions], done=list(positions)))
        _require(isinstance(ledger, Keeping), "the ledger is not Keeping")
        if isinstance(ledger, Keeping):
            _equal(dict(await ledger.values()), dict(enumerate(values)), "the values")

    place.run(steps)


TRANSACTIONAL_CHECKS: tuple[Callable[[NewPlace], None], ...] = (
    results_and_settlements_commit_together,
    settling_clears_parkings_and_intents,
    a_poisonous_row_changes_nothing,
    an_item_settles_once,
    a_place_has_one_holder,
    another_identity_is_refused,
    a_fresh_generation_replaces_the_old_one,
    old_items_are_done_again,
    a_cancelled_commit_is_whole,
    kept_values_come_back,
)


# ---------------------------------------------------------------------------------------------------- within


def _request(**changes: Any) -> JobRequest:
    fields: dict[str, Any] = {
        "name": "job",
        "identity": {"stages": ["fetch"]},
        "verify_source": lambda fingerprint: None,
        "code": {"f": "1"},
    }
    return JobRequest(**{**fields, **changes})


def _rows(*positions: int) -> list[Row]:
    return [Row(position, 0, {"value": f"v{position}"}) for position in positions]


def _expected(*positions: int) -> list[tuple[int, int, Any]]:
    return [(position, 0, f"v{position}") for position in positions]


def _letter(position: int) -> DeadLetter:
    return DeadLetter(position, f"item {position}", "fetch", 2, "ValueError", "bad \udcff \0")


def _require(holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(promise)


def _equal(found: Any, expected: Any, what: str) -> None:
    if found != expected:
        raise AssertionError(f"{what}: expected {expected!r}, found {found!r}")
