"""Running a job in front of a person: progress while it goes on, then the accounting and what to do next.

Rules:
1. The last words are commands that can be copied: how to go on, how to see the failures, how to try them again.
2. A run that had a trouble of its own is accounted for like any other.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.cli.ending import show_trace
from headrace.cli.screen import command_line, say
from headrace.errors import HeadraceError, IdentityChanged
from headrace.terminal.text import clean, count, duration, moment, rate

if TYPE_CHECKING:
    from headrace.flow.builder import Flow
    from headrace.ports import Subscriber
    from headrace.report import Report

__all__ = ["NextSteps", "account", "allow_files", "progress_of", "report_of", "run_job"]

#: The most causes of failure that are listed; `headrace failures` knows them all.
MOST_CAUSES = 8
MOST_PLACES = 3
MOST_FILES = 65_536
_SHAPE = re.compile(r"^stages\[\d+\]\.shape\.")


@dataclasses.dataclass(frozen=True, slots=True)
class NextSteps:
    """The commands that go on from a job. `resume` is the whole command; `again` are flags that must be given again."""

    out: str
    job: str
    resume: Sequence[str]
    again: Sequence[str] = ()
    retries_by_itself: bool = False  #: whether `headrace retry` also runs the job

    @classmethod
    def of_fetch(cls, out: str, job: str, again: Sequence[str] = ()) -> NextSteps:
        """Give those of a fetch."""
        return cls(
            out, job, ["headrace", "resume", out, *_job_flag(job), *again], again, retries_by_itself=True
        )

    def failures(self, *flags: str) -> str:
        """The command that shows the dead letters."""
        return command_line("headrace", "failures", self.out, *_job_flag(self.job), *flags)

    def retry(self, *flags: str) -> str:
        """The command that tries them again."""
        return command_line("headrace", "retry", self.out, *_job_flag(self.job), *flags, *self.again)


def _job_flag(job: str) -> list[str]:
    return [] if job == "default" else ["--job", job]


def progress_of(*, quiet: bool, no_progress: bool) -> Subscriber | None:
    """Give who shows the progress here, or None."""
    if quiet or no_progress:
        return None
    from headrace.terminal.progress import progress_for_here

    return progress_for_here()


def run_job(
    flow: Flow[Any],
    *,
    quiet: bool,
    no_progress: bool,
    steps: Callable[[Report], NextSteps | None],
    total: Callable[[], int | None] = lambda: None,
    **options: Any,
) -> int:
    """Run a flow to its end, account for it, and give the exit code. Raises what kept it from beginning."""
    from headrace.flow.main import run_to_end

    progress = progress_of(quiet=quiet, no_progress=no_progress)
    allow_files()
    try:
        report = run_to_end(lambda: flow.start(progress=progress, **options))
    except IdentityChanged as error:
        raise _with_flags(error) from error
    except HeadraceError as error:
        report = report_of(error)
    if not quiet or report.exit_code:
        account(report, steps(report), total)
    return report.exit_code


def report_of(error: HeadraceError) -> Report:
    """Give the account of a run that had a trouble of its own; raise the error where it had not begun."""
    report: Report | None = getattr(error, "report", None)
    if report is None:
        raise error
    show_trace(error)
    return report


def allow_files() -> None:
    """Let this process open as many files and connections as it may: the usual 1024 are few."""
    import contextlib
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # as before, then
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _with_flags(error: IdentityChanged) -> IdentityChanged:
    head = str(error).partition("\n")[0].rstrip(":")
    lines = [head + ":" if error.changes else head, *(f"  - {_named(change)}" for change in error.changes)]
    lines += [
        "What to do: --job NAME keeps it as another job in the same file; --fresh does it all anew and then replaces the",
        "old results; --accept-changes goes on with what is there; or give another output.",
    ]
    return IdentityChanged("\n".join(lines), changes=error.changes)


def _named(change: str) -> str:
    """Say what differs in the words of the options: «accept: was …» for «stages[1].shape.accept: was …»."""
    return clean(_SHAPE.sub("the request's ", change))


def account(report: Report, steps: NextSteps | None, total: Callable[[], int | None] = lambda: None) -> None:
    """Say what became of every item, why some failed, and what can be done now."""
    if report.finished_at is not None:
        say(f"finished before, on {moment(report.finished_at)}: nothing is left to do")
        say("to do it anew: --fresh; to redo what is older: --max-age 24h")
    else:
        speed = report.settled / report.elapsed if report.elapsed >= 1 else 0.0
        say(f"{report.line()}   in {duration(report.elapsed)}" + (f" ({rate(speed)})" if speed else ""))
    if report.job_done is not None:
        say(
            f"in all: done {count(report.job_done)}, failed {count(report.job_failed or 0)}, "
            f"skipped {count(report.job_skipped or 0)}"
        )
    if parked := report.parked_line():
        say(clean(parked))
    _say_causes(report)
    for warning in report.warnings:
        say(f"warning: {clean(warning)}")
    for place in report.held[:MOST_PLACES]:
        say(clean(place))
    if report.abandoned:
        say(f"{count(report.abandoned)} calls could not be stopped and still run")
    if report.trouble is not None:
        say(f"stopped by a trouble: {clean(report.trouble)}")
        if report.fault:
            say("this is a fault of headrace's own; please report it (HEADRACE_DEBUG=1 shows the traceback)")
    elif report.stopped is not None:
        say(f"stopped: {clean(report.stopped)}")
    if steps is not None:
        _say_next(report, steps, total)


def _say_causes(report: Report) -> None:
    for cause in report.causes[:MOST_CAUSES]:
        say(f"  {count(cause.count)} × {clean(cause.error)}: {clean(cause.example)}")
    if len(report.causes) > MOST_CAUSES:
        say(f"  and {len(report.causes) - MOST_CAUSES} more kinds of failure")


def _say_next(report: Report, steps: NextSteps, total: Callable[[], int | None]) -> None:
    code = report.exit_code
    failed = report.job_failed if report.job_failed is not None else report.failed
    unfinished = report.untaken or report.parked_in_all or report.returned or code in (4, 70)
    in_all = None if unfinished else total()
    settled = (report.job_done or 0) + failed + (report.job_skipped or 0)
    left = 0 if in_all is None else max(0, in_all - settled)
    if unfinished:
        say(f"to go on:         {command_line(*steps.resume)}")
    elif left:
        say(f"{count(left)} more in the list: {command_line(*steps.resume)}")
    if failed:
        say(f"to see failures:  {steps.failures()}")
        say(f"to try again:     {steps.retry()}")
        if any(cause.error == "InDoubt" for cause in report.causes):
            say(f"in doubt:         {steps.failures('--in-doubt')}   (these calls may have taken effect)")
