"""What a fetch was asked to do: from the command line or from a stored job to a flow.

    texts ─► FetchRequest.read ─► flow()      what runs
                    └───────────► recorded()  what the job keeps, without secrets ─► FetchRequest.restore

Rules:
1. A stored job keeps the options as they were written, so that both ways lead through the same reading.
2. Nothing is opened or requested here but the list, of which the first block is looked at.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headrace.cli.headers import Header, recorded_headers, restored_headers
from headrace.cli.inputs import by_flags, source_of
from headrace.cli.options import (
    DATABASE,
    Problems,
    read_count,
    read_duration,
    read_failures,
    read_fuse,
    read_levels,
    read_rate,
)
from headrace.cli.templates import bodies, check_fields, url_template
from headrace.errors import PlanError, SourceError

if TYPE_CHECKING:
    from headrace.policies.adaptive import Adaptive

__all__ = ["DEFAULTS", "FetchRequest", "check_output", "result_table", "without_body"]

#: The options that a job keeps, and their values where they are not given.
DEFAULTS: Mapping[str, str | None] = {
    "concurrency": "64",
    "per-host": "1-16",
    "rate": None,
    "timeout": "120",
    "attempts": "4",
    "accept": "2xx",
    "url": None,
    "method": None,
    "json": None,
    "data": None,
    "idempotent": None,
    "select": None,
    "input-format": None,
    "delimiter": None,
    "encoding": None,
    "user-agent": None,
    "contact": None,
    "max-failures": None,
    "max-calls": None,
    "fuse": "50",
    "window": None,
    "body": None,
    "name": None,
    "files": None,  # the directory that -o names; no flag of its own
    "robots": None,
    "public-only": None,
}
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
_USERINFO = re.compile(r"//[^/?#\s]*@")
_NOT_YET = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
VERSION = 1
#: Repetitions are at most this share of the requests to a host.
RETRIES = 0.2


@dataclasses.dataclass(slots=True)
class FetchRequest:
    """A fetch that has been read and checked. `path` is the list, or None where `urls` were given."""

    path: str | None
    urls: Sequence[str]
    texts: Mapping[str, str]
    headers: Sequence[Header]
    concurrency: int
    per_host: int | Adaptive
    rate: str | None
    attempts: int
    max_failures: str | None
    max_calls: int | None
    fuse: int | None
    window: int | None
    source: Any
    fetch: Any

    # ------------------------------------------------------------------ making one

    @classmethod
    def read(
        cls,
        path: str | None,
        urls: Sequence[str],
        texts: Mapping[str, str],
        headers: Sequence[Header],
        problems: Problems,
    ) -> FetchRequest | None:
        """Read all options, noting every problem; None where one is so bad that no flow can be made."""
        values = {**DEFAULTS, **texts}
        concurrency = problems.read("--concurrency", values["concurrency"], read_count)
        per_host = problems.read("--per-host", values["per-host"], read_levels)
        rate = problems.read("--rate", values["rate"], read_rate)
        attempts = problems.read("--attempts", values["attempts"], read_count)
        failures = problems.read("--max-failures", values["max-failures"], read_failures)
        calls = problems.read("--max-calls", values["max-calls"], read_count)
        fuse = problems.read("--fuse", values["fuse"], read_fuse)
        window = problems.read("--window", values["window"], read_count)
        source = problems.run(lambda: _source(path, urls, values))
        made = _fetch(values, urls, headers, problems)
        if path is not None and source is not None and made is not None:
            check_fields(source, os.path.basename(path), made, problems)
        if concurrency is None or per_host is None or attempts is None or source is None or made is None:
            return None
        return cls(
            path, urls, texts, headers, concurrency, per_host, rate, attempts, failures, calls, fuse or None, window,
            source, made,
        )  # fmt: skip

    @classmethod
    def restore(
        cls, recorded: Mapping[str, Any], given: Sequence[Header], problems: Problems
    ) -> FetchRequest | None:
        """Make the request of a stored job again; `given` are literal secrets that it could not keep."""
        if recorded.get("version") != VERSION:
            raise PlanError(
                f"this job was recorded by another version of headrace ({recorded.get('version')!r}): run its fetch again"
            )
        if recorded["path"] is None and not recorded["urls"]:
            raise PlanError(
                "the URLs of this job hold a password, so they are not stored: run the fetch again with the same URLs "
                "and the same -o"
            )
        headers = restored_headers(recorded["headers"], given, problems)
        return cls.read(recorded["path"], recorded["urls"], recorded["options"], headers, problems)

    def recorded(self) -> dict[str, Any]:
        """Give what the job keeps: everything that is needed to go on, and no secret."""
        secret = any(_USERINFO.search(url) for url in self.urls)
        return {
            "command": "fetch",
            "version": VERSION,
            "path": None if self.path is None else os.path.abspath(self.path),
            "urls": [] if secret else list(self.urls),
            "options": {
                name: os.path.abspath(text) if name == "files" else text for name, text in self.texts.items()
            },
            "headers": recorded_headers(self.headers),
        }

    # ------------------------------------------------------------------ using it

    def flow(self, take: int | None = None) -> Any:
        """Put source and stage together; the sink comes after it."""
        from headrace.flow.builder import Flow
        from headrace.http.url import host
        from headrace.policies.breaker import Breaker
        from headrace.policies.budget import Budget
        from headrace.policies.limits import Limit
        from headrace.policies.retry import Retry

        flow = Flow(self.source)
        if take is not None:
            flow = flow.take(take)
        by = host if self.fetch.takes_urls else self.fetch.host
        limits = [Limit(by=by, concurrency=self.per_host, breaker=Breaker(), name="host")]
        if self.rate is not None:
            limits.append(Limit(rate=self.rate, name="rate"))
        budget = None if self.max_calls is None else Budget(calls=self.max_calls, name="--max-calls")
        return flow.map(
            self.fetch,
            concurrency=self.concurrency,
            limits=limits,
            retry=Retry(attempts=self.attempts, budget=RETRIES),
            budget=budget,
        )

    def make_directory(self) -> None:
        """Make the directory that files go to, where they do."""
        directory = self.texts.get("files")
        if directory is not None:
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
            except OSError as error:
                raise PlanError(f"-o {directory}/ cannot be made: {error.strerror}") from error

    def again(self) -> list[str]:
        """Give the flags that a later command must be given again."""
        return [
            word
            for header in self.headers
            if header.is_secret and not header.is_reference
            for word in (header.flag, f"{header.name}: …")
        ]


def result_table(job: str) -> str:
    """Name the table where a job's results go."""
    return "pages" if job == "default" else job


