"""What a dataset holds already, compared with a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from show1_ray.clip import Clip
from show1_ray.dataset.endings import FAILED, REJECTED, read_endings
from show1_ray.dataset.identity import Format, check_identity
from show1_ray.dataset.lander import Origin, row_of_file
from show1_ray.dataset.layout import clip_path
from show1_ray.dataset.metadata import Row, check_columns, content_digest, id_digest, id_digests
from show1_ray.dataset.parts import read_rows
from show1_ray.dataset.shards import read_shard
from show1_ray.dataset.stock import Stock, take_stock
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError
from show1_ray.manifest import Entry

ENTRIES_AT_ONCE = 1024
SKIPPED = 100

State = Literal["done", "rejected", "failed", "left"]
"""How a manifest's clip stands; of what has happened to it, what comes first here."""


@dataclass(frozen=True)
class Survey:
    """How the clips of a manifest stand: there already, failed before (and skipped), rejected before, left to render.

    `others` and `other_failures` are clips of the dataset that are not the manifest's.
    """

    done: int
    failed: int
    left: int
    others: int = 0
    other_failures: int = 0
    skipped: tuple[str, ...] = ()
    """Ids of those that failed before, at most `SKIPPED`."""
    rejected: int = 0


class Contents:
    """The clips, failures and rejections of a dataset.

    Args:
        storage: of the dataset.
        recipe_hash: of the dataset.
        stock: what it holds.
        failures: what could not be rendered.
        rejections: what a stage did not let go on.
    """

    def __init__(
        self,
        storage: Storage,
        recipe_hash: str,
        stock: Stock,
        failures: Iterable[Mapping[str, Any]],
        rejections: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._storage = storage
        self._recipe_hash = recipe_hash
        self._stock = stock
        self._done = stock.inventory.done()
        self._failed, self._rejected = (
            {id_digest(one["id"]): content_digest(one["prompt"], one["negative_prompt"], one["seed"]) for one in rows}
            for rows in (failures, rejections)
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is no clip, no failure and no rejection."""
        return not (self._stock.count or self._failed or self._rejected)

    def survey(self, entries: Iterable[Entry], retry_failed: bool = False) -> Survey:
        """Compare a manifest with what is there.

        Raises UserError for a clip whose prompt, negative prompt or seed is not what it was rendered from.
        """
        counts = Counter[str]()
        ids: list[str] = []
        for entry, state in self._compare(entries):
            counts[state] += 1
            if state == "failed" and not retry_failed and len(ids) < SKIPPED:
                ids.append(entry.clip.id)
        skipped = 0 if retry_failed else counts["failed"]
        left = counts["left"] + counts["failed"] - skipped
        ended = [*self._failed, *self._rejected]
        rendered_since = int((self._done.find(ended) >= 0).sum()) if ended else 0
        others = self._stock.count - counts["done"]
        other_failures = max(0, len(ended) - rendered_since - counts["failed"] - counts["rejected"])
        return Survey(counts["done"], skipped, left, others, other_failures, tuple(ids), counts["rejected"])

    def missing(self, entries: Iterable[Entry], retry_failed: bool = False) -> Iterator[Entry]:
        """What is left to render, in order. Raises as `survey` does, but only when it gets there."""
        for entry, state in self._compare(entries):
            if state == "left" or (state == "failed" and retry_failed):
                yield entry

    def _compare(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, State]]:
        """Each entry, and how it stands."""
        entries = iter(entries)
        while block := list(islice(entries, ENTRIES_AT_ONCE)):
            ids = id_digests(entry.clip.id for entry in block)
            contents = [content_digest(e.clip.prompt, e.clip.negative_prompt, e.clip.seed) for e in block]
            rows = self._done.find(ids)
            same = self._done.has_contents(rows, contents).tolist()
            for i, (entry, row) in enumerate(zip(block, rows.tolist(), strict=True)):
                if row >= 0 and not same[i]:
                    raise self._changed(entry.clip, self._row_at(row))
                waiting = self._stock.waiting.get(ids[i])
                if waiting is not None and waiting != contents[i]:
                    raise self._changed(entry.clip, self._row_in_file(clip_path(entry.clip.id)))
                if row >= 0 or waiting is not None:
                    yield entry, "done"
                elif self._rejected.get(ids[i]) == contents[i]:
                    yield entry, "rejected"
                else:
                    yield entry, "failed" if self._failed.get(ids[i]) == contents[i] else "left"

    def _row_at(self, row: int) -> Row:
        path, number = self._stock.inventory.place(row)
        if path.endswith(".tar"):  # it has no row in the metadata yet
            return read_shard(self._storage, path, self._recipe_hash).rows[number]
        for batch in read_rows(self._storage, path, ["prompt", "negative_prompt", "seed"]):
            if number < len(batch):
                return dict(batch.slice(number, 1).to_pylist()[0])
            number -= len(batch)
        raise UserError(f"dataset {self._storage.url}: {path} has changed under this job's hands")

    def _row_in_file(self, path: str) -> Row:
        try:
            return row_of_file(self._storage.read(path), self._recipe_hash) or {}
        except FileNotFoundError:
            return {}

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
    stock = take_stock(storage, origin.recipe_hash, verify=verify)
    failures, rejections = (read_endings(storage, ending) for ending in (FAILED, REJECTED))
    return Contents(storage, origin.recipe_hash, stock, failures, rejections).survey(entries, retry_failed)
