"""What held the loop, decided from samples: blame, times and causes, in tables."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.policies.holds import Frame, Gap, Hold, Place, Sample, blame, cure_of, judge

LIBRARIES, OWN = ("/usr/lib/python3/",), "/usr/lib/python3/site-packages/headrace/"
STAGE = Place("parse", "loop", "parse", "/app/app.py", 3)
FIB = Frame("fib", "/app/app.py", 17)
MODEL = Frame("clean", "/app/model.py", 4)
PACKAGE = Frame("soup", "/usr/lib/python3/site-packages/bs4/dammit.py", 99)
LIBRARY = Frame("loads", "/usr/lib/python3/json/__init__.py", 346)
FROZEN = Frame("import_module", "<frozen importlib._bootstrap>", 1)
ENGINE = Frame("_work", OWN + "engine/stage.py", 200)


@pytest.mark.parametrize(
    ("frames", "blamed"),
    [
        ([FIB, ENGINE], FIB),
        ([LIBRARY, FIB, ENGINE], FIB),
        ([Frame("<genexpr>", "/app/app.py", 18), FIB, ENGINE], FIB),
        ([PACKAGE, MODEL, FIB, ENGINE], FIB),
        ([LIBRARY, PACKAGE, ENGINE], PACKAGE),
        ([MODEL, PACKAGE, ENGINE], MODEL),
        ([ENGINE], None),
        ([LIBRARY, FROZEN, ENGINE], None),
        ([], None),
    ],
)
def test_the_users_own_code_is_blamed(frames: list[Frame], blamed: Frame | None) -> None:
    """The deepest frame in the file of the stage's function, else the deepest that is no library's and not headrace's."""
    place = blame(frames, STAGE, LIBRARIES, OWN)
    assert place == (None if blamed is None else Place("parse", "loop", *blamed))


def test_code_outside_the_stages_is_blamed_too() -> None:
    """A task that is no stage's has no stage, and the deepest frame of the user."""
    assert blame([MODEL, FIB], Place(), LIBRARIES, OWN) == Place("", "", *MODEL)


PARSE = Place("parse", "loop", "fib", "/app/app.py", 17)
OTHER = Place("load", "loop", "read", "/app/app.py", 40)


def gap(
    length: float, *, cpu: float = 0.0, cpu_of_all: float | None = None, away: float = 0.0, preempted: int = 0
) -> Gap:
    """Make a gap that began at 0, with the next beat due at 0.02."""
    return Gap(0.0, length, 0.02, cpu, cpu if cpu_of_all is None else cpu_of_all, away, preempted)


def samples(*seen: tuple[float, Place | None, int]) -> list[Sample]:
    """Make samples whose code does not go on."""
    return [Sample(at, place, task) for at, place, task in seen]


def shown(holds: list[Hold]) -> list[tuple[str, float, str]]:
    """Give what tells of a hold."""
    return [(hold.place.stage, round(hold.seconds, 3), hold.cause) for hold in holds]


@pytest.mark.parametrize(
    ("case", "length", "seen", "expected"),
    [
        ("long enough", 0.21, [(0.03, PARSE, 1), (0.1, PARSE, 1)], [("parse", 0.2, "computes")]),
        (
            "one look at the end, where the GIL was held",
            0.21,
            [(0.2, PARSE, 1)],
            [("parse", 0.2, "computes")],
        ),
        ("a beat that was not late enough", 0.06, [(0.03, PARSE, 1)], []),
        ("nobody to blame", 0.21, [(0.03, None, 1), (0.1, None, 1)], []),
        ("nothing seen", 0.21, [], []),
        (
            "two long calls, one after the other",
            0.21,
            [(0.03, PARSE, 1), (0.1, PARSE, 1), (0.12, PARSE, 2), (0.2, PARSE, 2)],
            [("parse", 0.1, "computes"), ("parse", 0.1, "computes")],
        ),
        (
            "many short calls of one place",
            0.13,
            [(0.03 + n / 100, PARSE, n) for n in range(10)],
            [("parse", 0.12, "computes")],
        ),
        (
            "places that take turns are short, each of them",
            0.15,
            [(0.03 + n / 100, PARSE if n % 2 else OTHER, n) for n in range(12)],
            [],
        ),
        (
            "one long call among others",
            0.31,
            [(0.03, OTHER, 1), (0.05, PARSE, 2), (0.15, PARSE, 2), (0.25, PARSE, 2), (0.27, None, 3)],
            [("parse", 0.22, "computes")],
        ),
        (
            "looks from before the gap",
            0.21,
            [(-0.1, OTHER, 1), (0.03, PARSE, 2)],
            [("parse", 0.2, "computes")],
        ),
    ],
)
def test_time_is_put_down_to_places(case: str, length: float, seen: Any, expected: Any) -> None:
    """A place is told that held the loop for 50 ms by itself, with the time that it did."""
    assert shown(judge(gap(length, cpu=length), samples(*seen))) == expected, case


@pytest.mark.parametrize(
    ("case", "figures", "goes_on", "cause"),
    [
        ("it computed", {"cpu": 0.19}, False, "computes"),
        ("it computed on a busy machine", {"cpu": 0.06}, True, "computes"),
        ("it computed in a tight loop, and was preempted", {"cpu": 0.06, "preempted": 40}, False, "computes"),
        ("it slept", {"cpu": 0.001}, False, "blocks"),
        ("it waited for a socket, and did a little", {"cpu": 0.02}, True, "blocks"),
        ("other threads had the interpreter", {"cpu": 0.01, "cpu_of_all": 0.2}, True, "waits"),
        ("C code that holds the GIL", {"cpu": 0.2, "away": 0.19}, False, "computes"),
    ],
)
def test_the_cause_is_told_from_the_time_computed(
    case: str, figures: dict[str, float], goes_on: bool, cause: str
) -> None:
    """Code that computes, code that blocks, and code that waits for threads that compute are told apart."""
    seen = [Sample(0.03 + n / 50, PARSE, 1, (1, n if goes_on else 0)) for n in range(9)]
    (hold,) = judge(gap(0.21, **figures), seen)
    assert hold.cause == cause, case


def test_a_stopped_process_held_nothing() -> None:
    """After SIGSTOP or a sleep of the machine nobody is blamed: no thread had a turn, and none computed."""
    assert judge(gap(5.0, cpu=0.01, away=4.9), samples((4.99, PARSE, 1))) == []


def test_the_line_is_where_it_stood_most() -> None:
    """Of several lines of one function the one that was seen most often is told."""
    seen = [Sample(0.03 + n / 50, PARSE._replace(line=line), 1) for n, line in enumerate([3, 7, 7, 9])]
    (hold,) = judge(gap(0.21, cpu=0.2), seen)
    assert hold.place.line == 7


@pytest.mark.parametrize(
    ("place", "cause", "cure"),
    [
        (PARSE, "computes", "process"),
        (PARSE, "blocks", "thread"),
        (PARSE, "waits", ""),
        (PARSE._replace(lane="", stage="source"), "computes", ""),
    ],
)
def test_the_cure_is_a_lane(place: Place, cause: Any, cure: str) -> None:
    """What computes belongs into processes, what blocks into threads; what is no stage has no lane."""
    assert cure_of(Hold(place, 1.0, cause)) == cure
