"""The objects of a JSON lines file as a source that can be read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from readers import read, write

from headrace import files
from headrace.errors import SourceError
from headrace.files import packed
from headrace.ports import Unreadable
from headrace.testing.conformance import check_replayable


def test_it_keeps_every_promise(tmp_path: Path) -> None:
    """Objects are a replayable source: chunks, bookmarks, fingerprint, growth and change."""
    path = write(
        tmp_path / "x.jsonl", b'\xef\xbb\xbf{"id": 1}\r\n\n{"id": "two", "a": {"b": [1]}}\n  \n{"id": 3}'
    )

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b'\n{"id": 4}\n')

    check_replayable(
        lambda: files.jsonl(path),
        [(0, {"id": 1}), (2, {"id": "two", "a": {"b": [1]}}), (4, {"id": 3})],
        grow=grow,
        alter=lambda: write(path, path.read_bytes().replace(b"two", b"TWO")),
    )


def test_a_packed_file_keeps_every_promise(tmp_path: Path) -> None:
    """The same where it is packed, and where packed lines are appended."""
    import gzip

    rows = [{"id": number, "text": "x" * (number % 97)} for number in range(20_000)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(data))

    def grow() -> None:
        with path.open("ab") as file:
            file.write(gzip.compress(b'{"id": 0}\n'))

    check_replayable(lambda: files.jsonl(path), list(enumerate(rows)), grow=grow)


def test_a_packed_line_that_grew_is_noticed(tmp_path: Path) -> None:
    """A last line without an end was taken as it was; that it has grown since is no secret."""
    import gzip

    path = write(tmp_path / "x.txt.gz", gzip.compress(b"one\ntwo"))
    source = files.lines(path)
    assert read(source) == [(0, "one"), (1, "two")]
    found = source.fingerprint(2)
    with path.open("ab") as file:
        file.write(gzip.compress(b" and a half\n"))
    assert "line 2 has grown" in str(files.lines(path).verify(found))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b"[1]", "an array, not a JSON object"),
        (b"7", "a number, not a JSON object"),
        (b"null", "null, not a JSON object"),
        (b"true", "true, not a JSON object"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"{\0}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_its_own_trouble(tmp_path: Path, line: bytes, says: str) -> None:
    """It is an item that cannot be read, with the reason and its beginning; the lines around it come as they are."""
    head = b'{"id": 1}\n' * 7_000
    found = read(files.jsonl(write(tmp_path / "x.jsonl", head + line + b'\n{"id": 2}\n')))
    assert found[-1] == (7_001, {"id": 2})
    position, bad = found[-2]
    assert position == 7_000
    assert isinstance(bad, Unreadable)
    assert says in bad.why
    assert len(bad.text) <= 1001


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    """A line of more than 16 MiB stops the reading, with its number."""
    path = write(tmp_path / "x.jsonl", b"{}\n" + b"x" * (17 << 20))
    with pytest.raises(SourceError, match="line 2 is longer than 16 MiB"):
        read(files.jsonl(path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=10),
    block=st.integers(1, 40),
    escaped=st.booleans(),
)
@example(rows=[{"\ufffd": "a replacement character is text"}], block=7, escaped=False)
def test_it_agrees_with_the_json_module(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], block: int, escaped: bool
) -> None:
    """Whatever was written, and wherever blocks end, the objects are those that were written."""
    data = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows).encode()
    path = write(tmp_path_factory.mktemp("jsonl") / "x.jsonl", data)
    before = packed.BLOCK
    packed.BLOCK = block  # type: ignore[misc]
    try:
        found = read(files.jsonl(path), 3)
    finally:
        packed.BLOCK = before  # type: ignore[misc]
    assert found == list(enumerate(rows))
