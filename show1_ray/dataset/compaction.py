"""At the end: one metadata file of all parts, and one file of the failures that still stand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from show1_ray.dataset.inventory import BROKEN, Done, Inventory, failure_parts, read_part
from show1_ray.dataset.layout import FAILURES, METADATA_FILE, new_part
from show1_ray.dataset.metadata import FAILURES as FAILURE_SCHEMA
from show1_ray.dataset.metadata import SCHEMA, id_digest, to_parquet, to_table
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError


def compact_metadata(storage: Storage, inventory: Inventory) -> None:
    """Write the rows that count into one file, then remove the parts. Streams: memory is flat in the rows.

    Raises StorageError; UserError where a column has changed its type between runs.
    """
    if inventory.parts == [METADATA_FILE] and inventory.backed.all():
        return
    schema = common_schema(storage, inventory.parts)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / METADATA_FILE
        with pq.ParquetWriter(local, schema, compression="zstd") as writer:
            first = 0
            for path in inventory.parts:
                for batch in read_part(storage, path):
                    kept = pa.array(inventory.backed[first : first + len(batch)])
                    first += len(batch)
                    rows = pa.Table.from_batches([batch]).filter(kept)
                    if len(rows):
                        writer.write_table(_aligned(rows, schema))
        storage.upload(METADATA_FILE, local)
    for path in inventory.parts:
        if path != METADATA_FILE:
            storage.delete(path)


def compact_failures(storage: Storage, done: Done) -> int:
    """Keep the last failure of each clip that is not there after all; how many these are."""
    parts = failure_parts(storage)
    last = {failure["id"]: failure for failure in read_failures(storage)}
    is_done = done.find([id_digest(clip_id) for clip_id in last]) >= 0
    standing = [failure for failure, there in zip(last.values(), is_done.tolist(), strict=True) if not there]
    if len(parts) == 1 and len(standing) == len(last):
        return len(standing)
    if standing:
        table = to_table(standing, FAILURE_SCHEMA).select(FAILURE_SCHEMA.names)
        storage.write(new_part(FAILURES), to_parquet(table))
    for path in parts:
        storage.delete(path)
    return len(standing)


def read_failures(storage: Storage) -> list[dict[str, Any]]:
    """All failures that were recorded, oldest first. A part that is not whole counts for nothing."""
    failures: list[dict[str, Any]] = []
    for path in failure_parts(storage):
        try:
            rows = [row for batch in read_part(storage, path, FAILURE_SCHEMA.names) for row in batch.to_pylist()]
        except BROKEN:
            continue
        failures += [{**row, "failed": row["failed"].isoformat(timespec="milliseconds")} for row in rows]
    return failures


def common_schema(storage: Storage, parts: Iterable[str], columns: Iterable[pa.Field] = ()) -> pa.Schema:
    """A schema that all parts fit into, and the manifest's other columns. Raises UserError where there is none."""
    schema = pa.schema([*SCHEMA, *columns])
    for path in parts:
        with storage.local_copy(path) as local:
            part = pq.read_schema(local).remove_metadata()
        try:
            schema = pa.unify_schemas([schema, part], promote_options="permissive")
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"dataset {storage.url}: a column of the manifest has changed its type: {reason}"
            ) from error
    return schema


def _aligned(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
