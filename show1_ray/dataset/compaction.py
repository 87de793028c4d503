"""At the end: one metadata file of all parts, and one file of the failures that still stand."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from show1_ray.dataset.inventory import LISTINGS, Done, Inventory
from show1_ray.dataset.layout import FAILURES, METADATA, METADATA_FILE, new_part
from show1_ray.dataset.metadata import FAILURES as FAILURE_SCHEMA
from show1_ray.dataset.metadata import SCHEMA, id_digest, to_parquet, to_table
from show1_ray.dataset.parts import BROKEN, Merger, Part, failure_parts, list_parts, read_all
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.errors import UserError


def compact_metadata(storage: Storage, inventory: Inventory, columns: Iterable[pa.Field] = ()) -> None:
    """Write the rows that count into one file, then remove the parts. Streams: memory is flat in the rows.

    Raises StorageError; UserError where a column has changed its type between runs.
    """
    if inventory.paths == [METADATA_FILE] and inventory.backed.all():
        return
    schema = common_schema(storage, inventory.parts, columns)
    sizes = list_parts(storage, METADATA)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / METADATA_FILE
        with pq.ParquetWriter(local, schema, compression="zstd") as writer:
            first = 0
            for batch in read_all(storage, inventory.paths, sizes):
                kept = pa.array(inventory.backed[first : first + len(batch)])
                first += len(batch)
                rows = pa.Table.from_batches([batch]).filter(kept)
                if len(rows):
                    writer.write_table(_aligned(rows, schema))
        storage.upload(METADATA_FILE, local)
    storage.delete_many([path for path in inventory.paths if path != METADATA_FILE])


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
    storage.delete_many(parts)
    return len(standing)


def read_failures(storage: Storage, merger: Merger | None = None) -> list[dict[str, Any]]:
    """All failures that were recorded, oldest first. A part that is not whole counts for nothing.

    `merger` is given what it can make fewer of.
    """

    def load(path: str) -> tuple[bytes, pa.Table] | None:
        try:
            data = storage.read(path)
            return data, pq.read_table(io.BytesIO(data), columns=FAILURE_SCHEMA.names)
        except FileNotFoundError:  # a job has made one of several since they were listed
            raise
        except BROKEN:
            return None

    for attempt in range(LISTINGS):
        failures: list[dict[str, Any]] = []
        parts = failure_parts(storage)
        try:
            for path, found in zip(parts, storage.map(load, parts), strict=True):
                if found is not None:
                    failures += found[1].to_pylist()
                    if merger is not None:
                        merger.pass_by(path, len(found[1]), found[0])
        except FileNotFoundError:
            if attempt == LISTINGS - 1:
                raise StorageError(f"dataset {storage.url}: its failures change faster than they are read") from None
        else:
            break
    if merger is not None:
        merger.passed()
    return [{**row, "failed": row["failed"].isoformat(timespec="milliseconds")} for row in failures]


def common_schema(storage: Storage, parts: Iterable[Part], columns: Iterable[pa.Field] = ()) -> pa.Schema:
    """A schema that all parts fit into, and the manifest's other columns. Raises UserError where there is none."""
    schema = pa.schema([*SCHEMA, *columns])
    for part in parts:
        try:
            schema = pa.unify_schemas([schema, _schema(storage, part)], promote_options="permissive")
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"dataset {storage.url}: a column of the manifest has changed its type: {reason}"
            ) from error
    return schema


def _schema(storage: Storage, part: Part) -> pa.Schema:
    if part.schema is None:
        with storage.local_copy(part.path) as local:
            part.schema = pq.read_schema(local).remove_metadata()
    return part.schema


def _aligned(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
