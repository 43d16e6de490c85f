"""Lines of a file as a source that can be read again."""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from headrace import files
from headrace.errors import PlanError, SourceError
from headrace.files.lines import Lines
from headrace.testing.conformance import check_replayable


def read(source: Lines, limit: int = 1000, **bookmark: object) -> list[tuple[int, str]]:
    async def main() -> list[tuple[int, str]]:
        reader = source.open(**bookmark)  # type: ignore[arg-type]
        found: list[tuple[int, str]] = []
        try:
            while (chunk := await reader.read(limit)) is not None:
                positions = chunk.positions or range(chunk.start, chunk.start + len(chunk.payloads))
                found += zip(positions, chunk.payloads, strict=True)
        finally:
            await reader.close()
        return found

    return asyncio.run(main())


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


MIXED = (
    b"\xef\xbb\xbf# list\r\nhttps://a/\r\n\r\n  # indented\n\t \nhttps://b/\xc3\xa9\nlast # not a comment\n\n"
)


def test_it_keeps_every_promise(tmp_path: Path) -> None:
    """Lines are a replayable source: chunks, bookmarks, fingerprint, growth and change."""
    path = write(tmp_path / "urls.txt", MIXED)

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"https://c/\n")

    check_replayable(
        lambda: files.lines(path, comment="#"),
        [(1, "https://a/"), (5, "https://b/é"), (6, "last # not a comment")],
        grow=grow,
        alter=lambda: write(path, path.read_bytes().replace(b"https://a/", b"https://A/")),
    )


def test_a_long_file_keeps_every_promise(tmp_path: Path) -> None:
    """The same for a file of many blocks, with lines longer than a block."""
    texts = [f"{number}:" + "x" * (number * 37 % 251) for number in range(9000)]
    texts[4000] = "y" * 700_000
    path = write(tmp_path / "long.txt", "\n".join(texts).encode() + b"\n")

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"more\n" * 100_000)

    def alter() -> None:
        with path.open("r+b") as file:
            file.seek(300_000)
            file.write(b"!")
            file.seek(70_000)
            file.write(b"!" * 70_000)

    check_replayable(lambda: files.lines(path), list(enumerate(texts)), grow=grow, alter=alter)


def test_no_comments_unless_asked(tmp_path: Path) -> None:
    """Without `comment=` a line that begins with # is an item."""
    assert read(files.lines(write(tmp_path / "x", b"#a\n\nb")), 1) == [(0, "#a"), (2, "b")]


def test_an_empty_file_has_no_items(tmp_path: Path) -> None:
    """An empty file is no error, and may grow later."""
    path = write(tmp_path / "x", b"")
    check_replayable(lambda: files.lines(path), [], grow=lambda: write(path, b"a\n"))


def test_a_bad_line_is_its_own_trouble(tmp_path: Path) -> None:
    """Bytes that are no text become U+FFFD in their line, and the lines after it come as they are."""
    good = [f"line {number}" for number in range(30)]
    data = "\n".join(good).encode() + b"\nbad \xff\xc3\n\0\nend\r\n"
    padded = b"x" * 70_000 + b"\n" + data
    found = read(files.lines(write(tmp_path / "x", padded)))
    assert [text for _, text in found[1:]] == [*good, "bad \ufffd\ufffd", "\0", "end"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "gbk"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    """A named encoding is used; a broken character at a line's end does not join two lines."""
    lead = {"shift_jis": b"\x81", "gbk": b"\x81"}.get(encoding, b"")
    lines = [f"plain {number}".encode() for number in range(20)]
    path = write(tmp_path / "x", b"\n".join([*lines, b"cut" + lead, b"next"]))
    found = read(files.lines(path, encoding=encoding))
    assert [position for position, _ in found] == list(range(22))
    assert found[21] == (21, "next")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "nonsense", "base64"])
