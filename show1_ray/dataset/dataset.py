"""The dataset that a job writes: opened, resumed, appended to, finished."""

from __future__ import annotations

import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from show1_ray.clip import Clip
from show1_ray.dataset.background import Background
from show1_ray.dataset.card import dataset_card
from show1_ray.dataset.compaction import common_schema, compact_metadata
from show1_ray.dataset.endings import FAILED, REJECTED, Ending, compact_endings, read_endings
from show1_ray.dataset.identity import Format, check_identity, write_identity
from show1_ray.dataset.inventory import Inventory
from show1_ray.dataset.lander import Lander, Origin
from show1_ray.dataset.layout import CARD, FAILURES, METADATA, REJECTIONS, new_part
from show1_ray.dataset.lease import Lease, LeaseError, LeaseTimes
from show1_ray.dataset.makings import Makings
from show1_ray.dataset.mending import clean, remove_damaged
from show1_ray.dataset.metadata import Row, check_columns, to_parquet, to_table
from show1_ray.dataset.parts import Merger, Part, index_of, list_parts
from show1_ray.dataset.patience import Retries
from show1_ray.dataset.shards import write_shard
from show1_ray.dataset.stock import Stock, take_stock
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.dataset.survey import Contents, Sha256, Survey, not_at_hand
from show1_ray.dataset.values import to_json
from show1_ray.errors import UserError, without_secrets
from show1_ray.manifest import Entry
from show1_ray.pipeline.inputs import noted

WAITING = 4
"""How many writes may wait for the current one."""


@dataclass(frozen=True)
class Settings:
    """How a dataset is written: when rows become a part, how large shards are, how often storage is retried."""

    part_rows: int = 1000
    part_seconds: float = 30
    shard_clips: int = 1000
    shard_bytes: int = 256 * 2**20
    retries: Retries = field(default_factory=Retries)
    lease: LeaseTimes = field(default_factory=LeaseTimes)


