"""robots.txt (RFC 9309): what a host does not want requested, and how far apart it wants requests.

        check ─► known ─────────────────────► allowed: go on; disallowed: Skip
          └────► one call fetches it, the others step aside ─┘   not to be had now: RobotsUnavailable

Rules:
1. An origin (scheme, host, port) is asked once in 24 hours, through the same client and under its host's limits. The
   call that comes first asks; those that come meanwhile hold no permit while they wait, and their keys start ever
   fewer more.
2. 4xx, too many redirects and what is no answer in HTTP: there is no such file, and all is allowed. 429, 5xx and no
   answer at all: nothing is requested now.
3. The file is a stranger's: 500 KiB of it are read, undecodable bytes are passed over, and what takes long to read is
   read in a thread of its own.
4. A crawl-delay is kept by the limits that have keys of URLs, so that what waits holds no worker; where a call has none,
   it waits here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from protego import Protego

from headrace.aio.tasks import uninterrupted
from headrace.errors import Disposition, Skip
from headrace.http.errors import (
    BadResponse,
    HttpError,
    InvalidUrl,
    RedirectRefused,
    RobotsUnavailable,
    StatusError,
    TooManyRedirects,
)
from headrace.http.profile import default_user_agent
from headrace.http.url import RequestUrl, Url
from headrace.policies.spacing import bounded_interval
from headrace.ports import Call, current_call

if TYPE_CHECKING:
    from headrace.http.client import Client, Template

__all__ = ["MOST_READ", "Robots", "applicable", "product_token"]

MOST_READ: Final = 500 * 1024
MOST_REDIRECTS: Final = 5
KEPT: Final = 24 * 3600.0  # seconds
#: What is kept of all origins together: so many, and so many bytes of text.
MOST_ORIGINS: Final = 10_000
MOST_TEXT: Final = 32 * 1024 * 1024
#: A text of more bytes is read in a thread: a million of rules would hold the loop.
QUICKLY_READ: Final = 8 * 1024
#: The least time (seconds) for which a key starts nothing more when a call of it had to wait.
REST: Final = 0.1

_TOKEN = re.compile(r"[A-Za-z_-]+")
_AGENT = re.compile(r"\s*user[ -]?agent\s*:?\s*(.*)", re.IGNORECASE)
_OF_NO_GROUP = re.compile(r"\s*(?:site-?maps?|host)\b", re.IGNORECASE)

Origin = tuple[str, str, int]


@dataclasses.dataclass(slots=True)
class _Rules:
    """What an origin said; `parsed` is None where all is allowed. `following` is when a request may start at best."""

    parsed: Protego | None
    until: float
    size: int = 0
    delay: float = 0.0
    following: float = 0.0

    def allow(self, url: Url) -> bool:
        """Say whether a URL may be requested."""
        return self.parsed is None or bool(self.parsed.can_fetch(url.text, "*"))


class _Fetching:
    """A robots.txt on its way, asked for by `call`; `came` is done when it is over, with None where it was broken off."""

    __slots__ = ("began", "call", "came")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Call | None) -> None:
        self.began = loop.time()
        self.call = call
        self.came: asyncio.Future[_Rules | HttpError | None] = loop.create_future()


class Robots:
    """The rules of all origins that a client's requests go to. Bound to the client, and so to its event loop."""

    def __init__(self, client: Client, template: Template, agent: str) -> None:
        """Ask with `template`, for the product token of `agent`, a User-Agent."""
        self._client = client
        self._template = template
        self._agent = product_token(agent)
        self._known: dict[Origin, _Rules] = {}
        self._size = 0
        self._fetching: dict[Origin, _Fetching] = {}

    async def check(self, url: Url) -> None:
        """Return when a request for `url` may go out.

        Raises Skip where robots.txt disallows it, RobotsUnavailable where that cannot be had now.
        """
        rules = await self._rules(url)
        self._refuse(rules, url)
        if rules.delay:
            call = current_call.get(None)
            if call is None or not call.space(RequestUrl(url.text), rules.delay):
                await self._pace(rules, call)

    # ------------------------------------------------------------------------------------------- one for many

    async def _rules(self, url: Url) -> _Rules:
        loop = asyncio.get_running_loop()
        while True:
            rules = self._known.get(url.origin)
            if rules is not None and loop.time() < rules.until:
                return rules
            fetching = self._fetching.get(url.origin)
            call = current_call.get(None)
            found: _Rules | None
            if fetching is None:
                found = await self._ask(url, call)
            elif call is None or call is fetching.call:
                found = await self._news(fetching, url)
            else:
                gone = loop.time() - fetching.began
                found = await call.aside(self._news(fetching, url), rest=max(REST, gone / 2.0))
            if found is not None:
                return found

    async def _news(self, fetching: _Fetching, url: Url) -> _Rules | None:
        """Wait for what another call fetches, and raise what keeps `url` from being requested."""
        found = await asyncio.shield(fetching.came)  # else who is cancelled here would cancel it for all
        if isinstance(found, HttpError):
            raise _not_now(found, url)
        if found is not None:
            self._refuse(found, url)
        return found

    def _refuse(self, rules: _Rules, url: Url) -> None:
        if not rules.allow(url):
            raise Skip(f"robots.txt of {_authority(url)} disallows it for {self._agent}")

    async def _ask(self, url: Url, call: Call | None) -> _Rules:
        """Fetch it for all who wait. Broken off, the next one asks."""
        fetching = self._fetching[url.origin] = _Fetching(asyncio.get_running_loop(), call)
        found: _Rules | HttpError | None = None
        try:
            found = await self._fetch(url)
            if isinstance(found, HttpError):
                raise _not_now(found, url)
            self._keep(url.origin, found)
            if call is not None and found.delay:
                call.space(RequestUrl(url.text), found.delay)  # before anybody goes on
            return found
        finally:
            del self._fetching[url.origin]
            fetching.came.set_result(found)

    async def _fetch(self, url: Url) -> _Rules | HttpError:
        loop = asyncio.get_running_loop()
        try:
            response = await self._client.send(self._template, f"{url.scheme}://{_authority(url)}/robots.txt")
        except (BadResponse, InvalidUrl, RedirectRefused, TooManyRedirects):
            return _Rules(None, loop.time() + KEPT)
        except StatusError as error:
            if error.status == 429 or error.status >= 500:
                return error
            return _Rules(None, loop.time() + KEPT)
        except HttpError as error:
            return error
        body = response.body[:MOST_READ]
        if len(response.body) > len(body):
            body = body.rpartition(b"\n")[0]  # a rule that is cut off would disallow more than it says
        parsed = (
            _parse(body, self._agent) if len(body) <= QUICKLY_READ else await _in_thread(body, self._agent)
        )
        now = loop.time()
        delay = 0.0 if parsed is None else bounded_interval(parsed.crawl_delay("*"))
        return _Rules(parsed, now + KEPT, len(body), delay, now + delay)

    def _keep(self, origin: Origin, rules: _Rules) -> None:
        self._drop(origin)
        self._known[origin] = rules
        self._size += rules.size
        while len(self._known) > MOST_ORIGINS or (self._size > MOST_TEXT and len(self._known) > 1):
            self._drop(next(iter(self._known)))

    def _drop(self, origin: Origin) -> None:
        old = self._known.pop(origin, None)
        if old is not None:
            self._size -= old.size

    @staticmethod
    async def _pace(rules: _Rules, call: Call | None) -> None:
        """Wait for this request's turn, where no limit sees to it."""
        loop = asyncio.get_running_loop()
        while (wait := rules.following - loop.time()) > 0.0:
            turn = asyncio.sleep(wait)
            await (turn if call is None else call.aside(turn))
        rules.following = loop.time() + rules.delay


