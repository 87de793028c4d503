"""Types of columns: as metadata carries them, the same whichever format a table came in."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import types as is_type

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
INTEGER = re.compile(r"-?(0|[1-9]\d{0,18})", re.ASCII)
LARGE_INTEGER = re.compile(r"-?[1-9]\d{18,}", re.ASCII)
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.(0|\d*[1-9]))?([eE][+-]?\d{1,3})?", re.ASCII)
"""As programs write floats: 007 and 1.10 are none."""
NOT_FINITE = ("NaN", "nan", "inf", "-inf", "Infinity", "-Infinity")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
WHOLE = re.compile(r"(0|[1-9]\d{0,15})\.0", re.ASCII)
"""An integer as pandas writes it in a column with gaps."""
_EPOCH = datetime(1970, 1, 1)

Make = Callable[[Any], Any]


class WideError(ValueError):
    """An integer over 64 bits."""


def carried(kind: pa.DataType) -> pa.DataType:
    """The type that a column of the metadata has for a column of this type: plain, and one that readers know."""
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return carried(kind.storage_type)
    if is_type.is_dictionary(kind) or is_type.is_run_end_encoded(kind):
        return carried(kind.value_type)
    if is_type.is_large_string(kind) or is_type.is_string_view(kind):
        return pa.string()
    if is_type.is_large_binary(kind) or is_type.is_fixed_size_binary(kind) or is_type.is_binary_view(kind):
        return pa.binary()
    if is_type.is_date64(kind):
        return pa.date32()
    if is_type.is_map(kind):  # `datasets` knows no maps
        return pa.list_(pa.struct([("key", carried(kind.key_type)), ("value", carried(kind.item_type))]))
    if _is_list(kind):
        return pa.list_(carried(kind.value_type))
    if is_type.is_struct(kind):
        return pa.struct([(field.name, carried(field.type)) for field in kind])
    return kind


def values_of(array: pa.Array) -> list[Any]:
    """A column's values as Python's own: UUIDs and durations as text, maps as lists of keys and values, and what has
    nanoseconds as text, too: Python's times have none.
    """
    if is_type.is_dictionary(array.type):
        array = array.dictionary_decode()
    wire, make = _reading(array.type)
    if wire != array.type:
        array = array.cast(wire)
    values: list[Any] = array.to_pylist()
    return values if make is None else [None if value is None else make(value) for value in values]


def _reading(kind: pa.DataType) -> tuple[pa.DataType, Make | None]:
    """The type that a column is cast to first, and what is made of its values then."""
    if isinstance(kind, pa.UuidType):
        return kind, str
    if isinstance(kind, pa.BaseExtensionType):
        return kind, _reading(kind.storage_type)[1]
    if is_type.is_dictionary(kind):
        wire, make = _reading(kind.value_type)
        return kind, make if wire == kind.value_type else None
    if is_type.is_timestamp(kind) and kind.unit == "ns":
        zone = "" if kind.tz is None else "+00:00"
        return (
            pa.int64(),
            lambda value: (
                (_EPOCH + timedelta(microseconds=value // 1000)).isoformat(timespec="microseconds")
                + f"{value % 1000:03}{zone}"
            ),
        )
    if is_type.is_time64(kind) and kind.unit == "ns":
        return (
            pa.int64(),
            lambda value: (
                f"{value // 3600_000_000_000:02}:{value // 60_000_000_000 % 60:02}:"
                f"{value // 1_000_000_000 % 60:02}.{value % 1_000_000_000:09}"
            ),
        )
    if is_type.is_duration(kind):
        per_second = UNITS[kind.unit]
        return pa.int64(), lambda value: duration_text(value, per_second)
    if is_type.is_map(kind):
        key_wire, key = _reading(kind.key_type)
        item_wire, item = _reading(kind.item_type)
        return pa.map_(key_wire, item_wire), lambda pairs: [
            {"key": made(key, name), "value": made(item, value)} for name, value in pairs
        ]
    if _is_list(kind):
        wire, make = _reading(kind.value_type)
        if make is None:
            return kind, None
        whole = kind if wire == kind.value_type else pa.list_(wire)
        return whole, lambda values: [made(make, value) for value in values]
    if is_type.is_struct(kind):
        read = [(field.name, *_reading(field.type)) for field in kind]
        makes = {name: make for name, _, make in read if make is not None}
        if not makes:
            return kind, None
        return pa.struct([(name, wire) for name, wire, _ in read]), lambda value: {
            name: made(makes.get(name), inner) for name, inner in value.items()
        }
    return kind, None


def made(make: Make | None, value: Any) -> Any:
    """What is made of a value; None stays, and so does any where nothing is to be made."""
    return value if make is None or value is None else make(value)


def _is_list(kind: pa.DataType) -> bool:
    tests = (is_type.is_list, is_type.is_large_list, is_type.is_fixed_size_list, is_type.is_list_view)
    return any(test(kind) for test in tests) or is_type.is_large_list_view(kind)


def duration_text(value: int, per_second: int) -> str:
    """A duration as ISO 8601 has it, exactly: "PT90.5S". `value` counts `per_second` units a second."""
    seconds, rest = divmod(abs(value), per_second)
    digits = f"{rest:0{len(str(per_second)) - 1}}".rstrip("0") if rest else ""
    return f"{'-' if value < 0 else ''}PT{seconds}{'.' + digits if digits else ''}S"


def plain_id(value: Any) -> Any:
    """An id as text where it can be one: integers, whole floats and decimals below 2**53 (pandas makes floats of
    integers in a column with gaps), UUIDs; None for null and NaN. Others stay as they are, to be refused.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, float | Decimal):
        return None if value != value else str(int(value)) if is_whole(value) else value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_whole(value: float | Decimal) -> bool:
    """Whether it is an integer, of which a float loses nothing."""
    return -(2**53) < value < 2**53 and value == int(value)


