"""The reference says what the code says."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from pages import ROOT


def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "make_reference", ROOT / "docs" / "make_reference.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_reference_is_up_to_date():
    """Every public name is in the reference, with its docstring as it is now, and every command with its help."""
    stale = [path for path, text in generator().pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run «python docs/make_reference.py»: {', '.join(path.name for path in stale)} changed"
