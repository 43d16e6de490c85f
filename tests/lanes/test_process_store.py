"""Large values and results, by the file that parent and child share: whole, bounded, and no reason to lose another call."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import calls, marked

import headrace as hr
from headrace.errors import WorkerDied
from headrace.lanes import store, wire

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there is no such file here")

MEGABYTE = 1 << 20
NEAR = [0, 1, 1 << 16, wire.RECORD_MOST, store.LEAST, MEGABYTE, store.LEAST_CHUNK]


def near(sizes: list[int]) -> st.SearchStrategy[int]:
    return st.builds(lambda size, by: max(0, size + by), st.sampled_from(sizes), st.integers(-40, 40))


def new_store() -> tuple[int, store.Store]:
    fd = os.memfd_create("test")
    return fd, store.Store(fd)


class Own:
    """Something of a user's, with buffers in it."""

    def __init__(self, *held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.held == other.held

    __hash__ = None  # type: ignore[assignment]


@given(st.lists(near(NEAR), max_size=6), st.integers(0, 3 * MEGABYTE))
@settings(max_examples=60)
def test_what_is_put_is_what_is_loaded(sizes: list[int], at: int) -> None:
    """Bytes, bytearrays, texts and buffers of every size, nested and shared, at any offset, over what was there."""
    fd, kept = new_store()
    try:
        value: list[Any] = [
            kind(size) for size in sizes for kind in (os.urandom, bytearray, lambda n: "ä" * n)
        ]
        value += [Own(value[:2], memoryview(bytes(9)).tolist()), {"again": value[:1]}, list(range(2000))]
        for number in range(2):  # the second over the first
            value.append(number)
            parts = store.parts_of(value)
            assert kept.put(parts, store.START + at)
            assert kept.load(store.START + at, store.length_of(parts)) == value
    finally:
        os.close(fd)


def test_many_parts() -> None:
    """A value may have more parts than the system takes at once."""
    fd, kept = new_store()
    value = [bytes([n % 256]) * 70_000 for n in range(1500)]
    parts = store.parts_of(value)
    assert len(parts) > 2000
    assert kept.put(parts)
    assert kept.load() == value
    os.close(fd)


def test_memory_is_given_back_and_refused() -> None:
    """What is beyond KEEP is given back; where the system has no place, nothing of the attempt stays."""
    import resource

    fd, kept = new_store()
    assert kept.put([bytes(3 * store.KEEP)])
    kept.trim()
    assert os.fstat(fd).st_size == store.START + store.KEEP
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.START + 2 * store.KEEP, hard))
    try:
        assert not kept.put([bytes(3 * store.KEEP)])
        assert os.fstat(fd).st_size == store.START
        assert kept.put([b"x"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.close(fd)


def shaped(item: tuple[str, int]) -> Any:
    kind, size = item
    if kind == "numpy":
        import numpy

        return numpy.arange(size // 8)
    made = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    if kind == "list":
        return [made[:100_000], made[100_000:], len(made)]
    if kind == "error":
        raise ValueError(made.decode())
    return {"bytes": bytes, "bytearray": bytearray, "text": bytes.decode}[kind](made)


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(
        (one == other) if not hasattr(one, "all") else (one == other).all()
    )


KINDS = ["bytes", "bytearray", "text", "list", "numpy"]


def test_all_kinds_in_both_directions(run: Callable[..., Any]) -> None:
    """Small and large mixed, around the sizes where the way changes, there and back."""
    pytest.importorskip("numpy")
    sizes = [max(0, size + by) for size in NEAR for by in (-64, 0, 64)]
    asked = [(kind, size) for size in sizes for kind in KINDS] + [("bytes", 3 * store.KEEP), ("bytes", 5)]

    def make(item: tuple[str, int]) -> Any:
        return shaped(item)

    make.__module__ = shaped.__module__ = "__main__"
    try:
        got = run(lambda: hr.map(make, asked, lane="process", concurrency=2, name="make"))
        values = [shaped(item) for item in asked]
        assert all(map(same, got.values, values))
        back = run(lambda: hr.map(lambda value: value, values, lane="process", concurrency=2, name="back"))
    finally:
        shaped.__module__ = __name__
    assert all(map(same, back.values, values))


def test_an_array_that_came_can_be_written() -> None:
    """An array of numpy comes as one's own, on both sides."""
    numpy = pytest.importorskip("numpy")

    def double(array: Any) -> Any:
        array *= 2
        return array

    (got,) = hr.map_sync(double, [numpy.ones(MEGABYTE)], lane="process").values
    got += 1
    assert got.sum() == 3 * MEGABYTE


def test_a_large_error(run: Callable[..., Any]) -> None:
    """An error with megabytes of words comes whole, between large results."""

    def fail(number: int) -> Any:
        if number % 3 == 1:
            raise ValueError("x" * 3_000_000)
        return bytes(2_000_000)

    got = run(lambda: hr.map(fail, range(9), lane="process", concurrency=1))
    assert [len(str(failed.error)) for failed in got.failed] == [3_000_000] * 3
    assert [len(done.value) for done in got.done] == [2_000_000] * 6


@pytest.mark.parametrize("how", ["kill -9", "os._exit"])
def test_a_death_among_large_results_costs_one_item(
    run: Callable[..., Any], how: str, tmp_path: Path
) -> None:
    """In the middle of a chunk that gives large results: what had finished is read, what had not begun is called once."""

    def make(number: int) -> Any:
        if number in (217, 219):
            os.kill(os.getpid(), signal.SIGKILL) if how == "kill -9" else os._exit(3)
        return number if number < 200 else number.to_bytes(4, "little") * 300_000

    fn = marked(tmp_path / "calls", make)
    fn.__module__ = "__main__"
    got = run(lambda: hr.map(fn, range(240), lane="process", concurrency=2, name="make"))
    assert [(type(failed.error), failed.position) for failed in got.failed] == [
        (WorkerDied, 217),
        (WorkerDied, 219),
    ]
    expected = [
        n if n < 200 else n.to_bytes(4, "little") * 300_000 for n in range(240) if n not in (217, 219)
    ]
    assert [done.value for done in got.done] == expected
    assert calls(tmp_path / "calls") == dict.fromkeys(range(240), 1)


def test_without_a_store(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file takes nothing, on this side or on that of the child, the socket does."""

    def limited(value: bytes) -> bytes:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, hard))
        return value[::-1]

    monkeypatch.setattr(store, "_IS_THERE", False)
    items = [os.urandom(3_000_000) for _ in range(6)]
    got = run(lambda: hr.map(limited, items, lane="process", concurrency=1, name="limited"))
    assert got.values == [item[::-1] for item in items]


def test_a_call_that_takes_the_file_away(run: Callable[..., Any], tmp_path: Path) -> None:
    """Who closes the shared file, and opens others in its place, spoils none of them and loses nothing."""

    def close(number: int) -> bytes:
        for fd in range(3, 30):
            with contextlib.suppress(OSError):
                if "memfd" in os.readlink(f"/proc/self/fd/{fd}"):
                    os.close(fd)
                    os.open(str(tmp_path / "others"), os.O_RDWR | os.O_CREAT)
        return bytes([number]) * 3_000_000

    got = run(lambda: hr.map(close, range(4), lane="process", concurrency=1, name="close"))
    assert got.values == [bytes([n]) * 3_000_000 for n in range(4)]
    assert (tmp_path / "others").read_bytes() == b""


def test_a_limit_of_memory_holds(run: Callable[..., Any]) -> None:
    """An item that a child has no memory for fails alone; those around it, large ones too, go through."""
    items = [b"a", bytes(2_000_000), bytes(300 << 20), bytes(2_000_000), b"b"]
    got = run(lambda: hr.map(len, items, lane=hr.Processes(memory=256 << 20), concurrency=1, name="len"))
    assert [failed.position for failed in got.failed] == [2]
    assert "no memory" in str(got.failed[0].error)
    assert [done.value for done in got.done] == [1, 2_000_000, 2_000_000, 1]


def test_children_of_large_values_do_not_grow(run: Callable[..., Any]) -> None:
    """What parent and child share is not held against the child: `recycle_memory` does not end it for that."""
    got = run(
        lambda: hr.map(
            lambda value: (os.getpid(), bytes(4_000_000))[0],
            [bytes(4_000_000) for _ in range(30)],
            lane=hr.Processes(recycle_memory=200 << 20),
            concurrency=1,
            name="hold",
        )
    )
    assert len(set(got.values)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_left(run: Callable[..., Any]) -> None:
    """After many children with large values no descriptor and no mapping is left."""

    options: dict[str, Any] = {"lane": hr.Processes(recycle_items=2), "concurrency": 1, "name": "copy"}
    got = run(lambda: hr.map(lambda value: value[::-1], [bytes(20_000_000)] * 6, **options))
    assert [len(value) for value in got.values] == [20_000_000] * 6
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them is gone
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    assert not [name for name in names if "memfd:headrace" in name]
    assert "memfd:headrace" not in Path("/proc/self/maps").read_text()
