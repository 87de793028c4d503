"""What a dataset holds: which rows are backed by a whole file, which files have no row, what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np

from show1_ray.dataset.layout import CLIPS, METADATA, SHARDS, shard_number, shard_path
from show1_ray.dataset.makings import Made, Makings
from show1_ray.dataset.metadata import Row, id_digest
from show1_ray.dataset.parts import NO_INPUTS, Merger, Part, list_parts, read_indexes
from show1_ray.dataset.shards import read_shard
from show1_ray.dataset.storage import Storage, StorageError

LISTINGS = 10
"""How often metadata is listed that somebody is making less of."""


@dataclass
class Inventory:
    """The rows of all metadata parts, in order, and the files. 50 bytes a row stay in memory.

    `backed` tells the rows that count: the last one of each clip whose file is there with its right size.
    """

    parts: list[Part] = field(default_factory=list)
    backed: np.ndarray = field(default_factory=lambda: np.array([], bool))
    broken_parts: list[str] = field(default_factory=list)
    without_row: list[str] = field(default_factory=list)
    """Video files in their place of which no row tells, or one that tells of another size."""
    leftovers: list[str] = field(default_factory=list)
    """Video files of clips that a shard holds."""
    strange: list[str] = field(default_factory=list)
    """Files where clips and shards are that cannot be this dataset's."""
    broken_shards: list[str] = field(default_factory=list)
    """Shards that are not as they were written, and cannot be taken as they are."""
    shards_there: dict[int, int] = field(default_factory=dict)
    """Number → bytes."""

    @cached_property
    def all(self) -> Part:
        """All rows as those of one part."""
        return Part.joined("", self.parts)

    @property
    def paths(self) -> list[str]:
        """The parts that are whole, oldest first."""
        return [part.path for part in self.parts]

    @property
    def count(self) -> int:
        """Clips that are there and have a row."""
        return int(self.backed.sum())

    @property
    def bytes(self) -> int:
        """Bytes of these clips' videos."""
        return int(self.all.sizes[self.backed].sum())

    @cached_property
    def order(self) -> np.ndarray:
        """The rows' numbers, sorted by their ids; those of one id in their order."""
        halves = self.all.ids.view(">u8").reshape(-1, 2).astype(np.uint64)
        return np.lexsort((halves[:, 1], halves[:, 0]))

    @cached_property
    def sorted_ids(self) -> np.ndarray:
        """The rows' ids, sorted."""
        return self.all.ids[self.order]

    def done(self) -> Done:
        """A sorted view of the rows that count."""
        rows = self.order[self.backed[self.order]]
        files = self.all.files[rows] if len(self.all.files) else self.all.files
        return Done(self.all.ids[rows], self.all.contents[rows], files, rows)

    def place(self, row: int) -> tuple[str, int]:
        """The part that a row stands in, and its number there."""
        ends = np.cumsum([len(part) for part in self.parts])
        part = int(np.searchsorted(ends, row, side="right"))
        return self.parts[part].path, row - int(ends[part]) + len(self.parts[part])

    def extend(self, parts: Sequence[Part], backed: bool = False) -> None:
        """More rows: all count, or none yet."""
        self.parts += parts
        self.backed = np.concatenate([self.backed, np.full(sum(map(len, parts)), backed)])
        for name in ("all", "order", "sorted_ids"):
            self.__dict__.pop(name, None)

    def replace_parts(self, old: Sequence[str], new: str) -> None:
        """Parts that follow one another have become one."""
        first = next((i for i, part in enumerate(self.parts) if part.path == old[0]), None)
        if first is None or [part.path for part in self.parts[first : first + len(old)]] != list(old):
            return
        self.parts[first : first + len(old)] = [Part.joined(new, self.parts[first : first + len(old)])]


@dataclass(frozen=True)
class Done:
    """The clips that are there, sorted by their id's digest; `rows` are their numbers in the inventory."""

    ids: np.ndarray
    contents: np.ndarray
    files: np.ndarray
    rows: np.ndarray

    def find(self, ids: list[bytes]) -> np.ndarray:
        """The place of each id, -1 where it is not there."""
        # Compared as arrays: numpy takes the zeros off the end of a single S16 value.
        wanted = np.array(ids, "S16")
        if not len(self.ids) or not ids:
            return np.full(len(ids), -1)
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[places] == wanted, places, -1)

    def are_made_from(self, places: np.ndarray, made: Sequence[Made]) -> np.ndarray:
        """Whether the clips at these places (none where -1) are made from this; see `Made.is_same`."""
        if not len(self.ids):
            return np.zeros(len(made), bool)
        same = self.contents[places] == np.array([one.told for one in made], "S16")
        if len(self.files):
            given, there = np.array([one.content for one in made], "S16"), self.files[places]
            same = np.where((given != b"") & (there != b""), given == there, same)
        return (places >= 0) & same


def take_inventory(
    storage: Storage,
    recipe_hash: str,
    *,
    contents: bool = True,
    merger: Merger | None = None,
    known: Iterable[Part] = (),
    adopt_shard: Callable[[str, list[Row]], str] = lambda path, rows: path,
    makings: Makings = NO_INPUTS,
) -> Inventory:
    """Read all metadata once and list all files; changes nothing.

    Args:
        storage: of the dataset.
        recipe_hash: of the dataset.
        contents: whether to read what clips are made from.
        merger: what makes fewer parts of those that were there.
        known: parts that have been read.
        adopt_shard: called with the rows of each shard that has none in the metadata, or that is whole and not as these
            tell; the path of the part that has them then.
        makings: which columns tell what clips are made from.

    Raises:
        StorageError.
    """
    there = {part.path: part for part in known}
    inventory = Inventory(parts=_read_parts(storage, contents, merger, there, makings))
    inventory.broken_parts = [part.path for part in inventory.parts if part.is_broken]
    inventory.parts = [part for part in inventory.parts if not part.is_broken]
    inventory.backed = np.zeros(len(inventory.all), bool)
    _back_by_shards(storage, inventory, recipe_hash, adopt_shard, makings)
    _back_by_files(storage, inventory)
    return inventory


