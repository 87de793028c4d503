"""A table of prompts becomes clips, in one streaming pass that refuses bad input before anything starts."""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

import numpy as np
import pyarrow as pa

from show1_ray.clip import GENERATOR_SEEDS, MAX_SEED, Clip, SeedRule
from show1_ray.errors import UserError, one_line, shown
from show1_ray.manifest.table import ROWS_AT_ONCE, Row, Table, UnreadableError, find_tables
from show1_ray.pipeline.columns import of_input
from show1_ray.pipeline.inputs import NO_INPUTS, Input, InputColumns, InputError, noted

SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
LONGEST_ID = 128
SHOWN_PROBLEMS = 10
LONGEST_TEXT = 100_000
"""Characters of a prompt; encoders take some hundred words."""
MOST_SAMPLES, MOST_CLIPS = 1_000_000, 1_000_000_000
"""More than anybody means to render: a slip of the hand."""
COUNTED_SEEDS = 100_000
"""Clips whose derived seeds are compared one by one: most of a second's work."""


class ManifestError(UserError):
    """What is wrong with a manifest: up to ten lines, each with the file, the row and the column, and how many more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip to render, and the values of the manifest's other columns, which travel into the metadata."""

    clip: Clip
    extra: dict[str, Any]


class Manifest:
    """A validated table of prompts. Iterating streams it from its files again, in flat memory, as often as wanted.

    `count` is the number of clips, `columns` the arrow fields of the columns that are not the line's own,
    `fingerprint` the sha256 of what names and makes its clips, and `has_large_seeds` tells whether it gives a seed from
    2**32 on, for which the rule of `Clip.seed_rule` matters.
    """

    def __init__(
        self,
        tables: list[Table],
        *,
        seed: int = 0,
        samples: int = 1,
        limit: int | None = None,
        inputs: InputColumns = NO_INPUTS,
    ) -> None:
        """Validate the tables; `open_manifest` says what the options do. Raises ManifestError."""
        self._tables = tables
        self._seed = seed
        self._samples = samples
        self._limit = limit
        self._inputs = inputs
        self._rows_wanted = None if limit is None else -(-limit // samples)
        self._repeated: frozenset[bytes] = frozenset()
        self._seed_rule: SeedRule = "mixed"
        self._unseeded_rows = 0
        self.has_large_seeds = False
        self._validate()

    def __iter__(self) -> Iterator[Entry]:
        return islice(self._entries(), self._limit)

    def with_low_seeds(self) -> Self:
        """The same rows with the seeds that they had when no rule but "low" was there; see `derived_seed`."""
        other = copy(self)
        other._seed_rule = "low"
        return other

    @property
    def unseeded(self) -> int:
        """Clips whose rows give no seed."""
        return min(self._unseeded_rows * self._samples, self.count)

    def shared_seeds(self) -> int:
        """How many clips whose rows give no seed get one that another of them has; for more than `COUNTED_SEEDS` such
        clips it is the number that is to be expected.
        """
        if self.unseeded > COUNTED_SEEDS:
            return round(self.unseeded * -math.expm1(-self.unseeded / GENERATOR_SEEDS))
        clips = (
            (_given_seed(row.seed), self._clip(row, sample, occurrence))
            for row, occurrence in self._rows()
            for sample in range(self._samples)
        )
        seeds = [clip.generator_seed for given, clip in islice(clips, self._limit) if given is None]
        return sum(times for times in Counter(seeds).values() if times > 1)

    def _entries(self) -> Iterator[Entry]:
        for row, occurrence in self._rows():
            for sample in range(self._samples):
                yield Entry(self._clip(row, sample, occurrence), {**row.extra, **columns_of(row.inputs)})

    def _rows(self) -> Iterator[tuple[Row, int]]:
        """Each row, and how many before it are the same and have no id either."""
        occurrences: dict[bytes, int] = {}
        rows = ((table, row) for table in self._tables for row in _read_again(table, self._inputs))
        for table, raw in islice(rows, self._rows_wanted):
            row, problem = self._checked(raw)
            if problem:
                raise ManifestError(f"manifest {table.url}: row {raw.number}: {problem} (it was valid a while ago)")
            occurrence = 0
            if row.id is None and self._repeated:
                key = _row_digest(row)
                if key in self._repeated:
                    occurrence = occurrences.get(key, 0)
                    occurrences[key] = occurrence + 1
            yield row, occurrence

    def _checked(self, row: Row) -> tuple[Row, str | None]:
        """A row with its inputs in their types, and what is wrong with it."""
        problem = _problem(row, self._samples)
        if problem or not self._inputs.inputs:
            return row, problem
        try:
            return row._replace(inputs=self._inputs.read(row.inputs)), None
        except InputError as error:
            return row, str(error)

    def _clip(self, row: Row, sample: int, occurrence: int) -> Clip:
        if row.id is None:
            clip_id = derived_id(_row_digest(row), sample, occurrence)
        else:
            clip_id = f"{row.id}-{sample}" if self._samples > 1 else str(row.id)
        given, rule = _given_seed(row.seed), self._seed_rule
        seed = derived_seed(clip_id, self._seed, rule) if given is None else (given + sample) & MAX_SEED
        return Clip(clip_id, row.prompt, row.negative_prompt, seed, rule, row.inputs)

    def _validate(self) -> None:
        problems, ids, columns = _Problems(), _Ids(), _OtherColumns()
        content = hashlib.sha256(_json(self._seed, self._samples))
        for table in self._tables:
            wanted = None if self._rows_wanted is None else self._rows_wanted - ids.count
            if wanted == 0:
                break
            try:
                columns.declare(table, self._inputs)
                for raw in islice(table.rows(extra=table.format == "jsonl", inputs=self._inputs), wanted):
                    row, problem = self._checked(raw)
                    if problem:
                        problems.add(f"{table.url}: row {raw.number}: {problem}")
                        continue
                    ids.add(table, row)
                    columns.see(table, row)
                    seed = _given_seed(row.seed)
                    if seed is None:
                        self._unseeded_rows += 1
                    elif seed + self._samples > GENERATOR_SEEDS:
                        self.has_large_seeds = True
                    content.update(_json(row.id, *_content(row)))
                columns.infer(table)
                columns.check(table, self._inputs)
            except UnreadableError as error:
                problems.add(str(error))
        ids.check(problems, self._samples)
        problems.raise_if_any()
        if not ids.count:
            raise ManifestError(f"manifest {self._tables[0].url}: holds no rows")
        self._repeated = ids.repeated()
        self.columns: list[pa.Field] = [*columns.schema, *map(_field, self._inputs.inputs)]
        self.count = min(ids.count * self._samples, self._limit or ids.count * self._samples)
        self.fingerprint = content.hexdigest()
        if self.count > MOST_CLIPS:
            raise ManifestError(
                f"manifest {self._tables[0].url}: {self.count:,} clips with --samples {self._samples}; "
                f"{MOST_CLIPS:,} are the most: give --limit, or fewer --samples"
            )


def open_manifest(
    url: str,
    *,
    seed: int = 0,
    samples: int = 1,
    limit: int | None = None,
    inputs: InputColumns = NO_INPUTS,
) -> Manifest:
    """Validate the manifest at `url` (a file, a folder or a glob, on any fsspec filesystem) in one streaming pass.

    Parquet, CSV and JSON Lines, the last two also compressed. `prompt` is required; `id`, `seed` and
    `negative_prompt` are optional, column by column and row by row: a null, and an empty field of a CSV file,
    mean "not given".

    - `samples` > 1 renders each row so often: a given id becomes `<id>-0`, `<id>-1`, …, and a given seed
      `seed`, `seed + 1`, … (modulo 2**63). Seeds from 2**32 on are mixed into the 32 bits that generators take
      (`Clip.generator_seed`).
    - A missing id is derived from prompt, negative prompt, given seed and sample, identical rows being
      numbered by occurrence (`derived_id`); a missing seed from the id and `seed` (`derived_seed`).
    - `limit` takes the first so many clips, and reads no further.
    - `inputs` are columns that are a part of each clip (`Pipeline.input_columns`): typed, with defaults, in
      `Clip.inputs` and among the columns; a missing id is derived from them, too (of bytes, from their content).

    Raises ManifestError.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise ManifestError(f"--samples is {shown(samples)}, not an integer from 1 to {MOST_SAMPLES:,}")
    if limit is not None and not 1 <= limit <= MOST_CLIPS:
        raise ManifestError(f"--limit is {shown(limit)}, not an integer from 1 to {MOST_CLIPS:,}")
    if not 0 <= seed <= MAX_SEED:
        raise ManifestError(f"--seed is {shown(seed)}, not an integer from 0 to 2**63 - 1")
    try:
        tables = find_tables(url)
    except UnreadableError as error:
        raise ManifestError(f"manifest {error}") from error
    return Manifest(tables, seed=seed, samples=samples, limit=limit, inputs=inputs)


def derived_id(row_digest: bytes, sample: int, occurrence: int) -> str:
    """The id of a row that has none: 32 hex digits.

    They are the beginning of sha256(JSON [digest, sample, occurrence]), where the digest is the first 32 hex
    digits of sha256(JSON [prompt, negative prompt, seed]), with null for what is not given; where the row has inputs,
    these follow as an object, sorted by name, with "sha256:…" in place of bytes.
    """
    return _digest(row_digest.hex(), sample, occurrence).hex()


def derived_seed(clip_id: str, seed: int, rule: SeedRule = "mixed") -> int:
    """The seed of a row that has none, a function of its id and `seed` alone: 32 bits of sha256("<seed>:<id>").

    By the rule "low" it is the first 63 bits, of which generators take the low 32: those that "mixed" gives. So the
    same row is the same clip by both rules, and only what is written down as its seed differs.
    """
    bits = int.from_bytes(hashlib.sha256(f"{seed}:{clip_id}".encode()).digest()[:8], "big") >> 1
    return bits if rule == "low" else bits % GENERATOR_SEEDS


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

    def declare(self, table: Table, inputs: InputColumns) -> None:
        self._unify(table, table.other_columns(inputs))

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


def _read_again(table: Table, inputs: InputColumns) -> Iterator[Row]:
    try:
        yield from table.rows(extra=True, inputs=inputs)
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
        if len(text) > LONGEST_TEXT:
            return f"{name!r} has {len(text):,} characters; {LONGEST_TEXT:,} are the most"
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
    return _digest(*_content(row))


def _content(row: Row) -> list[Any]:
    """What makes a row's clip."""
    inputs = [dict(sorted(noted(row.inputs).items()))] if row.inputs else []
    return [row.prompt, row.negative_prompt, _given_seed(row.seed), *inputs]


def columns_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a row as the metadata's columns have them; see `inputs.noted`."""
    return {of_input(name): value for name, value in noted(inputs).items()}


def _field(one: Input) -> pa.Field:
    """An input's column of the metadata."""
    return pa.field(of_input(one.name), {"int": pa.int64(), "float": pa.float64()}.get(one.kind, pa.string()))


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
