"""Verifying clips: the bytes of their videos against the checksums in their rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from show1_ray.dataset.inventory import Inventory
from show1_ray.dataset.lander import row_of_file
from show1_ray.dataset.layout import shard_key, shard_number, shard_path
from show1_ray.dataset.metadata import Row
from show1_ray.dataset.parts import read_rows
from show1_ray.dataset.shards import read_videos
from show1_ray.dataset.storage import Storage

COLUMNS = ["file_name", "sha256", "shard"]


@dataclass(frozen=True)
class Damaged:
    """A clip whose bytes are not those that its row tells of, or a video in a shard for which no row counts.

    `row` is the row's number in the inventory; None where there is none.
    """

    row: int | None
    file_name: str
    """Of its video file, or of the member of `shard`."""
    shard: str | None = None
    own: Row | None = None
    """The row that a video carries for which no other one counts, where it is this dataset's."""

    def __str__(self) -> str:
        where = self.file_name if self.shard is None else f"{self.file_name} in {self.shard}"
        return where if self.row is not None else f"{where}, for which no row counts"


@dataclass(frozen=True)
class _Claim:
    row: int
    file_name: str
    sha256: str


def find_damaged(storage: Storage, inventory: Inventory, recipe_hash: str) -> list[Damaged]:
    """Read the video of every row that counts, and every video in a shard, and compare: takes as long as it takes to
    read the whole dataset.

    Resuming compares sizes only, which a listing tells. Raises StorageError.
    """
    damaged: list[Damaged] = []
    shards: dict[str, dict[str, _Claim]] = {}
    numbers = inventory.all.shards[inventory.backed]
    left = Counter(numbers[numbers >= 0].tolist())
    for files, in_shards in _claims(storage, inventory):
        damaged += _wrong_files(storage, files)
        for shard, claim in in_shards:
            shards.setdefault(shard, {})[claim.file_name] = claim
            left[shard_number(shard.rpartition("/")[2]) or 0] -= 1
        # A shard is read when all its rows are known: memory is flat where they stand together, as they are written.
        for shard in [one for one in shards if not left[shard_number(one.rpartition("/")[2]) or 0]]:
            damaged += _wrong_members(storage, shard, shards.pop(shard), recipe_hash)
    # A shard that has told its rows itself needs no others for them.
    told = [path for path in inventory.paths if path.endswith(".tar")]
    for shard in told:
        damaged += [one for one in _wrong_members(storage, shard, {}, recipe_hash) if one.own is None]
    strange = {*inventory.broken_shards, *inventory.strange, *told}
    unclaimed = {shard_path(number) for number in inventory.shards_there if number not in left} - strange
    for shard, claims in chain(shards.items(), ((shard, {}) for shard in sorted(unclaimed))):
        damaged += _wrong_members(storage, shard, claims, recipe_hash)
    return damaged


def _claims(storage: Storage, inventory: Inventory) -> Iterator[tuple[list[_Claim], list[tuple[str, _Claim]]]]:
    """What the rows say that count, a batch at a time: of files, and of members of shards. Shards that have told their
    rows themselves have been read."""
    first = 0
    for part in inventory.parts:
        if part.path.endswith(".tar"):
            first += len(part)
            continue
        for batch in read_rows(storage, part.path, COLUMNS):
            files: list[_Claim] = []
            members: list[tuple[str, _Claim]] = []
            for number, row in enumerate(batch.to_pylist(), first):
                if inventory.backed[number]:
                    claim = _Claim(number, row["file_name"], row["sha256"])
                    if row.get("shard") is None:
                        files.append(claim)
                    else:
                        members.append((row["shard"], claim))
            first += len(batch)
            yield files, members


def _wrong_files(storage: Storage, claims: list[_Claim]) -> Iterator[Damaged]:
    def digest(claim: _Claim) -> str:
        try:
            return hashlib.sha256(storage.read(claim.file_name)).hexdigest()
        except FileNotFoundError:  # it went since the inventory
            return ""

    for claim, found in zip(claims, storage.map(digest, claims), strict=True):
        if found != claim.sha256:
            yield Damaged(claim.row, claim.file_name)


def _wrong_members(storage: Storage, shard: str, claims: dict[str, _Claim], recipe_hash: str) -> Iterable[Damaged]:
    damaged: list[Damaged] = []
    claims = dict(claims)
    for name, data in read_videos(storage, shard):
        claim = claims.pop(name, None)
        if claim is None:
            own = row_of_file(data, recipe_hash)
            is_own = own is not None and name == f"{shard_key(own['id'])}.mp4"
            damaged.append(Damaged(None, name, shard, own if is_own else None))
        elif hashlib.sha256(data).hexdigest() != claim.sha256:
            damaged.append(Damaged(claim.row, name, shard))
    return [*damaged, *(Damaged(claim.row, name, shard) for name, claim in claims.items())]
