"""What a dataset holds: which rows are backed by a whole file, which files have no row, what is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from show1_ray.dataset.layout import CLIPS, FAILURES, METADATA, METADATA_FILE, SHARDS, shard_number
from show1_ray.dataset.metadata import content_digest, id_digest
from show1_ray.dataset.storage import Storage

COLUMNS = ["id", "prompt", "negative_prompt", "seed", "bytes", "shard", "shard_bytes"]
BROKEN = (
    pa.ArrowException,
    OSError,
    KeyError,
)  # what pyarrow raises for a file that is cut or is not Parquet


@dataclass
class Inventory:
    """Rows of all metadata parts, in order; arrays of one entry a row. 40 bytes a row stay in memory.

    `backed` tells the rows that count: the last one of each clip whose file is there with its right size.
    """

    parts: list[str] = field(default_factory=list)
    part_rows: list[int] = field(default_factory=list)
    broken_parts: list[str] = field(default_factory=list)
    ids: np.ndarray = field(default_factory=lambda: np.array([], "S16"))
    contents: np.ndarray = field(default_factory=lambda: np.array([], "S16"))
    sizes: np.ndarray = field(default_factory=lambda: np.array([], np.int64))
    shards: np.ndarray = field(default_factory=lambda: np.array([], np.int64))  # -1 where a clip is a file
    backed: np.ndarray = field(default_factory=lambda: np.array([], bool))
    shard_sizes: dict[int, int] = field(default_factory=dict)  # as the rows say
    without_row: list[str] = field(default_factory=list)  # video files
    leftovers: list[str] = field(default_factory=list)  # video files of clips that a shard holds
    shards_without_row: list[str] = field(default_factory=list)
    broken_shards: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Clips that are there and have a row."""
        return int(self.backed.sum())

    @property
    def bytes(self) -> int:
        """Bytes of these clips' videos."""
        return int(self.sizes[self.backed].sum())

    def done(self) -> Done:
        """A sorted view of the rows that count."""
        rows = np.flatnonzero(self.backed)
        rows = rows[np.argsort(self.ids[rows])]
        return Done(self.ids[rows], self.contents[rows], rows)

    def place(self, row: int) -> tuple[str, int]:
        """The part that a row stands in, and its number there."""
        ends = np.cumsum(self.part_rows)
        part = int(np.searchsorted(ends, row, side="right"))
        return self.parts[part], row - int(ends[part]) + self.part_rows[part]


@dataclass(frozen=True)
class Done:
    """The clips that are there, sorted by their id's digest; `rows` are their numbers in the inventory."""

    ids: np.ndarray
    contents: np.ndarray
    rows: np.ndarray

    def find(self, ids: list[bytes]) -> np.ndarray:
        """The place of each id, -1 where it is not there."""
        # Compared as arrays: numpy takes the zeros off the end of a single S16 value.
        wanted = np.array(ids, "S16")
        if not len(self.ids) or not ids:
            return np.full(len(ids), -1)
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[places] == wanted, places, -1)

    def has_contents(self, places: np.ndarray, contents: list[bytes]) -> np.ndarray:
        """Whether the clips at these places (none where -1) are made from these contents."""
        if not len(self.ids):
            return np.zeros(len(contents), bool)
        return (places >= 0) & (self.contents[places] == np.array(contents, "S16"))


def take_inventory(storage: Storage) -> Inventory:
    """Read all metadata and list all files; changes nothing. Raises StorageError."""
    inventory = _read_rows(storage)
    order = np.argsort(inventory.ids, kind="stable")
    sorted_ids = inventory.ids[order]
    _back_by_shards(storage, inventory, order, sorted_ids)
    folders = [f"{CLIPS}/{name}" for name in storage.folders(CLIPS)]
    for folder, sizes in zip(folders, storage.map(storage.sizes, folders), strict=True):
        files = {name: size for name, size in sizes.items() if name.endswith(".mp4") and name[0] != "."}
        digests = np.array([id_digest(name.removesuffix(".mp4")) for name in files], "S16")
        starts, ends = (np.searchsorted(sorted_ids, digests, side=side) for side in ("left", "right"))
        for (name, size), start, end in zip(files.items(), starts.tolist(), ends.tolist(), strict=True):
            path = f"{folder}/{name}"
            rows = order[start:end]
            if inventory.backed[rows].any():
                inventory.leftovers.append(path)
                continue
            fitting = rows[(inventory.sizes[rows] == size) & (inventory.shards[rows] < 0)]
            if len(fitting):
                inventory.backed[fitting[-1]] = True
            else:
                inventory.without_row.append(path)
    return inventory


