"""`fetch`: one HTTP request as the function of a stage, with everything that the stage should know about it.

Rules:
1. The request is a template: URL, headers, form and JSON; an item is a URL, or a row that fills it.
2. What the method means decides what a repetition may do: GET is safe, PUT idempotent, POST once.
3. What a job remembers of the request holds references to secrets, never their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from headrace.errors import PlanError
from headrace.http.bodies import UNSET, Unset, encode
from headrace.http.client import Client, HeadersLike, Template, check_method
from headrace.http.errors import InvalidUrl
from headrace.http.headers import HeaderValue, check_header, compile_headers, header_line
from headrace.http.profile import SAFE_METHODS, Timeouts
from headrace.http.response import COLUMNS, Response, ResponseHead
from headrace.http.secrets import Secret, expand, is_secret_name, references
from headrace.http.selecting import Selection
from headrace.http.status import parse_accept
from headrace.http.template import (
    fields_of,
    fill_form,
    fill_header,
    fill_json,
    fill_url,
    row_fields,
    without_userinfo,
)
from headrace.http.url import RequestUrl, host, mask
from headrace.policies.further import understands_urls
from headrace.policies.limits import Limit
from headrace.policies.retry import Retry
from headrace.ports import Effect, StageDefaults, current_call

__all__ = ["Fetch", "Preview", "effect_of", "fetch"]

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"
IDEMPOTENT_METHODS: Final = frozenset({"PUT", "DELETE"})
Select = Callable[[Response], Any] | str


def effect_of(method: str, *, idempotent: bool = False) -> Effect:
    """Say what a repeated request of this method would do (RFC 9110 §9.2)."""
    if method in SAFE_METHODS:
        return "safe"
    return "idempotent" if idempotent or method in IDEMPOTENT_METHODS else "once"


class Preview(NamedTuple):
    """A request as it would be sent, with references and *** in the places of secrets."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: str | None


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
        data: Mapping[str, Any] | str | None,
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
        given = tuple(headers.items() if isinstance(headers, Mapping) else headers or ())
        self._headers = tuple(pair for pair in given if not _is_template(*pair))
        self._row_headers = tuple((name, str(value)) for name, value in given if _is_template(name, value))
        self._replaced = frozenset(name.lower() for name, _ in self._row_headers)
        self._json = json
        self._data = data
        self._accept = accept
        self._select = _selector(select)
        self._timeouts = timeouts
        self._max_body = max_body
        own_key = idempotency_key is not None and idempotency_key.lower() in {
            name.lower() for name, _ in given
        }
        self._key_header = None if method in SAFE_METHODS or own_key else idempotency_key
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
        for name, _ in self._row_headers:
            check_header(name, "")
            if name.lower() == "content-type":
                raise PlanError(
                    f"header {name!r}: one request sends one type of body; write it without a field"
                )
        if self._key_header is not None:
            check_header(self._key_header, "")
        if self._json is not UNSET and self._data is not None:
            raise PlanError("fetch(): give json= or data=, not both")
        if self._data is not None and not isinstance(self._data, (str, Mapping)):
            raise PlanError(
                f"fetch(data=…): give text such as 'a={{x}}' or a mapping, not {type(self._data).__name__}"
            )
        if self._has_body and self._method in ("GET", "HEAD", "TRACE"):
            option = "json" if self._data is None else "data"
            raise PlanError(
                f"fetch(method={self._method!r}, {option}=…): {self._method} sends no body; use POST or QUERY"
            )
        for text in self._templates():
            fields_of(text)
        for text in self._json_texts():
            fields_of(text, json=True)
        if self._json is not UNSET:
            encode(json=self._json)  # raises for what JSON cannot hold

    @property
    def _has_body(self) -> bool:
        return self._json is not UNSET or self._data is not None

    def _templates(self) -> list[str]:
        """Give all texts that may hold fields, but for those in JSON."""
        bodies = _strings(self._data)
        return [
            *([self._url] if self._url is not None else []),
            *(text for _, text in self._row_headers),
            *bodies,
        ]

    def _json_texts(self) -> list[str]:
        return [] if self._json is UNSET else _strings(self._json)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that an item must have, each once, in the order in which the request names them."""
        names = [name for text in self._templates() for name in row_fields(text)]
        names += [name for text in self._json_texts() for name in row_fields(text, json=True)]
        return tuple(dict.fromkeys(names if self._url is not None else ["url", *names]))

    @property
    def takes_urls(self) -> bool:
        """Whether an item is itself the URL, or has it in a field `url`."""
        return self._url is None

    def preview(self, item: Any) -> Preview:
        """Say what would be sent for an item. Raises InvalidUrl as the call would."""
        url = self.url_for(item) if self._url is None else fill_url(self._url, item, secrets=False)
        headers = [(name, _shown(name, value)) for name, value in self._headers]
        headers += [(name, fill_header(name, text, item, secrets=False)) for name, text in self._row_headers]
        return Preview(self._method, url, tuple(headers), self._body_for(item, secrets=False))

    def _body_for(self, item: Any, *, secrets: bool = True) -> str | None:
        if self._data is not None:
            return fill_form(self._data, item, secrets=secrets)
        if self._json is UNSET:
            return None
        body = encode(json=fill_json(self._json, item, secrets=secrets))[0]
        assert isinstance(body, bytes)
        return body.decode()

    def _shape(self, select: Select | None) -> dict[str, Any]:
        shape: dict[str, Any] = {"method": self._method, "accept": self._accept}
        if self._url is not None:
            shape["url"] = without_userinfo(self._url)
        if self._headers or self._row_headers:
            pairs = (*self._headers, *self._row_headers)
            shape["headers"] = [[name.lower(), _shown(name, value)] for name, value in pairs]
        if self._json is not UNSET:
            shape["json"] = self._json
        if self._data is not None:
            shape["data"] = self._data if isinstance(self._data, str) else dict(self._data)
        if self._robots:
            shape["robots"] = True
        if select is not None:
            named = getattr(select, "__qualname__", repr(type(select)))
            shape["select"] = select if isinstance(select, str) else getattr(select, "shape", named)
        return shape

    def _open(self) -> Client:
        """Open the client of a run. Raises PlanError here, before anything moves, where a secret is
        missing.
        """
        compile_headers(self._headers)
        for text in (*self._templates(), *self._json_texts()):
            expand(text)
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
            prepared = self._prepared = (client, self.prepare(client))
        url = self.url_for(item)
        text = self._body_for(item) if self._has_body else None
        body = None if text is None else text.encode()
        extra: list[str] = []
        secret: list[str] = []
        for name, template in self._row_headers:
            is_secret = is_secret_name(name) or references(template)
            (secret if is_secret else extra).append(header_line(name, fill_header(name, template, item)))
        if self._key_header is not None and (call := current_call.get(None)) is not None:
            extra.append(f"{self._key_header}: {call.idempotency_key}")
        response = await client.send(
            prepared[1], url, body=body, extra=extra, secret=secret, item=item, keyed_by=item
        )
        self.hide(response, item)
        return response if self._select is None else self._select(response)

    def prepare(self, client: Client) -> Template:
        """Compile what all requests have in common. Raises PlanError."""
        has_body = self._has_body
        template = client.prepare(
            self._method,
            headers=self._headers,
            accept=self._accept,
            timeouts=self._timeouts,
            max_body=self._max_body,
            has_body=has_body,
            content_type=None if not has_body else JSON if self._data is None else FORM,
        )
        if self._replaced:
            template.headers = template.headers.without(self._replaced)
        if self._robots:
            client.obey_robots(template)
        return template

    def url_for(self, item: Any) -> str:
        """Give the URL of an item's request. Raises InvalidUrl where the item has none."""
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

    @property
    def own_client(self) -> Client | None:
        """The open client that it was given."""
        return self._client

    def hide(self, response: ResponseHead, item: Any) -> None:
        """Put the references back in the place of the secrets, before anybody stores the answer's URLs."""
        if not self._secret_fields:
            return
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
        return host(self.url_for(item))

    def __repr__(self) -> str:
        return f"fetch({self._method} {mask(self._url) if self._url is not None else '<the item>'})"


