"""Decisions: whether to repeat a call, when, and whether one may start now.

Rules:
1. A decision is synchronous and pure: time (`now`, seconds as a float) and chance (`rng`) are given, never
   asked for.
2. It returns a value; the engine does what it says. Nothing here waits, starts, logs or reads a clock.
"""
