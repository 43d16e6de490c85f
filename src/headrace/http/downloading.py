"""`download`: the body of each item's answer into a file of its own, as the function of a stage.

    ask (from where an earlier attempt broke off) ─► head ─► hidden file ─► on the disk ─► its name ─► Downloaded

Rules:
1. Memory does not depend on the size of a body. A small one costs the disk one visit.
2. A file is there whole or not at all. What broke off is gone on with by Range and If-Range, under a strong validator only.
3. A disk that is full ends the run, resumable; it fails no items.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from headrace.aio.tasks import uninterrupted
from headrace.errors import CallError, Disposition, PlanError, SinkError
from headrace.http.client import Client, HeadersLike, Template
from headrace.http.content_range import parse_content_range
from headrace.http.errors import BadResponse
from headrace.http.fetching import Fetch, Preview, fetch
from headrace.http.file_names import POSITION, check_name, file_path, is_shared_name
from headrace.http.profile import Timeouts
from headrace.http.response import with_item
from headrace.http.saving import Half, NameTaken, PartFile, Saved, is_full
from headrace.http.streaming import StreamedResponse
from headrace.http.template import fields_of
from headrace.http.url import mask
from headrace.policies.limits import Limit
from headrace.policies.retry_after import parse_http_date
from headrace.ports import StageDefaults, current_call

__all__ = ["Download", "Downloaded", "download"]

#: A body up to this size is written in one visit to the disk.
SMALL: Final = 256 << 10
#: Bytes of free disk that are never used.
RESERVE: Final = 64 << 20
COLUMNS: Final = (
    "url",
    "final_url",
    "status",
    "path",
    "bytes",
    "sha256",
    "timings",
    "attempts",
    "fetched_at",
)
_STRONG_TAG: Final = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


class Downloaded(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was downloaded: `path` below the directory that was given, `bytes` and `sha256` of what is in it."""

    url: str
    final_url: str
    status: int
    path: str
    bytes: int
    sha256: str
    timings: dict[str, float]
    attempts: int
    fetched_at: float
    item: Any = None

    def as_row(self) -> dict[str, Any]:
        """Give the columns of a result table, then those of the row that was the item."""
        row = {name: getattr(self, name) for name in COLUMNS}
        return with_item(row, self.item, self.url)


