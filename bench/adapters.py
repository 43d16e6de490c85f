"""Benches that stand on their own as commands, as parts of `python -m bench`."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Check, Report, Rounds, Table, ratio
from bench.http_client import CLIENTS, measure
from bench.nginx import nginx

TARGETS = {"http": 1.6, "https": 2.2}


def http(quick: bool, say: Callable[[str], None]) -> Report:
    """CPU per request of `Client.request` against aiohttp and bare libcurl."""
    rounds, requests, connections = (1, 3000, 100) if quick else (7, 20_000, 100)
    report = Report()
    found: dict[str, Rounds] = {scheme: {client: [] for client in CLIENTS} for scheme in TARGETS}
    with nginx() as server:
        for number in range(1, rounds + 1):
            for scheme, base in (("http", server.http), ("https", server.https)):
                for client in CLIENTS:
                    figures = measure(client, base, server.ca_file, requests, connections)
                    found[scheme][client].append(figures)
                    say(f"round {number}/{rounds}  {scheme} {client}: {figures['cpu_us']:.1f} µs")
    columns = {"cpu_us": "CPU µs", "per_second": "requests/s"}
    for scheme, target in TARGETS.items():
        title = f"{scheme}, {connections} connections, {requests} requests"
        report.tables.append(Table(title, columns, found[scheme], "headrace", "cpu_us"))
        against = ratio(found[scheme], "aiohttp", "headrace", "cpu_us")
        report.checks.append(Check(f"{scheme}: CPU per request against aiohttp", against, target))
        bare = ratio(found[scheme], "bare", "headrace", "cpu_us")
        report.checks.append(Check(f"{scheme}: CPU per request against bare libcurl", bare, 0.85))
    return report
