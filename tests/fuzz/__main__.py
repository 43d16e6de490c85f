"""`python -m tests.fuzz NAME [SECONDS]`: fuzz one target with coverage, where atheris is installed (pip install atheris)."""

from __future__ import annotations

import sys


def main() -> None:
    """Fuzz until a promise is broken, or the time is over."""
    import atheris

    with atheris.instrument_imports(include=["headrace"]):
        from tests.fuzz.targets import TARGETS

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        raise SystemExit(f"give one of {', '.join(TARGETS)}")
    seconds = sys.argv[2] if len(sys.argv) > 2 else "60"
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-max_len=512", "-print_final_stats=1"], TARGETS[name]
    )
    atheris.Fuzz()


main()
