"""`--dry-run`: what a fetch would do, without a request and without a file."""

from __future__ import annotations

import os
from typing import Any

from headrace.cli.inputs import first_items
from headrace.cli.request import FetchRequest, result_table
from headrace.cli.screen import say, tell
from headrace.errors import CallError, ItemUnreadable, PlanError
from headrace.terminal.text import clean, count

__all__ = ["clean_lines", "explain_fetch"]

SHOWN = 5
LOOKED_AT = 100_000
MOST_SHOWN = 1000


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
    from headrace.ports import Unreadable

    hosts: dict[str, int] = {}
    bad = seen = 0
    try:
        items = _items(request)
    except PlanError as error:
        say(f"headrace: {clean(error)}")
        return
    for position, item in items:
        seen += 1
        try:
            if isinstance(item, Unreadable):
                raise ItemUnreadable(item.why)
            preview = request.fetch.preview(item)
            key = request.fetch.host(item)
        except CallError as error:
            bad += 1
            if bad <= SHOWN:
                tell(f"  {clean(request.source.describe(position))} would fail: {clean(error)}")
            continue
        except PlanError as error:  # a variable of the environment is missing
            say(f"headrace: {clean(error)}")
            break
        if seen - bad <= SHOWN:
            tell(f"  {clean(request.source.describe(position))}: {_shown(request, preview, item)}")
            _show_rest(request, preview)
        hosts[key] = hosts.get(key, 0) + 1
    most = sorted(hosts.items(), key=lambda pair: -pair[1])[:SHOWN]
    looked = "" if seen < LOOKED_AT else f" in the first {count(LOOKED_AT)}"
    tell(f"hosts    {count(len(hosts))}{looked}: " + ", ".join(f"{clean(key)} {count(n)}" for key, n in most))
    if bad:
        tell(f"unusable {count(bad)}{looked}, which would be dead letters")


def _shown(request: FetchRequest, preview: Any, item: Any) -> str:
    from headrace.cli.templates import shown_url

    url = shown_url(request.fetch, request.texts.get("url"), item)
    return url if preview.method == "GET" else f"{preview.method} {url}"


def _show_rest(request: FetchRequest, preview: Any) -> None:
    """Show headers and body, where rows have a part in them or they are asked for by name."""
    for name, value in preview.headers:
        tell(f"      {clean(name)}: {clean(value)}")
    if preview.body is not None:
        shown = clean(preview.body)
        tell(f"      {shown if len(shown) <= MOST_SHOWN else shown[:MOST_SHOWN] + '…'}")


def _items(request: FetchRequest) -> list[tuple[int, Any]]:
    if request.path is None:
        return list(enumerate(request.urls))
    return first_items(request.source, LOOKED_AT)
