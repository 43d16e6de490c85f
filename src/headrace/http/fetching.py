"""`fetch`: one HTTP request as the function of a stage, with everything that the stage should know about it.

Rules:
1. The request is a template; an item is a URL, or a row that fills the template.
2. What the method means decides what a repetition may do: GET is safe, PUT idempotent, POST once.
3. What a job remembers of the request holds references to secrets, never their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from headrace.errors import CallError, Disposition, PlanError
from headrace.http.bodies import UNSET, Unset, encode
from headrace.http.client import Client, HeadersLike, Template, check_method
from headrace.http.errors import BadResponse, InvalidUrl
from headrace.http.headers import check_header, compile_headers
from headrace.http.profile import SAFE_METHODS, Timeouts
from headrace.http.response import COLUMNS, Response
from headrace.http.secrets import Secret, is_secret_name, references
from headrace.http.status import parse_accept
from headrace.http.template import fields_of, fill_json, fill_url, without_userinfo
from headrace.http.url import RequestUrl, host, mask
from headrace.policies.further import understands_urls
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import Effect, StageDefaults, current_call

__all__ = ["Fetch", "effect_of", "fetch"]

IDEMPOTENT_METHODS: Final = frozenset({"PUT", "DELETE"})
Select = Callable[[Response], Any] | str


def effect_of(method: str, *, idempotent: bool = False) -> Effect:
    """Say what a repeated request of this method would do (RFC 9110 §9.2)."""
    if method in SAFE_METHODS:
        return "safe"
    return "idempotent" if idempotent or method in IDEMPOTENT_METHODS else "once"


class Fetch:
    """A configured request: `flow.map(hr.http.fetch(…))`, or `await request(item, client=client)`. Made by
    `fetch`.
    """

    stage_defaults: StageDefaults

    def __init__(
        self,
        url: str | None,
        method: str,
        headers: HeadersLike | None,
        json: Any,
        accept: str,
        select: Select | None,
        limits: Sequence[Limit],
        client: Client | Callable[[], Client] | None,
        timeouts: Timeouts | None,
        max_body: int | Unset | None,
        effect: Effect | None,
        idempotent: bool,
        idempotency_key: str | None,
        robots: bool,
    ) -> None:
        self._url = url
        self._robots = robots
        self._secret_fields = _check_url_template(url)
        self._method = method
        self._headers = tuple(headers.items() if isinstance(headers, Mapping) else headers or ())
        self._json = json
        self._accept = accept
        self._select = _selector(select)
        self._timeouts = timeouts
        self._max_body = max_body
        self._key_header = None if method in SAFE_METHODS else idempotency_key
        self._client = client if isinstance(client, Client) else None
        self._prepared: tuple[Client, Template] | None = None
        self._factory = Client if client is None or isinstance(client, Client) else client
        self._check()
        self.stage_defaults = StageDefaults(
            name="fetch",
            effect=effect or effect_of(method, idempotent=idempotent),
            retry=Retry(attempts=4),
            limits=tuple(limits),
            uses={} if self._client is not None else {"client": self._open},
            shape=self._shape(select),
            columns=COLUMNS if select is None else (),
        )

    def _check(self) -> None:
        check_method(self._method)
        parse_accept(self._accept)
        for name, value in self._headers:
            check_header(name, value if isinstance(value, str) else "")
        if self._key_header is not None:
            check_header(self._key_header, "")
        if self._json is not UNSET:
            if self._method in ("GET", "HEAD", "TRACE"):
                raise PlanError(
                    f"fetch(method={self._method!r}, json=…): {self._method} sends no body; use POST or QUERY"
                )
            for text in _strings(self._json):
                fields_of(text)

    def _shape(self, select: Select | None) -> dict[str, Any]:
        shape: dict[str, Any] = {"method": self._method, "accept": self._accept}
        if self._url is not None:
            shape["url"] = without_userinfo(self._url)
        if self._headers:
            shape["headers"] = [[name.lower(), _shown(name, value)] for name, value in self._headers]
        if self._json is not UNSET:
            shape["json"] = self._json
        if self._robots:
            shape["robots"] = True
        if select is not None:
            shape["select"] = (
                select if isinstance(select, str) else getattr(select, "__qualname__", repr(type(select)))
            )
        return shape

    def _open(self) -> Client:
        """Open the client of a run. Raises PlanError here, before anything moves, where a secret is
        missing.
        """
        compile_headers(self._headers)
        return self._factory()

    async def __call__(self, item: Any, *, client: Client | None = None) -> Any:
        """Make the request for one item and give its Response, or what `select` makes of it.

        Raises HttpError (StatusError for a refused status), PlanError without a client. Cancelling closes the
        connection at once.
        """
        client = client or self._client
        if client is None:
            raise PlanError(
                "fetch() has no client here: use it in a flow, or «async with hr.http.Client() as client: "
                "await request(item, client=client)»"
            )
        prepared = self._prepared
        if prepared is None or prepared[0] is not client:
            prepared = self._prepared = (client, self._prepare(client))
        url = self._url_for(item)
        body = None if self._json is UNSET else encode(json=fill_json(self._json, item))[0]
        extra: tuple[str, ...] = ()
        if self._key_header is not None and (call := current_call.get(None)) is not None:
            extra = (f"{self._key_header}: {call.idempotency_key}",)
        response = await client.send(prepared[1], url, body=body, extra=extra, item=item, keyed_by=item)
        if self._secret_fields:
            self._hide(response, item)
        return response if self._select is None else self._select(response)

    def _prepare(self, client: Client) -> Template:
        has_body = self._json is not UNSET
        template = client.prepare(
            self._method,
            headers=self._headers,
            accept=self._accept,
            timeouts=self._timeouts,
            max_body=self._max_body,
            has_body=has_body,
            content_type="application/json" if has_body else None,
        )
        if self._robots:
            client.obey_robots(template)
        return template

    def _url_for(self, item: Any) -> str:
        if self._url is not None:
            return fill_url(self._url, item)
        if isinstance(item, str):
            return item
        url = item.get("url") if isinstance(item, Mapping) else None
        if isinstance(url, str):
            return url
        raise InvalidUrl(
            f'fetch() takes a URL or a row with a "url"; this item is a {type(item).__name__} without one. '
            "Give a template: fetch(url='https://…/{field}')"
        )

    def _hide(self, response: Response, item: Any) -> None:
        """Put the references back in the place of the secrets, before anybody stores the answer's URLs."""
        assert self._url is not None
        response.url = fill_url(self._url, item, secrets=False)
        for name in self._secret_fields:
            reference = f"{{{name}}}"
            response.final_url = response.final_url.replace(fill_url(f"?{reference}", item)[1:], reference)

    @understands_urls
    def host(self, item: Any) -> str:
        """Give the key `host:port` that an item's request goes to: `by=` for a fetch with a url= template."""
        if isinstance(item, RequestUrl):  # of a redirect
            return host(item)
        return host(self._url_for(item))

    def __repr__(self) -> str:
        return f"fetch({self._method} {mask(self._url) if self._url is not None else '<the item>'})"


