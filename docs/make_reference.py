"""Writes docs/reference from the docstrings and from `--help`: `python docs/make_reference.py`.

Rules:
1. Nothing is said here that the code does not say; what is wrong in the reference is wrong in a docstring.
2. A public name without a place in `SECTIONS`, or without a docstring, is an error.
3. The same source gives the same text, on every Python and in every directory.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent / "reference"
GENERATED = "<!-- Made by docs/make_reference.py; change the docstrings instead. -->\n"
COMMANDS = (
    "",
    "fetch",
    "tail",
    "run",
    "resume",
    "status",
    "failures",
    "retry",
    "jobs",
    "advise",
    "bench",
    "demo",
    "init",
)

#: Of each module: what it is called in programs, and its names under headings; names of other modules are dotted.
SECTIONS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "headrace": (
        "hr",
        {
            "Running": [
                "map", "map_sync", "Flow", "Job", "headrace.flow.job.OutcomeStream", "Group", "headrace.flow.group.Started",
                "Inbox", "headrace.flow.inbox.Ticket", "headrace.flow.inbox.InboxClosed",
            ],
            "Outcomes and reports": [
                "Outcomes", "Outcome", "Done", "Failed", "Skipped", "Parked", "Returned", "Report",
                "headrace.report.StageReport", "headrace.report.FailureCause", "headrace.report.HeldPlace",
                "headrace.events.Statistics", "headrace.events.StageStatistics", "headrace.events.LoopHeld",
                "headrace.events.ItemsParked",
            ],
            "Decisions": ["Retry", "transient", "Budget", "headrace.policies.budget.BudgetRefused",
                "headrace.policies.budget.BudgetStatistics", "Limit", "Adaptive", "Breaker",
                "headrace.policies.limits.LimitRefused",
                "headrace.policies.limits.LimitStatistics", "headrace.policies.limits.KeyStatistics", "shared", "Processes"],
            "Advice on lanes": [
                "advise", "headrace.advisor.advice.Advice", "headrace.policies.lane_verdict.CallCosts",
            ],
            "Steering an item from within a function": ["RetryAfter", "GiveUp", "Skip"],
            "Looking at outputs": [
                "open", "headrace.flow.place.Place", "headrace.flow.place.JobInPlace", "headrace.ports.JobSummary",
                "headrace.ports.DeadLetter",
            ],
            "Errors": [
                "HeadraceError", "PlanError", "SourceError", "SinkError", "LedgerError", "headrace.errors.LedgerBusy",
                "headrace.errors.IdentityChanged", "CallError", "headrace.errors.Disposition", "TimedOut", "InDoubt",
                "headrace.errors.WorkerDied", "headrace.errors.ItemUnreadable",
                "ItemsFailed", "LaneError", "headrace.errors.EngineError",
            ],
        },
    ),
    "headrace.files": ("hr.files", {"Sources": ["lines", "csv", "jsonl"], "Files that grow": ["follow"]}),
    "headrace.sqlite": ("hr.sqlite", {"Sinks": ["table", "keep"]}),
    "headrace.http": (
        "hr.http",
        {
            "Requests": [
                "fetch", "Fetch", "Client", "Timeouts", "Response", "StreamedResponse", "Timings", "Headers", "Secret",
                "Resolver", "Guard", "basic", "bearer", "columns", "download", "Download",
                "Downloaded", "host",
                "mask", "ClientStatistics",
            ],
            "Logs": ["lines", "events", "LogStream", "Line", "ServerSentEvent", "Notice", "StreamStatistics"],
            "Errors": [
                "HttpError", "StatusError", "InvalidUrl", "UnsupportedScheme", "ResolveFailed", "ConnectFailed",
                "ConnectTimedOut", "TlsFailed", "ConnectionLost", "FirstByteTimedOut", "Stalled", "TotalTimedOut",
                "BadResponse", "BodyTooLarge", "BodyTruncated", "RedirectRefused", "TooManyRedirects", "RobotsUnavailable",
                "ClientClosed", "AddressRefused",
            ],
        },
    ),
    "headrace.testing": (
        "headrace.testing",
        {
            "Tests": [
                "run", "run_real", "loop_factory", "VirtualLoop", "DeadlockError", "cancel_everywhere", "count_await_points",
                "Ending", "Traced", "no_leaks", "open_descriptors",
            ],
            "Scripted HTTP": [
                "ScriptedHttp", "headrace.testing.scripted.Route", "ScriptedReply", "ScriptedRequest", "UnscriptedRequest",
            ],
            "A hostile server": ["HostileServer", "headrace.testing.hostile.Received"],
            "Conformance of sources and sinks": [
                "headrace.testing.conformance.check_replayable", "headrace.testing.conformance.check_transactional",
            ],
        },
    ),
}  # fmt: skip
#: Public names that are modules, and have sections of their own here.
MODULES = {"files", "http", "sqlite"}
#: Classes that programs make or take apart, so that their parameters matter; of dataclasses the fields are shown anyway.
CONSTRUCTED = {
    "Flow", "Group", "Inbox", "Limit", "RetryAfter", "GiveUp", "Skip", "Outcome", "Done", "Failed", "Skipped", "Parked",
    "Returned", "Client", "Secret", "Resolver", "Timings", "VirtualLoop", "ScriptedReply",
}  # fmt: skip


def python_reference() -> str:
    """Give the text of the page on Python."""
    parts = [
        GENERATED,
        "# Python\n\n`import headrace as hr`. Options go by keyword; times are seconds as numbers.\n",
    ]
    for module_name, (shown, sections) in SECTIONS.items():
        module = importlib.import_module(module_name)
        _check_complete(module, sections)
        parts.append(f"\n## {shown}\n\n{_text(inspect.getdoc(module) or '').split(chr(10))[0]}\n")
        for heading, names in sections.items():
            parts.append(f"\n### {heading if shown == 'hr' else f'{shown}: {heading.lower()}'}\n")
            parts += [_entry(module, name, shown) for name in names]
    return "".join(parts)


def _check_complete(module: ModuleType, sections: dict[str, list[str]]) -> None:
    placed = {name for names in sections.values() for name in names}
    missing = set(module.__all__) - placed - MODULES
    if missing:
        raise SystemExit(f"{module.__name__}: no place in SECTIONS for {', '.join(sorted(missing))}")


def _entry(module: ModuleType, name: str, shown: str) -> str:
    home, _, short = name.rpartition(".")
    value = getattr(importlib.import_module(home) if home else module, short)
    title = name if home else f"{shown}.{name}"
    if not inspect.isclass(value):
        return f"\n#### {title}\n\n{_code(short, value)}\n{_doc(title, value)}\n"
    bases = [base.__name__ for base in value.__bases__ if base.__module__.startswith("headrace")]
    below = f" ({', '.join(bases)})" if bases else ""
    parts = [f"\n#### {title}{below}\n\n"]
    if short in CONSTRUCTED or dataclasses.is_dataclass(value):
        parts.append(f"{_code(short, value)}\n")
    parts.append(f"{_doc(title, value)}\n")
    if issubclass(value, enum.Enum):
        parts.append("\n" + "".join(f"- `{member.name}`\n" for member in value))
    parts += [_member(title, value, member) for member in _members(value)]
    return "".join(parts)


def _members(cls: type) -> Iterator[str]:
    """Give the public methods and properties that a class defines itself, in the order of its source."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)  # of a class method
        if not name.startswith("_") and (isinstance(value, property) or inspect.isfunction(function)):
            yield name


