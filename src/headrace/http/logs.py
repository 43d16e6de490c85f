"""`lines` and `events`: logs over HTTP, read while they grow.

Rules:
1. What breaks off goes on where it broke off; no line comes twice, and what may be missing is told.
2. Leaving the block closes every connection at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from headrace.errors import PlanError
from headrace.http.client import Client, HeadersLike
from headrace.http.event_position import EventPosition
from headrace.http.following import Follower, Position
from headrace.http.log_position import LogPosition, Start
from headrace.http.url import parse
from headrace.logs.events import ServerSentEvent
from headrace.logs.lines import Line
from headrace.logs.notices import OnNotice, log_notice
from headrace.logs.stream import LogStream, OnLogFailure
from headrace.policies.retry import Retry

__all__ = ["events", "http_log", "lines"]

T = TypeVar("T")


def lines(
    *urls: str,
    start: Start = "start",
    follow: bool | float = False,
    headers: HeadersLike | None = None,
    idle: float | None = 300.0,
    retry: Retry | None = None,
    on_failure: OnLogFailure = "stop",
    on_notice: OnNotice | None = None,
    client: Client | None = None,
) -> LogStream[Line]:
    """Read logs over HTTP line by line: `async with hr.http.lines(url) as log:`, then `async for line in log`.

    A connection that breaks is made again, and the log goes on where it broke off: the server is asked for what comes after
    (Range), and what overlaps must be the same. Where another file stands in its place, that one is read from its beginning;
    where the server knows no ranges and streams from its live end, there is a gap. Both are told.

    Args:
        urls: One or more; a line says which one it is from. Lines of several come as they arrive.
        start: "start", "end" (only what is written from now on), an offset in bytes, or a negative number of bytes before
            the end. What is left of a line there is passed over.
        follow: At the end of a log wait for more, asking every second (or so many seconds). Without it the end is the end.
            A server that keeps the answer open is read for as long as it sends, in any case.
        idle: Seconds without a byte after which the connection is given up and made again; None for no such limit.
        retry: Attempts in a row without a new byte, and the waits between them. By default 10, within half a minute each.
        on_failure: "stop" raises what a log fails with; with "record" the others go on, and `.failures` has it.
        on_notice: Called with each Notice; by default they go to the logger `headrace.logs`.
        client: A Client that stays open; by default one is opened, and closed at the end.

    A line of any length up to 16 MiB is whole; bytes that are not UTF-8 become U+FFFD; both are counted in `.statistics()`.
    A reader that is behind stops the transfer: memory is bounded. Cancelling while it waits loses no line. Raises PlanError
    for what cannot work; iterating raises HttpError where a log cannot be had, or not any more.
    """
    poll = _poll(follow)

    def place(url: str) -> LogPosition:
        return LogPosition(url, start)

    return _stream(urls, place, poll, headers, idle, retry, on_failure, on_notice, client)


def http_log(
    url: str,
    client: Client,
    *,
    start: Start,
    follow: float | None,
    headers: Mapping[str, Any],
    idle: float | None,
    retry: Retry,
    on_notice: OnNotice,
) -> Follower[Line]:
    """Make one log of lines, to be put together with others of any kind; `follow` is the seconds between questions."""
    return Follower(
        url,
        LogPosition(url, start),
        client,
        headers=headers,
        follow=follow,
        idle=idle,
        retry=retry,
        on_notice=on_notice,
    )


def events(
    *urls: str,
    last_id: str = "",
    headers: HeadersLike | None = None,
    idle: float | None = 300.0,
    retry: Retry | None = None,
    on_failure: OnLogFailure = "stop",
    on_notice: OnNotice | None = None,
    client: Client | None = None,
) -> LogStream[ServerSentEvent]:
    """Read server-sent events: `async with hr.http.events(url) as stream:`, then `async for event in stream`.

    A connection that ends or breaks is made again with the id of the last event, after the wait that the server asked for.
    A status of 204 ends the stream. `last_id` is what the first request says. Otherwise as `lines`.
    """

    def place(url: str) -> EventPosition:
        return EventPosition(url, last_id)

    return _stream(urls, place, None, headers, idle, retry, on_failure, on_notice, client)


def _poll(follow: bool | float) -> float | None:
    if isinstance(follow, bool):
        return 1.0 if follow else None
    if not (isinstance(follow, int | float) and 0.01 <= follow < math.inf):
        raise PlanError(
            f"follow={follow!r}: give True, False, or the seconds between questions (0.01 or more)"
        )
    return float(follow)


def _stream(
    urls: Sequence[str],
    place: Callable[[str], Position[T]],
    poll: float | None,
    headers: HeadersLike | None,
    idle: float | None,
    retry: Retry | None,
    on_failure: OnLogFailure,
    on_notice: OnNotice | None,
    client: Client | None,
) -> LogStream[T]:
    if not urls:
        raise PlanError("give at least one URL")
    for url in urls:
        parse(url)
    if len(set(urls)) < len(urls):
        raise PlanError("a URL is given twice: each log is read once")
    if idle is not None and not (isinstance(idle, int | float) and 0.0 < idle < math.inf):
        raise PlanError(f"idle={idle!r}: give seconds above 0, or None for no limit")
    tell = on_notice or log_notice
    used = client or Client(max_body=None)
    own: dict[str, Any] = dict(headers.items() if isinstance(headers, Mapping) else headers or ())
    logs = {
        url: Follower(
            url,
            place(url),
            used,
            headers=own,
            follow=poll,
            idle=idle,
            retry=retry or Retry(attempts=10),
            on_notice=tell,
        )
        for url in urls
    }
    return LogStream(logs, on_failure, tell, used.aclose if client is None else None)
