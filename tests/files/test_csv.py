"""The records of a CSV file as a source that can be read again."""

from __future__ import annotations

import csv
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from readers import read, write

from headrace import files
from headrace.errors import PlanError, SourceError
from headrace.files import packed
from headrace.ports import Unreadable
from headrace.testing.conformance import check_replayable

MIXED = (
    b"\xef\xbb\xbfid,name,note\r\n"
    b"1,Ann,plain\r\n"
    b"\r\n"
    b'2,"B, Bob","two\r\nlines, ""quoted"""\r\n'
    b"3,C\xc3\xa9\n"
    b"4,,\n"
    b"5,D,torn"
)


def test_it_keeps_every_promise(tmp_path: Path) -> None:
    """Records are a replayable source: chunks, bookmarks, fingerprint, growth and change."""
    path = write(tmp_path / "users.csv", MIXED)
    short = read(files.csv(path))[2][1]
    assert isinstance(short, Unreadable)
    assert short.text == "3,Cé"
    assert "2 fields, and the header names 3" in short.why

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"\r\n6,E,\r\n")

    check_replayable(
        lambda: files.csv(path),
        [
            (1, {"id": "1", "name": "Ann", "note": "plain"}),
            (3, {"id": "2", "name": "B, Bob", "note": 'two\r\nlines, "quoted"'}),
            (4, short),
            (5, {"id": "4", "name": "", "note": ""}),
            (6, {"id": "5", "name": "D", "note": "torn"}),
        ],
        grow=grow,
        alter=lambda: write(path, path.read_bytes().replace(b"Ann", b"Eve")),
    )


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_a_long_file_keeps_every_promise(tmp_path: Path, packing: str) -> None:
    """The same for a file of many blocks, with records longer than a block, as it is and packed."""
    pack = packer(packing)
    rows = [[str(number), "x" * (number * 37 % 251) + "\n" * (number % 3)] for number in range(6000)]
    rows[4000][1] = 'long "line"\n' * 60_000
    text = io.StringIO()
    csv.writer(text).writerows([["id", "text"], *rows])
    path = write(tmp_path / f"long.csv{packing}", pack(text.getvalue().encode()))

    def grow() -> None:
        with path.open("ab") as file:
            file.write(pack(b"7,more\n" * 50_000))

    def alter() -> None:
        data = path.read_bytes()
        write(path, data[:700] + b"!" * 70 + data[770:])

    expected = [(number, {"id": id_, "text": value}) for number, (id_, value) in enumerate(rows, 1)]
    check_replayable(lambda: files.csv(path), expected, grow=grow, alter=alter)


def packer(packing: str) -> Any:
    if packing == ".gz":
        import gzip

        return lambda data: gzip.compress(data, 1)
    if packing == ".zst":
        return pytest.importorskip("backports.zstd").compress
    return lambda data: data


def test_rows_are_those_of_a_spreadsheet(tmp_path: Path) -> None:
    """A position is named by the number that a spreadsheet shows: the header is row 1."""
    source = files.csv(write(tmp_path / "users.csv", b"id\n7\n"))
    [(position, row)] = read(source)
    assert row == {"id": "7"}
    assert source.describe(position) == "users.csv, row 2"


