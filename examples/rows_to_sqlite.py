"""Rows from an API into SQLite: each tenant has a limit of its own, and the whole account has one too.

    python examples/rows_to_sqlite.py http://127.0.0.1:8000/n/ users.db

Run it again and it goes on where it was. `headrace status users.db` says how it stands.
"""

from __future__ import annotations

import sys
from typing import Any

import headrace as hr

TENANTS = ("ada", "grace", "edsger")
USERS = [{"id": number, "tenant": TENANTS[number % 3]} for number in range(300)]


def row(response: hr.http.Response) -> dict[str, Any]:
    """Take from the answer what the table is to have; the item that it was made from is at hand."""
    user = response.json()
    return {**response.item, "name": user["name"], "square": user["square"], "status": response.status}


def make_flow(api: str, place: str) -> hr.Flow[dict[str, Any]]:
    """Put the flow together."""
    account = hr.Limit(rate="1000/s", burst=20, name="account")
    per_tenant = hr.Limit(by=lambda user: user["tenant"], concurrency=4, name="tenant")
    request = hr.http.fetch(
        api + "{id}",
        headers={"Accept": "application/json"},
        timeouts=hr.http.Timeouts(first_byte=10, total=30),
        limits=[account, per_tenant],
    )
    return (
        hr.Flow(USERS)
        .map(request, concurrency=50, retry=hr.Retry(attempts=5))
        .map(row)
        .into(hr.sqlite.table(place, "users", columns=["id", "tenant", "name", "square", "status"]))
    )


def main() -> int:
    """Run it and print the accounting."""
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    report = make_flow(*sys.argv[1:]).run_sync(job="users", max_failures="1%")
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
