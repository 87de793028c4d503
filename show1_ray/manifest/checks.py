"""What may be wrong with a table: with each row, with its ids over all rows, with its columns over all files."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from show1_ray.errors import UserError, one_line, shown
from show1_ray.manifest.identity import derived_id, digest, given_seed, row_digest
from show1_ray.manifest.table import ROWS_AT_ONCE, Row, Table, UnreadableError
from show1_ray.pipeline.inputs import InputColumns

SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
LONGEST_ID = 128
SHOWN_PROBLEMS = 10
LONGEST_TEXT = 100_000
"""Characters of a prompt; encoders take some hundred words."""


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
        self._given += digest(str(row.id))

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
    """The arrow types of the columns that are not the line's own, over all files."""

    def __init__(self) -> None:
        self.schema = pa.schema([])
        self._seen: list[dict[str, Any]] = []

    def declare(self, table: Table, inputs: InputColumns) -> None:
        """Take the columns that a file tells of itself. Raises UnreadableError."""
        self._unify(table, table.other_columns(inputs))

    def see(self, table: Table, row: Row) -> None:
        """Look at a row of a file that tells nothing of its columns. Raises UnreadableError."""
        if table.format == "jsonl":
            self._seen.append(row.extra)
            if len(self._seen) == ROWS_AT_ONCE:
                self.infer(table)

    def infer(self, table: Table) -> None:
        """Take the types of JSON Lines' columns from the values seen since the last call."""
        rows, self._seen = self._seen, []
        for name in dict.fromkeys(name for row in rows for name in row):
            try:
                kind = pa.array([row.get(name) for row in rows]).type
            except (pa.ArrowException, OverflowError, RecursionError, UnicodeError) as error:
                raise UnreadableError(f"{table.url}: column {name!r} mixes types: {one_line(error)}") from error
            self._unify(table, pa.schema([(name, kind)]))

    def check(self, table: Table, inputs: InputColumns) -> None:
        """Refuse a column that the pipeline's own would take the place of. Raises UnreadableError."""
        for name in self.schema.names:
            if name in inputs.taken:
                raise UnreadableError(
                    f"{table.url}: column {name!r} is one that the metadata has for {inputs.taken[name]}; rename it"
                )

    def _unify(self, table: Table, schema: pa.Schema) -> None:
        try:
            self.schema = pa.unify_schemas([self.schema, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise UnreadableError(f"{table.url}: a column has two types: {one_line(error)}") from error


def problem_of(row: Row, samples: int) -> str | None:
    """What is wrong with a row's own columns, for people; None where all is well."""
    if row.problem:
        return row.problem
    for name, text in (("prompt", row.prompt), ("negative_prompt", row.negative_prompt)):
        if text is None:
            continue
        if not isinstance(text, str):
            return f"{name!r} is {shown(text)}, not text"
        if len(text) > LONGEST_TEXT:
            return f"{name!r} has {len(text):,} characters; {LONGEST_TEXT:,} are the most"
        if not text.isascii() and not _encodable(text):
            return f"{name!r} is not valid Unicode"
    if row.prompt is None or not row.prompt.strip():
        return "'prompt' is empty"
    try:
        given_seed(row.seed)
    except ValueError:
        return f"'seed' is {shown(row.seed)}, not an integer from 0 to 2**63 - 1"
    return None if row.id is None else _id_problem(row.id, samples)


def _id_problem(value: Any, samples: int) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return f"'id' is {shown(value)}, not text or an integer"
    suffix = len(f"-{samples - 1}") if samples > 1 else 0
    if SAFE_ID.fullmatch(str(value)) and len(str(value)) + suffix <= LONGEST_ID:
        return None
    allowed = f"1 to {LONGEST_ID - suffix} of A-Z a-z 0-9 . _ -, no leading dot"
    return f"'id' is {shown(value)}, not a safe file name ({allowed})"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
