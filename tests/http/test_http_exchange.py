"""The seam between a client and its transport: who takes libcurl's place, and when."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from headrace.errors import PlanError
from headrace.http.client import Client
from headrace.http.exchange import Transport, stand_in, standing_in
from headrace.http.transport import CurlTransport
from headrace.testing import run


class Counting:
    """A connector whose transports are libcurl's, counted."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []

    def connect(self, loop: asyncio.AbstractEventLoop) -> Transport:
        from headrace.http.resolver import Resolver

        self.loops.append(loop)
        return CurlTransport(loop, Resolver(), 10)


def test_the_given_transport_carries_the_requests_of_its_client_alone() -> None:
    """A client asks the connector it was given, once and in its own loop; another client has libcurl."""
    given, block = Counting(), Counting()

    async def main() -> None:
        with standing_in(block):
            async with Client(transport=given), Client():
                assert given.loops == block.loops == [asyncio.get_running_loop()]
        assert stand_in() is None
        async with Client():
            assert len(given.loops) == len(block.loops) == 1

    run(main)


def test_blocks_nest_and_the_innermost_counts() -> None:
    """What stands in for libcurl is that of the innermost block, for clients made before it, too."""
    outer, inner = Counting(), Counting()

    async def main() -> None:
        client = Client()
        with standing_in(outer):
            with standing_in(inner):
                async with client:
                    assert (len(outer.loops), len(inner.loops)) == (0, 1)
            async with Client():
                assert (len(outer.loops), len(inner.loops)) == (1, 1)

    run(main)


def test_what_is_no_transport_is_refused() -> None:
    """A transport that cannot connect is named before anything moves."""
    with pytest.raises(PlanError, match=r"transport='requests': give a headrace\.testing\.ScriptedHttp"):
        Client(transport=cast(Any, "requests"))
