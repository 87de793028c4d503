"""Values of columns in JSON, as a video carries them, and back in their types."""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
from pyarrow import types as is_type

from show1_ray.manifest.types import UNITS, Make, duration_text, made

DURATION = re.compile(r"(-?)PT(\d+)(?:\.(\d{1,9}))?S", re.ASCII)
TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?", re.ASCII)
PLAIN = (
    *(is_type.is_null, is_type.is_boolean, is_type.is_integer, is_type.is_floating),
    *(is_type.is_string, is_type.is_large_string),
)
MOMENT = re.compile(r"([^.]*?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d(?::\d\d)?)?", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AS_TEXT = (is_type.is_timestamp, is_type.is_date32, is_type.is_time, is_type.is_duration, is_type.is_decimal)
BYTES = (is_type.is_binary, is_type.is_large_binary, is_type.is_fixed_size_binary)
LISTS = (is_type.is_list, is_type.is_large_list, is_type.is_fixed_size_list)


def to_json(value: Any) -> Any:
    """A value of a manifest's column in JSON's types: dates, decimals, durations and UUIDs as text, bytes as base64,
    NaN as null.
    """
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return duration_text(value // timedelta(microseconds=1), UNITS["us"])
    if isinstance(value, (Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in value]
    return value


def column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """JSON's values as a column; `kind` None: as they come. Raises ArrowException, ValueError."""
    if kind is None:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # a stage's value that is a number for one clip, text for another
            return pa.array([value if isinstance(value, str | None) else json.dumps(value) for value in values])
    wire, make = _reading(kind)
    if make is not None:
        values = [None if value is None else make(value) for value in values]
    array = pa.array(values, wire)
    return array if wire == kind else array.cast(kind)


def is_simple(kind: pa.DataType) -> bool:
    """Whether it is a type of numbers, or of true and false."""
    return _is_any(kind, (is_type.is_boolean, is_type.is_integer, is_type.is_floating))


def is_carried(kind: pa.DataType) -> bool:
    """Whether values of a type can go through JSON and come back."""
    if is_type.is_struct(kind):
        return all(is_carried(field.type) for field in kind)
    if _is_any(kind, LISTS):
        return is_carried(kind.value_type)
    return _is_any(kind, (*PLAIN, *BYTES, *AS_TEXT))


def _reading(kind: pa.DataType) -> tuple[pa.DataType, Make | None]:
    """The type in which a column is built before it is cast, and how JSON's values are converted first."""
    if _is_any(kind, BYTES):
        return kind, base64.b64decode
    if is_type.is_date32(kind):
        return kind, date.fromisoformat
    if is_type.is_decimal(kind):
        return kind, _decimal
    if is_type.is_timestamp(kind):
        return pa.int64(), lambda text: _moment(text, kind.unit)
    if is_type.is_duration(kind):
        return pa.int64(), lambda text: _count(DURATION, text, kind.unit)
    if is_type.is_time(kind):
        return pa.int64() if is_type.is_time64(kind) else pa.int32(), lambda text: _count(TIME, text, kind.unit)
    if _is_any(kind, LISTS):
        wire, make = _reading(kind.value_type)
        whole = kind if wire == kind.value_type else pa.list_(wire)
        return whole, None if make is None else lambda values: [made(make, value) for value in values]
    if is_type.is_struct(kind):
        read = {field.name: _reading(field.type) for field in kind}
        makes = {name: make for name, (_, make) in read.items() if make is not None}
        whole = pa.struct([(name, wire) for name, (wire, _) in read.items()])
        if not makes:
            return whole, None
        return whole, lambda value: {name: made(makes.get(name), inner) for name, inner in value.items()}
    return kind, None


def _count(form: re.Pattern[str], text: str, unit: str) -> int:
    """A time of day or a duration in a unit. Raises ValueError."""
    found = form.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no time")
    *whole, digits = found.groups()
    if form is TIME:
        hours, minutes, seconds = (int(part or 0) for part in whole)
        sign, total = 1, (hours * 60 + minutes) * 60 + seconds
    else:
        sign, total = -1 if whole[0] else 1, int(whole[1])
    return sign * (total * UNITS[unit] + int((digits or "").ljust(9, "0")) * UNITS[unit] // UNITS["ns"])


def _moment(text: str, unit: str) -> int:
    """A timestamp as what a unit counts since 1970; arrow itself takes no more digits than the unit has."""
    found = MOMENT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no timestamp")
    whole, digits, zone = found.groups()
    moment = datetime.fromisoformat(whole + (zone or ""))
    seconds = ((moment if zone else moment.replace(tzinfo=UTC)) - EPOCH) // timedelta(seconds=1)
    return seconds * UNITS[unit] + int((digits or "").ljust(9, "0")) * UNITS[unit] // UNITS["ns"]


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no decimal") from None


def _is_any(kind: pa.DataType, tests: tuple[Callable[[pa.DataType], bool], ...]) -> bool:
    return any(test(kind) for test in tests)
