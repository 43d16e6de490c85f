"""Waiting without policy: owned tasks, a due-heap, a deadline sweep, a bounded channel, a gate."""
