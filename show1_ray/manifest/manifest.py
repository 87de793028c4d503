"""A table of prompts becomes clips, in one streaming pass that refuses bad input before anything starts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import pyarrow as pa

from show1_ray.clip import GENERATOR_SEEDS, MAX_SEED, Clip, SeedRule
from show1_ray.errors import keep_secrets_of, shown
from show1_ray.manifest.checks import Ids, ManifestError, OtherColumns, Problems, problem_of
from show1_ray.manifest.identity import as_json, content_of, derived_id, derived_seed, given_seed, row_digest
from show1_ray.manifest.naming import AS_THEY_ARE, COLUMNS, Columns, Naming
from show1_ray.manifest.places import Found, find_tables
from show1_ray.manifest.rows import Row
from show1_ray.manifest.table import Table, UnreadableError
from show1_ray.manifest.types import Make
from show1_ray.pipeline.columns import of_input
from show1_ray.pipeline.inputs import NO_INPUTS, Input, InputColumns, InputError, noted

MOST_SAMPLES, MOST_CLIPS = 1_000_000, 1_000_000_000
"""More than anybody means to render: a slip of the hand."""
COUNTED_SEEDS = 100_000
"""Clips whose derived seeds are compared one by one: most of a second's work."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip to render, and the values of the manifest's other columns, which travel into the metadata."""

    clip: Clip
    extra: dict[str, Any]


class Manifest:
    """A validated table of prompts. Iterating streams it from its files again, in flat memory, as often as wanted.

    `count` is the number of clips, `columns` the arrow fields of the columns that are not the line's own,
    `fingerprint` the sha256 of what names and makes its clips, `has_large_seeds` tells whether it gives a seed from
    2**32 on, for which the rule of `Clip.seed_rule` matters, and `notes` say what is left out or called otherwise.
    """

    def __init__(
        self,
        found: Found,
        *,
        seed: int = 0,
        samples: int = 1,
        limit: int | None = None,
        inputs: InputColumns = NO_INPUTS,
        columns: Columns = AS_THEY_ARE,
    ) -> None:
        """Validate the tables; `open_manifest` says what the options do. Raises ManifestError."""
        self._tables = found.tables
        self.notes = list(found.notes)
        self._naming = Naming(columns, inputs)
        self._names = {name: columns.names.get(name, name) for name in COLUMNS}
        self._makes: dict[str, Make | None] = {}
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
            (given_seed(row.seed), self._clip(row, sample, occurrence))
            for row, occurrence in self._rows()
            for sample in range(self._samples)
        )
        seeds = [clip.generator_seed for given, clip in islice(clips, self._limit) if given is None]
        return sum(times for times in Counter(seeds).values() if times > 1)

    def prompts(self) -> Iterator[tuple[str, int, str]]:
        """The prompt of each row, with its file and its number there. Raises ManifestError."""
        rows = ((table.url, row) for table in self._tables for row in self._read_again(table, extra=False))
        return ((url, row.number, str(row.prompt)) for url, row in islice(rows, self._rows_wanted))

    def _entries(self) -> Iterator[Entry]:
        for row, occurrence in self._rows():
            for sample in range(self._samples):
                yield Entry(self._clip(row, sample, occurrence), {**row.extra, **columns_of(row.inputs)})

    def _rows(self) -> Iterator[tuple[Row, int]]:
        """Each row, and how many before it are the same and have no id either."""
        occurrences: dict[bytes, int] = {}
        rows = ((table, row) for table in self._tables for row in self._read_again(table))
        for table, raw in islice(rows, self._rows_wanted):
            row, problem = self._checked(raw)
            if problem:
                raise ManifestError(f"manifest {table.url}: row {raw.number}: {problem} (it was valid a while ago)")
            occurrence = 0
            if row.id is None and self._repeated:
                key = row_digest(row)
                if key in self._repeated:
                    occurrence = occurrences.get(key, 0)
                    occurrences[key] = occurrence + 1
            yield row, occurrence

    def _checked(self, row: Row) -> tuple[Row, str | None]:
        """A row with its inputs in their types, and what is wrong with it."""
        problem = problem_of(row, self._samples, self._names)
        if problem or not self._inputs.inputs:
            return row, problem
        try:
            return row._replace(inputs=self._inputs.read(row.inputs)), None
        except InputError as error:
            return row, str(error)

    def _clip(self, row: Row, sample: int, occurrence: int) -> Clip:
        if row.id is None:
            clip_id = derived_id(row_digest(row), sample, occurrence)
        else:
            clip_id = f"{row.id}-{sample}" if self._samples > 1 else row.id
        given, rule = given_seed(row.seed), self._seed_rule
        seed = derived_seed(clip_id, self._seed, rule) if given is None else (given + sample) & MAX_SEED
        return Clip(clip_id, row.prompt, row.negative_prompt, seed, rule, row.inputs)

    def _validate(self) -> None:
        problems, ids, columns = Problems(), Ids(), OtherColumns()
        content = hashlib.sha256(as_json(self._seed, self._samples))
        for table in self._tables:
            wanted = None if self._rows_wanted is None else self._rows_wanted - ids.count
            if wanted == 0:
                break
            try:
                columns.declare(table, self._naming)
                looks = table.is_text or not table.tells_columns
                for raw in islice(table.rows(self._naming, extra=looks), wanted):
                    row, problem = self._checked(raw)
                    if problem:
                        problems.add(f"{table.url}: row {raw.number}: {problem}")
                        continue
                    ids.add(table, row)
                    columns.see(table, row)
                    seed = given_seed(row.seed)
                    if seed is None:
                        self._unseeded_rows += 1
                    elif seed + self._samples > GENERATOR_SEEDS:
                        self.has_large_seeds = True
                    content.update(as_json(row.id, *content_of(row)))
                columns.infer(table)
            except UnreadableError as error:
                problems.add(str(error))
        ids.check(problems, self._samples)
        problems.raise_if_any()
        self._take_columns(columns)
        if not ids.count:
            raise ManifestError(f"manifest {self._tables[0].url}: holds no rows")
        self._repeated = ids.repeated()
        self.count = min(ids.count * self._samples, self._limit or ids.count * self._samples)
        self.fingerprint = content.hexdigest()
        if self.count > MOST_CLIPS:
            raise ManifestError(
                f"manifest {self._tables[0].url}: {self.count:,} clips with --samples {self._samples}; "
                f"{MOST_CLIPS:,} are the most: give --limit, or fewer --samples"
            )

    def _take_columns(self, columns: OtherColumns) -> None:
        """What the files have besides what the line reads. Raises ManifestError."""
        where = f"manifest {self._tables[0].url}" if len(self._tables) == 1 else "manifest"
        problem = self._naming.problem()
        if problem:
            raise ManifestError(f"{where}: {problem}")
        try:
            self.columns: list[pa.Field] = [*columns.schema(), *map(_field, self._inputs.inputs)]
        except UnreadableError as error:
            raise ManifestError(f"{where}: {error}") from error
        self._makes = columns.makes()
        self.notes += [*self._naming.notes(), *columns.notes()]

    def _read_again(self, table: Table, extra: bool = True) -> Iterator[Row]:
        try:
            yield from table.rows(self._naming, extra=extra, makes=self._makes)
        except UnreadableError as error:
            raise ManifestError(f"manifest {error}") from error


def open_manifest(
    url: str,
    *,
    seed: int = 0,
    samples: int = 1,
    limit: int | None = None,
    inputs: InputColumns = NO_INPUTS,
    columns: Columns = AS_THEY_ARE,
) -> Manifest:
    """Validate the manifest at `url` (a file, a folder or a glob, on any fsspec filesystem) in one streaming pass.

    Parquet, CSV, TSV, JSON (lines or an array) and text of a prompt a line; all but Parquet also compressed. Folders
    like lang=en give columns. `prompt` is required; `id`, `seed` and `negative_prompt` are optional, column by column
    and row by row: a null, and an empty field of a CSV file, mean "not given". Values mean the same in all formats:
    a whole float is an integer, a column of CSV is of numbers or true and false where all of it is.

    - `samples` > 1 renders each row so often: a given id becomes `<id>-0`, `<id>-1`, …, and a given seed
      `seed`, `seed + 1`, … (modulo 2**63). Seeds from 2**32 on are mixed into the 32 bits that generators take
      (`Clip.generator_seed`).
    - A missing id is derived from prompt, negative prompt, given seed and sample, identical rows being
      numbered by occurrence (`derived_id`); a missing seed from the id and `seed` (`derived_seed`).
    - `limit` takes the first so many clips, and reads no further.
    - `inputs` are columns that are a part of each clip (`Pipeline.input_columns`): typed, with defaults, in
      `Clip.inputs` and among the columns; a missing id is derived from them, too (of bytes, from their content).
    - `columns` says what columns are called in the files, and which are left out. Other columns are carried into the
      metadata, as `manifest_<name>` where it has a column of that name itself.

    Raises ManifestError.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise ManifestError(f"--samples is {shown(samples)}, not an integer from 1 to {MOST_SAMPLES:,}")
    if limit is not None and not 1 <= limit <= MOST_CLIPS:
        raise ManifestError(f"--limit is {shown(limit)}, not an integer from 1 to {MOST_CLIPS:,}")
    if not 0 <= seed <= MAX_SEED:
        raise ManifestError(f"--seed is {shown(seed)}, not an integer from 0 to 2**63 - 1")
    keep_secrets_of(url)
    try:
        found = find_tables(url)
    except UnreadableError as error:
        raise ManifestError(f"manifest {error}") from error
    return Manifest(found, seed=seed, samples=samples, limit=limit, inputs=inputs, columns=columns)


def columns_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a row as the metadata's columns have them; see `inputs.noted`."""
    return {of_input(name): value for name, value in noted(inputs).items()}


def _field(one: Input) -> pa.Field:
    """An input's column of the metadata."""
    return pa.field(of_input(one.name), {"int": pa.int64(), "float": pa.float64()}.get(one.kind, pa.string()))
