"""`headrace bench`: the claims of articles, measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_claims_are_measured_in_less_than_a_minute() -> None:
    """Each claim is a line of JSON with the speed of each way; what must be so on any machine is so."""
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "bench", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 6
    for claim in found:
        assert len(claim["speeds"]) >= 2
        assert all(speed > 0 for speed in claim["speeds"].values())
        assert claim["best"] in claim["speeds"]
    best = {claim["claim"]: claim["best"] for claim in found}
    assert best["waiting at once takes as long as waiting once"] == "at once"
    assert best["what blocks belongs in threads"] == "threads"
    assert best["many rows belong in one commit"] == "1000 rows a commit"
