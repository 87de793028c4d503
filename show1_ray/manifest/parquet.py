"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from show1_ray.manifest.naming import COLUMNS, Naming
from show1_ray.manifest.rows import NOTHING, Row
from show1_ray.manifest.types import plain_id, values_of

ROWS_AT_ONCE = 4096
FILES_AT_ONCE = 64
"""Rows, where each may hold an image or a video."""
WIDE = (
    "a column has integers of more than 64 bits, with which no column of the file can be read: write it as text or as "
    "one of 64 bits, in polars with .cast(pl.UInt64) or .cast(pl.String)"
)


def declared(url: str) -> pa.Schema:
    """The columns of a file and their types. Raises what pyarrow raises; ValueError for integers of 128 bits."""
    with fsspec.open(url, "rb") as file:
        try:
            return pq.read_schema(file)
        except pa.ArrowNotImplementedError as error:
            if "more than 64 bits" in str(error):
                raise ValueError(WIDE) from error
            raise


def rows(url: str, naming: Naming, extra: bool, constants: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a file in order; `constants` are columns that its path gives it."""
    # Buffered column streams: a row group is read bit by bit, however large it is.
    with fsspec.open(url, "rb") as file, pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
        there = table.schema_arrow.names
        own = [name for name in there if naming.is_read(name)]
        others = {name: naming.carried(name) for name in there if not naming.is_read(name)}
        kept = {old: new for old, new in others.items() if new is not None and extra}
        added = {name: value for name, value in constants.items() if name not in there}
        more = naming.carried_of(added) if extra else {}
        at_once = FILES_AT_ONCE if naming.inputs.has_files else ROWS_AT_ONCE
        number = 0
        for batch in all_rows(table, at_once, [*own, *kept]):
            count = len(batch)
            values = {name: values_of(batch[name]) for name in own}
            values |= {name: [value] * count for name, value in added.items() if naming.is_read(name)}
            nothing = [None] * count
            read = [values.get(naming.sources.get(name, ""), nothing) for name in COLUMNS]
            inputs = {name: values[source] for name, source in naming.sources.items() if source in values}
            brought = _transposed({name: inputs[name] for name in naming.inputs.names if name in inputs}, count)
            rest = _transposed({new: values_of(batch[old]) for old, new in kept.items()}, count)
            for prompt, negative_prompt, clip_id, seed, mine, one in zip(*read, brought, rest, strict=True):
                number += 1
                yield Row(
                    number,
                    prompt,
                    negative_prompt,
                    plain_id(clip_id),
                    seed,
                    {**one, **more} if extra else {},
                    inputs=mine,
                )


def all_rows(
    table: pq.ParquetFile, at_once: int, columns: list[str] | None = None, threads: bool = True
) -> Iterator[pa.RecordBatch]:
    """All rows of a Parquet file, in batches.

    Raises ArrowInvalid where the columns have more or fewer than the file says: a damaged page makes pyarrow give fewer
    without a word.
    """
    left = table.metadata.num_rows
    for batch in table.iter_batches(at_once, columns=columns, use_threads=threads):
        left -= len(batch)
        if left < 0:
            break
        yield batch
    if left:
        raise pa.ArrowInvalid(f"its columns do not have the {table.metadata.num_rows} rows that it tells of")


def _transposed(columns: Mapping[Any, list[Any]], count: int) -> list[Any]:
    """Columns as a mapping for each row."""
    if not columns:
        return [NOTHING] * count
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
