"""Which https hosts speak HTTP/2, learnt without a hundred handshakes.

Rules:
1. The first request to an unknown host goes ahead as its scout; the others wait until its connection is up.
   If that speaks HTTP/2 they share it, else they open their own. They never wait for an answer.
2. A scout that fails sends all who wait on their way: a dead host must not be tried by one after the other.
3. libcurl's own PIPEWAIT is used only where HTTP/2 is known: on an HTTP/1.1 host it holds all requests back
   until the first answer is complete.
"""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["Scouts"]

MAX_KNOWN: Final = 10_000


class Scouts:
    """What is known of hosts by their key host:port."""

    __slots__ = ("_known", "_waiting")

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def multiplexes(self, key: str) -> bool | None:
        """Say whether a host shares connections; None if nothing is known."""
        return self._known.get(key)

    async def may_go_ahead(self, key: str) -> bool:
        """Return True to the one who scouts an unknown host, and False to the others when it has arrived
        or failed.

        The scout must call `arrived` or `done`. Cancelling leaves the others waiting.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = []
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        await future
        return False

    def arrived(self, key: str) -> None:
        """The scout's connection is up: until its answer tells more, nobody waits for anybody."""
        self._known.setdefault(key, False)
        self.done(key)

    def done(self, key: str) -> None:
        """The scout's request is over, whatever came of it. Repeatable."""
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(None)

    def learn(self, key: str, multiplexes: bool) -> None:
        """Note what an answer showed."""
        if self._known.get(key) is not multiplexes:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = multiplexes
