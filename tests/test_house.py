"""The rules of the house, where ruff, mypy and import-linter are too coarse."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace

SOURCE = Path(headrace.__file__).parent
ROOT = SOURCE.parent.parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST = 600  # lines

#: What `import headrace` must not bring in: each costs milliseconds that most programs never need.
HEAVY = {
    "certifi",
    "concurrent.futures.process",
    "email",
    "headrace.cli",
    "headrace.demo",
    "headrace.http",
    "headrace.postgres",
    "headrace.sqlite",
    "headrace.terminal",
    "headrace.testing",
    "jmespath",
    "http.client",
    "msgspec",
    "multiprocessing",
    "protego",
    "pycurl",
    "rich",
    "sqlite3",
    "typer",
    "urllib.request",
    "uvloop",
}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in FILES:
        yield file.relative_to(SOURCE).as_posix(), ast.parse(file.read_bytes(), str(file))


def dotted(node: ast.AST) -> str:
    """Give `a.b.c` for an attribute chain; what is no name in it becomes `?`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, dotted(node.func)


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether every way out of the handler's end is a bare `raise` (or one that names the caught error)."""

    def leaves(statements: list[ast.stmt]) -> bool:
        last = statements[-1]
        if isinstance(last, ast.Raise):
            bare = last.exc is None
            return bare or (isinstance(last.exc, ast.Name) and last.exc.id == handler.name)
        if isinstance(last, ast.If):
            return bool(last.orelse) and leaves(last.body) and leaves(last.orelse)
        if isinstance(last, ast.With | ast.AsyncWith):
            return leaves(last.body)
        if isinstance(last, ast.Try):
            return leaves(last.finalbody or last.orelse or last.body)
        return False

    return leaves(handler.body)


def catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or dotted(kind) == "BaseException" for kind in kinds)


def test_tasks_are_started_by_their_owner_only():
    """`create_task` stands in aio/tasks.py and nowhere else; `ensure_future` nowhere."""
    found = [
        f"{name}:{line}"
        for name, tree in trees()
        for line, call in calls(tree)
        if call.endswith((".create_task", ".ensure_future")) and name != "aio/tasks.py"
    ]
    assert found == []


def hands_on(handler: ast.ExceptHandler) -> bool:
    """Whether the handler keeps the caught error itself in an attribute, for another thread to raise."""
    return any(
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == handler.name
        for node in handler.body
    )


def test_whoever_catches_everything_raises_it_again():
    """`except BaseException`, and a bare `except`, end in a bare `raise`; a thread may hand the error on instead."""
    found = []
    for name, tree in trees():
        asynchronous = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
        on_the_loop = {handler for function in asynchronous for handler in ast.walk(function)}
        found += [
            f"{name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler) and catches_all(node) and not raises_again(node)
            if node in on_the_loop or not hands_on(node)
        ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "good"),
    [
        ("raise", True),
        ("undo()\n    raise", True),
        ("raise error", True),
        ("if a:\n        raise\n    else:\n        raise error", True),
        ("if a:\n        raise", False),
        ("raise Other() from error", False),
        ("return 1", False),
    ],
)
def test_the_check_of_handlers_tells_them_apart(code, good):
    """The check above knows a handler that raises again from one that does not."""
    tree = ast.parse(f"try:\n    f()\nexcept BaseException as error:\n    {code}\n")
    handler = next(node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    assert catches_all(handler)
    assert raises_again(handler) is good


def test_what_is_banned_is_not_used():
    """`asyncio.wait_for` and `asyncio.to_thread` are not called, and no default executor is used."""
    banned = {"asyncio.wait_for", "asyncio.to_thread", "wait_for", "to_thread"}
    found = []
    for name, tree in trees():
        found += [f"{name}:{line} {call}" for line, call in calls(tree) if call in banned]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and dotted(node.func).endswith(".run_in_executor"):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and first.value is None:
                    found.append(f"{name}:{node.lineno} default executor")
    assert found == []


def test_nobody_inside_imports_the_package_root():
    """`import headrace` and `from headrace import …` are for users; inside, rooms are named, without dots.

    The demo's job is a user's program and reads like one.
    """
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                root = any(alias.name == "headrace" for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                root = node.module == "headrace" or node.level > 0
            else:
                continue
            if root and name not in ("__init__.py", "demo/job.py"):
                found.append(f"{name}:{node.lineno}")
    assert found == []


def test_no_file_is_too_long():
    """A file has at most 600 lines, and opens with what it is for."""
    lengths = {file: len(file.read_text("utf-8").splitlines()) for file in FILES}
    assert [f"{file.relative_to(SOURCE)}: {n}" for file, n in lengths.items() if n > LONGEST] == []
    assert [name for name, tree in trees() if tree.body and not ast.get_docstring(tree)] == []


def public_names(tree: ast.Module) -> dict[str, ast.AST]:
    """Give the functions and classes of a module whose names have no underscore."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name: node for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"}


def declared(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            value = node.value
            assert isinstance(value, ast.List | ast.Tuple), "__all__ is a plain list of names"
            return [ast.literal_eval(element) for element in value.elts]
    return None


def test_what_a_file_declares_is_there_and_documented():
    """Every function and class in `__all__`, and every public method of those classes, has a docstring."""
    problems = []
    for name, tree in trees():
        names = declared(tree)
        if names is None:
            continue
        assert len(names) == len(set(names)), f"{name}: a name stands twice in __all__"
        own = public_names(tree)
        for word in names:
            if word in own:
                problems += [f"{name}: {word}{rest}" for rest in undocumented(own[word])]
    assert problems == []


def undocumented(node: ast.AST) -> Iterator[str]:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    if not ast.get_docstring(node):
        yield ""
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and method.name[0] != "_":
                words = {dotted(d).rpartition(".")[2] for d in method.decorator_list}
                if not ast.get_docstring(method) and not words & {"setter", "overload", "override"}:
                    yield f".{method.name}"


def test_public_names_are_declared():
    """A module with functions or classes without underscore has `__all__`, and they stand in it."""
    undeclared = []
    for name, tree in trees():
        own = public_names(tree)
        names = declared(tree)
        if names is None:
            if own and not Path(name).name.startswith("_"):
                undeclared.append(f"{name}: no __all__")
            continue
        exported = set(names)
        undeclared += [f"{name}: {word}" for word in own if word not in exported]
    assert undeclared == []


def modules() -> Iterator[str]:
    yield "headrace"
    for found in pkgutil.walk_packages(headrace.__path__, "headrace."):
        if not found.name.endswith("__main__"):
            yield found.name


@pytest.mark.parametrize("name", list(modules()))
def test_every_name_that_is_declared_can_be_had(name):
    """Importing a module works by itself, and so does every name in its `__all__`, lazy ones too."""
    module = importlib.import_module(name)
    assert [word for word in getattr(module, "__all__", ()) if not hasattr(module, word)] == []


def test_the_root_offers_few_names_and_all_are_documented():
    """At most 40 public names, each with a docstring of its own."""
    names = [name for name in headrace.__all__ if not name.startswith("__")]
    assert len(names) <= 40
    plain = [name for name in names if not inspect.getdoc(getattr(headrace, name))]
    assert plain == []


def test_the_layers_hold():
    """import-linter keeps every contract of pyproject.toml."""
    program = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run(
        [program, "--no-cache", "--config", ROOT / "pyproject.toml"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_importing_headrace_is_light():
    """`import headrace` loads no adapter, no third party, and nothing heavy of the standard library."""
    code = "import sys, headrace; print('\\n'.join(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "headrace" in loaded
    assert sorted(loaded & HEAVY) == []