class Texts:
    """What a column of text, as CSV has it, holds: a type that loses nothing of any value.

    Numbers are numbers where all values are written as programs write them: 007 and 1.10 stay text.
    """

    def __init__(self) -> None:
        self.kind: pa.DataType = pa.null()
        self._has_long = False  # integers that a float may not hold
        self.has_wide = False
        """Whether there are integers over 64 bits among them, which stay text."""

    def see(self, values: Iterable[str | None]) -> None:
        """More of its values."""
        if self.kind == pa.string():
            return
        there = {value for value in values if value is not None}
        if there:
            self.kind = self._with(there)

    def _with(self, values: set[str]) -> pa.DataType:
        before = self.kind
        if before in (pa.null(), pa.bool_()) and all(value in BOOLEANS for value in values):
            return pa.bool_()
        if before != pa.bool_():
            if before != pa.float64() and all(map(INTEGER.fullmatch, values)) and _fit(values):
                self._has_long = self._has_long or any(len(value) > 15 for value in values)
                return pa.int64()
            numbers = values.difference(NOT_FINITE)
            if (numbers or before == pa.float64()) and not self._has_long and all(map(_is_float, numbers)):
                return pa.float64()
        self.has_wide = before in (pa.null(), pa.int64()) and any(map(LARGE_INTEGER.fullmatch, values))
        return pa.string()


def _is_float(text: str) -> bool:
    """Whether a float keeps all digits of a number."""
    return NUMBER.fullmatch(text) is not None and Decimal(text) == Decimal(repr(float(text)))


def _fit(values: Iterable[str]) -> bool:
    return all(len(value) < 19 or -(2**63) <= int(value) < 2**63 for value in values)


def from_text(kind: pa.DataType) -> Make | None:
    """What makes a column's values of its text in CSV, once its type is known; None where text it is."""
    if is_type.is_boolean(kind):
        return BOOLEANS.__getitem__
    if is_type.is_integer(kind):
        return int
    return float if is_type.is_floating(kind) else None


def of_values(values: Sequence[Any]) -> pa.DataType:
    """The type of a column of JSON's values. Raises WideError, or what pyarrow raises where types are mixed."""
    try:
        return pa.array(values).type
    except OverflowError:
        pass
    except pa.ArrowInvalid as error:
        if "too large" not in str(error):
            raise
    if all(value is None or (isinstance(value, int) and 0 <= value < 2**64) for value in values):
        return pa.uint64()
    wide = next((one for one in map(_wide, values) if one is not None), None)
    raise WideError(str(wide) if wide is not None else "an integer over 64 bits")


def _wide(value: Any) -> int | None:
    """The first integer in a value that 64 bits do not hold."""
    inner: Iterable[Any] = ()
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else value
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    return next((one for one in map(_wide, inner) if one is not None), None)


def unified(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """A schema that both fit into. Raises ArrowException."""
    return pa.unify_schemas([first, second], promote_options="permissive")


def merged_text(text: pa.DataType, declared: pa.DataType) -> pa.DataType | None:
    """The type of a column that is text in some files and has a type in others; None where there is none."""
    if is_type.is_null(text) or is_type.is_string(declared):
        return declared
    if is_type.is_null(declared):
        return text
    if is_type.is_boolean(text) or is_type.is_boolean(declared):
        return text if text == declared else None
    numbers = (is_type.is_integer, is_type.is_floating)
    if not all(any(test(kind) for test in numbers) for kind in (text, declared)):
        return None
    if is_type.is_integer(text):
        return declared
    return pa.float64()
