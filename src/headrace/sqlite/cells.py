"""From the values of a flow to rows, and from their fields to what SQLite stores.

Rules:
1. None, bool (as 0 and 1), int of 64 bit, float, str and bytes are stored natively; dates as ISO text; an enum as its value;
   decimals, UUIDs and paths as text; everything else as JSON text.
2. What would come back as something else (NaN, which SQLite stores as NULL) is refused, never bent.
3. Functions here raise ValueError or TypeError with the reason; the table adds the position.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import math
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

__all__ = ["cell", "json_text", "row_maker"]

_LOWEST = -(1 << 63)
_HIGHEST = (1 << 63) - 1

RowMaker = Callable[[Any], Mapping[str, Any]]


def row_maker(kind: type) -> RowMaker:
    """Give the function that makes a row (column to value) of values of this type.

    A type with `as_row()`, a mapping with str keys, a dataclass, a NamedTuple and a msgspec.Struct know their columns;
    anything else is a row of one column, `value`.
    """
    if callable(getattr(kind, "as_row", None)):
        return _of_rowable
    if issubclass(kind, collections.abc.Mapping):
        return _of_mapping
    if issubclass(kind, msgspec.Struct):
        return _by_names(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return _by_names(tuple(field.name for field in dataclasses.fields(kind)))
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _by_names(kind._fields)
    return _alone


def _of_rowable(value: Any) -> Mapping[str, Any]:
    row = value.as_row()
    if not isinstance(row, collections.abc.Mapping):
        raise TypeError(
            f"{type(value).__name__}.as_row() gave {type(row).__name__}; it must give a dict of columns"
        )
    return dict(row)


def _of_mapping(value: Mapping[Any, Any]) -> Mapping[str, Any]:
    return dict(value)


def _by_names(names: tuple[str, ...]) -> RowMaker:
    def make(value: Any) -> Mapping[str, Any]:
        return {name: getattr(value, name) for name in names}

    return make


def _alone(value: Any) -> Mapping[str, Any]:
    return {"value": value}


def cell(value: Any) -> int | float | str | bytes | None:
    """Make what is stored for one field. Raises ValueError or TypeError for what cannot be stored as it is."""
    if value is None:
        return None
    if isinstance(value, enum.Enum):
        return cell(value.value)
    if isinstance(value, int):
        return int(value) if _LOWEST <= value <= _HIGHEST else int.__repr__(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("NaN cannot be stored, as SQLite makes it NULL; give None instead")
        return float(value)
    if isinstance(value, str):
        value.encode()  # a lone surrogate is a UnicodeEncodeError
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, os.PathLike):
        return cell(os.fspath(value))
    plain = getattr(value, "tolist", None)  # numpy's scalars and arrays, pandas' series
    if callable(plain):
        return cell(plain())
    return json_text(value)


def json_text(value: Any) -> str:
    """Write a value as JSON. Raises ValueError for NaN and infinities in it, TypeError for what JSON cannot hold."""
    text = msgspec.json.encode(value)
    if b"null" in text and _holds_odd_float(value):
        raise ValueError("NaN and infinities cannot be stored in JSON; give None or text instead")
    return text.decode()


def _holds_odd_float(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str | bytes | int) or value is None:
        return False
    if isinstance(value, collections.abc.Mapping):
        return any(_holds_odd_float(inner) for inner in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds_odd_float(inner) for inner in value)
    fields = getattr(type(value), "__struct_fields__", None)
    if fields is None and dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
    return any(_holds_odd_float(getattr(value, name)) for name in fields or ())
