"""`headrace bench`: what articles on async Python claim, measured on the user's machine.

Rules:
1. Each figure is shown when it is there; all of it takes less than a minute.
"""

from __future__ import annotations

from headrace.cli.ending import ending
from headrace.cli.options import Json

__all__ = ["bench"]


@ending
def bench(json: Json = False) -> int:
    """Measure on this machine: waiting at once, threads, processes and the loop, uvloop, and rows in batches.

    Takes less than a minute, and talks to nobody.
    """
    from headrace.advisor.claims import claims
    from headrace.advisor.measure import cores
    from headrace.cli.screen import say, tell, tell_json

    say(f"on {cores()} cores; less than a minute")
    for claim in claims():
        if json:
            tell_json(
                {
                    "claim": claim.claim,
                    "what": claim.what,
                    "speeds": claim.speeds,
                    "best": claim.best,
                    "ratio": claim.ratio,
                }
            )
            continue
        tell(f"{claim.claim}: {claim.what}")
        for name, speed in claim.speeds.items():
            ratio = speed / next(iter(claim.speeds.values()))
            mark = "→" if name == claim.best else " "
            tell(f"  {mark} {name:20} {_figure(speed):>12}/s {ratio:10.3g} ×")
    return 0


def _figure(speed: float) -> str:
    return f"{speed:,.0f}".replace(",", " ") if speed >= 100 else f"{speed:.3g}"