def read_part(storage: Storage, path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, in batches. Raises one of BROKEN where it is not whole."""
    with storage.local_copy(path) as local, pq.ParquetFile(local) as parquet:
        yield from parquet.iter_batches(8192, columns=columns)


def metadata_parts(storage: Storage) -> list[str]:
    """The metadata's Parquet files, oldest first."""
    whole = [METADATA_FILE] if METADATA_FILE in storage.sizes("") else []
    return whole + _parquet(storage, METADATA)


def failure_parts(storage: Storage) -> list[str]:
    """The Parquet files with failures, oldest first."""
    return _parquet(storage, FAILURES)


def _parquet(storage: Storage, folder: str) -> list[str]:
    return [f"{folder}/{n}" for n in sorted(storage.sizes(folder)) if n.endswith(".parquet") and n[0] != "."]


def _read_rows(storage: Storage) -> Inventory:
    inventory = Inventory()
    ids, contents = bytearray(), bytearray()
    sizes: list[np.ndarray] = []
    shards: list[int] = []
    for path in metadata_parts(storage):
        part = _Part()
        try:
            for batch in read_part(storage, path, COLUMNS):
                part.add(batch)
        except BROKEN:
            inventory.broken_parts.append(path)
            continue
        inventory.parts.append(path)
        inventory.part_rows.append(len(part.ids) // 16)
        ids += part.ids
        contents += part.contents
        sizes += part.sizes
        shards += part.shards
        inventory.shard_sizes |= part.shard_sizes
    inventory.ids = np.frombuffer(bytes(ids), "S16")
    inventory.contents = np.frombuffer(bytes(contents), "S16")
    inventory.sizes = np.concatenate([np.array([], np.int64), *sizes])
    inventory.shards = np.array(shards, np.int64)
    inventory.backed = np.zeros(len(inventory.ids), bool)
    return inventory


class _Part:
    def __init__(self) -> None:
        self.ids, self.contents = bytearray(), bytearray()
        self.sizes: list[np.ndarray] = []
        self.shards: list[int] = []
        self.shard_sizes: dict[int, int] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        values = (batch[name].to_pylist() for name in COLUMNS[:4])
        for clip_id, prompt, negative_prompt, seed in zip(*values, strict=True):
            self.ids += id_digest(clip_id)
            self.contents += content_digest(prompt, negative_prompt, seed)
        self.sizes.append(pc.fill_null(batch["bytes"], 0).to_numpy(zero_copy_only=False))
        if "shard" not in batch.schema.names:
            self.shards += [-1] * len(batch)
            return
        for shard, size in zip(batch["shard"].to_pylist(), batch["shard_bytes"].to_pylist(), strict=True):
            number = None if shard is None else shard_number(PurePosixPath(shard).name)
            self.shards.append(-1 if number is None else number)
            if number is not None:
                self.shard_sizes[number] = size


def _back_by_shards(storage: Storage, inventory: Inventory, order: np.ndarray, sorted_ids: np.ndarray) -> None:
    """Mark the rows whose shard is there with its right size."""
    there = {shard_number(name): size for name, size in storage.sizes(SHARDS).items()}
    there.pop(None, None)
    for number, size in sorted((n, s) for n, s in there.items() if n is not None):
        path = f"{SHARDS}/shard-{number:06}.tar"
        if number not in inventory.shard_sizes:
            inventory.shards_without_row.append(path)
        elif inventory.shard_sizes[number] != size:
            inventory.broken_shards.append(path)
        else:
            inventory.backed |= inventory.shards == number
    if not inventory.backed.any():
        return
    # Of several rows of a clip, the last that is backed counts.
    backed = inventory.backed[order]
    rows, ids = order[backed], sorted_ids[backed]
    inventory.backed[:] = False
    inventory.backed[rows[np.append(ids[1:] != ids[:-1], True)]] = True
