"""`--dry-run`: what a fetch would do, without a request and without a file."""

from __future__ import annotations

import os

from headrace.cli.request import FetchRequest, result_table
from headrace.cli.screen import say, shown_item, tell
from headrace.errors import CallError, SourceError
from headrace.terminal.text import clean, count

__all__ = ["clean_lines", "explain_fetch"]

SHOWN = 5
LOOKED_AT = 100_000


def explain_fetch(request: FetchRequest, out: str | None, job: str, take: int | None) -> int:
    """Describe the plan, the first URLs, and the lines that are none; give the exit code 0."""
    flow = request.flow(take)
    if out is not None:
        from headrace.sqlite.sink import table

        flow = flow.into(table(out, result_table(job)))
    tell(clean_lines(flow.explain(window=request.window)))
    total = request.source.total()
    tell(
        f"items    {count(total) if total is not None else 'very many'}"
        + (f", of which {take} are taken" if take else "")
    )
    if out is not None:
        state = (
            f"exists; job {clean(job)} goes on there, or begins" if os.path.exists(out) else "will be made"
        )
        tell(f"output   {clean(out)} ({state}), table {clean(result_table(job))}")
    _look_at_list(request)
    say("nothing was requested and nothing was written")
    return 0


def clean_lines(text: str) -> str:
    """Clean a text of several lines."""
    return "\n".join(clean(line) for line in text.splitlines())


def _look_at_list(request: FetchRequest) -> None:
    from headrace.http.url import host

    hosts: dict[str, int] = {}
    bad = seen = 0
    for position, url in _items(request):
        seen += 1
        try:
            key = host(url)
        except CallError as error:
            bad += 1
            if bad <= SHOWN:
                tell(f"  {clean(request.source.describe(position))} would fail: {clean(error)}")
            continue
        if seen - bad <= SHOWN:
            tell(f"  {clean(request.source.describe(position))}: {shown_item(url)}")
        hosts[key] = hosts.get(key, 0) + 1
    most = sorted(hosts.items(), key=lambda pair: -pair[1])[:SHOWN]
    looked = "" if seen < LOOKED_AT else f" in the first {count(LOOKED_AT)}"
    tell(f"hosts    {count(len(hosts))}{looked}: " + ", ".join(f"{clean(key)} {count(n)}" for key, n in most))
    if bad:
        tell(f"unusable {count(bad)}{looked}, which would be dead letters")


def _items(request: FetchRequest) -> list[tuple[int, str]]:
    if request.path is None:
        return list(enumerate(request.urls))
    from headrace.files.lines import lines

    reader = lines(request.path, comment="#").open()
    found: list[tuple[int, str]] = []
    try:
        while len(found) < LOOKED_AT and (chunk := reader.read_now(1024)) is not None:
            positions = chunk.positions if chunk.positions is not None else range(chunk.start, chunk.end)
            found += zip(positions, chunk.payloads, strict=True)
    except SourceError as error:
        say(f"the list cannot be read on: {clean(error)}")
    finally:
        reader.close_now()
    return found[:LOOKED_AT]
