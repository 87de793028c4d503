"""What a dataset holds already, compared with a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from show1_ray.clip import Clip
from show1_ray.dataset.compaction import read_failures
from show1_ray.dataset.identity import Format, check_identity
from show1_ray.dataset.inventory import Inventory, read_part, take_inventory
from show1_ray.dataset.lander import Origin, row_of_file
from show1_ray.dataset.metadata import Row, check_columns, content_digest, id_digest
from show1_ray.dataset.storage import Storage
from show1_ray.dataset.verify import without_damaged
from show1_ray.errors import UserError
from show1_ray.manifest import Entry

ENTRIES_AT_ONCE = 1024
SKIPPED = 100


@dataclass(frozen=True)
class Survey:
    """How the clips of a manifest stand: there already, failed before (and skipped), left to render.

    `others` and `other_failures` are clips of the dataset that are not the manifest's.
    """

    done: int
    failed: int
    left: int
    others: int = 0
    other_failures: int = 0
    skipped: tuple[str, ...] = ()
    """Ids of those that failed before, at most `SKIPPED`."""


class Contents:
    """The clips and failures of a dataset.

    Args:
        storage: of the dataset.
        inventory: its clips that have rows in the metadata.
        waiting: rows of clips that landed and have none there yet.
    """

    def __init__(self, storage: Storage, inventory: Inventory | None = None, waiting: Sequence[Row] = ()) -> None:
        self._storage = storage
        self._inventory = inventory or Inventory()
        self._done = self._inventory.done()
        self._waiting = {id_digest(row["id"]): row for row in waiting}
        self._failed = {
            id_digest(f["id"]): content_digest(f["prompt"], f["negative_prompt"], f["seed"])
            for f in (read_failures(storage) if inventory else ())
        }

    @property
    def is_empty(self) -> bool:
        """Whether there is no clip, and no failure."""
        return not self._inventory.count and not self._failed and not self._waiting

    def survey(self, entries: Iterable[Entry], retry_failed: bool = False) -> Survey:
        """Compare a manifest with what is there.

        Raises UserError for a clip whose prompt, negative prompt or seed is not what it was rendered from.
        """
        done = failed = skipped = left = 0
        ids: list[str] = []
        for entry, is_done, has_failed in self._compare(entries):
            done, failed = done + is_done, failed + has_failed
            skip = has_failed and not retry_failed
            if skip and len(ids) < SKIPPED:
                ids.append(entry.clip.id)
            skipped, left = skipped + skip, left + (not is_done and not skip)
        rendered_since = int((self._done.find(list(self._failed)) >= 0).sum()) if self._failed else 0
        others = self._inventory.count + len(self._waiting) - done
        other_failures = max(0, len(self._failed) - rendered_since - failed)
        return Survey(done, skipped, left, others, other_failures, tuple(ids))

    def missing(self, entries: Iterable[Entry], retry_failed: bool = False) -> Iterator[Entry]:
        """What is left to render, in order. Raises as `survey` does, but only when it gets there."""
        for entry, is_done, has_failed in self._compare(entries):
            if not is_done and (retry_failed or not has_failed):
                yield entry

    def _compare(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool, bool]]:
        """Each entry, whether it is done, and whether it has failed."""
        entries = iter(entries)
        while block := list(islice(entries, ENTRIES_AT_ONCE)):
            ids = [id_digest(entry.clip.id) for entry in block]
            contents = [content_digest(e.clip.prompt, e.clip.negative_prompt, e.clip.seed) for e in block]
            places = self._done.find(ids)
            same = self._done.has_contents(places, contents).tolist()
            for i, (entry, place) in enumerate(zip(block, places.tolist(), strict=True)):
                if place >= 0 and not same[i]:
                    raise self._changed(entry.clip, self._row_at(int(self._done.rows[place])))
                waiting = self._waiting.get(ids[i])
                if waiting and not _is_same(entry.clip, waiting):
                    raise self._changed(entry.clip, waiting)
                is_done = place >= 0 or waiting is not None
                yield entry, is_done, not is_done and self._failed.get(ids[i]) == contents[i]

    def _row_at(self, row: int) -> Row:
        path, number = self._inventory.place(row)
        for batch in read_part(self._storage, path, ["prompt", "negative_prompt", "seed"]):
            if number < len(batch):
                return dict(batch.slice(number, 1).to_pylist()[0])
            number -= len(batch)
        raise UserError(f"dataset {self._storage.url}: {path} has changed under this job's hands")

    def _changed(self, clip: Clip, row: Row) -> UserError:
        names = ("prompt", "negative_prompt", "seed")
        changes = [f"{n} {row.get(n)!r} → {getattr(clip, n)!r}" for n in names if row.get(n) != getattr(clip, n)]
        return UserError(
            f"dataset {self._storage.url}: clip {clip.id!r} is there from another row: {'; '.join(changes)}; "
            "give the row another id, or the job another --out"
        )


def look(
    url: str,
    entries: Iterable[Entry],
    *,
    origin: Origin,
    format: Format = "mp4",
    columns: Sequence[pa.Field] = (),
    retry_failed: bool = False,
    verify: bool = False,
) -> Survey:
    """What a job would find in the dataset at `url`, told without a lease and without writing anything.

    Raises:
        UserError: as `Dataset.open` and `Contents.survey` do, but for another writer.
    """
    check_columns(columns)
    storage = Storage.at(url)
    check_identity(storage, origin, format)
    inventory = take_inventory(storage)
    if verify:
        without_damaged(storage, inventory)
    landed = storage.map(lambda path: row_of_file(storage.read(path), origin.recipe_hash), inventory.without_row)
    return Contents(storage, inventory, [row for row in landed if row is not None]).survey(entries, retry_failed)


def _is_same(clip: Clip, row: Row) -> bool:
    return (clip.prompt, clip.negative_prompt, clip.seed) == (
        row["prompt"],
        row["negative_prompt"],
        row["seed"],
    )
