"""Pages, parsed, into SQLite: titles and links of a list of URLs.

    python examples/pages_to_sqlite.py urls.txt pages.db

Run it again and it goes on where it was; lines added to the list are taken too. What failed is in
`headrace failures pages.db`, with its line in the list.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import headrace as hr


class Page(HTMLParser):
    """Collects the title and the links."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.links: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


def parse(response: hr.http.Response) -> dict[str, Any]:
    """Make one row of one page. It is a plain function, so it runs in threads."""
    page = Page()
    page.feed(response.text)
    if not page.title:
        raise hr.Skip("a page without a title")
    links = sorted({urljoin(response.final_url, link) for link in page.links})
    return {"url": response.url, "title": page.title.strip(), "links": links, "bytes": response.nbytes}


def make_flow(urls: str, place: str) -> hr.Flow[dict[str, Any]]:
    """Put the flow together: 64 requests at once, 8 to one host."""
    one_host = hr.Limit(by=hr.http.host, concurrency=8, name="host")
    return (
        hr.Flow(hr.files.lines(urls, comment="#"))
        .map(hr.http.fetch(limits=[one_host]), concurrency=64)
        .map(parse, concurrency=4)
        .into(hr.sqlite.table(place, "pages"))
    )


def main() -> int:
    """Run it and print the accounting."""
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    report = make_flow(*sys.argv[1:]).run_sync(job="pages", progress=sys.stderr.isatty())
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