def _read_parts(
    storage: Storage, contents: bool, merger: Merger | None, there: dict[str, Part], makings: Makings
) -> list[Part]:
    for attempt in range(LISTINGS):
        listed = list_parts(storage, METADATA)
        fresh = {path: size for path, size in listed.items() if path not in there}
        try:
            for path, part in read_indexes(storage, fresh, contents, merger, makings):
                there[path] = part or Part(path, is_broken=True)
        except FileNotFoundError:  # a job has made one of several since they were listed
            if attempt == LISTINGS - 1:
                raise StorageError(f"dataset {storage.url}: its metadata changes faster than it is read") from None
        else:
            break
    if merger is not None:
        merger.passed()
    return [there[path] for path in listed]


def index_of_rows(path: str, rows: Sequence[Row], makings: Makings = NO_INPUTS) -> Part:
    """The index that a part of these rows has."""
    made = [makings.of_row(row) for row in rows]
    numbers = [shard_number(PurePosixPath(row["shard"]).name) if row.get("shard") else None for row in rows]
    return Part(
        path,
        np.array([id_digest(row["id"]) for row in rows], "S16"),
        np.array([one.told for one in made], "S16"),
        np.array([one.content for one in made] if makings.files else [], "S16"),
        np.array([row["bytes"] for row in rows], np.int64),
        np.array([-1 if number is None else number for number in numbers], np.int64),
        {number: row["shard_bytes"] for number, row in zip(numbers, rows, strict=True) if number is not None},
    )


def _back_by_shards(
    storage: Storage,
    inventory: Inventory,
    recipe_hash: str,
    adopt_shard: Callable[[str, list[Row]], str],
    makings: Makings,
) -> None:
    """Mark the rows whose shard is there with its right size. Of the other shards, their own rows are read."""
    expected = inventory.all.shard_sizes
    for name, size in storage.sizes(SHARDS).items():
        number = shard_number(name)
        if number is not None and f"{SHARDS}/{name}" == shard_path(number):
            inventory.shards_there[number] = size
        elif not name.startswith("."):
            inventory.strange.append(f"{SHARDS}/{name}")
    whole = [number for number, size in inventory.shards_there.items() if expected.get(number) == size]
    adopted = []
    for number in sorted(set(inventory.shards_there) - set(whole)):
        path = shard_path(number)
        content = read_shard(storage, path, recipe_hash)
        if content.is_ours:
            adopted.append(index_of_rows(adopt_shard(path, content.rows), content.rows, makings))
            if content.others:
                inventory.strange.append(f"{path}: {content.others} of its videos")
        elif content.is_foreign and number not in expected:
            inventory.strange.append(path)
        else:
            inventory.broken_shards.append(path)
    of_adopted = sum(len(part) for part in adopted)
    inventory.extend(adopted)
    backed = np.isin(inventory.all.shards, np.array(whole, np.int64))
    backed[len(backed) - of_adopted :] = True
    if backed.any():
        # Of several rows of a clip, the last that is backed counts.
        order = inventory.order[backed[inventory.order]]
        ids = inventory.all.ids[order]
        inventory.backed[order[np.append(ids[1:] != ids[:-1], True)]] = True


def _back_by_files(storage: Storage, inventory: Inventory) -> None:
    """Mark the rows whose video file is there with its right size, and tell of the files that have none."""
    sizes, shards = inventory.all.sizes, inventory.all.shards
    for folder, files in _video_files(storage, inventory):
        names = list(files)
        digests = np.array([id_digest(name.removesuffix(".mp4")) for name in names], "S16")
        starts, ends = (np.searchsorted(inventory.sorted_ids, digests, side=side) for side in ("left", "right"))
        # Nearly all have one row, which fits: these are done at once.
        lone = np.flatnonzero(ends - starts == 1)
        rows = inventory.order[starts[lone]]
        fits = (sizes[rows] == np.array([*files.values()], np.int64)[lone]) & (shards[rows] < 0)
        inventory.backed[rows[fits]] = True
        for place in np.setdiff1d(np.arange(len(names)), lone[fits]).tolist():
            name = names[place]
            path = f"{CLIPS}/{folder}/{name}"
            rows = inventory.order[starts[place] : ends[place]]
            if inventory.backed[rows].any():
                inventory.leftovers.append(path)
                continue
            fitting = rows[(sizes[rows] == files[name]) & (shards[rows] < 0)]
            if len(fitting):
                inventory.backed[fitting[-1]] = True
            else:
                inventory.without_row.append(path)


def _video_files(storage: Storage, inventory: Inventory) -> Iterator[tuple[str, dict[str, int]]]:
    """The files of each folder of clips that are in their place; the others are told as strange."""
    folders = storage.folders(CLIPS)
    listings = storage.map(lambda name: storage.sizes(f"{CLIPS}/{name}"), folders)
    for folder, listing in zip(folders, listings, strict=True):
        files: dict[str, int] = {}
        for name, size in listing.items():
            if name.startswith("."):
                continue
            in_place = name.endswith(".mp4") and id_digest(name.removesuffix(".mp4")).hex()[:2] == folder
            if in_place:
                files[name] = size
            else:
                inventory.strange.append(f"{CLIPS}/{folder}/{name}")
        yield folder, files
