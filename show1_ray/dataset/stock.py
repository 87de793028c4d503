"""The survey of files that `status`, `render --dry-run` and `render` share: what counts, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from show1_ray.dataset.inventory import Inventory, take_inventory
from show1_ray.dataset.lander import row_of_file
from show1_ray.dataset.layout import shard_path
from show1_ray.dataset.makings import Made, Makings
from show1_ray.dataset.metadata import Row, id_digest
from show1_ray.dataset.parts import NO_INPUTS, Merger, Part, read_rows
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.verify import Damaged, find_damaged
from show1_ray.dataset.video import BrokenVideoError, decode_video

TOLD = 1000
"""So many of a kind are named."""


@dataclass
class Findings:
    """Things of a kind: how many clips they are, and a line about each; the first `TOLD` of them."""

    clips: int = 0
    lines: list[str] = field(default_factory=list)
    left_out: int = 0

    def add(self, line: str, clips: int = 1) -> None:
        """One more."""
        self.clips += clips
        if len(self.lines) < TOLD:
            self.lines.append(line)
        else:
            self.left_out += 1

    def told(self) -> list[str]:
        """The lines, and how many more there are."""
        return [*self.lines, *([f"and {self.left_out:,} more"] if self.left_out else [])]


@dataclass
class Stock:
    """What a dataset holds.

    `inventory` has the clips that are there and have a row. `waiting` are those that landed without one and will be
    adopted: digests of their ids → of what they are made from. `lost` were there and are not, or not as they were
    written: `render` renders them again. `damaged` are of the right size and have other bytes: `render --verify` finds
    and renders them again. `foreign` are files where clips are that are not this dataset's; they count for nothing
    and stay. `found` are the damaged ones, and `unplayable` files that landed without a row and cannot be decoded, for
    whoever removes them.
    """

    inventory: Inventory
    waiting: dict[bytes, Made] = field(default_factory=dict)
    lost: Findings = field(default_factory=Findings)
    damaged: Findings = field(default_factory=Findings)
    foreign: Findings = field(default_factory=Findings)
    found: list[Damaged] = field(default_factory=list)
    unplayable: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Clips that are there."""
        return self.inventory.count + len(self.waiting)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost.lines or self.damaged.lines or self.foreign.lines)


def take_stock(
    storage: Storage,
    recipe_hash: str,
    *,
    verify: bool = False,
    contents: bool = True,
    merger: Merger | None = None,
    known: Iterable[Part] = (),
    adopt_shard: Callable[[str, list[Row]], str] = lambda path, rows: path,
    adopt: Callable[[Row], None] = lambda row: None,
    makings: Makings = NO_INPUTS,
) -> Stock:
    """Look at all that there is; changes nothing itself.

    Args:
        storage: of the dataset.
        recipe_hash: of the dataset.
        verify: read all clips, not only those of which no row tells.
        contents: whether to tell what the clips that have a row are made from.
        merger: as for `take_inventory`.
        known: as for `take_inventory`.
        adopt_shard: as for `take_inventory`.
        adopt: called with the row of each clip that landed without one.
        makings: which columns tell what clips are made from.

    Raises:
        StorageError.
    """
    options: dict[str, Any] = {"merger": merger, "known": known, "adopt_shard": adopt_shard, "makings": makings}
    stock = Stock(take_inventory(storage, recipe_hash, contents=contents, **options))
    inventory = stock.inventory
    told: set[bytes] = set()
    if verify:
        stock.found = find_damaged(storage, inventory, recipe_hash)
        for one in stock.found:
            stock.damaged.add(str(one))
        rows = [one.row for one in stock.found if one.row is not None]
        inventory.backed[rows] = False
        told |= set(inventory.all.ids[rows].tolist())
        _take_unclaimed(stock, makings)
    _read_files(storage, recipe_hash, stock, verify, adopt, told, makings)
    _tell_shards(stock, told)
    _tell_missing(storage, stock, told)
    for path in inventory.broken_parts:
        stock.lost.add(f"{path}: cut, or not Parquet; its rows are taken from the clips", clips=0)
    for path in inventory.strange:
        stock.foreign.add(path)
    return stock


def _take_unclaimed(stock: Stock, makings: Makings) -> None:
    """The clips of shards for which no row counts become files, and are adopted, unless they are there already."""
    own = [one.own for one in stock.found if one.own is not None]
    places = stock.inventory.done().find([id_digest(row["id"]) for row in own])
    for row, place in zip(own, places.tolist(), strict=True):
        if place < 0:
            stock.waiting[id_digest(row["id"])] = makings.of_row(row)


