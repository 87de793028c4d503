"""What a table's columns are called: in the file, for the line, and in the metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from show1_ray.errors import UserError, shown
from show1_ray.pipeline.columns import is_own
from show1_ray.pipeline.inputs import NO_INPUTS, InputColumns

COLUMNS = ("prompt", "negative_prompt", "id", "seed")
INDEX = re.compile(r"|__index_level_\d+__|Unnamed: 0(\.\d+)*", re.ASCII)
"""Names of a data frame's index that has none, as pandas writes and reads it."""
NO_COLUMN = "--column prompt=NAME says which it is"


@dataclass(frozen=True)
class Columns:
    """What somebody says of a manifest's columns.

    Attributes:
        names: columns that the line reads → what they are called in the files.
        dropped: columns of the files that are left out.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    @classmethod
    def said(cls, columns: Sequence[str] = (), drop: str | Sequence[str] = ()) -> Columns:
        """As options have it: `prompt=caption` each; "a,b", or names. Raises UserError."""
        names: dict[str, str] = {}
        for one in columns:
            target, equals, source = one.partition("=")
            if not (equals and target and source):
                raise UserError(f"--column {shown(one)}: give prompt=NAME, where NAME is a column of the manifest")
            if target in names:
                raise UserError(f"--column {shown(one)}: {target!r} is {names[target]!r} already")
            names[target] = source
        dropped = frozenset(name for name in (drop.split(",") if isinstance(drop, str) else drop) if name)
        twice = next((source for source in names.values() if source in dropped), None)
        if twice is not None:
            raise UserError(f"--drop {twice}: --column gives it a name; leave one of them out")
        return cls(names, dropped)


AS_THEY_ARE = Columns()


class Naming:
    """How the columns of a manifest's files are read, and what was noticed while they were.

    Args:
        columns: what somebody says of them.
        inputs: of the pipeline, which are columns too.

    Raises:
        UserError: `columns` gives a name that nobody reads.
    """

    def __init__(self, columns: Columns = AS_THEY_ARE, inputs: InputColumns = NO_INPUTS) -> None:
        self.columns, self.inputs = columns, inputs
        self.read = (*COLUMNS, *inputs.names)
        unknown = next((name for name in columns.names if name not in self.read), None)
        if unknown is not None:
            raise UserError(f"--column {unknown}=…: no column that is read; there are {', '.join(self.read)}")
        named = {name: columns.names.get(name, name) for name in self.read}
        self.sources = {name: source for name, source in named.items() if source not in columns.dropped}
        """Columns that the line reads → what the files call them."""
        self._read = frozenset(self.sources.values())
        self.names: dict[str, str | None] = {}
        self.empty_rows = 0
        """Rows of CSV without any value, which are left out."""

    def carried(self, name: str) -> str | None:
        """What the metadata calls a column that the line does not read; None where it is left out."""
        if name not in self.names:
            self.names[name] = self._carried(name)
        return self.names[name]

    def carried_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of a row's values those that the line does not read, under the metadata's names."""
        named = ((self.carried(name), value) for name, value in values.items() if not self.is_read(name))
        return {name: value for name, value in named if name is not None}

    def is_read(self, name: str) -> bool:
        """Whether a column of the files is one that the line reads."""
        return name in self._read

    def notes(self) -> list[str]:
        """What is done with columns besides carrying them as they are called, a line each."""
        notes = []
        renamed = [(old, new) for old, new in self.names.items() if new is not None and new != old]
        if renamed:
            told = ", ".join(f"{shown(old)} as {new}" for old, new in renamed)
            notes.append(f"carried under other names, which the metadata uses itself: {told}")
        indices = [name for name in self.names if name not in self.columns.dropped and INDEX.fullmatch(name)]
        if indices:
            told = ", ".join(shown(name) if name else "a column without a name" for name in indices)
            notes.append(f"left out: {told}: the index of a data frame")
        if self.empty_rows:
            notes.append(f"left out: {self.empty_rows:,} rows without any value")
        return notes

    def problem(self) -> str | None:
        """What cannot be, once all files are read."""
        lacking = sorted(self.columns.dropped.difference(self.names))
        if lacking:
            return f"--drop {lacking[0]}: there is no such column"
        places: dict[str, str] = {}
        for old, new in self.names.items():
            if new is not None and new in places:
                return f"columns {places[new]!r} and {old!r} would both be {new!r}; --drop {old} leaves one out"
            if new is not None:
                places[new] = old
        return None

    def lacking(self, names: Sequence[str]) -> str | None:
        """Why a file with these columns cannot be read; None where it can."""
        has = f"(its columns: {', '.join(names) or 'none'})"
        prompt = self.columns.names.get("prompt", "prompt")
        if self.sources.get("prompt") not in names:
            hint = "" if "prompt" in self.columns.names else f"; {NO_COLUMN}"
            return f"no column {prompt!r} {has}{hint}"
        needed = (*self.columns.names, *self.inputs.needed)
        lacking = next((name for name in needed if self.sources.get(name) not in names), None)
        if lacking is not None:
            whose = ", which the pipeline's inputs name" if lacking in self.inputs.names else ""
            return f"no column {self.columns.names.get(lacking, lacking)!r}{whose} {has}"
        twice = next((name for name in names if name and names.count(name) > 1), None)
        return None if twice is None else f"two columns are named {twice!r}"

    def _carried(self, name: str) -> str | None:
        if name in self.columns.dropped or INDEX.fullmatch(name):
            return None
        if not (is_own(name) or name in self.read or name in self.inputs.taken):
            return name
        other = f"manifest_{name}"
        # `datasets` takes what ends so for names of files that it opens.
        return other.replace("file_name", "filename") if is_own(other) else other
