"""The dataset that a job writes: opened, resumed, added to, finished."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from show1_ray.clip import Clip
from show1_ray.dataset.card import dataset_card
from show1_ray.dataset.compaction import common_schema, compact_failures, compact_metadata, read_failures
from show1_ray.dataset.identity import Format, check_identity, write_identity
from show1_ray.dataset.inventory import Done, Inventory, read_part, take_inventory
from show1_ray.dataset.lander import Lander, Origin, row_of_file
from show1_ray.dataset.layout import CARD, CLIPS, FAILURES, METADATA, SHARDS, shard_number
from show1_ray.dataset.lease import Lease, LeaseTimes
from show1_ray.dataset.metadata import FAILURES as FAILURE_SCHEMA
from show1_ray.dataset.metadata import Row, check_columns, content_digest, id_digest, to_parquet, to_table
from show1_ray.dataset.shards import read_shard, write_shard
from show1_ray.dataset.storage import Retries, Storage
from show1_ray.errors import UserError
from show1_ray.manifest import Entry

ENTRIES_AT_ONCE = 1024


@dataclass(frozen=True)
class Settings:
    """How a dataset is written: when rows become a part, how large shards are, how often storage is asked."""

    part_rows: int = 1000
    part_seconds: float = 30
    shard_clips: int = 1000
    shard_bytes: int = 256 * 2**20
    retries: Retries = field(default_factory=Retries)
    lease: LeaseTimes = field(default_factory=LeaseTimes)


@dataclass(frozen=True)
class Survey:
    """How the clips of a manifest stand: there already, failed before (and skipped), left to render."""

    done: int
    failed: int
    left: int


class Dataset:
    """A dataset that this process writes. Close it, or use it as a context manager.

    `record` and `record_failure` return at once; parts and shards are written by a thread, whose errors the
    next call raises.
    """

    def __init__(
        self, storage: Storage, lease: Lease, origin: Origin, format: Format, settings: Settings
    ) -> None:
        """Use `Dataset.open`."""
        self._storage = storage
        self._lease = lease
        self._origin = origin
        self._format = format
        self._settings = settings
        self._columns: list[pa.Field] = []
        self._rows: list[Row] = []
        self._failures: list[Row] = []
        self._flushed = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="dataset writer")
        self._writes: list[Future[None]] = []
        self._next_shard = 0
        self._inventory = Inventory()
        self._done: Done = self._inventory.done()
        self._failed: dict[bytes, bytes] = {}

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
            settings: when what is written.

        Raises:
            UserError: a column's name or type that metadata cannot have; a folder that holds something else;
                another recipe or format than the dataset's; another writer (LeaseError); StorageError.
        """
        check_columns(columns)
        settings = settings or Settings()
        storage = Storage(url, settings.retries)
        check_identity(storage, origin, format)
        lease = Lease(storage, job, settings.lease)
        dataset = cls(storage, lease, origin, format, settings)
        dataset._columns = list(columns)
        try:
            check_identity(storage, origin, format)  # the one that had the lease may have begun it
            write_identity(storage, origin, format, manifest or {})
            dataset._recover()
        except BaseException:
            dataset.abandon()
            raise
        return dataset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    @property
    def lander(self) -> Lander:
        """What lands clips, wherever their frames are."""
        return Lander(self._storage, self._origin)

    def survey(self, entries: Iterable[Entry], retry_failed: bool = False) -> Survey:
        """Compare the manifest with what is there; for a new dataset use the manifest's own count.

        Raises UserError for a clip whose prompt, negative prompt or seed is not what it was rendered from.
        """
        done = failed = left = 0
        for _, is_done, has_failed in self._compare(entries):
            skipped = has_failed and not retry_failed
            done, failed, left = done + is_done, failed + skipped, left + (not is_done and not skipped)
        return Survey(done, failed, left)

    def missing(self, entries: Iterable[Entry], retry_failed: bool = False) -> Iterator[Entry]:
        """What is left to render, in order. Raises as `survey` does, which tells it before anything is
        rendered.
        """
        for entry, is_done, has_failed in self._compare(entries):
            if not is_done and (retry_failed or not has_failed):
                yield entry

    @property
    def is_new(self) -> bool:
        """Whether nothing was there when it was opened: no clip, no failure."""
        return not self._inventory.count and not self._failed and not self._rows

    def record(self, row: Row) -> None:
        """Take note of a clip that has landed: the row that the lander gave."""
        self._check()
        self._rows.append(row)
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
            self._write_rows(take=len(self._rows))
        if self._failures:
            failures, self._failures = self._failures, []
            table = to_table(failures, FAILURE_SCHEMA).select(FAILURE_SCHEMA.names)
            self._submit(self._storage.write, self._part(FAILURES), to_parquet(table))
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
        self._writer.shutdown(cancel_futures=True)
        self._lease.release()

    def finish(self) -> None:
        """Make one metadata file of all parts, one failures file, the last shard and the card; then close."""
        try:
            self.flush()
            if self._format == "webdataset":
                self._write_shards(all=True)
            self._wait()
            inventory = take_inventory(self._storage)
            compact_metadata(self._storage, inventory)
            failures = compact_failures(self._storage, inventory.done())
            card = dataset_card(self._origin, self._format, inventory.count, inventory.bytes, failures)
            self._storage.write(CARD, card.encode())
        finally:
            self.abandon()

    # Resuming

    def _recover(self) -> None:
        storage = self._storage
        clip_folders = [f"{CLIPS}/{name}" for name in storage.folders(CLIPS)]
        storage.clean(["", SHARDS, METADATA, FAILURES, *clip_folders])
        inventory = take_inventory(storage)
        self._next_shard = 1 + max(
            [
                -1,
                *(n for name in storage.sizes(SHARDS) if (n := shard_number(name)) is not None),
                *inventory.shard_sizes,
            ]
        )
        common_schema(storage, inventory.parts, self._columns)
        if self._adopt_shards(inventory):
            inventory = take_inventory(storage)
        for path in inventory.leftovers:
            storage.delete(path)
        adopted = self._adopt_clips(inventory)
        if self._format == "mp4" and adopted:
            self._write_rows(take=len(self._rows))
            self._wait()
        for path in inventory.broken_parts:  # only now that their clips have rows again
            storage.delete(path)
        if self._format == "mp4" and (adopted or inventory.broken_parts):
            inventory = take_inventory(storage)
        self._inventory, self._done = inventory, inventory.done()
        self._failed = {
            id_digest(f["id"]): content_digest(f["prompt"], f["negative_prompt"], f["seed"])
            for f in read_failures(storage)
        }

    def _adopt_shards(self, inventory: Inventory) -> bool:
        """Write the rows of shards that have none; remove shards that are not whole. Whether anything
        changed.
        """
        for path in inventory.shards_without_row:
            rows = read_shard(self._storage, path, self._origin.recipe_hash)
            if rows is None:
                self._storage.delete(path)
            else:
                self._storage.write(self._part(METADATA), to_parquet(to_table(rows, self._columns)))
        for path in inventory.broken_shards:
            self._storage.delete(path)
        return bool(inventory.shards_without_row or inventory.broken_shards)

    def _adopt_clips(self, inventory: Inventory) -> int:
        adopted = 0
        for path in inventory.without_row:
            row = row_of_file(self._storage.read(path), self._origin.recipe_hash)
            if row is not None and row["file_name"] == path:
                self._rows.append(row)
                adopted += 1
        return adopted

    def _compare(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool, bool]]:
        """Each entry, whether it is done, and whether it has failed."""
        pending = {id_digest(row["id"]): row for row in self._rows} if self._format == "webdataset" else {}
        entries = iter(entries)
        while block := list(islice(entries, ENTRIES_AT_ONCE)):
            ids = [id_digest(entry.clip.id) for entry in block]
            places = self._done.find(ids).tolist()
            for entry, digest, place in zip(block, ids, places, strict=True):
                clip = entry.clip
                content = content_digest(clip.prompt, clip.negative_prompt, clip.seed)
                if place >= 0 and self._done.contents[place] != content:
                    raise self._changed(clip, self._row_at(int(self._done.rows[place])))
                if digest in pending and not _is_same(clip, pending[digest]):
                    raise self._changed(clip, pending[digest])
                is_done = place >= 0 or digest in pending
                yield entry, is_done, not is_done and self._failed.get(digest) == content

    def _row_at(self, row: int) -> Row:
        path, number = self._inventory.place(row)
        for batch in read_part(self._storage, path, ["prompt", "negative_prompt", "seed"]):
            if number < len(batch):
                return dict(batch.slice(number, 1).to_pylist()[0])
            number -= len(batch)
        raise UserError(f"dataset {self._storage.url}: {path} has changed under this job's hands")

    def _changed(self, clip: Clip, row: Row) -> UserError:
        names = ("prompt", "negative_prompt", "seed")
        changes = [
            f"{n} {row.get(n)!r} → {getattr(clip, n)!r}" for n in names if row.get(n) != getattr(clip, n)
        ]
        return UserError(
            f"dataset {self._storage.url}: clip {clip.id!r} is there from another row: {'; '.join(changes)}; "
            "give the row another id, or the job another --out"
        )

    # Writing

    def _check(self) -> None:
        self._lease.check()
        while self._writes and self._writes[0].done():
            self._writes.pop(0).result()

    def _wait(self) -> None:
        while self._writes:
            self._writes.pop(0).result()
        self._lease.check()

    def _flush_if_due(self) -> None:
        settings = self._settings
        if self._format == "webdataset":
            self._write_shards(all=False)
        rows = len(self._failures) + (len(self._rows) if self._format == "mp4" else 0)
        if rows >= settings.part_rows or time.monotonic() - self._flushed >= settings.part_seconds:
            self.flush()

    def _write_rows(self, take: int) -> None:
        rows, self._rows = self._rows[:take], self._rows[take:]
        if rows:
            table = to_table(rows, self._columns)
            self._submit(self._storage.write, self._part(METADATA), to_parquet(table))

    def _write_shards(self, all: bool) -> None:
        settings = self._settings
        take = size = 0
        while take < len(self._rows) and take < settings.shard_clips and size < settings.shard_bytes:
            size += self._rows[take]["bytes"]
            take += 1
        full = take == settings.shard_clips or size >= settings.shard_bytes
        if take and (full or all):
            rows, self._rows = self._rows[:take], self._rows[take:]
            self._submit(self._write_shard, self._next_shard, rows)
            self._next_shard += 1
            self._write_shards(all)

    def _write_shard(self, number: int, rows: list[Row]) -> None:
        """Shard, then rows, then the single files go: whenever it is interrupted, each clip is whole."""
        there = write_shard(self._storage, number, rows)
        self._storage.write(self._part(METADATA), to_parquet(to_table(there, self._columns)))
        for row in rows:
            self._storage.delete(row["file_name"])

    def _submit(self, action: Any, *args: Any) -> None:
        self._writes.append(self._writer.submit(action, *args))

    def _part(self, folder: str) -> str:
        """A new part's path; names sort by time."""
        return f"{folder}/part-{time.time_ns():020}-{uuid.uuid4().hex[:8]}.parquet"


def _is_same(clip: Clip, row: Row) -> bool:
    return (clip.prompt, clip.negative_prompt, clip.seed) == (
        row["prompt"],
        row["negative_prompt"],
        row["seed"],
    )