def check_output(out: str, path: str | None, problems: Problems) -> None:
    """Note what can be seen to be wrong with an output before it is made."""
    suffix = os.path.splitext(out)[1].lower()
    if not out.strip():
        problems.add("-o: give the name of a file, such as pages.db")
    elif "://" in out:
        problems.add(f"-o {out.partition('://')[0]}://…: results go to an SQLite file, such as pages.db")
    elif suffix in _NOT_YET:
        problems.add(f"-o {out}: results go to an SQLite file, such as {os.path.splitext(out)[0]}.db")
    elif os.path.isdir(out):
        problems.add(
            f"-o {out} is a directory: give the name of a file, such as {os.path.join(out, 'pages.db')}"
        )
    elif not os.path.isdir(os.path.dirname(out) or ".") and os.path.basename(out) != DATABASE:
        problems.add(f"-o {out}: the directory {os.path.dirname(out)} does not exist; make it first")
    elif path is not None and os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
        problems.add(f"-o {out} is the list itself: give another file for the results")


def _source(path: str | None, urls: Sequence[str], values: Mapping[str, str | None]) -> Any:
    """Make the source. Raises PlanError where the list cannot be read, so that nothing is made for it."""
    if path is None:
        from headrace.aio.iterables import SequenceSource

        source = SequenceSource(list(urls))
        source.name = "the command line"  # not «list of 3»: more URLs are no other job
        return source
    found = source_of(path, values)
    try:
        found.open().close_now()
    except SourceError as error:
        raise PlanError(by_flags(str(error))) from error
    return found


def _fetch(
    values: Mapping[str, str | None], urls: Sequence[str], headers: Sequence[Header], problems: Problems
) -> Any:
    from headrace.http.client import Client
    from headrace.http.fetching import fetch
    from headrace.http.guard import Guard
    from headrace.http.secrets import expand
    from headrace.http.selecting import columns
    from headrace.http.status import parse_accept

    sent = bodies(values, problems)
    timeouts = _timeouts(values["timeout"], problems)
    method = problems.read("--method", values["method"] or ("POST" if sent else "GET"), _read_method)
    if sent and method in ("GET", "HEAD"):
        problems.add(f"--method {method} sends no body: leave --{next(iter(sent))} out, or the method")
        method = None
    accept = values["accept"] or ""
    if problems.run(lambda: parse_accept(accept)) is None:
        problems.found[-1] = "--" + problems.found[-1].replace("accept=", "accept ", 1)
        accept = "2xx"
    agent = _user_agent(values["user-agent"], values["contact"], problems)
    _check_body(values, sent, problems)
    template = url_template(values, urls, problems)
    select: Any = without_body if values["body"] == "none" else None
    for text in (template, values["json"], values["data"]):
        problems.run(lambda text=text: expand(text or ""))  # type: ignore[misc]
    expression = values["select"]
    if expression is not None:
        before = len(problems.found)
        select = problems.run(lambda: columns(expression, body=values["body"] == "db"))
        problems.found[before:] = [
            text.replace("select=", "--select ", 1) for text in problems.found[before:]
        ]
    if timeouts is None or method is None or agent is None or any(header.value is None for header in headers):
        return None
    client = functools.partial(
        Client,
        timeouts=timeouts,
        user_agent=agent,
        guard=None if values["public-only"] is None else Guard(),
    )
    directory = values["files"]
    if directory is not None:
        return problems.run(lambda: _download(values, template, headers, directory, client))
    return problems.run(
        lambda: fetch(
            template,
            method=method,
            accept=accept,
            headers=[header.to_send() for header in headers],
            select=select,
            idempotent=values["idempotent"] is not None,
            **sent,
            client=client,
            robots=values["robots"] is not None,
        )
    )


