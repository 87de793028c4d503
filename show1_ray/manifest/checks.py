"""What may be wrong with a table: with each row, with its ids over all rows, with its columns over all files."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from show1_ray.errors import UserError, one_line, shown
from show1_ray.manifest.files import is_utf8
from show1_ray.manifest.identity import derived_id, digest, given_seed, row_digest
from show1_ray.manifest.naming import COLUMNS, Naming
from show1_ray.manifest.parquet import ROWS_AT_ONCE
from show1_ray.manifest.rows import Row
from show1_ray.manifest.table import Table, UnreadableError
from show1_ray.manifest.types import Make, Texts, WideError, from_text, merged_text, of_values, unified

SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
LONGEST_ID = 128
SHOWN_PROBLEMS = 10
LONGEST_TEXT = 100_000
"""Characters of a prompt; encoders take some hundred words."""
NAMES = {name: name for name in COLUMNS}


class ManifestError(UserError):
    """What is wrong with a manifest: up to ten lines, each with the file, the row and the column, and how many more."""


@dataclass
class Problems:
    """What was found wrong, a line each; of very many the first ones."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, line: str) -> None:
        """One more."""
        self.count += 1
        if self.count <= SHOWN_PROBLEMS:
            self.shown.append(f"manifest {line}")

    def raise_if_any(self) -> None:
        """Raises ManifestError."""
        more = self.count - len(self.shown)
        if self.count:
            raise ManifestError("\n".join([*self.shown, *([f"… and {more:,} more"] if more else [])]))


class Ids:
    """Finds repeated ids in flat memory: 16 bytes of hash for each row, sorted once at the end."""

    def __init__(self) -> None:
        self._given = bytearray()  # digests of ids
        self._derived = bytearray()  # digests of rows without one
        # Where rows stand: a stretch starts where row numbers cease to run along with places in `_given`.
        self._starts: list[int] = []
        self._stretches: list[tuple[Table, int]] = []

    @property
    def count(self) -> int:
        """Rows seen."""
        return (len(self._given) + len(self._derived)) // 16

    def add(self, table: Table, row: Row) -> None:
        """One row more, in their order."""
        if row.id is None:
            self._derived += row_digest(row)
            return
        place = len(self._given) // 16
        if not self._starts or self._row_at(place) != (table, row.number):
            self._starts.append(place)
            self._stretches.append((table, row.number))
        self._given += digest(row.id)

    def check(self, problems: Problems, samples: int) -> None:
        """Report ids that are given twice, or that a row without id would get."""
        given = np.frombuffer(self._given, "S16")
        order = np.argsort(given, kind="stable")
        same = given[order[1:]] == given[order[:-1]]
        for place in np.sort(order[1:][same]).tolist():
            table, number = self._row_at(place)
            first = int(np.argmax(given == given[place])) if problems.count < SHOWN_PROBLEMS else 0
            other, earlier = self._row_at(first)
            where = "" if other == table else f" of {other.url}"
            problems.add(f"{table.url}: row {number}: 'id' is already that of row {earlier}{where}")
        if samples == 1 and self._given and self._derived:
            for place in np.flatnonzero(np.isin(given, self._derived_ids())).tolist():
                table, number = self._row_at(place)
                problems.add(f"{table.url}: row {number}: 'id' is the one that a row without id gets")

    def repeated(self) -> frozenset[bytes]:
        """The digests of rows without id that occur more than once."""
        derived = np.sort(np.frombuffer(self._derived, "S16"))
        return frozenset(bytes(d).ljust(16, b"\0") for d in np.unique(derived[1:][derived[1:] == derived[:-1]]))

    def _derived_ids(self) -> np.ndarray:
        digests, occurrence, before = bytearray(), 0, b""
        for one in np.sort(np.frombuffer(self._derived, "S16")):
            key = bytes(one).ljust(16, b"\0")
            occurrence = occurrence + 1 if key == before else 0
            before = key
            digests += digest(derived_id(key, 0, occurrence))
        return np.frombuffer(digests, "S16")

    def _row_at(self, place: int) -> tuple[Table, int]:
        stretch = bisect_right(self._starts, place) - 1
        table, number = self._stretches[stretch]
        return table, number + place - self._starts[stretch]


