"""At the end: one metadata file of all parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Set
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from show1_ray.dataset.inventory import Inventory
from show1_ray.dataset.layout import METADATA, METADATA_FILE
from show1_ray.dataset.metadata import SCHEMA
from show1_ray.dataset.parts import Part, list_parts, read_all
from show1_ray.dataset.storage import Storage
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


def common_schema(storage: Storage, parts: Iterable[Part], columns: Iterable[pa.Field] = ()) -> pa.Schema:
    """A schema that all parts fit into, and the manifest's other columns. Raises UserError where there is none."""
    schema = pa.schema([*SCHEMA, *columns])
    fixed = set(schema.names)
    for part in parts:
        try:
            schema = _unified(schema, _schema(storage, part), fixed)
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"dataset {storage.url}: a column of the manifest has changed its type: {reason}"
            ) from error
    return schema


def _unified(whole: pa.Schema, part: pa.Schema, fixed: Set[str]) -> pa.Schema:
    """A schema that both fit into; a stage's value that is a number in one and text in the other is text.

    Raises:
        pa.ArrowException: one of the columns that are `fixed` has changed its type.
    """
    for field in part:
        at = whole.get_field_index(field.name)
        if at < 0 or field.name in fixed:
            continue
        try:
            pa.unify_schemas([pa.schema([whole.field(at)]), pa.schema([field])], promote_options="permissive")
        except pa.ArrowException:
            text = pa.field(field.name, pa.string())
            whole, part = whole.set(at, text), part.set(part.get_field_index(field.name), text)
    return pa.unify_schemas([whole, part], promote_options="permissive")


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
