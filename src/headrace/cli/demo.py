"""`headrace demo`: real files over HTTP from a faulty server, a kill -9 half-way, and everything accounted for."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.ending import ending

__all__ = ["demo"]


@ending
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the files of the demo for you to look at.")
    ] = False,
) -> int:
    """See it work: a faulty server on this machine, a job that is killed half-way and resumed. Under 30 seconds."""
    from headrace.demo.run import main

    return main(keep=keep)
