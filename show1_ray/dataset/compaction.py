"""At the end: one metadata file of all parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from show1_ray.dataset.inventory import Inventory
from show1_ray.dataset.layout import METADATA, METADATA_FILE
from show1_ray.dataset.metadata import SCHEMA
from show1_ray.dataset.parts import Part, list_parts, read_all
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.values import is_simple
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
    """A schema that all parts fit into, and the manifest's other columns. Numbers, true and false become text beside
    text: of a column of CSV, rows that are added may hold it. Raises UserError where there is none.
    """
    schema = pa.schema([*SCHEMA, *columns])
    for part in parts:
        try:
            schema = pa.unify_schemas(
                _with_text(schema, _schema(storage, part)),
                promote_options="permissive",
            )
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


def _with_text(first: pa.Schema, second: pa.Schema) -> list[pa.Schema]:
    """Two schemas, in which a column that is text in one of them is text in both, where it has values that it can."""
    both = [first, second]
    for name in set(first.names) & set(second.names) - set(SCHEMA.names):
        kinds = [schema.field(name).type for schema in both]
        texts = [kind for kind in kinds if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
        if {pa.types.is_boolean(kind) for kind in kinds} == {True, False} and not texts and all(map(is_simple, kinds)):
            texts = [pa.string()]  # a stage's value that is true for one clip, and a number for another
        if len(texts) == 1 and any(is_simple(kind) for kind in kinds):
            both = [schema.set(schema.get_field_index(name), pa.field(name, texts[0])) for schema in both]
    return both


def _as(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column in another type; floats as text as Python and CSV write them."""
    if pa.types.is_floating(values.type) and not pa.types.is_floating(kind) and kind != values.type:
        texts = [None if value is None else repr(value) for value in values.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())]).cast(kind)
    return values.cast(kind)


def _aligned(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        _as(rows[field.name], field.type) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
