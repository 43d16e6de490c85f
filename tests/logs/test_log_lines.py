"""Lines and events out of bytes: whatever the chunks, the same records come out, and every byte is accounted for."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.logs.events import EventParser, ServerSentEvent
from headrace.logs.lines import Line, LineSplitter

LOGS = st.lists(
    st.sampled_from(
        [b"a", b"line", b"\n", b"\r\n", b"\r", "ü".encode(), b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\x0b\x85"]
    ),
    max_size=40,
).map(b"".join)


def chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut bytes into chunks of these sizes, and the rest."""
    out = []
    for size in sizes:
        out.append(data[:size])
        data = data[size:]
    return [*out, data]


def plain(data: bytes) -> list[Line]:
    """What lines are: the same, said as simply as can be."""
    lines, offset = [], 0
    pieces = data.split(b"\n")
    for number, piece in enumerate(pieces):
        if number == len(pieces) - 1 and not piece:
            break
        ended = number < len(pieces) - 1
        text = piece.removesuffix(b"\r") if ended else piece
        if offset == 0:
            text = text.removeprefix(b"\xef\xbb\xbf") if piece.startswith(b"\xef\xbb\xbf") else text
        lines.append(Line(text.decode(errors="replace"), "u", offset))
        offset += len(piece) + 1
    return lines


@given(LOGS, st.lists(st.integers(0, 9), max_size=30))
@example(b"\xef\xbb\xbf\r\na", [1, 1, 1])
def test_lines_do_not_depend_on_chunks(data: bytes, sizes: list[int]) -> None:
    """However the bytes arrive, lines, offsets and the count of replaced characters are the same."""
    splitter = LineSplitter("u")
    lines = [line for chunk in chunks(data, sizes) for line in splitter.feed(chunk)]
    lines += splitter.end()
    whole = LineSplitter("u")
    assert lines == whole.feed(data) + whole.end()
    assert splitter.replaced == whole.replaced
    last_cr = data.endswith(b"\r")  # a last line without an end keeps it only where nothing says that it ends
    assert [line.text.rstrip("\r") if last_cr else line.text for line in lines] == [
        line.text.rstrip("\r") if last_cr else line.text for line in plain(data)
    ]
    assert [line.offset for line in lines] == [line.offset for line in plain(data)]


def test_long_lines_are_cut_and_counted() -> None:
    """A line longer than the cap is given cut; the ones around it are whole, and offsets go on."""
    splitter = LineSplitter("u", longest=10)
    lines = []
    for chunk in (b"ok\n", b"x" * 8, b"y" * 8, b"z" * 100, b"\nnext\nunder way"):
        lines += splitter.feed(chunk)
    lines += splitter.end()
    assert [(line.text, line.offset) for line in lines] == [
        ("ok", 0),
        ("xxxxxxxxyy", 3),
        ("next", 120),
        ("under way", 125),
    ]
    assert splitter.cut == 1


def test_a_line_without_an_end_costs_no_more_than_the_cap() -> None:
    """A gigabyte without a line end is held up to the cap only."""
    splitter = LineSplitter("u", longest=1 << 20)
    chunk = b"x" * (1 << 20)
    for _ in range(1024):
        assert splitter.feed(chunk) == []
    assert sum(map(len, splitter._parts)) <= 1 << 20
    [line] = splitter.feed(b"\n")
    assert (len(line.text), splitter.cut, splitter.offset) == (1 << 20, 1, (1 << 30) + 1)


# ------------------------------------------------------------------------------------------------ events

STREAM = (
    b"\xef\xbb\xbf: comment\n\ndata: first\nid: 1\n\n"
    b"event: add\rdata: 73857293\r\rdata\ndata:\n\n"
    b"data: YHOO\r\ndata:+2\r\ndata: 10\r\n\r\nid\ndata: no id\nignored: x\n\n"
    b"retry: 250\nretry: soon\nid: a\0b\ndata:  two spaces\n\ndata: broken off"
)
EVENTS = [
    ServerSentEvent("first", "message", "1", "u"),
    ServerSentEvent("73857293", "add", "1", "u"),
    ServerSentEvent("\n", "message", "1", "u"),
    ServerSentEvent("YHOO\n+2\n10", "message", "1", "u"),
    ServerSentEvent("no id", "message", "", "u"),
    ServerSentEvent(" two spaces", "message", "", "u"),
]


@given(st.lists(st.integers(0, 20), max_size=40))
@example([1] * len(STREAM))
def test_events_are_those_of_the_standard(sizes: list[int]) -> None:
    """The cases of the standard, in any chunks: line ends of all three kinds, fields, ids, and what is broken off."""
    parser = EventParser("u")
    events = [event for chunk in chunks(STREAM, sizes) for event in parser.feed(chunk)]
    assert events == EVENTS
    assert (parser.last_id, parser.retry) == ("", 0.25)


def test_too_large_event_is_left_out_and_counted() -> None:
    """An event above the cap is none, however it is made up; the next one is whole."""
    parser = EventParser("u", largest=100)
    assert parser.feed(b"data: " + b"x" * 500 + b"\n\n") == []
    assert parser.feed(b"data: 12345678\n" * 20 + b"\n") == []
    assert parser.feed(b"data: ok\n\n") == [ServerSentEvent("ok", url="u")]
    assert parser.cut == 2


def test_a_new_connection_begins_anew_and_keeps_the_id() -> None:
    """What was under way is dropped; the last id is that of the last event that was whole."""
    parser = EventParser("u")
    parser.feed(b"id: 7\ndata: x\n\nid: 8\ndata: half")
    parser.begin()
    assert parser.last_id == "7"
    assert parser.feed(b"\n\ndata: y\n\n") == [ServerSentEvent("y", "message", "7", "u")]
