"""The origin's faults are decided in advance, and never keep a document back for ever."""

from __future__ import annotations

import pytest

from headrace.demo.faults import KINDS, Fault, Faults, by_name

PATHS = [f"/n/{number}" for number in range(5000)]
HARMLESS = {"slow", "drip", "ok"}


def test_the_same_seed_decides_the_same():
    """A path's faults depend on seed and path only."""
    assert [Faults(3).of(path) for path in PATHS] == [Faults(3).of(path) for path in PATHS]
    assert [Faults(3).of(path) for path in PATHS] != [Faults(4).of(path) for path in PATHS]


def test_every_path_is_well_by_its_third_ask_or_gone_for_ever():
    """No path has more than two faults, and only what is gone repeats."""
    for path in PATHS:
        faults, for_ever = Faults(3).of(path)
        assert len(faults) <= 2
        assert for_ever == any(fault.kind == "gone" for fault in faults)
        assert not for_ever or faults[0].measure in (404.0, 500.0)


def test_the_shares_are_kept_and_every_kind_happens():
    """About the given shares of paths fail first, fail twice, and are gone; each seeded kind is among the faults."""
    plans = [Faults(3).of(path) for path in PATHS]
    gone = sum(for_ever for _, for_ever in plans)
    failing = sum(bool(faults) and not for_ever for faults, for_ever in plans)
    twice = sum(len(faults) == 2 for faults, _ in plans)
    assert 0.002 < gone / len(PATHS) < 0.012
    assert 0.22 < failing / len(PATHS) < 0.28
    assert 0.25 < twice / failing < 0.35
    seen = {fault.kind for faults, _ in plans for fault in faults}
    assert seen == {kind for kind, (weight, _) in KINDS.items() if weight} | {"gone"}


def test_without_a_seed_only_named_faults_happen():
    """A plain origin does nothing wrong that was not asked for."""
    assert all(Faults().of(path) == ((), False) for path in PATHS)
    assert Faults().of("/f/cut,unavailable:502*/x") == (
        (Fault("cut", 0.0), Fault("unavailable", 502.0)),
        True,
    )
    assert Faults(3).of("/f/slow:2/x") == ((Fault("slow", 2.0),), False)


@pytest.mark.parametrize("word", ["", "nonsense", "slow:x", "slow:-1", "slow:inf", "slow:nan"])
def test_a_word_that_is_no_fault_is_refused(word):
    """An unknown kind or a measure that is no sensible number is a ValueError, with the word in it."""
    with pytest.raises(ValueError):
        by_name(word)
