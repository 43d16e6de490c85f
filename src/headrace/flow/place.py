"""open: looking at the jobs of an output, and the few things that are done to them. Twins of the commands.

Rules:
1. Looking needs no lock and disturbs no run; changing takes the place as a run does, and raises LedgerBusy while one is
   under way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from headrace.errors import LedgerError
from headrace.ports import DeadLetter, JobSummary
from headrace.sqlite import inspect

__all__ = ["JobInPlace", "Place", "open"]


class JobInPlace:
    """One job of a place."""

    def __init__(self, place: str, name: str) -> None:
        self.place = place
        self.name = name

    def status(self) -> JobSummary:
        """Say how the job stands. Raises LedgerError where it is gone."""
        for summary in inspect.jobs(self.place):
            if summary.name == self.name:
                return summary
        raise LedgerError(f"{self.place} holds no job {self.name!r} any more")

    def failures(self, *, in_doubt: bool = False, limit: int | None = None) -> Iterator[DeadLetter]:
        """Give the dead letters by position; with `in_doubt` only those whose *once* call may have taken effect."""
        return inspect.failures(self.place, self.name, in_doubt=in_doubt, limit=limit)

    def retry(
        self, *, positions: Sequence[int] | None = None, in_doubt: bool = False, error: str | None = None
    ) -> int:
        """Mark dead letters to be called again by the next run, and give their number.

        All, or those at `positions`, or those of one class of `error`. Those whose *once* call may have taken effect are
        left out unless `in_doubt`. Raises LedgerBusy while the job runs.
        """
        return inspect.retry(self.place, self.name, positions=positions, in_doubt=in_doubt, error=error)

    def drop(self) -> None:
        """Delete the job: its record, and its rows in the result table. Raises LedgerBusy while it runs."""
        inspect.drop(self.place, self.name)

    def __repr__(self) -> str:
        return f"<Job {self.name!r} in {self.place}>"


class Place:
    """An output and its jobs."""

    def __init__(self, place: str) -> None:
        self.place = place

    def jobs(self) -> list[JobInPlace]:
        """Give the jobs, oldest first."""
        return [JobInPlace(self.place, summary.name) for summary in inspect.jobs(self.place)]

    def job(self, name: str | None = None) -> JobInPlace:
        """Give the job of that name; without one, the only one there is. Raises LedgerError, naming those there are."""
        names = [job.name for job in self.jobs()]
        if name is None and len(names) == 1:
            name = names[0]
        if name is None:
            raise LedgerError(f"{self.place} holds {len(names)} jobs: say which of {', '.join(names)}")
        if name not in names:
            raise LedgerError(f"{self.place} holds no job {name!r}; it holds {', '.join(names)}")
        return JobInPlace(self.place, name)

    def vacuum(self) -> int:
        """Give unused space of the file back, and say how many bytes."""
        return inspect.vacuum(self.place)

    def __repr__(self) -> str:
        return f"<Place {self.place}>"


def open(place: str | os.PathLike[str]) -> Place:
    """Look at an output: `hr.open("pages.db").job("docs").failures()`.

    Raises LedgerError for a file that is missing, no database, or without jobs.
    """
    found = Place(os.fspath(place))
    found.jobs()
    return found
