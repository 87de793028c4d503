"""The dataset that a job writes: opened, resumed, added to, finished."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from show1_ray.clip import Clip
from show1_ray.dataset.background import Background
from show1_ray.dataset.card import dataset_card
from show1_ray.dataset.compaction import common_schema, compact_failures, compact_metadata
from show1_ray.dataset.identity import Format, check_identity, write_identity
from show1_ray.dataset.inventory import Inventory, take_inventory
from show1_ray.dataset.lander import Lander, Origin, row_of_file
from show1_ray.dataset.layout import CARD, CLIPS, FAILURES, METADATA, SHARDS, clip_path, new_part, shard_number
from show1_ray.dataset.lease import Lease, LeaseError, LeaseTimes
from show1_ray.dataset.metadata import FAILURES as FAILURE_SCHEMA
from show1_ray.dataset.metadata import Row, check_columns, to_parquet, to_table
from show1_ray.dataset.patience import Retries
from show1_ray.dataset.shards import read_shard, read_videos, write_shard
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.dataset.survey import Contents, Survey
from show1_ray.dataset.verify import find_damaged
from show1_ray.manifest import Entry


@dataclass(frozen=True)
class Settings:
    """How a dataset is written: when rows become a part, how large shards are, how often storage is asked."""

    part_rows: int = 1000
    part_seconds: float = 30
    shard_clips: int = 1000
    shard_bytes: int = 256 * 2**20
    retries: Retries = field(default_factory=Retries)
    lease: LeaseTimes = field(default_factory=LeaseTimes)


class Dataset:
    """A dataset that this process writes. Close it, or use it as a context manager.

    `record` and `record_failure` return at once; parts and shards are written by a thread, whose errors the
    next call raises.
    """

    def __init__(self, storage: Storage, lease: Lease, origin: Origin, format: Format, settings: Settings) -> None:
        """Use `Dataset.open`."""
        self._storage = storage
        self._lease = lease
        self._origin = origin
        self._format = format
        self._settings = settings
        self._columns: list[pa.Field] = []
        self._rows: list[Row] = []
        self._bytes = 0  # of these rows' videos
        self._failures: list[Row] = []
        self._flushed = time.monotonic()
        self._background = Background()
        self._next_shard = 0
        self._contents = Contents(storage)
        self._about: dict[str, Any] = {}

    @classmethod
    def open(
        cls,
        url: str,
        *,
        origin: Origin,
        format: Format = "mp4",
        columns: Sequence[pa.Field] = (),
        manifest: Mapping[str, Any] | None = None,
        job: str = "",
        verify: bool = False,
        settings: Settings | None = None,
    ) -> Self:
        """Begin a dataset at `url`, or continue the one that is there.

        Takes the lease, adopts clips that landed without a row, and drops rows whose clip is not there whole.

        Args:
            url: a folder, on any fsspec filesystem.
            origin: the pipeline.
            format: video files or WebDataset shards.
            columns: the manifest's other columns.
            manifest: what `status` should know of the manifest: `url`, `count`, `fingerprint`.
            job: the job's name, for whoever is refused meanwhile.
            verify: read all clips, and remove those whose checksum is not their row's; else sizes are compared.
            settings: when what is written.

        Raises:
            UserError: a column's name or type that metadata cannot have; a folder that holds something else;
                another recipe or format than the dataset's; another writer (LeaseError); StorageError.
        """
        check_columns(columns)
        settings = settings or Settings()
        storage = Storage.at(url, settings.retries)
        check_identity(storage, origin, format)
        lease = Lease(storage, job, settings.lease)
        dataset = cls(storage, lease, origin, format, settings)
        dataset._columns, dataset._about = list(columns), dict(manifest or {})
        try:
            check_identity(storage, origin, format)  # the one that had the lease may have begun it
            write_identity(storage, origin, format, dataset._about)
            dataset._recover(verify)
        except BaseException:
            dataset.abandon()
            raise
        return dataset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, (StorageError, LeaseError)):
            self.abandon()
        else:
            self.close()

    @property
    def lander(self) -> Lander:
        """What lands clips, wherever their frames are."""
        return Lander(self._storage, self._origin)

    def survey(self, entries: Iterable[Entry], retry_failed: bool = False) -> Survey:
        """Compare the manifest with what is there, and note what of that is not the manifest's, for `status`; for a
        new dataset use the manifest's own count. Raises as `Contents.survey` does.
        """
        survey = self._contents.survey(entries, retry_failed)
        self._about = self._about | {"others": survey.others, "other_failures": survey.other_failures}
        write_identity(self._storage, self._origin, self._format, self._about)
        return survey

    def missing(self, entries: Iterable[Entry], retry_failed: bool = False) -> Iterator[Entry]:
        """What was left to render when the dataset was opened; see `Contents.missing`."""
        return self._contents.missing(entries, retry_failed)

    @property
    def is_new(self) -> bool:
        """Whether nothing was there when it was opened: no clip, no failure."""
        return self._contents.is_empty

    def record(self, row: Row) -> None:
        """Take note of a clip that has landed: the row that the lander gave."""
        self._check()
        self._add(row)
        self._flush_if_due()

    def record_failure(self, clip: Clip, stage: str, attempts: int, error: str) -> None:
        """Take note of a clip that could not be rendered."""
        self._check()
        failure = {
            "id": clip.id,
            "prompt": clip.prompt,
            "negative_prompt": clip.negative_prompt,
            "seed": clip.seed,
        }
        failure |= {"stage": stage, "attempts": attempts, "error": error}
        self._failures.append(failure | {"failed": datetime.now(UTC).isoformat(timespec="milliseconds")})
        self._flush_if_due()

    def flush(self) -> None:
        """Write what is recorded. Rows of single clips stay with their files until these are a shard."""
        if self._format == "mp4":
            self._write_rows()
        if self._failures:
            failures, self._failures = self._failures, []
            table = to_table(failures, FAILURE_SCHEMA).select(FAILURE_SCHEMA.names)
            self._background.submit(self._storage.write, new_part(FAILURES), to_parquet(table))
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is recorded and give the lease back; the dataset can be continued."""
        try:
            self.flush()
            self._wait()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give the lease back without writing any more: clips that landed carry their rows."""
        self._background.stop()
        with suppress(StorageError):  # then the lease goes stale by itself
            self._lease.release()

    def finish(self) -> None:
        """Make one metadata file of all parts, one failures file, the last shard and the card; then close."""
        try:
            self.flush()
            self._write_rest()
            inventory = self._settle()  # also what tasks of an earlier, killed job have landed meanwhile
            if self._rows:
                self._write_rest()
                inventory = take_inventory(self._storage)
            compact_metadata(self._storage, inventory)
            failures = compact_failures(self._storage, inventory.done())
            card = dataset_card(self._origin, self._format, inventory.count, inventory.bytes, failures)
            self._storage.write(CARD, card.encode())
        finally:
            self.abandon()

    # Resuming

    def _recover(self, verify: bool) -> None:
        storage = self._storage
        clip_folders = [f"{CLIPS}/{name}" for name in storage.folders(CLIPS)]
        storage.clean(["", SHARDS, METADATA, FAILURES, *clip_folders])
        if verify:
            self._remove_damaged()
        inventory = self._settle()
        numbers = {shard_number(name) for name in storage.sizes(SHARDS)} | set(inventory.shard_sizes)
        self._next_shard = 1 + max((n for n in numbers if n is not None), default=-1)
        self._contents = Contents(storage, inventory, self._rows)

    def _remove_damaged(self) -> None:
        """Remove clips whose checksum is wrong. Of a shard that has one, the others become single files again."""
        damaged = find_damaged(self._storage, take_inventory(self._storage))
        for shard in {one.shard for one in damaged if one.shard is not None}:
            broken = {one.file_name for one in damaged if one.shard == shard}
            for name, data in read_videos(self._storage, shard):
                row = None if name in broken else row_of_file(data, self._origin.recipe_hash)
                if row is not None:
                    self._storage.write(clip_path(row["id"]), data)
            self._storage.delete(shard)
        for one in damaged:
            if one.shard is None:
                self._storage.delete(one.file_name)

    def _settle(self) -> Inventory:
        """Bring files and rows to agree: adopt what landed without a row, remove what is twice or broken."""
        storage = self._storage
        inventory = take_inventory(storage)
        common_schema(storage, inventory.parts, self._columns)
        if self._adopt_shards(inventory):
            inventory = take_inventory(storage)
        for path in inventory.leftovers:
            storage.delete(path)
        changed = self._adopt_clips(inventory) > 0 or bool(inventory.broken_parts)
        if self._format == "mp4":
            self._write_rows()
        self._wait()
        for path in inventory.broken_parts:  # only now that their clips have rows again
            storage.delete(path)
        return take_inventory(storage) if changed else inventory

    def _adopt_shards(self, inventory: Inventory) -> bool:
        """Write the rows of shards without; remove shards that are not whole. Whether anything changed."""
        for path in inventory.shards_without_row:
            rows = read_shard(self._storage, path, self._origin.recipe_hash)
            if not rows:
                self._storage.delete(path)
            else:
                self._storage.write(new_part(METADATA), to_parquet(to_table(rows, self._columns)))
        for path in inventory.broken_shards:
            self._storage.delete(path)
        return bool(inventory.shards_without_row or inventory.broken_shards)

    def _adopt_clips(self, inventory: Inventory) -> int:
        def row_at(path: str) -> Row | None:
            return row_of_file(self._storage.read(path), self._origin.recipe_hash)

        adopted = 0
        rows = self._storage.map(row_at, inventory.without_row)
        for path, row in zip(inventory.without_row, rows, strict=True):
            if row is not None and row["file_name"] == path:
                self._add(row)
                adopted += 1
            if self._format == "mp4" and len(self._rows) >= self._settings.part_rows:
                self._write_rows()
        return adopted

    # Writing

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += row["bytes"]

    def _check(self) -> None:
        self._lease.check()
        self._background.check()

    def _wait(self) -> None:
        self._background.wait()
        self._lease.check()

    def _flush_if_due(self) -> None:
        settings = self._settings
        if self._format == "webdataset":
            self._write_shards(rest=False)
        rows = len(self._failures) + (len(self._rows) if self._format == "mp4" else 0)
        if rows >= settings.part_rows or time.monotonic() - self._flushed >= settings.part_seconds:
            self.flush()

    def _write_rows(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        if rows:
            table = to_table(rows, self._columns)
            self._background.submit(self._storage.write, new_part(METADATA), to_parquet(table))

    def _write_rest(self) -> None:
        if self._format == "webdataset":
            self._write_shards(rest=True)
        else:
            self._write_rows()
        self._wait()

    def _write_shards(self, rest: bool) -> None:
        """Compact the clips that wait into full shards, and with `rest` what remains into a last one."""
        settings = self._settings
        while self._rows:
            if not (rest or len(self._rows) >= settings.shard_clips or self._bytes >= settings.shard_bytes):
                return
            take = size = 0
            while take < min(len(self._rows), settings.shard_clips) and size < settings.shard_bytes:
                size += self._rows[take]["bytes"]
                take += 1
            rows, self._rows, self._bytes = self._rows[:take], self._rows[take:], self._bytes - size
            self._background.submit(self._write_shard, self._next_shard, rows)
            self._next_shard += 1

    def _write_shard(self, number: int, rows: list[Row]) -> None:
        """Shard, then rows, then the single files go: whenever it is interrupted, each clip is whole."""
        self._lease.check()  # another writer would number its shards alike
        paths = [row["file_name"] for row in rows]
        there = write_shard(self._storage, number, paths, self._origin.recipe_hash)
        table = to_table(list(there.values()), self._columns)
        self._storage.write(new_part(METADATA), to_parquet(table))
        for path in there:
            self._storage.delete(path)
