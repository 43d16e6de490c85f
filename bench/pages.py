"""Pages through to a database: fetch, parse (50 µs of CPU), SQLite. headrace beside a script by hand and beside Scrapy.

Rules:
1. All fetch the same document of nginx on loopback under URLs that differ, 100 at a time, parse it with the same function,
   and store the same row: url, status, body and what parsing found.
2. The headrace flow is durable: each result and its settlement in one transaction, WAL and FULL. The script and Scrapy's
   pipeline write 1000 rows a commit and could not be resumed; Scrapy's other form writes JSON lines.
3. Each side has the core that nginx does not have, and uvloop where it can.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.harness import Report, Side, Table, above, play
from bench.nginx import nginx

CONCURRENCY = 100
BATCH = 1000
COLUMNS = ("url", "status", "body", "words", "found")
WORD = re.compile(r"[a-z]+")
#: What a parser computes beyond finding words, in turns of a loop; set so that `parse` takes some 50 µs.
TURNS = 0


def calibrate() -> int:
    """Give the turns of the loop that make `parse` take 50 µs here."""
    from bench.nginx import DOCUMENT

    def took(turns: int) -> float:
        best = 1.0
        for _ in range(5):
            began = time.process_time()
            for _ in range(200):
                parse("/", 200, DOCUMENT, turns)
            best = min(best, (time.process_time() - began) / 200)
        return best

    bare, looped = took(0), took(1000)
    return max(0, round((50e-6 - bare) / (looped - bare) * 1000))


def parse(url: str, status: int, body: bytes, turns: int) -> dict[str, Any]:
    """Make a row of a page."""
    text = body.decode()
    words = WORD.findall(text)
    found = 0
    for number in range(turns):
        found ^= number
    return {"url": url, "status": status, "body": text, "words": len(words), "found": found}


def _urls(base: str, count: int) -> list[str]:
    return [f"{base}/doc?i={number}" for number in range(count)]


def _measured(run: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _figures(took: dict[str, float], count: int) -> dict[str, float]:
    return {"pages_per_second": count / took["wall"], "cpu_us": took["cpu"] / count * 1e6}


def _counted(path: Path, table: str, count: int) -> None:
    connection = sqlite3.connect(path)
    (rows,) = connection.execute(f"SELECT count(DISTINCT url) FROM {table}").fetchone()
    connection.close()
    if rows != count:
        raise RuntimeError(f"{rows} of {count} pages are in the database")


# ---------------------------------------------------------------------------------------------------- the sides


def headrace(base: str, count: int, turns: int) -> dict[str, float]:
    import headrace as hr

    def to_row(response: Any) -> dict[str, Any]:
        return parse(response.url, response.status, response.body, turns)

    def flow(path: Path, pages: int) -> Any:
        return (
            hr.Flow(_urls(base, pages))
            .map(hr.http.fetch(), concurrency=CONCURRENCY)
            .map(to_row, lane="loop", concurrency=1)
            .into(hr.sqlite.table(path, "pages"))
        )

    with tempfile.TemporaryDirectory() as directory:
        flow(
            Path(directory, "first.db"), 100
        ).run_sync().check()  # the others, too, have imported all they need
        path = Path(directory, "pages.db")
        took = _measured(lambda: flow(path, count).run_sync().check())
        _counted(path, "pages", count)
    return _figures(took, count)


def by_hand(base: str, count: int, turns: int) -> dict[str, float]:
    import aiohttp
    import uvloop

    async def main() -> None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE pages (url, status, body, words, found)")
        rows: list[dict[str, Any]] = []

        def flush() -> None:
            connection.executemany("INSERT INTO pages VALUES (:url, :status, :body, :words, :found)", rows)
            connection.commit()
            rows.clear()

        async def worker(urls: Iterator[str], session: aiohttp.ClientSession) -> None:
            for url in urls:
                async with session.get(url) as response:
                    response.raise_for_status()
                    rows.append(parse(url, response.status, await response.read(), turns))
                if len(rows) >= BATCH:
                    flush()

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:
            urls = iter(_urls(base, count))
            await asyncio.gather(*[worker(urls, session) for _ in range(CONCURRENCY)])
        flush()
        connection.close()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pages.db")
        took = _measured(lambda: uvloop.run(main()))
        _counted(path, "pages", count)
    return _figures(took, count)


class SqlitePipeline:
    """Scrapy's way to a database: 1000 rows a commit."""

    def open_spider(self, spider: Any = None) -> None:
        self.connection = sqlite3.connect(os.environ["BENCH_PAGES_DB"])
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("CREATE TABLE pages (url, status, body, words, found)")
        self.rows: list[dict[str, Any]] = []

    def process_item(self, item: dict[str, Any], spider: Any = None) -> dict[str, Any]:
        self.rows.append(item)
        if len(self.rows) >= BATCH:
            self.flush()
        return item

    def flush(self) -> None:
        self.connection.executemany(
            "INSERT INTO pages VALUES (:url, :status, :body, :words, :found)", self.rows
        )
        self.connection.commit()
        self.rows.clear()

    def close_spider(self, spider: Any = None) -> None:
        self.flush()
        self.connection.close()


