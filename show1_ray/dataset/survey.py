"""What a dataset holds already, compared with a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from show1_ray.clip import Clip
from show1_ray.dataset.endings import FAILED, REJECTED, read_endings
from show1_ray.dataset.identity import Format, check_identity
from show1_ray.dataset.lander import Origin, row_of_file
from show1_ray.dataset.layout import clip_path
from show1_ray.dataset.makings import Made, Makings
from show1_ray.dataset.metadata import Row, check_columns, id_digest, id_digests
from show1_ray.dataset.parts import NO_INPUTS, read_rows
from show1_ray.dataset.shards import read_shard
from show1_ray.dataset.stock import Stock, take_stock
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError
from show1_ray.manifest import Entry
from show1_ray.pipeline.columns import of_content
from show1_ray.pipeline.inputs import noted

ENTRIES_AT_ONCE = 1024
SKIPPED = 100

Sha256 = Callable[[Any], str | None]
"""What gives the SHA-256 of a file that a row names, or None where it is not at hand."""
State = Literal["done", "rejected", "failed", "left"]
"""The state of a manifest's clip: the first of these that applies."""


def not_at_hand(given: Any) -> None:
    """A `Sha256` that knows of no file."""


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
        makings: which columns tell what clips are made from.
        sha256: of a file that a row names, where it is at hand; None elsewhere.
    """

    def __init__(
        self,
        storage: Storage,
        recipe_hash: str,
        stock: Stock,
        failures: Iterable[Mapping[str, Any]],
        rejections: Iterable[Mapping[str, Any]] = (),
        makings: Makings = NO_INPUTS,
        sha256: Sha256 = not_at_hand,
    ) -> None:
        self._storage = storage
        self._recipe_hash = recipe_hash
        self._stock = stock
        self._done = stock.inventory.done()
        self._makings, self._sha256 = makings, sha256
        self._is_surveyed = False
        self._moved: set[bytes] = set()
        """Ids of clips that are done whose files lie elsewhere now, with the same content."""
        self._failed, self._rejected = (
            {id_digest(one["id"]): makings.of_ending(one) for one in rows} for rows in (failures, rejections)
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is no clip, no failure and no rejection."""
        return not (self._stock.count or self._failed or self._rejected)

    def survey(self, entries: Iterable[Entry], retry_failed: bool = False) -> Survey:
        """Compare a manifest with what is there.

        Raises UserError for a clip whose prompt, negative prompt, seed or inputs are not what it was rendered from. Of
        files at hand the content counts, of others what the row calls them.
        """
        counts = Counter[str]()
        ids: list[str] = []
        for entry, state in self._compare(entries):
            counts[state] += 1
            if state == "failed" and not retry_failed and len(ids) < SKIPPED:
                ids.append(entry.clip.id)
        self._is_surveyed = True
        skipped = 0 if retry_failed else counts["failed"]
        left = counts["left"] + counts["failed"] - skipped
        ended = [*self._failed, *self._rejected]
        rendered_since = int((self._done.find(ended) >= 0).sum()) if ended else 0
        others = self._stock.count - counts["done"]
        other_failures = max(0, len(ended) - rendered_since - counts["failed"] - counts["rejected"])
        return Survey(counts["done"], skipped, left, others, other_failures, tuple(ids), counts["rejected"])

    def missing(self, entries: Iterable[Entry], retry_failed: bool = False) -> Iterator[Entry]:
        """The clips left to render, in order. Raises as `survey` does, but only on reaching the fault."""
        for entry, state in self._compare(entries):
            if state == "left" or (state == "failed" and retry_failed):
                yield entry

    def _compare(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, State]]:
        """Each entry, and how it stands."""
        entries = iter(entries)
        while block := list(islice(entries, ENTRIES_AT_ONCE)):
            ids = id_digests(entry.clip.id for entry in block)
            rows = self._done.find(ids)
            made = self._made(block, ids, rows.tolist())
            same = self._done.are_made_from(rows, made).tolist()
            if self._makings.files and not self._is_surveyed:
                named = self._done.are_made_from(rows, [Made(one.told) for one in made]).tolist()
                self._moved |= {id for id, here, before in zip(ids, same, named, strict=True) if here and not before}
            for i, (entry, row) in enumerate(zip(block, rows.tolist(), strict=True)):
                if row >= 0 and not (same[i] or ids[i] in self._moved):
                    raise self._changed(entry.clip, self._row_at(row))
                waiting = self._stock.waiting.get(ids[i])
                if waiting is not None and ids[i] not in self._moved:
                    if not waiting.is_same(made[i]):
                        raise self._changed(entry.clip, self._row_in_file(clip_path(entry.clip.id)))
                    if waiting.told != made[i].told:
                        self._moved.add(ids[i])
                rejected, failed = self._rejected.get(ids[i]), self._failed.get(ids[i])
                if row >= 0 or waiting is not None:
                    yield entry, "done"
                elif rejected is not None and rejected.is_same(made[i]):
                    yield entry, "rejected"
                else:
                    yield entry, "failed" if failed is not None and failed.is_same(made[i]) else "left"

    def _made(self, entries: Sequence[Entry], ids: Sequence[bytes], rows: Sequence[int]) -> list[Made]:
        """What entries are made from. Files at hand are read of clips that are known, and of those that are done once:
        in the survey."""
        if not self._makings.files:
            return [self._makings.of_clip(entry.clip) for entry in entries]
        ended = {*self._rejected, *(() if self._is_surveyed else self._stock.waiting)}
        wanted = [id in ended or (row >= 0 and not self._is_surveyed) for id, row in zip(ids, rows, strict=True)]
        contents = self._storage.map(
            lambda one: self._contents_of(one[0].clip) if one[1] else {}, list(zip(entries, wanted, strict=True))
        )
        return [self._makings.of_clip(entry.clip, of) for entry, of in zip(entries, contents, strict=True)]

    def _contents_of(self, clip: Clip) -> dict[str, str | None]:
        return {name: self._sha256(clip.inputs[name]) for name in self._makings.files if name in clip.inputs}

    def _row_at(self, row: int) -> Row:
        path, number = self._stock.inventory.place(row)
        if path.endswith(".tar"):  # it has no row in the metadata yet
            return read_shard(self._storage, path, self._recipe_hash).rows[number]
        for batch in read_rows(self._storage, path, ["prompt", "negative_prompt", "seed", *self._makings.read]):
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
        columns = self._makings.columns
        before = {name: row.get(name) for name in ("prompt", "negative_prompt", "seed")}
        now = {name: getattr(clip, name) for name in before}
        before |= {name: row.get(column) for name, column in columns.items()}
        now |= {name: value for name, value in noted(clip.inputs).items() if name in columns}
        for name, sha256 in self._contents_of(clip).items():
            there = row.get(of_content(name))
            if before[name] == now[name] and sha256 and there and sha256 != there:
                before[name], now[name] = f"{before[name]} (sha256 {there})", f"{now[name]} (sha256 {sha256})"
        changes = [f"{n} {before[n]!r} → {now.get(n)!r}" for n in before if before[n] != now.get(n)]
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
    sha256: Sha256 = not_at_hand,
) -> Survey:
    """What a job would find in the dataset at `url`, told without a lease and without writing anything.

    Raises:
        UserError: as `Dataset.open` and `Contents.survey` do, but for another writer.
    """
    check_columns(columns)
    storage = Storage.at(url)
    check_identity(storage, origin, format)
    makings = Makings.of(origin.pipeline)
    stock = take_stock(storage, origin.recipe_hash, verify=verify, makings=makings)
    failures, rejections = (read_endings(storage, ending) for ending in (FAILED, REJECTED))
    contents = Contents(storage, origin.recipe_hash, stock, failures, rejections, makings, sha256)
    return contents.survey(entries, retry_failed)
