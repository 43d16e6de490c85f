"""Each target under some thousand inputs: random bytes, and mutations of what it is made for. The same ones every time."""

from __future__ import annotations

import random

import pytest
from tests.fuzz.targets import TARGETS

SEEDS = {
    "lines": [b"\x03one\r\ntwo\n\nthr\xc3\xbce", b"\x01\xef\xbb\xbf\n\r\n\r"],
    "events": [
        b"\x02data: a\ndata: b\nid: 1\n\n: c\r\rretry: 10\r\n\r\n",
        b"\x01\xef\xbb\xbfdata\n\nevent: x\ndata:\n\n",
    ],
    "retry_after": [b"120", b"Tue, 14 Nov 2023 22:13:27 GMT", b"-1", b"1e9", b"99999999999999999999"],
    "rate_headers": [
        b'"default";r=50;t=30',
        b"100, 100;w=60",
        b"0",
        b"1700000000",
        b"limit=10, remaining=0, reset=7",
    ],
    "content_range": [b"bytes 0-9/10", b"bytes */10", b"bytes 5-4/1", b"bytes 1-2/*"],
    "urls": [
        b"https://user:pw@Ex\xc3\xa4mple.org:443/a b/../c?x=1#f",
        b"http://[::1]:80",
        b"http://127.0.0.1/%zz",
        b"//h",
    ],
    "addresses": [
        b"127.0.0.1",
        b"::ffff:10.0.0.1",
        b"64:ff9b::8.8.8.8",
        b"2001:db8::1",
        b"8.8.8.8",
        b"fe80::1%eth0",
    ],
    "templates": [b"../..|{a}/{b}", b"?x=1&y|{{{a}}}", b"#|{json:a}", b"x|{env:HOME}{a", b"%2e%2e|{a.0.b}"],
    "names": [b"../../etc/passwd", b"con.txt", b".hidden", b"a" * 300, "Zoë".encode(), b"\0"],
}


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """Change some bytes, leave some out, repeat some."""
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randrange(4)]
            case 2:
                data[at:at] = data[: rng.randrange(8)]
            case _:
                data[at:at] = rng.choice(
                    [b"\r", b"\n", b"\0", b"%", b"{", b"}", b":", b"/", b"-", b"9" * 20, b"\xff"]
                )
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_promises_hold_for_any_bytes(name: str) -> None:
    """Three thousand inputs; longer ones are found by `python -m tests.fuzz`."""
    rng = random.Random(name)
    for seed in SEEDS[name]:
        TARGETS[name](seed)
    for number in range(3000):
        data = rng.randbytes(rng.randrange(60)) if number % 3 == 0 else mutated(rng.choice(SEEDS[name]), rng)
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"{name} fails for {data!r}") from error
