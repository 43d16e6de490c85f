"""SQLite: a sink and its ledger in one transaction. `table` for rows, `keep` for values that `map(out=)` reads back."""

from headrace.sqlite.sink import keep, table

__all__ = ["keep", "table"]
