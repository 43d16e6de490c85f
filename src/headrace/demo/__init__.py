"""A demonstration on real files: a local origin with faults, and a job that gets everything all the same.

Rules:
1. Everything stays on 127.0.0.1 and in a temporary directory, which is named.
2. The origin is its own process, and ends with the one that started it.
"""
