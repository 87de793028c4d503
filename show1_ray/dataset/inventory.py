"""What a dataset holds: rows with a complete file, files without a row, and what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import PurePosixPath

import numpy as np

from show1_ray.dataset.layout import CLIPS, METADATA, SHARDS, shard_number, shard_path
from show1_ray.dataset.makings import Made, Makings
from show1_ray.dataset.metadata import Row, id_digests
from show1_ray.dataset.parts import (
    CONTENT,
    NO_INPUTS,
    Merger,
    Part,
    last_of_ids,
    list_parts,
    read_indexes,
    sorted_rows,
)
from show1_ray.dataset.shards import read_shard
from show1_ray.dataset.storage import Storage, StorageError

FOLDERS = [f"{number:02x}/" for number in range(256)]
"""Of clips, by the first byte of their ids' digests."""
LOOSE_ROWS = 50_000
LISTINGS = 10
"""How often metadata is listed that somebody is making less of."""


@dataclass
class Inventory:
    """The rows of all metadata parts, in order, and the files. 46 bytes a row stay in memory, and no object.

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
        """All rows as those of one part, of which the parts become views."""
        return Part.gathered(self.parts)

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
        return sorted_rows(self.all.ids)

    @cached_property
    def is_last(self) -> np.ndarray:
        """Of `order`: whether it is the last of its id."""
        return last_of_ids(self.all.ids, self.order)

    def first_of(self, ids: np.ndarray) -> np.ndarray:
        """Where in `order` each id's rows begin, or would."""
        return np.searchsorted(self.all.ids, ids, sorter=self.order)

    def done(self) -> Done:
        """The clips that are there, as they are known now."""
        return Done(self.all, self.order, self.backed)

    def place(self, row: int) -> tuple[str, int]:
        """The part that a row stands in, and its number there."""
        ends = np.cumsum([len(part) for part in self.parts])
        part = int(np.searchsorted(ends, row, side="right"))
        return self.parts[part].path, row - int(ends[part]) + len(self.parts[part])

    def extend(self, parts: Sequence[Part], backed: bool = False) -> None:
        """More rows: all count, or none yet."""
        if not parts:
            return
        self.parts += parts
        self.backed = np.concatenate([self.backed, np.full(sum(map(len, parts)), backed)])
        for name in ("all", "order", "is_last"):
            self.__dict__.pop(name, None)

    def replace_parts(self, old: Sequence[str], new: str) -> None:
        """Parts that follow one another have become one."""
        first = next((i for i, part in enumerate(self.parts) if part.path == old[0]), None)
        if first is None or [part.path for part in self.parts[first : first + len(old)]] != list(old):
            return
        merged = Part.merged(new, self.parts[first : first + len(old)])
        self.parts[first : first + len(old)] = [merged]
        if "all" in self.__dict__:
            row = sum(map(len, self.parts[:first]))
            merged.view(self.all, row, row + len(merged))


