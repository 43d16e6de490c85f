"""Where a redirect leads, and what may go along.

Rules:
1. Decided here, hop by hop; libcurl follows nothing.
2. Credentials belong to an origin (scheme, host, port). At its first change they are dropped for good.
3. https never becomes http unless that was asked for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from headrace.http.bodies import Upload
from headrace.http.errors import InvalidUrl, RedirectRefused
from headrace.http.headers import Outgoing
from headrace.http.response import ResponseHead
from headrace.http.url import Url, join, mask

__all__ = ["REDIRECTS", "Hop", "next_hop"]

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Hop(NamedTuple):
    """One request of a call: what goes where. `body` is None where none is sent."""

    method: str
    url: Url
    headers: Outgoing
    body: bytes | Upload | None


def next_hop(hop: Hop, response: ResponseHead, *, downgrade: bool = False) -> Hop | None:
    """Give the request that a redirect asks for; None where the answer is no redirect.

    303 becomes GET (but for HEAD), and so do 301 and 302 after POST, as browsers do it; 307 and 308 keep
    method and body. Raises RedirectRefused for another scheme, an unusable Location, https to http without
    `downgrade`, or a body that would have to be read twice and cannot.
    """
    if response.status not in REDIRECTS:
        return None
    location = response.headers.all("location")
    if not location:
        return None
    try:
        url = join(hop.url, location[0])
    except (InvalidUrl, ValueError) as error:
        raise _refused(hop, f"it leads to no usable URL: {mask(location[0])[:200]!r}") from error
    if hop.url.scheme == "https" and url.scheme == "http" and not downgrade:
        raise _refused(hop, f"it leads from https to {mask(url.text)[:200]}; allow that by downgrade=True")
    method, headers, body = hop.method, hop.headers, hop.body
    becomes_get = (response.status == 303 and method not in ("GET", "HEAD")) or (
        response.status in (301, 302) and method == "POST"
    )
    if becomes_get:
        method, headers, body = "GET", headers.without_body(), None
    if isinstance(body, Upload) and not body.repeatable:
        raise _refused(
            hop, f"status {response.status} asks for the body again, and it could be read once only"
        )
    if url.origin != hop.url.origin:
        headers = headers.without_credentials()
    return Hop(method, url._replace(userinfo=None), headers, body)


def _refused(hop: Hop, why: str) -> RedirectRefused:
    shown = mask(hop.url.text)
    return RedirectRefused(f"{hop.method} {shown}: redirect refused: {why}", url=shown, host=hop.url.key)