def _check_body(values: Mapping[str, str | None], sent: Mapping[str, Any], problems: Problems) -> None:
    """Note what does not go with where bodies are to be kept."""
    body, directory = values["body"], values["files"]
    if body not in (None, "db", "files", "none"):
        problems.add(
            f"--body {body!r}: it is db (bodies are kept in the table), files (in a directory) or none"
        )
    elif body == "files" and directory is None:
        problems.add("--body files: give a directory for them, as -o files/")
    elif directory is not None and body in ("db", "none"):
        problems.add(
            f"--body {body}: -o {directory}/ is a directory, where bodies become files; give a file such as pages.db"
        )
    if directory is None:
        if values["name"] is not None:
            problems.add("--name is for files: give a directory for them, as -o files/")
        return
    parent = os.path.dirname(os.path.abspath(directory))
    if not os.path.isdir(parent):
        problems.add(f"-o {directory}/: the directory {parent} does not exist; make it first")
    for flag, given in (("--select", values["select"]), *((f"--{name}", True) for name in sent)):
        if given:
            problems.add(
                f"{flag} does not go with -o {directory}/, where bodies become files; give a file such as pages.db"
            )
    if (values["method"] or "GET").strip().upper() != "GET":
        problems.add(f"--method {values['method']}: what goes into files is requested by GET")


def _download(
    values: Mapping[str, str | None],
    template: str | None,
    headers: Sequence[Header],
    directory: str,
    client: Any,
) -> Any:
    from headrace.http.downloading import download
    from headrace.http.profile import Timeouts

    total = values["timeout"]
    try:
        return download(
            directory,
            name=values["name"],
            url=template,
            headers=[header.to_send() for header in headers],
            accept=values["accept"] or "2xx",
            client=client,
            timeouts=None
            if total == DEFAULTS["timeout"]
            else Timeouts(total=read_duration("--timeout", total or "")),
            robots=values["robots"] is not None,
        )
    except PlanError as error:
        raise PlanError(str(error).replace("name=", "--name ", 1)) from error


def _timeouts(text: str | None, problems: Problems) -> Any:
    """Give the limits of all phases, none longer than that of an attempt as a whole; None where that is wrong."""
    from headrace.http.profile import Timeouts

    total = problems.read("--timeout", text, read_duration)
    if total is None:
        return None
    if not 0.001 <= total <= 1_000_000:
        problems.add(f"--timeout {text!r}: give a time from 1ms to 1000000 seconds")
        return None
    phases = ("resolve", "connect", "first_byte", "stall")
    return Timeouts(total=total, **{phase: min(getattr(Timeouts, phase), total) for phase in phases})


def without_body(response: Any) -> dict[str, Any]:
    """Give a response's row without its body."""
    row: dict[str, Any] = response.as_row()
    del row["body"]
    return row


def _read_method(flag: str, text: str) -> str:
    method = text.strip().upper()
    if method not in _METHODS:
        raise PlanError(f"{flag} {text!r}: give one of {', '.join(_METHODS)}")
    return method


def _user_agent(agent: str | None, contact: str | None, problems: Problems) -> str | None:
    from headrace.http.profile import default_user_agent

    good = True
    for flag, text in (("--user-agent", agent), ("--contact", contact)):
        if text is not None and not (text.strip() and text.isascii() and text.isprintable()):
            problems.add(f"{flag} {text!r}: give printable ASCII text, not empty")
            good = False
    if not good:
        return None
    if contact is None:
        return agent or default_user_agent()
    contact = contact.strip().strip("()")
    if agent is not None:
        return f"{agent} ({contact})"
    return default_user_agent().replace(")", f"; {contact})", 1)