@dataclass(frozen=True)
class Done:
    """The clips that are there: those of the rows of an inventory that are `backed`; `order` sorts them by ids."""

    all: Part
    order: np.ndarray
    backed: np.ndarray

    def find(self, ids: list[bytes]) -> np.ndarray:
        """The row of each id; -1 if there is none."""
        # Compared as arrays: numpy takes the zeros off the end of a single S16 value.
        wanted = np.array(ids, "S16")
        found = np.full(len(wanted), -1)
        places = np.searchsorted(self.all.ids, wanted, sorter=self.order)
        left = np.arange(len(wanted))
        while len(left := left[places[left] < len(self.order)]):
            rows = self.order[places[left]]
            same = self.all.ids[rows] == wanted[left]
            counts = same & self.backed[rows]
            found[left[counts]] = rows[counts]
            left = left[same & ~counts]  # those whose next row may be the one
            places[left] += 1
        return found

    def are_made_from(self, rows: np.ndarray, made: Sequence[Made]) -> np.ndarray:
        """Whether the clips of these rows (none where -1) are made from this; see `Made.is_same`."""
        if not len(self.order):
            return np.zeros(len(made), bool)
        same = self.all.contents[rows] == np.array([one.told for one in made], CONTENT)
        if len(self.all.files):
            given, there = np.array([one.content for one in made], CONTENT), self.all.files[rows]
            same = np.where((given != b"") & (there != b""), given == there, same)
        return (rows >= 0) & same


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
            loose: list[Part] = []  # many small arrays; as few large ones, memory goes back when these become one
            for path, part in read_indexes(storage, fresh, contents, merger, makings):
                there[path] = part or Part(path, is_broken=True)
                loose.append(there[path])
                if sum(map(len, loose)) >= LOOSE_ROWS:
                    Part.gathered(loose)
                    loose = []
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
        np.array(id_digests(row["id"] for row in rows), "S16"),
        np.array([one.told for one in made], CONTENT),
        np.array([one.content for one in made] if makings.files else [], CONTENT),
        np.array([row["bytes"] for row in rows], np.int64),
        np.array([-1 if number is None else number for number in numbers], np.int32),
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
    backed = np.isin(inventory.all.shards, np.array(whole, inventory.all.shards.dtype))
    backed[len(backed) - of_adopted :] = True
    if backed.any():
        # Of several rows of a clip, the last that is backed counts.
        order = inventory.order if backed.all() else inventory.order[backed[inventory.order]]
        inventory.backed[order[last_of_ids(inventory.all.ids, order)]] = True


def _back_by_files(storage: Storage, inventory: Inventory) -> None:
    """Mark the rows whose video file is there with its right size, and tell of the files that have none."""
    all_ids, sizes, shards = inventory.all.ids, inventory.all.sizes, inventory.all.shards
    for names, found, ids in _video_files(storage, inventory):
        starts = inventory.first_of(ids)
        # Nearly all have one row, which fits: these are done at once.
        lone = np.flatnonzero(starts < len(all_ids))
        lone = lone[inventory.is_last[starts[lone]]]
        rows = inventory.order[starts[lone]]
        fits = (all_ids[rows] == ids[lone]) & (sizes[rows] == found[lone]) & (shards[rows] < 0)
        inventory.backed[rows[fits]] = True
        rest = np.setdiff1d(np.arange(len(names)), lone[fits])
        ends = np.searchsorted(all_ids, ids[rest], side="right", sorter=inventory.order)
        for place, end in zip(rest.tolist(), ends.tolist(), strict=True):
            path = f"{CLIPS}/{names[place]}"
            rows = inventory.order[starts[place] : end]
            if inventory.backed[rows].any():
                inventory.leftovers.append(path)
                continue
            fitting = rows[(sizes[rows] == found[place]) & (shards[rows] < 0)]
            if len(fitting):
                inventory.backed[fitting[-1]] = True
            else:
                inventory.without_row.append(path)
    for paths in (inventory.leftovers, inventory.without_row, inventory.strange):
        paths.sort()


def _video_files(storage: Storage, inventory: Inventory) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, sizes and ids' digests of clips' files that are in their place, a listing at a time; the others are told
    as strange."""
    for listing in storage.tree(CLIPS):
        names, sizes = list(listing), list(listing.values())
        keys = id_digests([name[3:-4] for name in names])
        in_place = [
            name[:3] == FOLDERS[key[0]] and name.endswith(".mp4") and name[3] != "."
            for name, key in zip(names, keys, strict=True)
        ]
        if not all(in_place):
            wrong = [name for name, is_right in zip(names, in_place, strict=True) if not is_right]
            inventory.strange += [f"{CLIPS}/{name}" for name in wrong if "/." not in name]
            names, sizes = list(compress(names, in_place)), list(compress(sizes, in_place))
            keys = list(compress(keys, in_place))
        yield names, np.array(sizes, np.int64), np.array(keys, "S16")