class Dataset:
    """A dataset that this process writes. Close it, or use it as a context manager.

    `record`, `record_failure` and `record_rejection` return at once; parts and shards are written by a thread, whose
    errors the next call raises.
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
        self._ended: dict[Ending, list[Row]] = {FAILED: [], REJECTED: []}
        self._flushed = time.monotonic()
        self._background = Background()
        self._next_shard = 0  # the background's
        self._stock = Stock(Inventory())
        self._makings = Makings.of(origin.pipeline)
        self._sha256: Sha256 = not_at_hand
        self._contents = Contents(storage, origin.recipe_hash, self._stock, [])
        self._about: dict[str, Any] = {}
        self._news: deque[Part | tuple[Sequence[str], str]] = deque()  # parts written, parts merged, in order
        self._at_first = self._rendered = self._not_rendered = 0  # clips
        self._mergers = {
            METADATA: Merger(storage, self._submit_slowly, lambda old, new: self._news.append((old, new))),
            FAILURES: Merger(storage, self._submit_slowly),
            REJECTIONS: Merger(storage, self._submit_slowly),
        }

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
        sha256: Sha256 = not_at_hand,
    ) -> Self:
        """Begins a dataset at `url`, or continues an existing one.

        Takes the lease, adopts clips that landed without a row, and drops rows without a complete clip.

        Args:
            url: a folder, on any fsspec filesystem.
            origin: the pipeline.
            format: video files or WebDataset shards.
            columns: the manifest's other columns.
            manifest: what `status` should know about the manifest: `url`, `count`, `fingerprint`.
            job: the job's name, shown to other jobs that are refused meanwhile.
            verify: read all clips and remove those with a wrong checksum; otherwise only sizes are compared.
            settings: when to write what.
            sha256: gives the SHA-256 of an image or video that a row names; None if it is not available.

        Raises:
            UserError: a column name or type that metadata cannot have; a folder that holds something else; a dataset
                with another recipe, format or writer (LeaseError); failing storage (StorageError).
        """
        check_columns(columns)
        settings = settings or Settings()
        storage = Storage.at(url, settings.retries)
        check_identity(storage, origin, format)
        lease = Lease(storage, job, settings.lease)
        dataset = cls(storage, lease, origin, format, settings)
        dataset._columns, dataset._about, dataset._sha256 = list(columns), dict(manifest or {}), sha256
        try:
            check_identity(
                storage, origin, format
            )  # again: the previous holder of the lease may have begun the dataset
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
        """Lands clips, on whichever node their frames are."""
        return Lander(self._storage, self._origin, self._lease.holder.token)

    def survey(self, entries: Iterable[Entry], retry_failed: bool = False) -> Survey:
        """Compare the manifest with what is there, and note what of that is not the manifest's, for `status`; for a
        new dataset use the manifest's own count. Raises as `Contents.survey` does.
        """
        survey = self._contents.survey(entries, retry_failed)
        self._lease.confirm()
        self._about = self._about | {"others": survey.others, "other_failures": survey.other_failures}
        write_identity(self._storage, self._origin, self._format, self._about)
        return survey

    def missing(self, entries: Iterable[Entry], retry_failed: bool = False) -> Iterator[Entry]:
        """What was left to render when the dataset was opened; see `Contents.missing`."""
        return self._contents.missing(entries, retry_failed)

    @property
    def is_new(self) -> bool:
        """Whether nothing was there when it was opened: no clip, no failure, no rejection."""
        return self._contents.is_empty

    def record(self, row: Row) -> None:
        """Take note of a clip that has landed: the row that the lander gave."""
        self._check()
        self._rendered += 1
        self._add(row)
        self._flush_if_due()

    def record_failure(self, clip: Clip, stage: str, attempts: int, error: str) -> None:
        """Take note of a clip that could not be rendered."""
        self._record_end(FAILED, clip, {"stage": stage, "attempts": attempts, "error": without_secrets(error)})

    def record_rejection(self, clip: Clip, stage: str, reason: str, values: Mapping[str, Any]) -> None:
        """Take note of a clip that a stage did not let go on, and of its plain values by the metadata's columns."""
        said = json.dumps({name: to_json(value) for name, value in values.items()}, ensure_ascii=False)
        self._record_end(REJECTED, clip, {"stage": stage, "reason": without_secrets(reason), "values": said})

    def _record_end(self, ending: Ending, clip: Clip, row: Row) -> None:
        self._check()
        self._not_rendered += 1
        names = ("id", "prompt", "negative_prompt", "seed")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        inputs = {"inputs": json.dumps(noted(clip.inputs), ensure_ascii=False)} if clip.inputs else {}
        self._ended[ending].append({name: getattr(clip, name) for name in names} | row | {ending.when: now} | inputs)
        self._flush_if_due()

    def flush(self) -> None:
        """Writes what is recorded. Rows of single clips stay with their files until these form a shard."""
        if self._format == "mp4":
            self._write_rows()
        for ending, rows in self._ended.items():
            if rows:
                self._submit(partial(self._write_part, ending.folder, ending.table(rows)))
                self._ended[ending] = []
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is recorded and releases the lease; the dataset can be continued."""
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
        """Make one metadata file of all parts, one failures file, the last shard and the card; then close.

        Raises:
            UserError: clips that had landed are gone; the dataset is in order and can be continued.
        """
        try:
            self.flush()
            self._write_rest()
            self._learn()
            expected = self._at_first + self._rendered
            if self._is_stale():
                self._settle()  # also what tasks of an earlier, killed job have landed meanwhile
                if self._rows:
                    self._write_rest()
                    self._settle()
            self._lease.confirm()
            inventory = self._stock.inventory
            compact_metadata(self._storage, inventory, self._columns)
            done = inventory.done()
            failures, rejections = (compact_endings(self._storage, ending, done) for ending in (FAILED, REJECTED))
            card = dataset_card(self._origin, self._format, inventory.count, inventory.bytes, failures, rejections)
            self._storage.write(CARD, card.encode())
            write_identity(self._storage, self._origin, self._format, self._about)  # somebody may have removed it
            clean(self._storage)
        finally:
            self.abandon()
        if inventory.count < expected:
            raise UserError(
                f"dataset {self._storage.url}: {expected - inventory.count} clips that had landed are gone; "
                "rerun the same command to render them again"
            )

    # Resuming

    def _recover(self, verify: bool) -> None:
        clean(self._storage)
        if verify:
            self._lease.confirm()
            remove_damaged(self._storage, self._origin.recipe_hash)
        self._settle()
        inventory = self._stock.inventory
        numbers = {*inventory.shards_there, *inventory.all.shard_sizes}
        self._next_shard = 1 + max(numbers, default=-1)
        self._at_first = self._stock.count
        failed, rejected = (read_endings(self._storage, one, self._mergers[one.folder]) for one in (FAILED, REJECTED))
        about = (self._storage, self._origin.recipe_hash, self._stock, failed, rejected)
        self._contents = Contents(*about, self._makings, self._sha256)

    def _settle(self) -> None:
        """Makes files and rows agree: adopts clips that landed without a row, removes duplicates and broken files."""
        storage = self._storage
        self._learn()
        self._stock = stock = take_stock(
            storage,
            self._origin.recipe_hash,
            merger=self._mergers[METADATA],
            known=self._stock.inventory.parts,
            adopt_shard=self._adopt_shard,
            adopt=self._adopt,
            makings=self._makings,
        )
        inventory = stock.inventory
        common_schema(storage, inventory.parts, self._columns)
        if self._format == "mp4":
            self._write_rows()
        self._wait()  # what is removed has rows elsewhere by now
        self._learn(backed=True)
        if self._format == "mp4":
            stock.waiting.clear()
        self._lease.confirm()
        storage.delete_many([*inventory.leftovers, *inventory.broken_shards, *inventory.broken_parts])

    def _learn(self, backed: bool = False) -> None:
        """Let the inventory have the parts that were written since; whether their rows count is known or not."""
        fresh: list[Part] = []
        while self._news:
            news = self._news.popleft()
            if isinstance(news, Part):
                fresh.append(news)
            else:
                self._stock.inventory.extend(fresh, backed)
                fresh = []
                self._stock.inventory.replace_parts(*news)
        self._stock.inventory.extend(fresh, backed)

    def _is_stale(self) -> bool:
        """Whether there may be other files by now than the inventory tells of. Nobody but this job, or tasks of the
        one before that was killed, has written any."""
        if self._rendered or self._not_rendered or self._stock.waiting or self._lease.took_over:
            return True
        return self._stock.inventory.paths != list(list_parts(self._storage, METADATA))

    def _adopt_shard(self, shard: str, rows: list[Row]) -> str:
        """Write the rows of a shard that has none."""
        self._lease.confirm()
        path = new_part(METADATA)
        self._storage.write(path, to_parquet(to_table(rows, self._columns)))
        return path

    def _adopt(self, row: Row) -> None:
        """Take a clip that landed without a row for one that was rendered."""
        self._add(row)
        if self._format == "mp4" and len(self._rows) >= self._settings.part_rows:
            self._write_rows()
            self._background.wait(down_to=WAITING)

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
        rows = sum(map(len, self._ended.values())) + (len(self._rows) if self._format == "mp4" else 0)
        if rows >= settings.part_rows or time.monotonic() - self._flushed >= settings.part_seconds:
            self.flush()

    def _submit(self, action: Callable[[], object]) -> None:
        """Let the thread do something that only the dataset's writer may do."""

        def act() -> None:
            self._lease.confirm()
            action()

        self._background.submit(act)

    def _submit_slowly(self, action: Callable[[], object]) -> None:
        """As `_submit`; few things wait, so that memory is flat. Not while the line runs, which may not be held up."""
        self._submit(action)
        self._background.wait(down_to=WAITING)

    def _write_rows(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        if rows:
            self._submit(partial(self._write_part, METADATA, to_table(rows, self._columns)))

    def _write_part(self, folder: str, table: pa.Table) -> None:
        path, data = new_part(folder), to_parquet(table)
        self._storage.write(path, data)
        if folder == METADATA:
            self._news.append(index_of(path, io.BytesIO(data), makings=self._makings))
        self._mergers[folder].written(path, len(table), data)

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
            self._submit(partial(self._write_shard, rows))

    def _write_shard(self, rows: list[Row]) -> None:
        """Shard, then rows, then the single files go: whenever it is interrupted, each clip is whole."""
        paths = [row["file_name"] for row in rows]
        there = None
        while there is None:  # a number may have been taken by a writer that was replaced while it wrote
            there = write_shard(self._storage, self._next_shard, paths, self._origin.recipe_hash)
            self._next_shard += 1
        if there:
            self._write_part(METADATA, to_table(list(there.values()), self._columns))
            self._lease.confirm()
            self._storage.delete_many(list(there))
