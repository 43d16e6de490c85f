"""Logs that are read while they grow: their lines and events, what is told of them, and many of them as one.

Rules:
1. Cutting bytes into records is synchronous and knows no network; merging waits and knows no record.
"""
