"""`headrace fetch`: a list of URLs, or requests from rows, into an SQLite file or as JSON lines to standard output.

Rules:
1. With -o it is a job: the same command again goes on where it ended.
2. Without -o nothing is kept: outcomes go to standard output as they come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from headrace.cli.ending import ending
from headrace.cli.inputs import STDIN, check_kind, read_inputs, spooled
from headrace.cli.options import (
    DEFAULT_WAIT,
    AcceptChanges,
    Fresh,
    Fuse,
    Headers,
    MaxAge,
    MaxFailures,
    NoProgress,
    Problems,
    Quiet,
    SecretHeaders,
    Wait,
    Window,
    Within,
    read_count,
    read_duration,
)
from headrace.cli.places import database_in, is_directory
from headrace.cli.request import FetchRequest, check_output, result_table
from headrace.cli.templates import read_body
from headrace.errors import PlanError

__all__ = ["fetch", "run_fetch"]

Text = str | None


@ending
def fetch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT|URL…",
            help="A file of URLs (one a line) or of rows (.csv, .tsv, .jsonl); - for stdin; or URLs.",
        ),
    ],
    out: Annotated[
        Text,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.db|DIR/",
            help="Keep the results here; can be resumed. DIR/: bodies as files.",
        ),
    ] = None,
    job: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="Where OUT holds several jobs; also names the table. [default: default, its table: pages]",
        ),
    ] = None,
    concurrency: Annotated[Text, typer.Option(metavar="N", help="Requests in flight. [default: 64]")] = None,
    per_host: Annotated[
        Text,
        typer.Option(
            metavar="N|MIN-MAX",
            help="Requests in flight to one host: a number, or a range in which it finds its level. [default: 1-16]",
        ),
    ] = None,
    rate: Annotated[
        Text,
        typer.Option(metavar="N/TIME", help="Most starts in a time, as 20/s or 1000/h. [default: no limit]"),
    ] = None,
    timeout: Annotated[
        Text, typer.Option(metavar="TIME", help="For one attempt, all phases. [default: 120]")
    ] = None,
    attempts: Annotated[
        Text,
        typer.Option(
            metavar="N", help="Calls for one URL, the first included; 429s count apart. [default: 4]"
        ),
    ] = None,
    accept: Annotated[
        Text, typer.Option(metavar="LIST", help="Statuses that are an answer, as 2xx,404. [default: 2xx]")
    ] = None,
    url: Annotated[
        Text,
        typer.Option(
            metavar="TEMPLATE",
            help="The URL of each row, as 'https://api.example/users/{id}'. [default: the column url]",
        ),
    ] = None,
    method: Annotated[
        Text,
        typer.Option(
            metavar="NAME", help="The request method. [default: GET, or POST where there is a body]"
        ),
    ] = None,
    json: Annotated[
        Text,
        typer.Option(
            metavar="JSON|@FILE",
            help='A body of JSON for each row; fields in its strings: \'{"q": "{name}", "n": "{json:count}"}\'.',
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="FORM|@FILE", help="A form as the body, as 'a={x}&b={y}'; repeatable."
        ),
    ] = None,
    idempotent: Annotated[
        bool,
        typer.Option(
            "--idempotent", help="The server honours Idempotency-Key: a POST or PATCH may be repeated."
        ),
    ] = False,
    select: Annotated[
        Text,
        typer.Option(
            metavar="JMESPATH", help="Keep this of the JSON of each answer, in columns, instead of the body."
        ),
    ] = None,
    input_format: Annotated[
        Text, typer.Option(metavar="lines|csv|tsv|jsonl", help="What INPUT holds. [default: by its name]")
    ] = None,
    delimiter: Annotated[
        Text, typer.Option(metavar="CHARACTER", help="What stands between the fields of a CSV. [default: ,]")
    ] = None,
    encoding: Annotated[
        Text, typer.Option(metavar="NAME", help="The encoding of INPUT, as latin-1. [default: utf-8]")
    ] = None,
    header: Headers = None,
    secret_header: SecretHeaders = None,
    user_agent: Annotated[Text, typer.Option(metavar="TEXT", help="Instead of headrace's own.")] = None,
    contact: Annotated[
        Text, typer.Option(metavar="TEXT", help="An address for the servers' owners, in the User-Agent.")
    ] = None,
    body: Annotated[
        Text,
        typer.Option(
            metavar="db|files|none", help="Whether bodies are kept. [default: db, with --select none]"
        ),
    ] = None,
    name: Annotated[
        Text,
        typer.Option(
            metavar="TEMPLATE",
            help="Names of files in DIR/, as '{id}.jpg' or '{position}.html'. [default: by position]",
        ),
    ] = None,
    robots: Annotated[
        bool,
        typer.Option(
            "--robots", help="Ask robots.txt: skip what it disallows, keep its crawl-delay. [default: off]"
        ),
    ] = False,
    public_only: Annotated[
        bool,
        typer.Option(
            "--public-only",
            help="Refuse addresses that are not public, redirects included: for lists that strangers wrote.",
        ),
    ] = False,
    max_failures: MaxFailures = None,
    max_calls: Annotated[
        Text,
        typer.Option(
            metavar="N",
            help="Most requests of one run, repetitions included; the rest stays for a later run.",
        ),
    ] = None,
    fuse: Fuse = None,
    take: Annotated[Text, typer.Option(metavar="N", help="Take only the next N of the list.")] = None,
    within: Within = None,
    wait: Wait = None,
    window: Window = None,
    fresh: Fresh = False,
    max_age: MaxAge = None,
    accept_changes: AcceptChanges = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> int:
    """Fetch a list of URLs, or make a request for each row of a file, each exactly once, and account for every one.

    {field} in --url, --header, --json and --data is the row's column of that name, {env:NAME} comes from the environment and
    is never stored, {{ is a brace.
    """
    problems = Problems()
    given = {
        "url": url, "json": problems.run(lambda: read_body("--json", None if json is None else [json])),
        "data": problems.run(lambda: read_body("--data", data)), "idempotent": "yes" if idempotent else None,
        "select": select, "input-format": input_format, "delimiter": delimiter, "encoding": encoding,
        "concurrency": concurrency, "per-host": per_host, "rate": rate, "timeout": timeout, "attempts": attempts,
        "accept": accept, "method": method, "user-agent": user_agent, "contact": contact, "body": body, "name": name,
        "robots": "yes" if robots else None, "public-only": "yes" if public_only else None,
        "max-failures": max_failures, "max-calls": max_calls, "fuse": fuse,
        "window": window,
    }  # fmt: skip
    if out is not None and is_directory(out):
        given["files"] = out.rstrip("/") or "/"
        out = database_in(out)
    texts = {flag: text for flag, text in given.items() if text is not None}
    taking = problems.read("--take", take, read_count)
    ending_within = problems.read("--within", within, read_duration)
    waiting = problems.read("--wait", DEFAULT_WAIT if wait is None else wait, read_duration)
    aged = problems.read("--max-age", max_age, read_duration)
    if out is None:
        for flag, value in (
            ("--job", job),
            ("--fresh", fresh),
            ("--max-age", max_age),
            ("--accept-changes", accept_changes),
            ("--max-failures", max_failures),
        ):
            if value:
                problems.add(f"{flag} is for a job, which needs an output: add -o pages.db")
    elif job is not None:
        problems.run(lambda: _check_job(out, job))
    with contextlib.ExitStack() as held:
        if inputs == [STDIN]:
            inputs = [
                held.enter_context(
                    _spooled(out, job, input_format, fresh or accept_changes, dry_run, problems)
                )
            ]
        request = _read(inputs, texts, header, secret_header, out, problems)
        problems.check()
        assert request is not None
        assert waiting is not None
        if dry_run:
            from headrace.cli.dry import explain_fetch

            return explain_fetch(request, out, job or "default", taking)
        if out is None:
            from headrace.cli.lines import fetch_to_stdout

            return fetch_to_stdout(
                request, take=taking, within=ending_within, wait=waiting, quiet=quiet, no_progress=no_progress
            )
        return run_fetch(
            request,
            out,
            job or "default",
            take=taking,
            quiet=quiet,
            no_progress=no_progress,
            within=ending_within,
            wait=waiting,
            max_age=aged,
            fresh=fresh,
            accept_changes=accept_changes,
        )


def _spooled(
    out: str | None, job: str | None, kind: str | None, anew: bool, dry: bool, problems: Problems
) -> contextlib.AbstractContextManager[str]:
    """Copy standard input, once what can be wrong without it is found to be right."""
    problems.read("--input-format", kind, check_kind)
    if out is not None:
        check_output(out, None, problems)
    problems.check()
    return spooled(None if dry else out, job or "default", kind, anew=anew)


def _read(
    inputs: list[str],
    texts: Mapping[str, str],
    header: list[str] | None,
    secret_header: list[str] | None,
    out: str | None,
    problems: Problems,
) -> FetchRequest | None:
    """Read everything that makes the request, noting every problem; None only where there was one."""
    from headrace.cli.headers import read_headers

    path, urls = read_inputs(inputs, problems)
    headers = read_headers(header, secret_header, problems)
    if out is not None:
        check_output(out, path, problems)
    if path is None and not urls:
        # The words after «fetch» are at fault; what else is wrong is to be said as well.
        FetchRequest.read(None, ["http://localhost/"], texts, headers, problems)
        return None
    return FetchRequest.read(path, urls, texts, headers, problems)


def _check_job(out: str, job: str) -> None:
    from headrace.sqlite.sink import table

    if not job.strip() or not job.isprintable():
        raise PlanError(f"--job {job!r}: give a name of printable characters")
    try:
        table(out or "pages.db", result_table(job))
    except PlanError as error:
        raise PlanError(f"--job {job!r} also names the table of the results: {error}") from error


def run_fetch(
    request: FetchRequest,
    out: str,
    job: str,
    *,
    take: int | None = None,
    quiet: bool,
    no_progress: bool,
    **options: Any,
) -> int:
    """Run a fetch as a job and give the exit code. `options` are those of `Flow.start`, of this run alone."""
    from headrace.cli.running import NextSteps, run_job
    from headrace.cli.screen import say
    from headrace.sqlite.sink import table

    request.make_directory()
    steps = NextSteps.of_fetch(out, job, request.again())
    flow = request.flow(take).into(table(out, result_table(job)))
    if request.source.total() == 0 and not quiet:
        say(f"{request.path}: the list holds no URL")
    code = run_job(
        flow,
        quiet=quiet,
        no_progress=no_progress,
        steps=lambda report: steps,
        total=request.source.total,
        job=job,
        window=request.window,
        max_failures=request.max_failures,
        fuse=request.fuse,
        recorded=request.recorded(),
        **options,
    )
    if not quiet:
        say(f"results:          {out}, table {result_table(job)}")
    return code
