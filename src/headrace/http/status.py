"""Which statuses are an answer, and what the others mean for the call.

Rules:
1. `accept=` is a list of codes, classes and ranges: "2xx,404,300-304".
2. A refused status becomes one StatusError that says whether the request was processed (RFC 9110 §15, RFC
   6585).
"""

from __future__ import annotations

import functools
import re
from typing import Final

from headrace.errors import Disposition, PlanError
from headrace.http.errors import StatusError
from headrace.http.response import ResponseHead
from headrace.http.url import host, mask
from headrace.policies.retry_after import parse_http_date, parse_retry_after

__all__ = ["BODY_KEPT", "Accept", "parse_accept", "refuse"]

BODY_KEPT: Final = 4096
Accept = frozenset[int]

_CLASS: Final = re.compile(r"([1-5])xx")
_RANGE: Final = re.compile(r"([1-5][0-9]{2})-([1-5][0-9]{2})")
_CODE: Final = re.compile(r"[1-5][0-9]{2}")

# status: (disposition, ambiguous): what may succeed later, and whether the request may have been processed.
_MEANING: Final = {
    408: (Disposition.TRANSIENT, False),
    425: (Disposition.TRANSIENT, False),
    429: (Disposition.OVERLOAD, False),
    500: (Disposition.TRANSIENT, True),
    501: (Disposition.PERMANENT, False),
    502: (Disposition.TRANSIENT, True),
    503: (Disposition.TRANSIENT, True),
    504: (Disposition.TRANSIENT, True),
    505: (Disposition.PERMANENT, False),
    511: (Disposition.PERMANENT, False),
    **dict.fromkeys(range(520, 531), (Disposition.TRANSIENT, True)),
    529: (Disposition.OVERLOAD, True),
}
# Statuses that, with a Retry-After, say that the request was not processed and that the whole host should
# wait.
_ASKS_FOR_LESS: Final = frozenset({429, 503, 529})


@functools.lru_cache(maxsize=64)
def parse_accept(accept: str) -> Accept:
    """Read a list like "2xx,404"; "any" is every status. Raises PlanError with the right form."""
    if accept.strip() == "any":
        return frozenset(range(100, 600))
    codes: set[int] = set()
    for part in accept.lower().split(","):
        part = part.strip()
        if found := _CLASS.fullmatch(part):
            codes.update(range(int(found[1]) * 100, int(found[1]) * 100 + 100))
        elif found := _RANGE.fullmatch(part):
            codes.update(range(int(found[1]), int(found[2]) + 1))
        elif _CODE.fullmatch(part):
            codes.add(int(part))
        else:
            raise PlanError(
                f'accept={accept!r}: {part!r} is not a status; write it like "2xx,404" or "200-204"'
            )
    return frozenset(codes)


def refuse(method: str, response: ResponseHead, body: bytes) -> StatusError:
    """Make the error for a status that is not accepted; `body` is its beginning, or all of it."""
    status = response.status
    disposition, ambiguous = _MEANING.get(status, (Disposition.PERMANENT, status >= 500))
    retry_after = None if disposition is Disposition.PERMANENT else _retry_after(response)
    hold = retry_after is not None and status in _ASKS_FOR_LESS
    if hold:
        disposition, ambiguous = Disposition.OVERLOAD, False
    shown = mask(response.final_url)
    return StatusError(
        f"{method} {shown}: status {status}"
        + (f", asked to wait {retry_after:g} s" if retry_after is not None else ""),
        status=status,
        headers={name: value for name, value in response.headers.items() if name != "set-cookie"},
        body=body[:BODY_KEPT],
        retry_after=retry_after,
        hold=hold,
        url=shown,
        host=host(response.final_url),
        elapsed=response.timings.total,
        disposition=disposition,
        ambiguous=ambiguous,
    )


def _retry_after(response: ResponseHead) -> float | None:
    """Read Retry-After; a date counts from the answer's own clock where it tells the time."""
    wished = response.headers.get("retry-after")
    if wished is None:
        return None
    date = parse_http_date(response.headers.get("date", ""), response.fetched_at)
    return parse_retry_after(wished, response.fetched_at if date is None else date)
