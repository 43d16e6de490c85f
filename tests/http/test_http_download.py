"""Downloads: all of a body or none, under a safe name, gone on with where it broke off; a full disk ends the run."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http.server import CLOSE, Request, always, answer, serve

import headrace as hr
from headrace.errors import CallError, PlanError, SinkError
from headrace.http import saving
from headrace.http.client import Client
from headrace.http.downloading import download
from headrace.http.errors import BadResponse, BodyTruncated, StatusError
from headrace.http.file_names import check_name, file_path, safe_part

Run = Callable[..., Any]


class Files:
    """A server of files with ETags and ranges, whose answers are cut after `cut` bytes."""

    def __init__(self, files: dict[str, bytes], cut: int | None = None, tags: bool = True) -> None:
        self.files = files
        self.cut = cut
        self.tags = tags
        self.sent = 0

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> str | None:
        body = self.files.get(request.target)
        if body is None:
            writer.write(answer(b"", "404 Not Found"))
            return None
        tag = f'"{hashlib.sha256(body).hexdigest()[:12]}"'
        start, status = 0, "200 OK"
        headers = f"ETag: {tag}\r\n" if self.tags else ""
        if "range" in request.headers and request.headers.get("if-range") == tag:
            start = int(request.headers["range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                writer.write(answer(b"", "416 No", f"Content-Range: bytes */{len(body)}\r\n"))
                return None
            status = "206 Partial Content"
            headers += f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}\r\n"
        rest = body[start:]
        part = rest if self.cut is None else rest[: self.cut]
        self.sent += len(part)
        writer.write(answer(part, status, headers, length=len(rest)))
        return None if len(part) == len(rest) else CLOSE


def tree(directory: Path) -> dict[str, bytes]:
    """All files below a directory, hidden ones too."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def body_of(number: int, size: int) -> bytes:
    """A body that nobody mistakes for another."""
    return random.Random(number).randbytes(size)