class OtherColumns:
    """The arrow types of the columns that are not the line's own, over all files, by the metadata's names for them."""

    def __init__(self) -> None:
        self._declared = pa.schema([])
        self._texts: dict[str, Texts] = {}
        self._order: dict[str, None] = {}
        self._seen: list[dict[str, Any]] = []

    def declare(self, table: Table, naming: Naming) -> None:
        """Take the columns that a file tells of itself. Raises UnreadableError."""
        there = table.other_columns(naming)
        self._order |= dict.fromkeys(there.names)
        if table.is_text:
            for name in there.names:
                self._texts.setdefault(name, Texts())
        else:
            self._unify(table, there)

    def see(self, table: Table, row: Row) -> None:
        """Look at a row of a file that does not tell the types of its columns. Raises UnreadableError."""
        if table.is_text or not table.tells_columns:
            self._seen.append(row.extra)
            if len(self._seen) == ROWS_AT_ONCE:
                self.infer(table)

    def infer(self, table: Table) -> None:
        """Take the types of columns from the values seen since the last call. Raises UnreadableError."""
        rows, self._seen = self._seen, []
        for name in dict.fromkeys(name for row in rows for name in row):
            self._order[name] = None
            values = [row.get(name) for row in rows]
            if table.is_text:
                self._texts[name].see(values)
                continue
            try:
                kind = of_values(values)
            except WideError as error:
                what = f"holds {error}, more than 64 bits"
                raise UnreadableError(f"{table.url}: column {name!r} {what}: write it as text, or --drop it") from error
            except (pa.ArrowException, OverflowError, RecursionError, UnicodeError) as error:
                raise UnreadableError(f"{table.url}: column {name!r} mixes types: {one_line(error)}") from error
            self._unify(table, pa.schema([(name, kind)]))

    def schema(self) -> pa.Schema:
        """All of them, when all files have been seen. Raises UnreadableError where two of a name do not go together."""
        found = []
        for name in self._order:
            declared = self._declared.field(name).type if name in self._declared.names else pa.null()
            text = self._texts[name].kind if name in self._texts else pa.null()
            kind = merged_text(text, declared)
            if kind is None:
                raise UnreadableError(f"column {name!r} has two types: {text} in text files, {declared} in others")
            found.append((name, kind))
        return pa.schema(found)

    def makes(self) -> dict[str, Make | None]:
        """What makes values of their text in CSV."""
        return {field.name: from_text(field.type) for field in self.schema()}

    def notes(self) -> list[str]:
        """What is done with values besides carrying them."""
        wide = [name for name, texts in self._texts.items() if texts.has_wide]
        return [f"kept as text: {', '.join(map(shown, wide))}: integers over 64 bits"] if wide else []

    def _unify(self, table: Table, schema: pa.Schema) -> None:
        try:
            self._declared = unified(self._declared, schema)
        except pa.ArrowException as error:
            raise UnreadableError(f"{table.url}: a column has two types: {one_line(error)}") from error


def problem_of(row: Row, samples: int, names: Mapping[str, str] = NAMES) -> str | None:
    """What is wrong with a row's own columns, for people, who call these by `names`; None where all is well."""
    if row.problem:
        return row.problem
    for name, text in (("prompt", row.prompt), ("negative_prompt", row.negative_prompt)):
        if text is None:
            continue
        if not isinstance(text, str):
            return f"{names[name]!r} is {shown(text)}, not text"
        if len(text) > LONGEST_TEXT:
            return f"{names[name]!r} has {len(text):,} characters; {LONGEST_TEXT:,} are the most"
        if not is_utf8(text):
            return f"{names[name]!r} is not valid Unicode"
    if row.prompt is None or not row.prompt.strip():
        return f"{names['prompt']!r} is empty"
    try:
        given_seed(row.seed)
    except ValueError:
        return f"{names['seed']!r} is {shown(row.seed)}, not an integer from 0 to 2**63 - 1"
    return None if row.id is None else _id_problem(row.id, samples, names["id"])


def _id_problem(value: Any, samples: int, name: str) -> str | None:
    if not isinstance(value, str):
        return f"{name!r} is {shown(value)}, not text or an integer"
    suffix = len(f"-{samples - 1}") if samples > 1 else 0
    if SAFE_ID.fullmatch(value) and len(value) + suffix <= LONGEST_ID:
        return None
    allowed = f"1 to {LONGEST_ID - suffix} of A-Z a-z 0-9 . _ -, no leading dot"
    return f"{name!r} is {shown(value)}, not a safe file name ({allowed})"