def scrapy(base: str, count: int, turns: int, form: str) -> dict[str, float]:
    from scrapy import Request, Spider
    from scrapy.crawler import CrawlerProcess

    class Pages(Spider):
        name = "pages"

        async def start(self) -> Any:
            for url in _urls(base, count):
                yield Request(url)

        def parse(self, response: Any) -> Any:
            return parse(response.url, response.status, response.body, turns)

    with tempfile.TemporaryDirectory() as directory:
        path, lines = Path(directory, "pages.db"), Path(directory, "pages.jsonl")
        os.environ["BENCH_PAGES_DB"] = str(path)
        settings: dict[str, Any] = {
            "CONCURRENT_REQUESTS": CONCURRENCY,
            "CONCURRENT_REQUESTS_PER_DOMAIN": CONCURRENCY,
            "DOWNLOAD_DELAY": 0,
            "ROBOTSTXT_OBEY": False,
            "TELNETCONSOLE_ENABLED": False,
            "LOG_LEVEL": "ERROR",
            "TWISTED_REACTOR": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
            "ASYNCIO_EVENT_LOOP": "uvloop.Loop",
        }
        if form == "sqlite":
            settings["ITEM_PIPELINES"] = {"bench.pages.SqlitePipeline": 300}
        else:
            settings["FEEDS"] = {str(lines): {"format": "jsonlines"}}
        wall, cpu = time.perf_counter(), time.process_time()
        process = CrawlerProcess(settings)
        process.crawl(Pages)
        process.start()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if form == "sqlite":
            _counted(path, "pages", count)
        elif (got := len(lines.read_text().splitlines())) != count:
            raise RuntimeError(f"{got} of {count} pages are in the file")
    return _figures(took, count)


def bench(quick: bool, say: Callable[[str], None]) -> Report:
    """Measure all, http only: what TLS costs is in the bench of the client."""
    rounds, count, few = (1, 3000, 500) if quick else (5, 30_000, 3000)
    turns = calibrate()
    with nginx() as server:
        common = {"base": server.http, "turns": turns}
        sides = [
            Side("headrace, durable", "bench.pages:headrace", {**common, "count": count}),
            Side("aiohttp + sqlite3 by hand", "bench.pages:by_hand", {**common, "count": count}),
            Side(
                "Scrapy, sqlite3 pipeline", "bench.pages:scrapy", {**common, "count": few, "form": "sqlite"}
            ),
            Side("Scrapy, JSON lines", "bench.pages:scrapy", {**common, "count": few, "form": "lines"}),
        ]
        found = play(sides, rounds, say)
    ours, hand, rate = "headrace, durable", "aiohttp + sqlite3 by hand", "pages_per_second"
    table = Table(
        f"fetch, parse, SQLite, {CONCURRENCY} at a time",
        {rate: "pages/s", "cpu_us": "CPU µs a page"},
        found,
        ours,
        rate,
    )
    medians = table.medians()
    best = max(("Scrapy, sqlite3 pipeline", "Scrapy, JSON lines"), key=lambda name: medians[name][rate])
    checks = [
        above(f"pages: headrace, durable, against {best}", found, ours, best, rate, 15.0),
        above("pages: headrace, durable, against the script by hand", found, ours, hand, rate, 1.1),
    ]
    return Report([table], checks, [f"{count} pages ({few} for Scrapy); goal against Scrapy 30"])
