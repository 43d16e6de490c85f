"""Places in a log: over any breaks, growth and rotations, no line comes twice and none is missing that is still served."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.http.content_range import ContentRange, parse_content_range
from headrace.http.log_position import OVERLAP, Begun, LogPosition, Restarted
from headrace.logs.lines import Line, LineSplitter


def split(data: bytes) -> list[Line]:
    """The lines of a log that was read in one go."""
    splitter = LineSplitter("u")
    return splitter.feed(data) + splitter.end()


@dataclasses.dataclass
class Server:
    """A server of one file: `ranges` says whether it knows them."""

    content: bytes
    ranges: bool = True
    says_length: bool = True

    def answer(self, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Answer as RFC 9110 has it."""
        size = len(self.content)
        asked = headers.get("Range", "").removeprefix("bytes=") if self.ranges else ""
        if not asked:
            return 200, {"content-length": str(size)} if self.says_length else {}, self.content
        first, _, _ = asked.partition("-")
        start = int(first) if first else max(0, size - int(asked[1:]))
        if start >= size:
            return 416, {"content-range": f"bytes */{size}"}, b""
        return 206, {"content-range": f"bytes {start}-{size - 1}/{size}"}, self.content[start:]


def visit(position: LogPosition, server: Server, served: int | None, size: int) -> list[Line]:
    """Ask, and read in chunks until the end, or until the connection breaks after so many bytes."""
    for _ in range(4):
        status, headers, body = server.answer(position.request_headers())
        if position.begin(status, headers) is Begun.AGAIN:
            continue
        lines: list[Line] = []
        part = body if served is None else body[:served]
        try:
            for at in range(0, len(part), size):
                lines += position.feed(part[at : at + size])
            if served is None:
                position.check_end()
        except Restarted:
            return lines + visit(position, server, served, size)
        return lines
    raise AssertionError("asked again and again")


LOG = st.lists(
    st.sampled_from([b"a\n", b"line of a log\n", b"\n", b"x", b"2026-11-25 same\n"]), max_size=200
).map(b"".join)
VISITS = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 700), LOG.map(lambda more: more[:300])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=300)
@given(LOG, VISITS, st.booleans(), st.booleans())
def test_growing_log_over_broken_connections(
    log: bytes, visits: list[tuple[int, int, bytes]], ranges: bool, says_length: bool
) -> None:
    """A log that grows while connections break at any byte gives every line once, with its offset."""
    server, position, lines = Server(log, ranges, says_length), LogPosition("u"), []
    for served, size, more in visits:
        lines += visit(position, server, served, size)
        server.content += more
    lines += visit(position, server, None, 100)
    assert lines + position.finish() == split(server.content)
    assert position.read == len(server.content)
    assert not position.notices


@settings(max_examples=300)
@given(LOG, LOG, VISITS, st.booleans())
def test_another_file_is_read_from_its_beginning(
    old: bytes, new: bytes, visits: list[tuple[int, int, bytes]], ranges: bool
) -> None:
    """After a rotation, all of the new file comes, and of the old one no line twice; it is told."""
    old, new = b"old: " + old, b"new: " + new
    server, position, lines = Server(old, ranges), LogPosition("u"), []
    for served, size, _ in visits:
        lines += visit(position, server, served, size)
    seen = position.read
    server.content = new
    lines += visit(position, server, None, 100)
    lines += visit(position, server, None, 100)
    lines += position.finish()
    if not seen:
        assert lines == split(new)
        return
    assert [kind for kind, _ in position.notices] == ["rotated"]
    before = split(old[:seen])
    assert lines == before + split(new)


@given(LOG, st.integers(1, 400))
def test_beginning_near_the_end_gives_whole_lines_only(log: bytes, back: int) -> None:
    """A start in mid-line passes over what is left of that line; with "end", only what is written later comes."""
    for ranges in (True, False):
        server = Server(log, ranges)
        near, end = LogPosition("u", -back), LogPosition("u", "end")
        lines = visit(near, server, None, 7) + near.finish()
        start = max(0, len(log) - back)
        expected = [line for line in split(log) if line.offset > start or start == 0]
        assert lines == expected
        assert visit(end, server, None, 7) == []
        server.content += b"rest\nnew line\n"
        assert visit(end, server, None, 7)[-1] == Line("new line", "u", len(log) + 5)


def test_stream_at_its_live_end_is_a_gap() -> None:
    """A server without ranges and lengths that sends other bytes after a break is read on, and the gap is told."""
    position = LogPosition("u")
    position.begin(200, {})
    assert [line.text for line in position.feed(b"one\ntwo\nthr")] == ["one", "two"]
    position.begin(200, {})
    assert [line.text for line in position.feed(b"six\n")] == ["thr", "six"]
    assert [kind for kind, _ in position.notices] == ["gap"]


@pytest.mark.parametrize("answer", [{"content-range": "bytes 1-2/2"}, {}, {"content-range": "lines 1-2/3"}])
def test_ranges_that_make_no_sense_are_done_without(answer: dict[str, str]) -> None:
    """A 206 that does not say what it brings is not guessed at: the whole is asked for."""
    position = LogPosition("u")
    position.begin(200, {"content-length": "8"})
    position.feed(b"one\ntwo\n")
    assert position.begin(206, answer) is Begun.AGAIN
    assert "Range" not in position.request_headers()


def test_overlap_is_bounded() -> None:
    """However long a log is, what is compared is a kilobyte."""
    position = LogPosition("u")
    position.begin(200, {})
    for _ in range(100):
        position.feed(b"x" * 999 + b"\n")
    assert position.request_headers()["Range"] == f"bytes={100_000 - OVERLAP}-"


@pytest.mark.parametrize("start", ["middle", 1.5, True, None])
def test_starts_that_make_no_sense_are_refused(start: object) -> None:
    """The error says what may be given."""
    with pytest.raises(PlanError, match="start="):
        LogPosition("u", start)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ Content-Range


@given(st.integers(0, 10**17), st.integers(1, 10**6), st.integers(0, 10**6) | st.none())
def test_content_ranges_are_read_as_written(start: int, count: int, more: int | None) -> None:
    """Every possible range comes back; without a size it is unknown."""
    size = None if more is None else start + count + more
    text = f"bytes {start}-{start + count - 1}/{'*' if size is None else size}"
    assert parse_content_range(text) == ContentRange(start, start + count, size)


@given(st.text(max_size=40) | st.from_regex(r"bytes[ \t]*\d{0,3}-?\d{0,3}/(\d{0,3}|\*)", fullmatch=True))
def test_other_content_ranges_are_none_or_possible(text: str) -> None:
    """Whatever a server writes, the result makes sense or is None."""
    found = parse_content_range(text)
    if found is not None and found.start is not None:
        assert found.end is not None
        assert 0 <= found.start < found.end
        assert found.size is None or found.end <= found.size
    if found is not None:
        assert text.strip(" \t").lower().startswith("bytes")
