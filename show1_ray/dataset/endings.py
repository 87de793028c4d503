"""Clips that do not end in the dataset: failures and rejections. Parts of rows, each kind in its folder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from show1_ray.dataset.inventory import LISTINGS, Done
from show1_ray.dataset.layout import FAILURES, REJECTIONS, new_part
from show1_ray.dataset.metadata import FAILURE_SCHEMA, REJECTION_SCHEMA, id_digest, to_parquet, to_table
from show1_ray.dataset.parts import BROKEN, Merger, list_parts
from show1_ray.dataset.storage import Storage, StorageError

MAY_LACK = ("negative_prompt", "values", "inputs")


@dataclass(frozen=True, eq=False)
class Ending:
    """A kind of ending: the folder of its parts, their columns, and the column with the time."""

    folder: str
    schema: pa.Schema
    when: str

    def table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Rows as a part holds them."""
        return to_table(rows, self.schema).select(self.schema.names)

    def checked(self, table: pa.Table) -> pa.Table:
        """A part's table. Raises one of BROKEN if it is damaged or something else."""
        if "inputs" not in table.column_names:  # it was written before there were any
            table = table.append_column("inputs", pa.nulls(len(table), pa.string()))
        table = table.select(self.schema.names).cast(self.schema)
        table.validate(full=True)
        lacking = [name for name in self.schema.names if name not in MAY_LACK and table[name].null_count]
        if lacking:
            raise KeyError(f"a row without {lacking[0]}")
        return table


FAILED = Ending(FAILURES, FAILURE_SCHEMA, "failed")
"""Clips that could not be rendered."""
REJECTED = Ending(REJECTIONS, REJECTION_SCHEMA, "rejected")
"""Clips that a stage rejected."""


def compact_endings(storage: Storage, ending: Ending, done: Done) -> int:
    """Keeps the last row of each clip that is not in the dataset after all; returns how many."""
    parts = list(list_parts(storage, ending.folder))
    last = {row["id"]: row for row in read_endings(storage, ending)}
    is_done = done.find([id_digest(clip_id) for clip_id in last]) >= 0
    standing = [row for row, there in zip(last.values(), is_done.tolist(), strict=True) if not there]
    if len(parts) == 1 and len(standing) == len(last):
        return len(standing)
    if standing:
        storage.write(new_part(ending.folder), to_parquet(ending.table(standing)))
    storage.delete_many(parts)
    return len(standing)


def read_endings(storage: Storage, ending: Ending, merger: Merger | None = None) -> list[dict[str, Any]]:
    """All recorded rows of a kind, oldest first. Damaged parts are ignored.

    `merger` is given what it can make fewer of.
    """

    def load(path: str) -> tuple[bytes, pa.Table] | None:
        try:
            data = storage.read(path)
            return data, ending.checked(pq.ParquetFile(io.BytesIO(data)).read(ending.schema.names))
        except FileNotFoundError:  # a job has made one of several since they were listed
            raise
        except BROKEN:
            return None

    for attempt in range(LISTINGS):
        rows: list[dict[str, Any]] = []
        parts = list(list_parts(storage, ending.folder))
        try:
            for path, found in zip(parts, storage.map(load, parts), strict=True):
                if found is not None:
                    rows += found[1].to_pylist()
                    if merger is not None:
                        merger.pass_by(path, len(found[1]), found[0])
        except FileNotFoundError:
            if attempt == LISTINGS - 1:
                what = f"its {ending.folder} change faster than they are read"
                raise StorageError(f"dataset {storage.url}: {what}") from None
        else:
            break
    if merger is not None:
        merger.passed()
    return [{**row, ending.when: row[ending.when].isoformat(timespec="milliseconds")} for row in rows]
