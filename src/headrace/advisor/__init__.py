"""Measures a function, and says which lane it belongs in and why."""