def fetch(
    url: str | None = None,
    *,
    method: str = "GET",
    headers: HeadersLike | None = None,
    data: Mapping[str, Any] | str | None = None,
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
            row; `{address.city}` and `{tags.0}` go into nested ones, `{env:NAME}` is taken from the environment and never
            stored, `{{` is a brace). Values are encoded. Without it the item is the URL, or a row with a "url".
        headers: Values may be templates, too.
        data: A form as the body: a template such as "a={x}&b={y}", or one for each value of a mapping.
        json: A template of the body; strings hold `{field}` too, and one that is a field alone becomes its value. The
            values of a CSV are text: "{json:field}" is the number, true, false or null that it stands for.
        accept: The statuses that are an answer, like "2xx,404"; others raise StatusError.
        select: What to take from the answer: a JMESPath expression over its JSON, like "data[0].name", or a
            function of the Response; `hr.http.columns("data")` makes one that gives rows. Where an expression finds
            nothing, the item fails.
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
        data,
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


def _is_template(name: str, value: HeaderValue) -> bool:
    """Whether a row has a part in the value of a header. The error does not show the value."""
    if not isinstance(value, str):
        return False
    try:
        return bool(row_fields(value)) or "{{" in value or "}}" in value
    except PlanError:
        raise PlanError(
            f"the value of header {name!r} has a brace that begins no field: write {{name}}, or {{{{ for a brace"
        ) from None


def _selector(select: Select | None) -> Callable[[Response], Any] | None:
    if isinstance(select, str):
        return Selection(select)
    if select is not None and not callable(select):
        raise PlanError(
            f'select={select!r}: give a JMESPath expression like "data[0].name", or a function of the Response'
        )
    return select