def _read_files(
    storage: Storage,
    recipe_hash: str,
    stock: Stock,
    verify: bool,
    adopt: Callable[[Row], None],
    told: set[bytes],
    makings: Makings,
) -> None:
    """Tell what the video files are of which no row tells."""

    def look(path: str) -> Row | str | None:
        try:
            data = storage.read(path)
        except FileNotFoundError:  # a shard has it by now
            return None
        row = row_of_file(data, recipe_hash)
        if row is None:
            return "cut, or not made by this dataset's recipe"
        if row["file_name"] != path:
            return f"holds the clip {row['id']!r}"
        return _decoded(data, row) if verify else row

    known = _Members(stock.inventory)
    paths = stock.inventory.without_row
    for path, found in zip(paths, storage.map(look, paths), strict=True):
        key = id_digest(PurePosixPath(path).name.removesuffix(".mp4"))
        if isinstance(found, dict):
            stock.waiting[key] = makings.of_row(found)
            adopt(found)
        elif found is not None and (key in known or found == UNPLAYABLE):
            stock.lost.add(f"{path}: {found}")
            stock.unplayable += [path] if found == UNPLAYABLE else []
            told.add(key.rstrip(b"\0"))
        elif found is not None:
            stock.foreign.add(f"{path}: {found}")


UNPLAYABLE = "its frames cannot be decoded"


def _decoded(data: bytes, row: Row) -> Row | str:
    try:
        return row if len(decode_video(data, strict=True)) == row["frames"] else UNPLAYABLE
    except BrokenVideoError:
        return UNPLAYABLE


class _Members:
    """Whether an id has a row, counted or not."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def __contains__(self, key: bytes) -> bool:
        wanted = np.array([key], "S16")
        rows = self._inventory.order[self._inventory.first_of(wanted)[0] :][:1]
        return bool((self._inventory.all.ids[rows] == wanted).any())


def _tell_shards(stock: Stock, told: set[bytes]) -> None:
    """Tell which shards are not there, or not as they were written."""
    inventory = stock.inventory
    rows = _missing_rows(stock, told)
    rows = rows[inventory.all.shards[rows] >= 0]
    clips = Counter(inventory.all.shards[rows].tolist())
    for number in sorted(clips):
        path = shard_path(number)
        what = "not as it was written" if number in inventory.shards_there else "is not there"
        stock.lost.add(f"{path}: {what}; {clips[number]} clips", clips[number])
    for path in inventory.broken_shards:
        if not any(line.startswith(f"{path}:") for line in stock.lost.lines):
            stock.lost.add(f"{path}: not as it was written", clips=0)
    told |= set(inventory.all.ids[rows].tolist())


def _tell_missing(storage: Storage, stock: Stock, told: set[bytes]) -> None:
    """Tell which clips have a row, and no file."""
    rows = _missing_rows(stock, told)
    for name in _file_names(storage, stock.inventory, rows[:TOLD]):
        stock.lost.add(f"{name}: is not there")
    stock.lost.clips += max(0, len(rows) - TOLD)
    stock.lost.left_out += max(0, len(rows) - TOLD)


def _missing_rows(stock: Stock, told: set[bytes]) -> np.ndarray:
    """The last row of each clip for which no row counts, that is not waiting, and has not been told."""
    inventory = stock.inventory
    if inventory.backed.all():
        return np.array([], int)
    last = inventory.is_last
    first = np.flatnonzero(np.append(True, last[:-1]))
    counts = np.logical_or.reduceat(inventory.backed[inventory.order], first)
    rows = inventory.order[last][~counts]
    known = np.array([*stock.waiting, *told], "S16")
    return np.sort(rows[~np.isin(inventory.all.ids[rows], known)])


def _file_names(storage: Storage, inventory: Inventory, rows: np.ndarray) -> Iterator[str]:
    """The files that rows tell of, in the rows' order."""
    wanted: dict[str, list[int]] = {}
    for row in rows.tolist():
        path, number = inventory.place(row)
        wanted.setdefault(path, []).append(number)
    for path, numbers in wanted.items():
        batches = read_rows(storage, path, ["file_name"])
        names = [name or "" for batch in batches for name in batch["file_name"].to_pylist()]
        yield from (names[number] for number in numbers)
