"""Scripted HTTP: answers, latencies and faults behind the real client, without a socket and in virtual time.

    script = ScriptedHttp()
    script.on("GET", "https://api.example/users/{id}").reply(429, retry_after=2).then(json={"name": "Ada"}, after=0.05)

    with script.installed():
        report = flow.run_sync()
    script.assert_all_used()

Rules:
1. Only the network is replaced: limits, retries, redirects, statuses, effects and errors are those of a real run.
2. A request that is not scripted is an error, where it is made and once more at the end.
3. Each URL goes through its replies by itself, so that concurrent items do not take each other's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Final, Unpack

from headrace.errors import PlanError
from headrace.http.client import Client, check_method
from headrace.http.errors import InvalidUrl
from headrace.http.exchange import standing_in
from headrace.http.url import parse
from headrace.testing.playback import ScriptedTransport
from headrace.testing.replies import ReplyOptions, ScriptedReply, ScriptedRequest, Step

__all__ = ["Route", "ScriptedHttp", "UnscriptedRequest", "UrlPattern"]

#: A URL with `{fields}`, a pattern that the whole URL matches, or a function that says whether a request is meant.
UrlPattern = str | re.Pattern[str] | Callable[[ScriptedRequest], bool]

_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_MARK: Final = "headracefield{}x"


class UnscriptedRequest(AssertionError):
    """A request was made that the script has no reply for. The message says which, and what is scripted."""


class Route:
    """What answers the requests of one method and pattern. Made by `ScriptedHttp.on`."""

    def __init__(self, method: str, pattern: UrlPattern) -> None:
        self.method = method
        self.pattern = pattern
        self._matches = _matcher(pattern)
        self._steps: list[tuple[Step, int | None]] = []
        self._played: set[int] = set()
        self.requests: list[ScriptedRequest] = []

    def reply(
        self, step: Step | int | None = None, /, *, times: int | None = None, **options: Unpack[ReplyOptions]
    ) -> Route:
        """Answer the first request to each URL: with a status and what else `ScriptedReply` takes, with a
        ScriptedReply, or with what a function (asynchronous or not) makes of the `ScriptedRequest`; what that raises
        ends the request.

        The last reply answers all further requests, unless it has `times`; others are given `times` times, 1 by default.
        Raises PlanError for what cannot be played, and where there are replies already.
        """
        if self._steps:
            raise PlanError(f"{self} has replies already: add to them by then(), or script another pattern")
        return self.then(step, times=times, **options)

    def then(
        self, step: Step | int | None = None, /, *, times: int | None = None, **options: Unpack[ReplyOptions]
    ) -> Route:
        """Answer the next request to each URL; see `reply`."""
        if times is not None and (not isinstance(times, int) or times < 1):
            raise PlanError(f"times={times!r}: give a number from 1")
        if step is None or isinstance(step, int):
            step = ScriptedReply(step, **options)
        elif options:
            raise PlanError(f"{', '.join(options)}: not beside a ready reply or a function; give them to it")
        elif not isinstance(step, ScriptedReply) and not callable(step):
            raise PlanError(f"reply {step!r}: give a status, a ScriptedReply or a function of the request")
        self._steps.append((step, times))
        return self

    def matches(self, request: ScriptedRequest) -> dict[str, str] | None:
        """Give the fields of a request that is meant; None for another one."""
        return self._matches(request) if self.method in ("*", request.method) else None

    def step(self, nth: int) -> Step | None:
        """Give what answers the `nth` request to a URL, from 1; None beyond the last."""
        last = len(self._steps) - 1
        for number, (step, times) in enumerate(self._steps):
            nth -= times or 1
            if nth <= 0 or (times is None and number == last):
                self._played.add(number)
                return step
        return None

    @property
    def unused(self) -> Sequence[str]:
        """What of this was never asked for."""
        if not self._steps:
            return [f"{self}: it has no reply"]
        return [
            f"{self}: reply {number + 1} of {len(self._steps)}, {step!r}"
            for number, (step, _) in enumerate(self._steps)
            if number not in self._played
        ]

    def __repr__(self) -> str:
        shown = self.pattern.pattern if isinstance(self.pattern, re.Pattern) else self.pattern
        return f"{self.method} {shown}"


class ScriptedHttp:
    """A script of what servers answer, in the place of the network.

    Clients get it by `Client(transport=script)`, `hr.http.fetch(client=script.client)`, or all that open in a block, by
    `with script.installed()`. `requests` are those that were made, in order; `unscripted` those that nothing answered.
    In a child process there is no script.
    """

    def __init__(self) -> None:
        self.requests: list[ScriptedRequest] = []
        self.unscripted: list[ScriptedRequest] = []
        self._routes: list[Route] = []
        self._counts: dict[tuple[int, str, str], Iterator[int]] = {}

    def on(self, method: str, url: UrlPattern) -> Route:
        """Script what answers a method ("*": any) at a URL; the first pattern that matches counts.

        `url` is the whole URL, with its query; a `{field}` in it stands for one segment or value. Otherwise it is a
        compiled pattern that matches the whole URL, or a function of the `ScriptedRequest`. Raises PlanError for a URL that
        cannot be used, or that is scripted already.
        """
        if method != "*":
            check_method(method)
        route = Route(method, url)
        if any((known.method, known.pattern) == (method, url) for known in self._routes):
            raise PlanError(f"{route} is scripted already: add to its replies by then()")
        self._routes.append(route)
        return route

    def client(self, **options: Any) -> Client:
        """Make a Client that asks this script; `options` are those of `hr.http.Client`."""
        return Client(transport=self, **options)

    @contextlib.contextmanager
    def installed(self) -> Iterator[ScriptedHttp]:
        """Let every Client that opens in this block ask this script, in all threads of this process, unless it was given
        another transport. Raises AssertionError at the end of the block for requests that were not scripted.
        """
        with standing_in(self):
            yield self
        self._assert_none(unused=False)

    def assert_all_used(self) -> None:
        """Raise AssertionError for replies that nobody asked for, and for requests that were not scripted."""
        self._assert_none(unused=True)

    def _assert_none(self, *, unused: bool) -> None:
        problems = [f"not scripted: {request.method} {request.url}" for request in self.unscripted]
        if unused:
            problems += [f"not used: {what}" for route in self._routes for what in route.unused]
        if problems:
            raise AssertionError("the script and what was asked differ:\n  " + "\n  ".join(problems))

    def take(self, request: ScriptedRequest) -> Step:
        """Record a request and give what answers it. Raises UnscriptedRequest."""
        self.requests.append(request)
        for number, route in enumerate(self._routes):
            fields = route.matches(request)
            if fields is None:
                continue
            key = (number, request.method, request.url)
            request.nth = next(
                self._counts.setdefault(key, count(1))
            )  # clients of several threads may ask at once
            request.fields = fields
            route.requests.append(request)
            step = route.step(request.nth)
            if step is not None:
                return step
            self.unscripted.append(request)
            raise UnscriptedRequest(
                f"request {request.nth} of {request.method} {request.url} is not scripted: {route} has no more replies"
            )
        self.unscripted.append(request)
        known = "\n  ".join(map(repr, self._routes)) or "nothing"
        raise UnscriptedRequest(f"{request.method} {request.url} is not scripted. Scripted are:\n  {known}")

    def connect(self, loop: asyncio.AbstractEventLoop) -> ScriptedTransport:
        """Make the transport of one client; the client calls it."""
        return ScriptedTransport(loop, self)

    def __repr__(self) -> str:
        return f"<ScriptedHttp {len(self._routes)} patterns, {len(self.requests)} requests>"


def _matcher(pattern: UrlPattern) -> Callable[[ScriptedRequest], dict[str, str] | None]:
    if callable(pattern):

        def by_function(request: ScriptedRequest) -> dict[str, str] | None:
            return {} if pattern(request) else None

        return by_function
    compiled = _compile(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(compiled, re.Pattern):
        raise PlanError(f"url={pattern!r}: give a URL, a compiled pattern or a function of the request")

    def by_text(request: ScriptedRequest) -> dict[str, str] | None:
        found = compiled.fullmatch(request.url)
        return None if found is None else found.groupdict()

    return by_text


def _compile(template: str) -> re.Pattern[str]:
    """Make a pattern of a URL in the form that is sent. Raises PlanError."""
    names = _FIELD.findall(template)
    for name in names:
        if not name.isidentifier() or names.count(name) > 1:
            raise PlanError(f"url={template!r}: {{{name}}} must be a name, and be there once")
    marks = iter(range(len(names)))
    try:
        text = parse(_FIELD.sub(lambda _: _MARK.format(next(marks)), template)).text
    except InvalidUrl as error:
        raise PlanError(f"url={template!r}: {error}") from error
    escaped = re.escape(text)
    for number, name in enumerate(names):
        escaped = escaped.replace(_MARK.format(number), f"(?P<{name}>[^/?&#]+)", 1)
    return re.compile(escaped)