def _member(title: str, cls: type, name: str) -> str:
    value = vars(cls)[name]
    label = f"{title}.{name}"
    if isinstance(value, property):
        return f"\n**`.{name}`**: {_doc(label, value)}\n"
    value = getattr(value, "__func__", value)
    return f"\n{_code(f'.{name}', value)}\n{_doc(label, value)}\n"


def _doc(title: str, value: Any) -> str:
    text = inspect.getdoc(value)
    own = not inspect.isclass(value) or "__doc__" in vars(value)
    if not text or not own:
        raise SystemExit(f"{title} has no docstring")
    return _text(text)


def _text(doc: str) -> str:
    """Turn a docstring into Markdown: the list under «Args:» becomes one."""
    lines: list[str] = []
    inside = False
    for line in doc.splitlines():
        if line.strip() in ("Args:", "Raises:", "Returns:"):
            inside = True
            lines += [line, ""]
            continue
        if inside and line and not line.startswith(" "):
            inside = False
        found = re.match(r"    (\*{0,2}\w+(?:, \w+)*): (.*)", line) if inside else None
        lines.append(f"- `{found[1]}`: {found[2]}" if found else line.strip() if inside else line)
    return "\n".join(lines)


def _code(name: str, value: Any) -> str:
    """Give the signature as a block of code, one parameter a line where it is long."""
    overloads = typing.get_overloads(value) if inspect.isfunction(value) else []
    target = overloads[0] if overloads else value
    try:
        signature = inspect.signature(target)
    except ValueError:
        return ""
    begin = "async " if inspect.iscoroutinefunction(target) else ""
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls", "_")]
    shown = list(_parameters(parameters))
    returns = "" if inspect.isclass(value) else _annotation(signature.return_annotation, " -> ")
    line = f"{begin}{name}({', '.join(shown)}){returns}"
    if len(line) > 100:
        line = f"{begin}{name}(\n" + "".join(f"    {parameter},\n" for parameter in shown) + f"){returns}"
    return f"```text\n{line}\n```\n"


def _parameters(parameters: list[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        starred = starred or mark == "*"
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        yield f"{mark}{parameter.name}{_annotation(parameter.annotation, ': ')}{default}"


def _annotation(annotation: Any, before: str) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return before + text


def _default(value: Any) -> str:
    if inspect.isfunction(value) or inspect.isclass(value):
        return str(value.__name__)
    text = repr(value)
    return "…" if value is ... or text.startswith("<") else text


def command_reference() -> str:
    """Give the text of the page on the command line."""
    parts = [GENERATED, "# Command line\n\n`python -m headrace` is the same as `headrace`.\n"]
    for command in COMMANDS:
        words = ["headrace", *([command] if command else [])]
        helped = subprocess.run(
            [sys.executable, "-m", *words, "--help"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"},
        )
        text = "\n".join(line.rstrip() for line in helped.stdout.strip().splitlines())
        parts.append(f"\n## {' '.join(words)}\n\n```text\n{text}\n```\n")
    return "".join(parts)


def pages() -> dict[Path, str]:
    """Give each generated page with its text."""
    return {HERE / "python.md": python_reference(), HERE / "command-line.md": command_reference()}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