def test_bodies_become_files_by_position(run: Run, tmp_path: Path) -> None:
    """A flow of small, empty and large bodies: each file whole, its row true, nothing else in the directory."""
    files = {f"/{n}": body_of(n, [0, 10, 300_000, 3_000_000][n % 4]) for n in range(40)}

    async def main() -> None:
        async with serve(Files(files)) as server:
            flow = hr.Flow([server.url(path) for path in files]).map(
                download(tmp_path / "out"), concurrency=8
            )
            async with flow.stream() as outcomes:
                got = [outcome.value async for outcome in outcomes]
        found = tree(tmp_path / "out")
        assert {name: len(data) for name, data in found.items()} == {
            f"000/000/{n:09d}": len(files[f"/{n}"]) for n in range(40)
        }
        for value in got:
            data = found[value.path]
            assert (value.bytes, value.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            assert data == files["/" + value.url.rpartition("/")[2]]
            assert set(value.as_row()) >= {"url", "path", "bytes", "sha256", "status", "attempts"}

    run(main)


def test_what_broke_off_is_gone_on_with(run: Run, tmp_path: Path) -> None:
    """A body of 5 MB over answers that are cut after one: five attempts, every byte sent once, the digest of the whole."""
    body = body_of(1, 5 << 20)
    server_files = Files({"/a": body}, cut=1 << 20)

    async def main() -> None:
        async with serve(server_files) as server:
            fetch = download(tmp_path, name="a.bin")
            retry = hr.Retry(attempts=9, base=0.001)
            async with hr.Flow([server.url("/a")]).map(fetch, retry=retry).stream() as outcomes:
                [outcome] = [each async for each in outcomes]
        assert outcome.value.sha256 == hashlib.sha256(body).hexdigest()
        assert (outcome.value.attempts, server_files.sent) == (5, len(body))
        assert tree(tmp_path) == {"a.bin": body}

    run(main)


def test_a_file_that_changed_meanwhile_is_begun_anew(run: Run, tmp_path: Path) -> None:
    """Half of an old file is never put before half of a new one; without a strong validator nothing is gone on with."""
    old, new = body_of(1, 2 << 20), body_of(2, 2 << 20)

    async def main() -> None:
        for tags in (True, False):
            handler = Files({"/a": old}, cut=1 << 20, tags=tags)
            async with serve(handler) as server, Client() as client:
                fetch = download(tmp_path / str(tags), name="a", client=client)
                with pytest.raises(BodyTruncated):
                    await fetch(server.url("/a"))
                handler.files["/a"], handler.cut = new, None
                got = await fetch(server.url("/a"))
                assert got.sha256 == hashlib.sha256(new).hexdigest()
                assert tree(tmp_path / str(tags)) == {"a": new}

    run(main)


def test_half_that_is_no_part_any_more_is_dropped(run: Run, tmp_path: Path) -> None:
    """All bytes are there, and only the name is missing: the server says 416, and the next attempt begins anew."""
    body = body_of(1, 1 << 20)

    async def main() -> None:
        handler = Files({"/a": body}, cut=len(body) - 1)
        async with serve(handler) as server:
            async with Client() as client:
                with pytest.raises(BodyTruncated):
                    await download(tmp_path, name="a", client=client)(server.url("/a"))
            [part] = tmp_path.glob(".a.*.part")
            with part.open("ab") as file:
                file.write(body[-1:])
            handler.cut = None
            async with Client() as client:
                fetch = download(tmp_path, name="a", client=client)
                with pytest.raises(BadResponse, match="begun anew"):
                    await fetch(server.url("/a"))
                assert (await fetch(server.url("/a"))).bytes == len(body)
        assert tree(tmp_path) == {"a": body}

    run(main)


def test_names_from_rows_are_safe_and_taken_once(run: Run, tmp_path: Path) -> None:
    """Fields cannot leave the directory; a name that is taken by other contents fails the item, by the same does not."""
    files = {"/1": b"one", "/2": b"two", "/3": b"one"}

    async def main() -> None:
        async with serve(Files(files)) as server:
            rows = [
                {"url": server.url("/1"), "id": "../../etc/passwd", "kind": ".hidden"},
                {"url": server.url("/2"), "id": "con.txt", "kind": "a b/c"},
                {"url": server.url("/2"), "id": "../../etc/passwd", "kind": ".hidden"},
                {"url": server.url("/3"), "id": "../../etc/passwd", "kind": ".hidden"},
            ]
            flow = hr.Flow(rows).map(download(tmp_path, name="{kind}/{id}.txt"), concurrency=1)
            async with flow.stream() as outcomes:
                got = [each async for each in outcomes]
        assert tree(tmp_path) == {"hidden/_.._etc_passwd.txt": b"one", "a_b_c/_con.txt.txt": b"two"}
        assert [type(each).__name__ for each in got] == ["Done", "Done", "Failed", "Done"]
        assert "another file has this name" in str(got[2].error)
        assert got[3].value.as_row()["id"] == "../../etc/passwd"

    run(main)


def test_two_bodies_on_their_way_to_one_name_do_not_mix(run: Run, tmp_path: Path) -> None:
    """Both are written at the same time: one has the name, whole, and the other one fails; nothing is left."""
    bodies = {f"/{n}": body_of(n, 2 << 20) for n in range(8)}

    async def main() -> None:
        async with serve(Files(bodies)) as server:
            flow = hr.Flow([server.url(path) for path in bodies]).map(
                download(tmp_path, name="one"), concurrency=8
            )
            async with flow.stream() as outcomes:
                got = [each async for each in outcomes]
        [done] = [each for each in got if isinstance(each, hr.Done)]
        assert len(got) == 8
        assert hashlib.sha256(tree(tmp_path)["one"]).hexdigest() == done.value.sha256
        assert set(tree(tmp_path)) == {"one"}

    run(main)


def test_links_below_the_directory_are_not_followed(run: Run, tmp_path: Path) -> None:
    """A directory or a name that is a link fails the item; nothing is written where it leads."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (inside / "linked").symlink_to(outside)
    (inside / "name").symlink_to(outside / "target")

    async def main() -> None:
        async with serve(Files({"/1": b"one"})) as server, Client() as client:
            with pytest.raises(CallError, match="cannot be written"):
                await download(inside, name="linked/a", client=client)(server.url("/1"))
            with pytest.raises(CallError):
                await download(inside, name="name", client=client)(server.url("/1"))
            await download(inside, name="name", replace=True, client=client)(server.url("/1"))
        assert list(outside.iterdir()) == []
        assert not (inside / "name").is_symlink()

    run(main)


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_full_disk_ends_the_run_and_fails_no_item(
    run: Run, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops with the world's code; what was not done is returned, for a later run."""
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("5.part"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(saving.os, "write", full)

    async def main() -> None:
        async with serve(Files({f"/{n}": body_of(n, size) for n in range(200)})) as server:
            urls = [server.url(f"/{n}") for n in range(200)]
            flow = hr.Flow(urls).map(download(tmp_path / "out"), concurrency=2)
            with pytest.raises(SinkError, match="make room, then run the same again"):
                await flow.run()

    run(main)


def test_a_body_that_cannot_fit_is_not_begun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the announced length is more than the disk has left, the run stops before a byte is written."""
    monkeypatch.setattr(saving.PartFile, "free", lambda part: 1000)

    async def main() -> None:
        async with serve(Files({"/1": body_of(1, 1 << 20)})) as server, Client() as client:
            with pytest.raises(SinkError, match="the disk has 1000 left"):
                await download(tmp_path / "out", client=client)(server.url("/1"))
        assert tree(tmp_path) == {}

    run(main)


def test_cancelling_leaves_half_to_go_on_with(run: Run, tmp_path: Path) -> None:
    """Cancelled in mid-body: no file has the name, nothing is open, and the next attempt goes on."""
    body = body_of(1, 4 << 20)

    async def slow(request: Request, writer: asyncio.StreamWriter) -> str | None:
        writer.write(answer(body[: 1 << 20], headers='ETag: "x"\r\n', length=len(body)))
        await asyncio.sleep(60)
        return None

    async def main() -> None:
        async with serve(slow) as server, Client() as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await download(tmp_path, name="a", client=client)(server.url("/a"))
        [(part, held), (note, _)] = sorted(tree(tmp_path).items())
        assert re.fullmatch(r"\.a\.[0-9a-f]{12}\.part", part)
        assert (note, len(held)) == (f"{part}.json", 1 << 20)

    run(main)


def test_refused_statuses_write_nothing(run: Run, tmp_path: Path) -> None:
    """A 404 is an error as ever."""

    async def main() -> None:
        async with serve(always(answer(b"no", "404 Not Found"))) as server, Client() as client:
            with pytest.raises(StatusError):
                await download(tmp_path / "out", client=client)(server.url("/1"))
        assert tree(tmp_path) == {}

    run(main)


@pytest.mark.parametrize(
    "name", ["", "/abs", "a/", "a//b", "../x", "a/../b", "a\\b", "a\0", "{env:HOME}", "{a!r}", "{"]
)
def test_templates_that_cannot_be_are_refused(name: str) -> None:
    """Before anything is requested."""
    with pytest.raises(PlanError):
        download("out", name=name)
    with pytest.raises(PlanError):
        download("")
    with pytest.raises(PlanError, match="Range"):
        download("out", headers={"Range": "bytes=1-"})


@given(st.text(), st.text(), st.integers(0, 10**12))
def test_names_are_safe_whatever_the_fields(one: str, other: str, position: int) -> None:
    """Each part is of the safe letters, not hidden, no device, not longer than a name may be."""
    check_name("{a}/x-{b}/{position}.bin")
    item = {"a": one or "x", "b": other or "x"}
    try:
        parts = file_path("{a}/x-{b}/{position}.bin", item, position)
    except CallError:
        return  # half of a surrogate pair is no text
    for part in (*parts, *file_path(None, item, position), safe_part(one)):
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,101}", part)
        assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", part)
