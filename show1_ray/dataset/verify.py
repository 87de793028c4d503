"""Whether clips still are what was written: the bytes of their videos against the checksums in their rows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from show1_ray.dataset.inventory import Inventory, read_part
from show1_ray.dataset.shards import read_videos
from show1_ray.dataset.storage import Storage

COLUMNS = ["file_name", "sha256", "shard"]


@dataclass(frozen=True)
class Damaged:
    """A clip whose bytes are not those that its row tells of. `row` is its number in the inventory."""

    row: int
    file_name: str
    """Of its video file, or of the member of `shard`."""
    shard: str | None = None

    def __str__(self) -> str:
        return self.file_name if self.shard is None else f"{self.file_name} in {self.shard}"


def find_damaged(storage: Storage, inventory: Inventory) -> list[Damaged]:
    """Read the video of every row that counts, and compare: takes as long as it takes to read the whole dataset.

    Resuming compares sizes only, which a listing tells. Raises StorageError.
    """
    damaged: list[Damaged] = []
    first = 0
    for path in inventory.parts:
        for batch in read_part(storage, path, COLUMNS):
            rows = batch.to_pylist()
            counting = np.flatnonzero(inventory.backed[first : first + len(rows)]).tolist()
            claims = {number: rows[number] for number in counting}
            wrong = set(_wrong_files(storage, claims)) | set(_wrong_members(storage, claims))
            damaged += [Damaged(first + n, claims[n]["file_name"], claims[n].get("shard")) for n in sorted(wrong)]
            first += len(rows)
    return damaged


def without_damaged(storage: Storage, inventory: Inventory) -> list[Damaged]:
    """Let the rows of damaged clips not count; which these are."""
    damaged = find_damaged(storage, inventory)
    inventory.backed[[one.row for one in damaged]] = False
    return damaged


def _wrong_files(storage: Storage, claims: dict[int, dict[str, str]]) -> Iterator[int]:
    def digest(path: str) -> str:
        try:
            return hashlib.sha256(storage.read(path)).hexdigest()
        except FileNotFoundError:  # it went since the inventory
            return ""

    files = {number: row for number, row in claims.items() if row.get("shard") is None}
    digests = storage.map(digest, [row["file_name"] for row in files.values()])
    for (number, row), found in zip(files.items(), digests, strict=True):
        if found != row["sha256"]:
            yield number


def _wrong_members(storage: Storage, claims: dict[int, dict[str, str]]) -> Iterator[int]:
    shards: dict[str, list[int]] = defaultdict(list)
    for number, row in claims.items():
        if row.get("shard") is not None:
            shards[row["shard"]].append(number)
    for shard, numbers in shards.items():
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in read_videos(storage, shard)}
        yield from (
            number for number in numbers if digests.get(claims[number]["file_name"]) != claims[number]["sha256"]
        )
