"""What the origin does wrong, decided in advance: the same seed, path and ask give the same fault.

Rules:
1. A fault depends on the seed, the path, and how many times the path was asked before; never on time or on
   chance.
2. A path that is not permanently gone answers well from its third ask on, however it was asked before.
3. `/f/KIND[,KIND…]/anything` asks for faults by name: the first ask gets the first kind, and so on, then all
   is well; a `*` after the last kind repeats it for ever; `KIND:NUMBER` gives its measure (seconds, or a
   status).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Final, NamedTuple

__all__ = ["KINDS", "OK", "Fault", "Faults", "by_name"]

#: Each kind, with its weight among the faults of a seeded origin and its measure where none is named.
KINDS: Final[dict[str, tuple[int, float]]] = {
    "throttle": (1, 1.0),  # 429 with Retry-After in seconds
    "throttle-date": (1, 1.0),  # the same, as a date
    "unavailable": (40, 503.0),  # a status that may pass: 503, or the one named
    "stall": (6, 5.0),  # no answer for so many seconds, then the connection closes
    "slow": (50, 0.3),  # the whole answer, after so many seconds
    "reset": (100, 0.0),  # half of the body, then RST
    "truncate": (100, 0.0),  # half of the body under the full Content-Length, then FIN
    "drip": (40, 0.4),  # the whole answer, in pieces over so many seconds
    "cut": (100, 0.0),  # the request is taken, and the connection closed without an answer
    "gone": (0, 404.0),  # a final answer that is not the document: 404, or the status named
    "ok": (0, 0.0),
}


class Fault(NamedTuple):
    """What one ask gets: the kind, and its measure in seconds or as a status."""

    kind: str
    measure: float


OK: Final = Fault("ok", 0.0)


def by_name(word: str) -> Fault:
    """Read `KIND` or `KIND:NUMBER`. Raises ValueError for what is neither."""
    kind, _, number = word.partition(":")
    if kind not in KINDS:
        raise ValueError(f"unknown fault {word!r}: {', '.join(KINDS)}")
    measure = float(number) if number else KINDS[kind][1]
    if not math.isfinite(measure) or measure < 0:
        raise ValueError(f"fault {word!r}: its measure must be a finite number, 0 or more")
    return Fault(kind, measure)


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """The faults of an origin: `first` is the share of first asks that fail, `second` of second ones.

    `gone` is the share of paths that are permanently 404 or 500, in equal parts. `stall` is the length of a
    stall in seconds. Without a seed, only faults asked for by name happen.
    """

    seed: int | None = None
    first: float = 0.25
    second: float = 0.3
    gone: float = 0.006
    stall: float = 5.0

    def of(self, path: str) -> tuple[tuple[Fault, ...], bool]:
        """Give the faults of a path's asks, and whether the last one repeats; then all is well."""
        if path.startswith("/f/"):
            words, _, _ = path[3:].partition("/")
            for_ever = words.endswith("*")
            return tuple(by_name(word) for word in words.removesuffix("*").split(",")), for_ever
        if self.seed is None:
            return (), False
        draw = hashlib.blake2b(f"{self.seed}:{path}".encode(), digest_size=16).digest()
        shares = [int.from_bytes(draw[i : i + 4], "big") / 2**32 for i in (0, 4, 8, 12)]
        if shares[0] < self.gone:
            return (Fault("gone", 404.0 if shares[1] < 0.5 else 500.0),), True
        if shares[0] >= self.gone + self.first:
            return (), False
        if shares[2] >= self.second:
            return (self._draw(shares[1]),), False
        return (self._draw(shares[1]), self._draw(shares[3])), False

    def _draw(self, share: float) -> Fault:
        at = share * sum(weight for weight, _ in KINDS.values())
        for kind, (weight, measure) in KINDS.items():
            at -= weight
            if at < 0:
                return Fault(kind, self.stall if kind == "stall" else measure)
        return OK
