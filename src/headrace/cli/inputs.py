"""The words after `headrace fetch`: one file that holds a list or rows, standard input, or URLs; and the source they make.

Rules:
1. A word with :// is a URL. A word without names a file, and there is at most one. - is standard input.
2. What a file holds follows from its name, unless it is said.
3. Standard input cannot be read again, so it is copied first: beside the output, where the job finds it again.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from headrace.cli.options import Problems
from headrace.cli.screen import shown_item
from headrace.errors import PlanError, SinkError, SourceError

__all__ = [
    "STDIN",
    "by_flags",
    "check_kind",
    "first_items",
    "is_text",
    "kind_of",
    "read_inputs",
    "source_of",
    "spooled",
]

STDIN = "-"
KINDS = ("lines", "csv", "tsv", "jsonl")
_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_PIECE = 1 << 20


def read_inputs(words: Sequence[str], problems: Problems) -> tuple[str | None, list[str]]:
    """Give the path of the list, or the URLs; every problem is noted."""
    for word in words:
        if not is_text(word):
            problems.add(
                f"{shown_item(word)}: it is not all UTF-8; write such bytes as %XX, or rename the file"
            )
            return None, []
    urls = [word for word in words if "://" in word]
    files = [word for word in words if "://" not in word]
    if urls and files:
        problems.add(
            f"{shown_item(files[0])}: give either one list or URLs, not both"
            + (f" (for a URL write https://{files[0]})" if not os.path.exists(files[0]) else "")
        )
    elif len(files) > 1:
        problems.add(f"{len(files)} lists were given: give one, as in: cat {files[0]} {files[1]} … > all.txt")
    elif files and files[0] != STDIN and not os.path.exists(files[0]) and _looks_like_url(files[0]):
        problems.add(f"{files[0]} does not exist; for a URL write https://{files[0]}")
    return (files[0] if files and not urls else None), urls


def is_text(word: str) -> bool:
    """Whether a word of the command line is text, and so can be kept with a job."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _looks_like_url(word: str) -> bool:
    host, slash, _ = word.partition("/")
    endings = (".txt", ".csv", ".list", ".urls", ".lst", ".gz", ".zst", *_ENDINGS)
    return "." in host.strip(".") and (bool(slash) or not host.endswith(endings))


# ---------------------------------------------------------------------------------------------------- sources


def check_kind(flag: str, text: str) -> str:
    """Read what a file holds."""
    if text not in KINDS:
        raise PlanError(f"{flag} {text!r}: it is one of {', '.join(KINDS)}")
    return text


def kind_of(path: str, given: str | None) -> str:
    """Say what a file holds: as it was said, or as its name says. Raises PlanError for a name that may mean two things."""
    if given is not None:
        return check_kind("--input-format", given)
    from headrace.files.packed import unpacked_name

    name = unpacked_name(path)
    ending = os.path.splitext(name)[1].lower()
    if ending == ".json":
        raise PlanError(
            f"{path}: JSON is read a line at a time. If each line is an object, give --input-format jsonl; "
            f"one array becomes such lines by: jq -c '.[]' {path} > {os.path.splitext(name)[0]}.jsonl"
        )
    return _ENDINGS.get(ending, "lines")


def source_of(path: str, options: Mapping[str, str | None]) -> Any:
    """Make the source over a list or a file of rows: --input-format, --delimiter and --encoding say how it is read.

    Raises PlanError where that cannot be told, or cannot be.
    """
    kind, delimiter = kind_of(path, options.get("input-format")), options.get("delimiter")
    encoding = options.get("encoding") or "utf-8"
    if delimiter is not None and kind not in ("csv", "tsv"):
        raise PlanError(f"--delimiter is for CSV, and {path} is read as {kind}; give --input-format csv")
    try:
        if kind == "jsonl":
            from headrace.files.jsonlines import jsonl

            if options.get("encoding") is not None:
                raise PlanError(f"--encoding: JSON is always UTF-8, and {path} is read as JSON lines")
            return jsonl(path)
        if kind == "lines":
            from headrace.files.lines import lines

            return lines(path, comment="#", encoding=encoding)
        from headrace.files.delimited import csv

        return csv(path, delimiter=delimiter or ("\t" if kind == "tsv" else None), encoding=encoding)
    except PlanError as error:
        raise PlanError(by_flags(str(error))) from error


def by_flags(text: str) -> str:
    """Say of options of a source by which flags they are given."""
    return (
        text.replace("as encoding=", "as --encoding ")
        .replace("encoding=", "--encoding ")
        .replace("delimiter=", "--delimiter ")
    )


def first_items(source: Any, most: int) -> list[tuple[int, Any]]:
    """Give the first items with their positions. Raises PlanError where one of these cannot be read."""
    found: list[tuple[int, Any]] = []
    try:
        reader = source.again().open()  # what is looked at here is no part of what the job has read
        try:
            while len(found) < most and (chunk := reader.read_now(min(most, 1024))) is not None:
                positions = range(chunk.start, chunk.end) if chunk.positions is None else chunk.positions
                found += zip(positions, chunk.payloads, strict=True)
        finally:
            reader.close_now()
    except SourceError as error:
        raise PlanError(by_flags(str(error))) from error
    return found[:most]


# ---------------------------------------------------------------------------------------------------- standard input


@contextlib.contextmanager
def spooled(out: str | None, job: str, kind: str | None, *, anew: bool) -> Iterator[str]:
    """Copy standard input into a file, and give its path: beside the output, for its job; else until the block ends.

    The copy of an earlier run is replaced by one that begins with it, or where it is to be done `anew`. It is only then
    there when the block has ended well. Raises PlanError for a terminal and for another input, SinkError where it cannot be
    written.
    """
    source = getattr(sys.stdin, "buffer", None)
    if source is None or source.isatty():
        raise PlanError(
            "-: standard input is a terminal; give a file, or a pipe as in: cat urls.txt | headrace fetch -"
        )
    ending = {"lines": "txt"}.get(kind or "lines", kind)
    if out is None:
        import tempfile

        with tempfile.NamedTemporaryFile(prefix="headrace-", suffix=f".{ending}") as file:
            _copy(source, file)
            yield file.name
        return
    place = (
        f"{out}.input.{ending}" if job == "default" else f"{out}.{job.replace(os.sep, '_')}.input.{ending}"
    )
    made = f"{place}.new"
    try:
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as opened:
            _copy(source, opened)
            os.fsync(opened.fileno())
        if not anew and os.path.exists(out) and os.path.exists(place) and not _begins_with(made, place):
            raise PlanError(
                f"-: this is not what the job {job} in {out} read before (its copy: {place}): --fresh does it all anew, "
                "--job NAME keeps it as another job, headrace resume goes on with what was read"
            )
        os.replace(made, place)
    except OSError as error:
        raise SinkError(
            f"{made}: standard input cannot be copied there: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)
    try:
        yield place
    finally:
        if not os.path.exists(out):  # nothing began
            os.unlink(place)


def _copy(source: IO[bytes], file: Any) -> None:
    while block := source.read(_PIECE):
        file.write(block)
    file.flush()


def _begins_with(path: str, start: str) -> bool:
    with open(path, "rb") as whole, open(start, "rb") as part:
        while block := part.read(_PIECE):
            if whole.read(len(block)) != block:
                return False
    return True
