"""A row of a table, as every format gives it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Row(NamedTuple):
    """One row as it stands in the file; `number` is a person's: 1 is the first row of data (JSON Lines, text: the
    line). `id` is text or None where it can be (`types.plain_id`).
    """

    number: int
    prompt: Any
    negative_prompt: Any
    id: Any
    seed: Any
    extra: dict[str, Any]
    problem: str | None = None
    inputs: Mapping[str, Any] = NOTHING


def broken(number: int, problem: str) -> Row:
    """A row that cannot be read."""
    return Row(number, None, None, None, None, {}, problem)