class Download:
    """A configured download: `flow.map(hr.http.download("files"))`. Made by `download`."""

    stage_defaults: StageDefaults

    def __init__(self, directory: str, name: str | None, replace: bool, asking: Fetch) -> None:
        self._directory = directory
        self._name = name
        self._replace = replace or not is_shared_name(name)
        self._asking = asking
        self._prepared: tuple[Client, Template] | None = None
        defaults = asking.stage_defaults
        self.stage_defaults = StageDefaults(
            name="download",
            effect="safe",
            retry=defaults.retry,
            limits=defaults.limits,
            uses=defaults.uses,
            shape={**defaults.shape, "name": name},
            columns=COLUMNS,
        )

    async def __call__(self, item: Any, *, client: Client | None = None) -> Downloaded:
        """Download for one item.

        Raises HttpError as a request does, SinkError where the disk is full, CallError where another file has the name or
        the place cannot be written. Cancelling closes the connection; what had arrived is gone on with by the next attempt,
        where the server allows it.
        """
        client = client or self._asking.own_client
        if client is None:
            raise PlanError("download() has no client here: use it in a flow, or give client=")
        call = current_call.get(None)
        position, key = (0, "") if call is None else (call.position, call.idempotency_key)
        url = self._asking.url_for(item)
        tag = hashlib.sha256(f"{key}\0{url}".encode()).hexdigest()[:12]
        part = PartFile(self._directory, file_path(self._name, item, position), tag, self._replace)
        disk = client.disk

        async def do(function: Callable[..., Any], *arguments: Any) -> Any:
            # Through any cancellation: the descriptors are closed below.
            return await uninterrupted(disk.start(function, *arguments))

        try:
            return await self._download(client, item, url, part, do)
        except OSError as error:
            full = is_full(error, part.path)
            if full is not None:
                raise full from error
            raise CallError(f"{part.path} cannot be written: {error.strerror or error}") from error
        except NameTaken as error:
            await do(part.drop)
            raise CallError(
                f"{part.path}: another file has this name and other contents: make name= tell items apart, or give "
                "replace=True"
            ) from error
        finally:
            part.close()

    async def _download(
        self, client: Client, item: Any, url: str, part: PartFile, do: Callable[..., Any]
    ) -> Downloaded:
        half: Half | None = await do(part.half)
        extra = [] if half is None else [f"Range: bytes={half.size}-", f"If-Range: {half.validator}"]
        async with client.open(
            self._template(client), url, extra=extra, item=item, keyed_by=item
        ) as response:
            self._asking.hide(response, item)
            if response.status == 416:
                await do(part.drop)
                shown = mask(response.final_url)
                raise BadResponse(
                    f"GET {shown}: what was left of the file is no part of it any more; it is begun anew",
                    url=shown,
                    disposition=Disposition.TRANSIENT,
                )
            if response.status == 206:
                await self._go_on(response, half, part, do)
                saved = await self._rest(response, part, do)
            else:
                saved = await self._all(response, part, do)
        return Downloaded(
            url=response.url,
            final_url=response.final_url,
            status=response.status,
            path=saved.path,
            bytes=saved.size,
            sha256=saved.digest,
            timings={name: round(seconds, 6) for name, seconds in response.timings._asdict().items()},
            attempts=response.attempts,
            fetched_at=response.fetched_at,
            item=item,
        )

    def _template(self, client: Client) -> Template:
        if self._prepared is None or self._prepared[0] is not client:
            template = self._asking.prepare(client)
            template.accept |= {206, 416}
            self._prepared = (client, template)
        return self._prepared[1]

    async def _go_on(
        self, response: StreamedResponse, half: Half | None, part: PartFile, do: Callable[..., Any]
    ) -> None:
        """Check that the range is the one that was asked for. Raises BadResponse, transient, where it is not."""
        found = parse_content_range(response.headers.get("content-range"))
        if half is None or found is None or found.start != half.size:
            await do(part.drop)
            shown = mask(response.final_url)
            raise BadResponse(
                f"GET {shown}: it sent a range that was not asked for",
                url=shown,
                disposition=Disposition.TRANSIENT,
            )
        await do(part.go_on, half.size)

    async def _all(self, response: StreamedResponse, part: PartFile, do: Callable[..., Any]) -> Saved:
        """Save a whole body."""
        length = response.headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            free = await do(part.free) if int(length) > SMALL else None
            if free is not None and int(length) > free - RESERVE:
                raise SinkError(
                    f"{part.path} has {length} bytes, and the disk has {free} left: make room, then run the same again"
                )
        held: list[bytes] = []
        size = 0
        while size <= SMALL:
            chunks = await response.some()
            if not chunks:
                saved: Saved = await do(part.save, held)
                return saved
            held += chunks
            size += sum(map(len, chunks))
        await do(part.begin)
        await do(part.write, held)
        return await self._rest(response, part, do)

    async def _rest(self, response: StreamedResponse, part: PartFile, do: Callable[..., Any]) -> Saved:
        """Write what comes, and finish."""
        validator = _strong_validator(response)
        if validator is not None:
            await do(part.note, validator)
        while chunks := await response.some():
            await do(part.write, chunks)
        saved: Saved = await do(part.finish)
        return saved

    @property
    def host(self) -> Callable[[Any], str]:
        """What gives the key `host:port` that an item's request goes to: `by=` for a download with a url= template."""
        return self._asking.host

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that an item must have, those of its name too."""
        named = () if self._name is None else (each for each in fields_of(self._name) if each != POSITION)
        return tuple(dict.fromkeys((*self._asking.fields, *named)))

    @property
    def takes_urls(self) -> bool:
        """Whether an item is itself the URL, or has it in a field `url`."""
        return self._asking.takes_urls

    def preview(self, item: Any) -> Preview:
        """Say what would be sent for an item. Raises InvalidUrl as the call would."""
        return self._asking.preview(item)

    def __repr__(self) -> str:
        return f"download({self._directory!r}, {self._asking!r})"


def download(
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    replace: bool = False,
    url: str | None = None,
    headers: HeadersLike | None = None,
    accept: str = "2xx",
    limits: Sequence[Limit] = (),
    client: Client | Callable[[], Client] | None = None,
    timeouts: Timeouts | None = None,
    robots: bool = False,
) -> Download:
    """Make the function of a stage that downloads the body of each item's answer into a file.

    Args:
        directory: Where files go; it is made where it is missing.
        name: A template of their names, as "{id}.jpg" or "{album}/{position}.jpg"; {position} is the item's number. A field
            becomes letters, digits, `.`, `_` and `-`. By default files are named by position, a thousand to a directory. The
            server never names a file. After `flat_map` give a name: children of one item have one position.
        replace: Let a file take the place of another one with its name; else an item whose name is taken by other contents
            fails. Names by position always do.
        url, headers, accept, limits, client, timeouts, robots: As for `hr.http.fetch`. Bodies have no limit of size and
            none of total time, unless `timeouts` sets one; the other limits stay.

    It gives `Downloaded`. Raises PlanError for what cannot work.
    """
    place = os.fspath(directory)
    if not isinstance(place, str) or not place or "\0" in place:
        raise PlanError(f"{place!r} cannot be a directory; give a str such as 'files'")
    if name is not None:
        check_name(name)
    given = dict(headers) if isinstance(headers, Mapping) else dict(headers or ())
    if any(key.lower() in ("range", "if-range", "accept-encoding") for key in given):
        raise PlanError("download(headers=…): Range, If-Range and Accept-Encoding are set here")
    asking = fetch(
        url,
        headers={**given, "Accept-Encoding": "identity"},
        accept=accept,
        limits=limits,
        client=client,
        timeouts=timeouts or Timeouts(total=None),
        max_body=None,
        robots=robots,
    )
    return Download(place, name, replace, asking)


def _strong_validator(response: StreamedResponse) -> str | None:
    """Give what tells this very body from another (RFC 9110 §8.8): a strong ETag, or a date that is surely older than it."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return None
    tag = response.headers.get("etag", "").strip()
    if _STRONG_TAG.fullmatch(tag):
        return tag
    modified = response.headers.get("last-modified", "")
    changed = parse_http_date(modified, response.fetched_at)
    answered = parse_http_date(response.headers.get("date", ""), response.fetched_at)
    if changed is not None and answered is not None and answered - changed >= 60:
        return modified
    return None
