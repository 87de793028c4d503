"""A table of prompts becomes clips, in one streaming pass that refuses bad input before anything starts."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from show1_ray.clip import MAX_SEED, Clip
from show1_ray.errors import UserError, shown
from show1_ray.manifest.table import ROWS_AT_ONCE, Row, Table, UnreadableError, find_tables, one_line

SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
LONGEST_ID = 128
SHOWN_PROBLEMS = 10


class ManifestError(UserError):
    """What is wrong with a manifest: up to ten lines, each with the file, the row and the column, and how many more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip to render, and the values of the manifest's other columns, which travel into the metadata."""

    clip: Clip
    extra: dict[str, Any]


class Manifest:
    """A validated table of prompts. Iterating streams it from its files again, in flat memory, as often as wanted.

    `count` is the number of clips, `columns` the arrow fields of the columns that are not the line's own, and
    `fingerprint` the sha256 of what names and makes its clips.
    """

    def __init__(self, tables: list[Table], *, seed: int = 0, samples: int = 1, limit: int | None = None) -> None:
        """Validate the tables; `open_manifest` says what the options do. Raises ManifestError."""
        self._tables = tables
        self._seed = seed
        self._samples = samples
        self._limit = limit
        self._rows_wanted = None if limit is None else -(-limit // samples)
        self._repeated: frozenset[bytes] = frozenset()
        self._validate()

    def __iter__(self) -> Iterator[Entry]:
        return islice(self._entries(), self._limit)

    def _entries(self) -> Iterator[Entry]:
        occurrences: dict[bytes, int] = {}
        rows = ((table, row) for table in self._tables for row in _read_again(table))
        for table, row in islice(rows, self._rows_wanted):
            problem = _problem(row, self._samples)
            if problem:
                raise ManifestError(f"manifest {table.url}: row {row.number}: {problem} (it was valid a while ago)")
            occurrence = 0
            if row.id is None and self._repeated:
                key = _row_digest(row)
                if key in self._repeated:
                    occurrence = occurrences.get(key, 0)
                    occurrences[key] = occurrence + 1
            for sample in range(self._samples):
                yield Entry(self._clip(row, sample, occurrence), row.extra)

    def _clip(self, row: Row, sample: int, occurrence: int) -> Clip:
        if row.id is None:
            clip_id = derived_id(_row_digest(row), sample, occurrence)
        else:
            clip_id = f"{row.id}-{sample}" if self._samples > 1 else str(row.id)
        seed = _given_seed(row.seed)
        seed = derived_seed(clip_id, self._seed) if seed is None else (seed + sample) & MAX_SEED
        return Clip(clip_id, row.prompt, row.negative_prompt, seed)

    def _validate(self) -> None:
        problems, ids, columns = _Problems(), _Ids(), _OtherColumns()
        content = hashlib.sha256(_json(self._seed, self._samples))
        for table in self._tables:
            wanted = None if self._rows_wanted is None else self._rows_wanted - ids.count
            if wanted == 0:
                break
            try:
                columns.declare(table)
                for row in islice(table.rows(extra=table.format == "jsonl"), wanted):
                    problem = _problem(row, self._samples)
                    if problem:
                        problems.add(f"{table.url}: row {row.number}: {problem}")
                        continue
                    ids.add(table, row)
                    columns.see(table, row)
                    content.update(_json(row.id, row.prompt, row.negative_prompt, _given_seed(row.seed)))
                columns.infer(table)
            except UnreadableError as error:
                problems.add(str(error))
        ids.check(problems, self._samples)
        problems.raise_if_any()
        if not ids.count:
            raise ManifestError(f"manifest {self._tables[0].url}: holds no rows")
        self._repeated = ids.repeated()
        self.columns: list[pa.Field] = list(columns.schema)
        self.count = min(ids.count * self._samples, self._limit or ids.count * self._samples)
        self.fingerprint = content.hexdigest()


def open_manifest(url: str, *, seed: int = 0, samples: int = 1, limit: int | None = None) -> Manifest:
    """Validate the manifest at `url` (a file, a folder or a glob, on any fsspec filesystem) in one streaming pass.

    Parquet, CSV and JSON Lines, the last two also compressed. `prompt` is required; `id`, `seed` and
    `negative_prompt` are optional, column by column and row by row: a null, and an empty field of a CSV file,
    mean "not given".

    - `samples` > 1 renders each row so often: a given id becomes `<id>-0`, `<id>-1`, …, and a given seed
      `seed`, `seed + 1`, … (modulo 2**63).
    - A missing id is derived from prompt, negative prompt, given seed and sample, identical rows being
      numbered by occurrence (`derived_id`); a missing seed from the id and `seed` (`derived_seed`).
    - `limit` takes the first so many clips, and reads no further.

    Raises ManifestError.
    """
    if samples < 1:
        raise ManifestError(f"--samples is {samples}, not an integer from 1")
    if limit is not None and limit < 1:
        raise ManifestError(f"--limit is {limit}, not an integer from 1")
    if not 0 <= seed <= MAX_SEED:
        raise ManifestError(f"--seed is {seed}, not an integer from 0 to 2**63 - 1")
    try:
        tables = find_tables(url)
    except UnreadableError as error:
        raise ManifestError(f"manifest {error}") from error
    return Manifest(tables, seed=seed, samples=samples, limit=limit)


def derived_id(row_digest: bytes, sample: int, occurrence: int) -> str:
    """The id of a row that has none: 32 hex digits.

    They are the beginning of sha256(JSON [digest, sample, occurrence]), where the digest is the first 32 hex
    digits of sha256(JSON [prompt, negative prompt, seed]), with null for what is not given.
    """
    return _digest(row_digest.hex(), sample, occurrence).hex()


def derived_seed(clip_id: str, seed: int) -> int:
    """The seed of a row that has none: the first 63 bits of sha256("<seed>:<id>")."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{clip_id}".encode()).digest()[:8], "big") >> 1


@dataclass
class _Problems:
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, line: str) -> None:
        self.count += 1
        if self.count <= SHOWN_PROBLEMS:
            self.shown.append(f"manifest {line}")

    def raise_if_any(self) -> None:
        more = self.count - len(self.shown)
        if self.count:
            raise ManifestError("\n".join([*self.shown, *([f"… and {more:,} more"] if more else [])]))


class _Ids:
    """Finds repeated ids in flat memory: 16 bytes of hash for each row, sorted once at the end."""

    def __init__(self) -> None:
        self._given = bytearray()  # digests of ids
        self._derived = bytearray()  # digests of rows without one
        # Where rows stand: a stretch starts where row numbers cease to run along with places in `_given`.
        self._starts: list[int] = []
        self._stretches: list[tuple[Table, int]] = []

    @property
    def count(self) -> int:
        return (len(self._given) + len(self._derived)) // 16

    def add(self, table: Table, row: Row) -> None:
        if row.id is None:
            self._derived += _row_digest(row)
            return
        place = len(self._given) // 16
        if not self._starts or self._row_at(place) != (table, row.number):
            self._starts.append(place)
            self._stretches.append((table, row.number))
        self._given += _digest(str(row.id))

    def check(self, problems: _Problems, samples: int) -> None:
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
        for digest in np.sort(np.frombuffer(self._derived, "S16")):
            key = bytes(digest).ljust(16, b"\0")
            occurrence = occurrence + 1 if key == before else 0
            before = key
            digests += _digest(derived_id(key, 0, occurrence))
        return np.frombuffer(digests, "S16")

    def _row_at(self, place: int) -> tuple[Table, int]:
        stretch = bisect_right(self._starts, place) - 1
        table, number = self._stretches[stretch]
        return table, number + place - self._starts[stretch]


class _OtherColumns:
    """The arrow types of the columns that are not the line's own, over all files."""

    def __init__(self) -> None:
        self.schema = pa.schema([])
        self._seen: list[dict[str, Any]] = []

    def declare(self, table: Table) -> None:
        self._unify(table, table.other_columns())

    def see(self, table: Table, row: Row) -> None:
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
            except (pa.ArrowException, OverflowError) as error:
                raise UnreadableError(f"{table.url}: column {name!r} mixes types: {one_line(error)}") from error
            self._unify(table, pa.schema([(name, kind)]))

    def _unify(self, table: Table, schema: pa.Schema) -> None:
        try:
            self.schema = pa.unify_schemas([self.schema, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise UnreadableError(f"{table.url}: a column has two types: {one_line(error)}") from error


def _read_again(table: Table) -> Iterator[Row]:
    try:
        yield from table.rows(extra=True)
    except UnreadableError as error:
        raise ManifestError(f"manifest {error}") from error


def _problem(row: Row, samples: int) -> str | None:
    """What is wrong with a row's own columns, for people; None where all is well."""
    if row.problem:
        return row.problem
    for name, text in (("prompt", row.prompt), ("negative_prompt", row.negative_prompt)):
        if text is None:
            continue
        if not isinstance(text, str):
            return f"{name!r} is {shown(text)}, not text"
        if not text.isascii() and not _encodable(text):
            return f"{name!r} is not valid Unicode"
    if row.prompt is None or not row.prompt.strip():
        return "'prompt' is empty"
    try:
        _given_seed(row.seed)
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


def _given_seed(value: Any) -> int | None:
    """The seed as an integer, None where it is not given (null, or the NaN that pandas makes of null).

    Whole floats below 2**53 count as integers (pandas turns integer columns with gaps into floats), and so do
    the digits of a string (CSV). Raises ValueError.
    """
    if value is None or value != value:
        return None
    is_digits = isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value.strip())
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    if is_digits or is_whole:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise ValueError(value)
    return value


def _row_digest(row: Row) -> bytes:
    return _digest(row.prompt, row.negative_prompt, _given_seed(row.seed))


def _digest(*values: Any) -> bytes:
    return hashlib.sha256(_json(*values)).digest()[:16]


def _json(*values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