def _not_now(cause: HttpError, url: Url) -> RobotsUnavailable:
    """Say that a request cannot be made as long as it is unknown whether it may be."""
    permanent = cause.disposition is Disposition.PERMANENT
    error = RobotsUnavailable(
        f"robots.txt of {_authority(url)} is not to be had, so nothing is requested there now: {cause}",
        url=cause.url,
        host=url.key,
        phase=cause.phase,
        elapsed=cause.elapsed,
        disposition=Disposition.TRANSIENT if permanent else cause.disposition,
        ambiguous=False,
    )
    error.retry_after, error.hold = cause.retry_after, cause.hold
    if isinstance(cause, StatusError):
        error.status = cause.status
    error.__cause__ = cause.with_traceback(None)
    return error


# ------------------------------------------------------------------------------------------------------- reading


def product_token(agent: str) -> str:
    """Give what robots.txt calls this user agent: its first word, without the version."""
    found = _TOKEN.match(agent.strip() or default_user_agent())
    return found.group() if found is not None else "*"


def applicable(text: str, agent: str) -> str:
    """Give the rules of a robots.txt that are meant for a product token, as one group for everybody.

    Those of its own groups count together; only where it has none those for «*» do (RFC 9309 §2.2.1).
    """
    own: list[str] = []
    general: list[str] = []
    named = False
    for agents, line in _grouped(text):
        if agent.lower() in agents:
            named = True
            own.append(line)
        elif "*" in agents:
            general.append(line)
    return "\n".join(["User-agent: *", *(own if named else general)])


def _grouped(text: str) -> Iterator[tuple[frozenset[str], str]]:
    """Give each line of a group with the agents that it is for; once with an empty line, for groups without rules."""
    agents: frozenset[str] = frozenset()
    begun = False  # the group has a rule, so the next agent begins another one
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        named = _AGENT.fullmatch(line)
        if named is not None:
            value = named.group(1)
            token = "*" if value.startswith("*") else product_token(value or "-").lower()
            agents = frozenset((token,)) if begun else agents | {token}
            begun = False
            yield frozenset((token,)), ""
        elif line and not _OF_NO_GROUP.match(line):
            begun = True
            yield agents, line


def _parse(body: bytes, agent: str) -> Protego | None:
    rules = applicable(body.decode("utf-8-sig", "replace"), agent)
    return Protego.parse(rules) if rules.count("\n") else None


async def _in_thread(body: bytes, agent: str) -> Protego | None:
    """Parse a long text beside the loop. It cannot be broken off, so a cancellation waits for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Protego | None] = loop.create_future()

    def work() -> None:
        parsed = _parse(body, agent)
        loop.call_soon_threadsafe(future.set_result, parsed)

    threading.Thread(target=work, name="headrace robots.txt", daemon=True).start()
    return await uninterrupted(future)


def _authority(url: Url) -> str:
    """Give host and port as they stand in the URL."""
    return url.text.split("/", 3)[2]