@pytest.mark.parametrize(
    ("name", "options", "data"),
    [
        ("x.tsv", {}, b"a\tb\n1,5\t2\n"),
        ("x.csv", {"delimiter": ";"}, b"a;b\n1,5;2\n"),
        ("x.csv", {"delimiter": ";", "columns": ["a", "b"]}, b"1,5;2\n"),
        ("x.csv", {"encoding": "latin-1"}, b'a,b\n"1,5",2\n'),
    ],
)
def test_dialects(tmp_path: Path, name: str, options: dict[str, Any], data: bytes) -> None:
    """The delimiter follows from the name or is given, and so are names and encoding."""
    found = read(files.csv(write(tmp_path / name, data), **options))
    assert [row for _, row in found] == [{"a": "1,5", "b": "2"}]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (b"1,2,3", "3 fields, and the header names 2"),
        (b"1", "1 field, and the header names 2"),
        (b'"a"b,2', "not CSV"),
        (b"a\rb,2", "carriage return"),
        (b"\xff,2", "bytes that are not utf-8 (0xff"),
        (b"\0,2", "NUL"),
    ],
)
def test_a_bad_record_is_its_own_trouble(tmp_path: Path, record: bytes, says: str) -> None:
    """It is an item that cannot be read, with the reason and its text; the records around it come as they are."""
    head = b"a,b\n" + b"x,y\n" * 20_000
    found = read(files.csv(write(tmp_path / "x.csv", head + b"1,2\n" + record + b'\n"3\n",4\n')))
    assert [row for _, row in (found[-3], found[-1])] == [{"a": "1", "b": "2"}, {"a": "3\n", "b": "4"}]
    position, bad = found[-2]
    assert position == 20_002
    assert isinstance(bad, Unreadable)
    assert says in bad.why


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b,a\n1,2,3\n", "columns 1 and 3 are both named 'a'"),
        (b",a\n1,2\n", "column 1 has no name"),
        (b"a, \n1,2\n", "column 2 has no name"),
        (b'a,"b"c\n1,2\n', "the header: this record is not CSV"),
        (b"a\0b\n", "not a text file"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    """A file without a usable header is refused when it is opened, with the reason."""
    path = write(tmp_path / "x.csv", data)
    with pytest.raises(SourceError, match=says):
        files.csv(path).open()


def test_an_open_quote_stops_the_reading(tmp_path: Path) -> None:
    """A quote that is never closed is told with its row, once all before it were given: it has swallowed the rest."""
    path = write(tmp_path / "x.csv", b'a,b\n1,2\n3,"4\n' + b"5,6\n" * 10)
    reader = files.csv(path).open()
    first = reader.read_now(100)
    assert first is not None
    assert list(first.payloads) == [{"a": "1", "b": "2"}]
    for _ in range(2):
        with pytest.raises(SourceError, match=r"row 3: a quote .* not closed before the end of the file"):
            reader.read_now(100)
    reader.close_now()


def test_an_endless_record_is_refused(tmp_path: Path) -> None:
    """A record of more than 16 MiB stops the reading, with its row; its memory is bounded."""
    path = write(tmp_path / "x.csv", b'a\n1\n"' + (b"x" * 99 + b"\n") * ((17 << 20) // 100))
    tracemalloc.start()
    reader = files.csv(path).open()
    assert reader.read_now(1) is not None
    with pytest.raises(SourceError, match="row 3 is longer than 16 MiB"):
        reader.read_now(100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.close_now()
    assert peak < 150 << 20


def test_large_fields_are_read_whatever_the_program_has_set(tmp_path: Path) -> None:
    """The limit of the csv module (128 KiB) is not ours, and stays as the program has it."""
    before = csv.field_size_limit()
    [(_, row)] = read(files.csv(write(tmp_path / "x.csv", b"a\n" + b"x" * 200_000 + b"\n")))
    assert len(row["a"]) == 200_000
    assert csv.field_size_limit() == before


def test_memory_does_not_depend_on_the_length(tmp_path: Path) -> None:
    """A file of 40 MB is read in a few MB."""
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.write(b"id,text\n")
        for number in range(400):
            file.write(b"%d,%s\n" % (number, b"x" * 100_000))
    tracemalloc.start()
    reader = files.csv(path).open()
    count = 0
    while (chunk := reader.read_now(512)) is not None:
        count += len(chunk.payloads)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.close_now()
    assert count == 400
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "options",
    [{"delimiter": ""}, {"delimiter": '"'}, {"delimiter": "::"}, {"columns": "a,b"}, {"columns": ["a", "a"]},
     {"columns": []}, {"encoding": "utf-16"}],
)  # fmt: skip
def test_wrong_options(options: dict[str, Any]) -> None:
    """What cannot work is refused at once."""
    with pytest.raises(PlanError):
        files.csv("x.csv", **options)


def test_a_packed_file_that_is_cut_off(tmp_path: Path) -> None:
    """What is there is given; then it is told that the file is cut off, or is damaged."""
    data = packer(".gz")(b"a\n" + b"".join(b"%d\n" % number for number in range(100_000)))
    for broken, says in (
        (data[:-100], "is cut off"),
        (data[:100] + b"?" * 50 + data[150:], "cannot be unpacked"),
    ):
        path = write(tmp_path / "x.csv.gz", broken)
        with pytest.raises(SourceError, match=says):
            read(files.csv(path))


CELL = st.text(alphabet='ab,;"\n\r\té \ufeff', max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=12),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    ends=st.sampled_from(["\n", "\r\n"]),
    block=st.integers(1, 40),
    limit=st.integers(1, 5),
)
def test_it_agrees_with_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    quoting: Any,
    ends: str,
    block: int,
    limit: int,
) -> None:
    """Whatever was written, and wherever blocks end, the rows are those that the csv module reads."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, lineterminator=ends).writerows([["a", "b"], *rows])
    data = text.getvalue().encode()
    path = write(tmp_path_factory.mktemp("csv") / "x.csv", data)
    records = list(csv.reader(io.StringIO(data.decode(), newline="")))[1:]
    assume(records == rows)  # some Pythons write a carriage return without quotes
    expected = [dict(zip("ab", row, strict=True)) for row in records]
    before = packed.BLOCK
    packed.BLOCK = block  # type: ignore[misc]
    try:
        found = read(files.csv(path), limit)
    finally:
        packed.BLOCK = before  # type: ignore[misc]
    assert [row for _, row in found] == expected
    assert [position for position, _ in found] == list(range(1, len(rows) + 1))


@settings(max_examples=150, deadline=None)
@given(data=st.text(alphabet='ab,"\n\r é', max_size=60).map(str.encode), block=st.integers(1, 40))
def test_any_bytes_give_rows_or_reasons(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int
) -> None:
    """What is no CSV gives failed items or one SourceError, the same at every block boundary; no record is lost."""
    path = write(tmp_path_factory.mktemp("csv") / "x.csv", b"h1,h2\n" + data)
    found = []
    for size in (block, 1 << 18):
        before = packed.BLOCK
        packed.BLOCK = size  # type: ignore[misc]
        try:
            found.append(collect(files.csv(path)))
        finally:
            packed.BLOCK = before  # type: ignore[misc]
    assert found[0] == found[1]


def collect(source: Any) -> tuple[list[tuple[int, Any]], str]:
    reader = source.open()
    items: list[tuple[int, Any]] = []
    try:
        while (chunk := reader.read_now(3)) is not None:
            positions = range(chunk.start, chunk.end) if chunk.positions is None else chunk.positions
            items += zip(positions, chunk.payloads, strict=True)
    except SourceError as error:
        return items, str(error)
    finally:
        reader.close_now()
    return items, ""
