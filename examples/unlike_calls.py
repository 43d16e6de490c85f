"""Unlike calls together: everything that one screen needs, as fast as the slowest of them.

    python examples/unlike_calls.py http://127.0.0.1:8000/ 7

The user must be there: without it there is no screen. The rest is welcome, and its failures are shown in its place.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import Any

import headrace as hr


async def get(client: hr.http.Client, url: str) -> Any:
    """Ask for one document."""
    return (await client.get(url)).json()


def free_space() -> int:
    """Ask the disk: a blocking call, which the group puts into a thread."""
    return shutil.disk_usage(".").free


async def screen(site: str, identity: int) -> list[str]:
    """Gather the lines of the screen. Raises ItemsFailed where the user cannot be had."""
    async with hr.http.Client(timeouts=hr.http.Timeouts(total=5)) as client:
        async with hr.Group() as needed:  # the first failure cancels the others and raises
            user = needed.start(get, client, f"{site}n/{identity}")
            manager = needed.start(get, client, f"{site}n/{identity + 1}")

        async with hr.Group(on_failure="record", timeout=2) as welcome:  # failures stay with their calls
            news = welcome.start(get, client, f"{site}f/gone*/news")
            disk = welcome.start(free_space)

    lines = [f"user:    {user.value['name']}", f"manager: {manager.value['name']}"]
    for label, call in (("news", news), ("free", disk)):
        match call.outcome:
            case hr.Done(value=value):
                lines.append(f"{label}:    {value}")
            case hr.Failed(error=error):
                lines.append(f"{label}:    not now ({type(error).__name__})")
    return lines


def main() -> int:
    """Print the screen."""
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    site, identity = sys.argv[1], int(sys.argv[2])
    try:
        print("\n".join(asyncio.run(screen(site, identity))))
    except hr.ItemsFailed as failure:
        print(f"no screen: {failure.exceptions[0]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
