"""The records of a CSV file as a replayable source of rows.

Rules:
1. What a record is, Python's csv module says, in its strict form: nothing is guessed and nothing repaired.
2. The position of an item is the number of its record from 0, the header included: position 16 is row 17 of a spreadsheet.
   Blank lines are void.
3. A record that does not fit the header, or is broken, is an item that fails; those after it come as they are.
4. A quote that is never closed has swallowed all that follows: there the reading ends.
"""

from __future__ import annotations

import contextlib
import csv as standard
import os
from collections.abc import Iterator, Sequence
from typing import Any

from headrace.errors import PlanError, SourceError
from headrace.files.packed import Stream, unpacked_name
from headrace.files.text import (
    BEGINNING,
    BOM,
    LONGEST,
    TextFile,
    TextReader,
    checked_encoding,
    checked_path,
    shown,
)
from headrace.ports import Bookmark, Chunk, Unreadable

__all__ = ["Csv", "CsvReader", "csv"]


def csv(
    path: str | os.PathLike[str],
    *,
    delimiter: str | None = None,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> Csv:
    """Give the records of a CSV file as dicts of text by the names in its first row, one item each.

    Fields may be quoted by `"`, which is doubled inside, and may then hold line breaks. Every value is text as it stands
    there; an empty field is an empty text. Blank lines are passed over, a byte order mark is dropped.

    A record with more or fewer fields than the header, with a stray quote, a NUL, or bytes that the encoding does not know
    fails as an item (`headrace.errors.ItemUnreadable`), with its row; the run goes on. The file may be of any size, and may
    grow between runs: later runs take the new records. One whose name ends in .gz or .zst is unpacked while it is read.

    Args:
        delimiter: What stands between fields. By default a tab where the name ends in .tsv, else a comma.
        columns: The names, for a file whose first row is data already.

    Raises PlanError for options that cannot work, and for .zst where nothing can unpack it. Reading raises SourceError for
    a file that is missing, a directory, not readable, not text, or has no header, for a header with an empty name or the
    same name twice, for a record of more than 16 MiB, and for a quote that is not closed before the end of the file.
    """
    place = checked_path(path, "users.csv")
    if delimiter is None:
        delimiter = "\t" if unpacked_name(place).lower().endswith((".tsv", ".tab")) else ","
    if len(delimiter) != 1 or delimiter in '"\r\n\0 ':
        raise PlanError(f"delimiter={delimiter!r}: give one character, such as ',', ';' or '\\t'")
    if columns is not None:
        if isinstance(columns, str):
            raise PlanError(
                f"columns={columns!r} is a str; give a list of names, as columns={columns.split(',')!r}"
            )
        problem = _problem(list(columns))
        if problem:
            raise PlanError(f"columns={list(columns)!r}: {problem}")
    return Csv(place, delimiter, None if columns is None else tuple(columns), checked_encoding(encoding))


class Csv(TextFile):
    """A replayable source of rows. Made by `csv(...)`."""

    kind = "csv"
    unit = "row"

    def __init__(self, path: str, delimiter: str, columns: tuple[str, ...] | None, encoding: str) -> None:
        names = None if columns is None else list(columns)
        super().__init__(path, {"encoding": encoding, "delimiter": delimiter, "columns": names})
        self.delimiter = delimiter
        self._columns = columns

    def columns(self) -> Sequence[str]:
        """Give the names of the columns. Raises SourceError as reading does."""
        reader = self.open()
        reader.close_now()
        assert isinstance(reader, CsvReader)
        return reader.columns

    def reader(self, stream: Stream, position: int, offset: int) -> CsvReader:
        """Give a reader of what `stream` gives, once the header was looked at."""
        header_ends, columns = 0, self._columns
        if columns is None:
            try:
                header_ends, columns = self._header(stream if offset == 0 else self.stream(0))
            except SourceError:
                stream.close()
                raise
            if offset == 0:
                stream = self.stream(0)
        return CsvReader(self, stream, position, offset, columns, header_ends)

    def again(self) -> Csv:
        """Give another source over the same file."""
        return Csv(self.path, self.delimiter, self._columns, self.encoding)

    def _header(self, stream: Stream) -> tuple[int, tuple[str, ...]]:
        """Read the names of the columns, and say at which position the records begin. Closes the stream."""
        reader = CsvReader(self, stream, 0, 0, None, 0)
        try:
            row = reader.header()
        finally:
            reader.close_now()
        if row is None:
            raise SourceError(f"{self.path} is empty; its first row must name the columns")
        problem = row.why if isinstance(row, Unreadable) else _problem(row)
        if problem or isinstance(row, Unreadable):
            raise SourceError(f"{self.path}, row {reader.reached}, the header: {problem}")
        return reader.reached, tuple(row)


class CsvReader(TextReader):
    """One pass over the records of a file."""

    def __init__(
        self,
        source: Csv,
        stream: Stream,
        position: int,
        offset: int,
        columns: tuple[str, ...] | None,
        header_ends: int,
    ) -> None:
        super().__init__(source, stream, position, offset)
        self.columns = columns or ()
        self._header_ends = header_ends
        self._delimiter = source.delimiter
        self._error: SourceError | None = None  # found behind records that were still to be given
        self._parse = standard.reader(self._texts(), delimiter=source.delimiter, strict=True)
        # The record under way: its beginning, for people, and how many lines and bytes it has so far.
        self._beginning: list[bytes] = []
        self._taken_lines = self._taken_bytes = 0
        self._broken = ""  # what is wrong with one of them

    @property
    def reached(self) -> int:
        """The position of the next record."""
        return self._position

    def header(self) -> list[str] | Unreadable | None:
        """Give the fields of the next record that is not blank; None where there is none."""
        with _large_fields():
            while (row := self._record()) is not None:
                if row:
                    return row
        return None

    def read_now(self, limit: int) -> Chunk | None:
        """Give the next records."""
        with _large_fields():
            return self._read(limit)

    def _read(self, limit: int) -> Chunk | None:
        start, offset = self._position, self._offset
        payloads: list[Any] = []
        positions: list[int] = []
        columns, width = self.columns, len(self.columns)
        if self._error is not None:
            raise self._error
        while len(payloads) < limit:
            position = self._position
            if payloads and self._next >= len(self._lines):
                break  # what comes next needs a block to be read: first what is there
            try:
                row = self._record()
            except SourceError as error:
                if not payloads:
                    raise
                self._error = error
                break
            if row is None:
                break
            if position < self._header_ends or not row:
                continue
            if isinstance(row, Unreadable):
                payloads.append(row)
            elif len(row) == width:
                payloads.append(dict(zip(columns, row, strict=True)))
            elif len(row) == 1 and row[0].isspace():
                continue
            else:
                payloads.append(self._unreadable(self._misfit(row)))
            positions.append(position)
        if self._position == start:
            return None
        torn = self._is_torn and self._next >= len(self._lines)
        self._source.came_by(self._position, self._offset, self._stream.raw_offset(self._offset), torn=torn)
        consecutive = len(payloads) == self._position - start
        return Chunk(
            start, self._position, payloads, None if consecutive else positions, Bookmark(start, offset)
        )

    def _record(self) -> list[str] | Unreadable | None:
        """Give the fields of the next record, empty for a blank line; None at the end. Raises SourceError."""
        self._beginning.clear()
        self._taken_lines, self._taken_bytes, self._broken = 0, 0, ""
        row: list[str] | Unreadable
        try:
            row = next(self._parse)
        except StopIteration:
            return None
        except standard.Error as error:
            if self._ended and "unexpected end" in str(error):
                raise self._unclosed() from error
            row = self._unreadable(f"this record is not CSV: {_explained(str(error))}")
        torn = self._is_torn and self._next >= len(self._lines)
        self._position += 1
        self._offset += self._taken_bytes - torn
        if self._broken:
            return self._unreadable(self._broken)
        return row

    def _texts(self) -> Iterator[str]:
        """Give the lines to the parser, which takes as many as a record has."""
        encoding, first = self._source.encoding, self._offset == 0
        while True:
            while self._next >= len(self._lines):
                if not self._fill():
                    return
            raw = self._lines[self._next]
            self._next += 1
            if self._taken_bytes < BEGINNING:
                self._beginning.append(raw)
            self._taken_lines += 1
            self._taken_bytes += len(raw) + 1
            if self._taken_bytes > LONGEST:
                raise self._too_long()
            if first:
                first = False
                if encoding == "utf-8":
                    raw = raw.removeprefix(BOM)
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as error:
                self._broken = (
                    f"it has bytes that are not {encoding} (0x{raw[error.start]:02x} after {error.start} bytes of a line); "
                    "name the encoding of the file, as encoding='latin-1'"
                )
                text = raw.decode(encoding, errors="replace")
            if "\0" in text:
                self._broken = "it has a NUL character; remove it"
            yield text + "\n"

    def _unreadable(self, why: str) -> Unreadable:
        return Unreadable(shown(b"\n".join(self._beginning)), why)

    def _misfit(self, row: list[str]) -> str:
        lines = f" (it spans {self._taken_lines} lines)" if self._taken_lines > 1 else ""
        return (
            f"this record has {_fields(len(row))}, and the header names {len(self.columns)}{lines}: a field with "
            f"{_named(self._delimiter)} in it must be quoted"
        )

    def _too_long(self) -> SourceError:
        return SourceError(
            f"{self._source.path}, row {self._position + 1} is longer than {LONGEST >> 20} MiB; "
            'look for a quote (") there that is not closed'
        )

    def _unclosed(self) -> SourceError:
        return SourceError(
            f'{self._source.path}, row {self._position + 1}: a quote (") is opened there, and not closed before the end of '
            f"the file ({self._taken_lines} lines on); close it, or double it where it is meant as it stands"
        )


@contextlib.contextmanager
def _large_fields() -> Iterator[None]:
    """Let fields be as long as records may be. The limit is the whole program's, and 128 KiB by default."""
    limit = standard.field_size_limit(LONGEST)
    try:
        yield
    finally:
        standard.field_size_limit(limit)


def _problem(names: list[str]) -> str | None:
    """Say what is wrong with the names of columns."""
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip():
            return f"column {number} has no name; give it one"
        if name in names[: number - 1]:
            return f"the columns {names.index(name) + 1} and {number} are both named {name!r}; rename one"
    return None if names else "there is no column; give their names"


def _explained(error: str) -> str:
    if "new-line character" in error:
        return "a carriage return stands in a field without quotes (are the line ends of the file those of old Macs?)"
    return error


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _named(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else repr(delimiter)