def fetch(
    url: str | None = None,
    *,
    method: str = "GET",
    headers: HeadersLike | None = None,
    json: Any = UNSET,
    accept: str = "2xx",
    select: Select | None = None,
    limits: Sequence[Limit] = (),
    client: Client | Callable[[], Client] | None = None,
    timeouts: Timeouts | None = None,
    max_body: int | Unset | None = UNSET,
    effect: Literal["safe", "idempotent", "once"] | None = None,
    idempotent: bool = False,
    idempotency_key: str | None = "Idempotency-Key",
    robots: bool = False,
) -> Fetch:
    """Make the function of a stage that requests each item.

    Args:
        url: A template filled from the row's fields: "https://api.x/users/{id}" ({item} is an item that is no
            row). Without it the item is the URL, or a row with a "url".
        json: A template of the body; strings hold `{field}` too.
        accept: The statuses that are an answer, like "2xx,404"; others raise StatusError.
        select: What to take from the answer: a function of the Response, or a path into its JSON like
        "data.0.name".
        limits: Taken by the stage for every attempt, as `[hr.Limit(by=hr.http.host, concurrency=8)]`.
        client: A Client that stays open, or a factory of one for each run. By default each run opens its own.
        timeouts, max_body: Instead of the client's. `max_body=None` means no cap.
        effect: Overrides what the method says a repeated request would do.
        idempotent: The server honours the idempotency key, so that POST and PATCH may be repeated.
        idempotency_key: The header that carries it in a flow, for methods that are not safe; None sends none.
        robots: Ask each host's robots.txt first. What it disallows is Skipped, its crawl-delay is kept, and where it
        cannot be had the item fails with RobotsUnavailable and is repeated.

    Raises PlanError for what cannot work.
    """
    if effect not in (None, "safe", "idempotent", "once"):
        raise PlanError(f'effect={effect!r}: use "safe", "idempotent" or "once"')
    return Fetch(
        url,
        method,
        headers,
        json,
        accept,
        select,
        limits,
        client,
        timeouts,
        max_body,
        effect,
        idempotent,
        idempotency_key,
        robots,
    )


def _check_url_template(url: str | None) -> tuple[str, ...]:
    """Check a template; give its references to the environment."""
    if url is None:
        return ()
    fields = fields_of(url)
    secret = tuple(name for name in fields if name.startswith("env:"))
    path = url.partition("?")[0]
    if any(f"{{{name}}}" in path for name in secret):
        raise PlanError(
            f"template {without_userinfo(url)!r}: {{env:…}} may stand in the query or in a header only, "
            "where it is kept out of messages"
        )
    return secret


def _shown(name: str, value: str | Secret) -> str:
    if isinstance(value, Secret):
        return value.reference
    if references(value):
        return value
    return "***" if is_secret_name(name) else value


def _strings(template: Any) -> list[str]:
    if isinstance(template, str):
        return [template]
    parts = template.values() if isinstance(template, Mapping) else template
    if isinstance(template, (Mapping, list, tuple)):
        return [text for part in parts for text in _strings(part)]
    return []


def _selector(select: Select | None) -> Callable[[Response], Any] | None:
    if select is None or not isinstance(select, str):
        if select is not None and not callable(select):
            raise PlanError(
                f'select={select!r}: give a function of the Response, or a path like "data.0.name"'
            )
        return select
    steps = tuple(int(step) if step.isdigit() else step for step in select.split("."))
    if "" in steps:
        raise PlanError(f'select={select!r}: a path has no empty step; write it like "data.0.name"')

    def pick(response: Response) -> Any:
        value = response.json()
        for step in steps:
            try:
                value = value[step if isinstance(value, list) else str(step)]
            except (KeyError, IndexError, TypeError) as error:
                raise _not_there(response, select, step) from error
        return value

    return pick


def _not_there(response: Response, path: str, step: str | int) -> CallError:
    shown = mask(response.final_url)
    return BadResponse(
        f"{shown}: the JSON has no {path!r}: nothing at {step!r}",
        url=shown,
        phase="body",
        disposition=Disposition.PERMANENT,
        ambiguous=False,
    )