def test_encodings_that_have_no_lines(encoding: str) -> None:
    """Encodings that are unknown, or whose line ends are not single bytes, are refused with the way out."""
    with pytest.raises(PlanError, match="encoding="):
        files.lines("x", encoding=encoding)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """A missing file, a directory, a pipe, a binary file and another encoding are refused with path and reason."""
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "elf", b"\x7fELF\x02\x01\0\0" * 100)
    write(tmp_path / "latin", "é\nè\nà\n".encode("latin-1"))
    for name, words in (
        ("missing", "does not exist"),
        (".", "is a directory"),
        ("pipe", "is a pipe or a device"),
        ("elf", "not a text file"),
        ("latin", "encoding='latin-1'"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            files.lines(tmp_path / name).open()
        assert str(tmp_path) in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is refused with the system's reason."""
    write(tmp_path / "x", b"a\n")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root may read everything
    with pytest.raises(SourceError, match="Permission denied"):
        files.lines(tmp_path / "x").open()


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    """A line of more than 16 MiB stops the reading, with its number, and without having been kept in memory twice."""
    path = write(tmp_path / "x", b"a\nb\n" + b"x" * (17 << 20))
    with pytest.raises(SourceError, match="line 3 is longer than 16 MiB"):
        read(files.lines(path))


def test_a_torn_line_that_grows_is_noticed(tmp_path: Path) -> None:
    """Text appended to a last line without an end is a change; its missing line end alone is not."""
    path = write(tmp_path / "x", b"a\nb")
    source = files.lines(path)
    assert read(source) == [(0, "a"), (1, "b")]
    found = json.loads(json.dumps(source.fingerprint(2)))
    for data, differs in (
        (b"a\nb", False),
        (b"a\nb\n", False),
        (b"a\nb\r\nc", False),
        (b"a\nbc\n", True),
        (b"a\nb\rc\n", True),
    ):
        said = files.lines(write(path, data)).verify(found)
        assert bool(said) == differs, data
        assert not differs or "line 2 has grown" in str(said)


def test_what_changed_is_said_in_words(tmp_path: Path) -> None:
    """Shorter, another line, another encoding: each is told in its own words."""
    path = write(tmp_path / "x", b"".join(b"line %d\n" % number for number in range(100_000)))
    source = files.lines(path)
    read(source)
    found = source.fingerprint(100_000)
    data = path.read_bytes()
    for changed, words in (
        (data[:5000], "shorter than before"),
        (data.replace(b"line 7\n", b"LINE 7\n"), "between line 1 and line"),
        (data.replace(b"line 99998\n", b"LINE 99998\n"), "99,9|100,000"),
    ):
        assert words.split("|")[0] in str(files.lines(write(path, changed)).verify(found)) or words.split(
            "|"
        )[-1] in str(files.lines(path).verify(found))
    write(path, data)
    assert "latin-1" in str(files.lines(path, encoding="latin-1").verify(found)) or "iso8859-1" in str(
        files.lines(path, encoding="latin-1").verify(found)
    )
    assert "comment" in str(files.lines(path, comment="#").verify(found))


def test_the_fingerprint_covers_what_was_read(tmp_path: Path) -> None:
    """Only the part that was read is covered: a change behind it is none, one within it is."""
    path = write(tmp_path / "x", b"a\nb\nc\nd\n")

    async def first_two() -> Lines:
        source = files.lines(path)
        reader = source.open()
        await reader.read(2)
        await reader.close()
        return source

    found = asyncio.run(first_two()).fingerprint(2)
    assert files.lines(write(path, b"a\nb\nC\n")).verify(found) is None
    assert "differs" in str(files.lines(write(path, b"a\nB\nc\nd\n")).verify(found))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 40 MB is read in a few megabytes."""
    path = write(tmp_path / "x", (b"x" * 79 + b"\n") * 500_000)

    async def main() -> int:
        reader = files.lines(path).open()
        count = 0
        while (chunk := await reader.read(256)) is not None:
            count += len(chunk.payloads)
        await reader.close()
        return count

    tracemalloc.start()
    try:
        assert asyncio.run(main()) == 500_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_positions_are_named_for_people(tmp_path: Path) -> None:
    """Positions are lines of an editor, counted from 1."""
    assert files.lines(tmp_path / "urls.txt").describe(16) == "urls.txt, line 17"
    assert files.lines(tmp_path / "urls.txt").total() is None
