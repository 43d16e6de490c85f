"""Benchmarks: headrace beside its peers and beside what one would write by hand, in one run.

    python -m bench                     all of them
    python -m bench map durable         some
    python -m bench --quick             small and few, to see that everything runs
    python -m bench --list              what there is
    python -m bench --json FILE         the figures as data, too

Rules:
1. Sides take turns, A B C A B C, so that a noisy minute meets all of them. Tables show medians; a comparison with a target
   is the median of the ratios of the rounds, each side against the other in the same round.
2. Each measurement is a process of its own, so that nothing is warm, cached or fragmented by the one before.
3. Peers are called as their documentation says, with the options that suit them best. What they do not offer is left out of
   the comparison, never simulated.
4. A target that is missed is shown as missed.
"""
