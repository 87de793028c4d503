"""Parts of the metadata: read once, many at a time; made fewer while a job writes more of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from show1_ray.dataset.layout import METADATA, METADATA_FILE, merged_part, shard_number
from show1_ray.dataset.makings import Makings
from show1_ray.dataset.metadata import content_digest, id_digests, to_parquet
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.errors import UserError, one_line
from show1_ray.manifest import all_rows

COLUMNS = ["id", "prompt", "negative_prompt", "seed", "bytes", "shard", "shard_bytes"]
CONTENTS = {"prompt", "negative_prompt", "seed"}
NO_INPUTS = Makings()
BROKEN = (pa.ArrowException, OSError, KeyError, UnicodeDecodeError)
"""What pyarrow raises for a file that is truncated, damaged or not Parquet."""
CONTENT = "S8"
"""How much of a content's digest is kept: it is compared only with that of the clip with the same id."""
ARRAYS = ("ids", "contents", "files", "sizes", "shards")
ROWS_AT_ONCE = 8192
IN_MEMORY = 4 * 2**20
"""Bytes of a file up to which it is read into memory, as many others are, not to this machine's disk."""
FAN = 64
"""Parts that become one, while a job writes them."""
SMALL_ROWS, MERGED_ROWS, MERGED_BYTES = 5_000, 20_000, 8 * 2**20
"""Rows of a part that is worth merging; rows or compressed bytes that are enough for a merged one."""
LEAST = 8
"""Fewer small parts than this are left as they are."""


@dataclass
class Part:
    """What is kept of a part: arrays of one entry a row, 36 bytes together.

    `ids` are digests; `contents` and `files` those of `Made`, the second one only where the pipeline takes files (8
    bytes more). `sizes` are the videos' bytes, `shards` the numbers of the shards (-1 where a clip is a file),
    `shard_sizes` their bytes as the rows say.
    """

    path: str
    ids: np.ndarray = field(default_factory=lambda: np.array([], "S16"))
    contents: np.ndarray = field(default_factory=lambda: np.array([], CONTENT))
    files: np.ndarray = field(default_factory=lambda: np.array([], CONTENT))
    sizes: np.ndarray = field(default_factory=lambda: np.array([], np.int64))
    shards: np.ndarray = field(default_factory=lambda: np.array([], np.int32))
    shard_sizes: dict[int, int] = field(default_factory=dict)
    schema: pa.Schema | None = None
    is_broken: bool = False
    """Whether its file is not whole."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def gathered(cls, parts: Sequence[Part]) -> Part:
        """All rows of parts, which become views of it: what they had goes, an array at a time."""
        whole = cls("", shard_sizes={number: size for part in parts for number, size in part.shard_sizes.items()})
        ends = np.cumsum([len(part) for part in parts]).tolist()
        for name in ARRAYS if parts else ():
            setattr(whole, name, np.concatenate([getattr(part, name) for part in parts]))
            for part, first, end in zip(parts, [0, *ends], ends, strict=False):
                setattr(part, name, getattr(whole, name)[first:end])
        if len(whole.files) != len(whole):  # there are none, or not of all: then what is told of them counts
            for part in (whole, *parts):
                part.files = whole.files[:0]
        return whole

    def view(self, whole: Part, first: int, end: int) -> None:
        """Have the rows that it has itself as a view of a whole's."""
        for name in ARRAYS:
            setattr(self, name, getattr(whole, name)[first:end])

    @classmethod
    def merged(cls, path: str, parts: Sequence[Part]) -> Part:
        """The part that takes the place of several which follow one another."""
        schemas = list({id(part.schema): part.schema for part in parts}.values())
        whole = cls.gathered(parts)
        whole.path = path
        if None not in schemas:
            with suppress(pa.ArrowException):
                whole.schema = pa.unify_schemas(schemas, promote_options="permissive")
        return whole


def sorted_rows(ids: np.ndarray) -> np.ndarray:
    """The numbers of rows, sorted by their ids' digests; those of one id in their order."""
    halves = ids.view(">u8").reshape(-1, 2)
    first = halves[:, 0].astype(np.uint64)
    order = np.argsort(first, kind="stable")
    for begin in range(0, len(order) - 1, ROWS_AT_ONCE):
        block = halves[order[begin : begin + ROWS_AT_ONCE + 1]]
        same = block[1:] == block[:-1]
        if (same[:, 0] & ~same[:, 1]).any():  # of two ids, one half is the same
            return np.lexsort((halves[:, 1].astype(np.uint64), first))
    return order


def last_of_ids(ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Of rows in the order of their ids: whether each is the last of its id. A block at a time: memory is flat."""
    last = np.ones(len(order), bool)
    for first in range(0, len(order) - 1, ROWS_AT_ONCE):
        block = ids[order[first : first + ROWS_AT_ONCE + 1]]
        last[first : first + len(block) - 1] = block[1:] != block[:-1]
    return last


def list_parts(storage: Storage, folder: str) -> dict[str, int]:
    """Path → bytes of the Parquet files of the metadata or the failures, oldest first."""
    found: dict[str, int] = {}
    if folder == METADATA:
        found = {name: size for name, size in storage.sizes("").items() if name == METADATA_FILE}
    names = sorted(storage.sizes(folder).items())
    return found | {f"{folder}/{n}": size for n, size in names if n.endswith(".parquet") and n[0] != "."}


def metadata_parts(storage: Storage) -> list[str]:
    """The metadata's Parquet files, oldest first."""
    return list(list_parts(storage, METADATA))


def read_part(storage: Storage, path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, in batches. Raises one of BROKEN if it is damaged."""
    with storage.local_copy(path) as local, pq.ParquetFile(local) as parquet:
        yield from all_rows(parquet, ROWS_AT_ONCE, columns, threads=False)


def read_rows(storage: Storage, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a part whose index has been read, in batches.

    Raises UserError where these are not whole after all, FileNotFoundError for a part that went.
    """
    try:
        for batch in read_part(storage, path, columns):
            batch.validate(full=True)
            yield batch
    except FileNotFoundError:
        raise
    except BROKEN as error:
        raise UserError(
            f"dataset {storage.url}: {path} is not whole ({one_line(error)}); "
            "remove it, and `render` makes it again from the clips"
        ) from None


def read_indexes(
    storage: Storage,
    paths: dict[str, int],
    contents: bool = True,
    merger: Merger | None = None,
    makings: Makings = NO_INPUTS,
) -> Iterator[tuple[str, Part | None]]:
    """Each part's index, in order; None for one that is not whole. `merger` is given what it can make fewer of.

    Sixteen are asked for at a time. With `contents` False the columns that a clip is made from are not read. Raises
    FileNotFoundError for a part that went since it was listed, as it does while a job makes fewer of them.
    """
    columns = [name for name in COLUMNS if contents or name not in CONTENTS]

    def load(path: str) -> tuple[str, bytes | None]:
        return path, storage.read(path) if paths[path] <= IN_MEMORY else None

    schema: pa.Schema | None = None
    for path, data in storage.map(load, paths, weigh=paths.__getitem__):
        try:
            if data is None:
                with storage.local_copy(path) as local:
                    part = index_of(path, local, columns, makings, schema)
            else:
                part = index_of(path, pa.BufferReader(data), columns, makings, schema)
        except FileNotFoundError:
            raise
        except BROKEN:
            yield path, None
            continue
        schema = part.schema
        if merger is not None:
            merger.pass_by(path, len(part), data)
        yield path, part


def index_of(
    path: str,
    file: object,
    columns: list[str] = COLUMNS,
    makings: Makings = NO_INPUTS,
    schema: pa.Schema | None = None,
) -> Part:
    """The index of a part from its file. Nearly all have the same `schema`, which is kept once.

    Raises one of BROKEN where it is not whole.
    """
    rows = _Rows(makings if "prompt" in columns else None)
    columns = [*columns, *(makings.read if "prompt" in columns else [])]
    with pq.ParquetFile(file) as parquet:
        found = parquet.schema_arrow.remove_metadata()
        _check_types(found)
        for batch in all_rows(parquet, ROWS_AT_ONCE, columns, threads=False):
            rows.add(batch)
    return rows.part(path, schema if schema is not None and found.equals(schema, check_metadata=True) else found)


def _check_types(schema: pa.Schema) -> None:
    """Raises KeyError for a table that is Parquet but no metadata."""
    texts, numbers = (pa.types.is_string, pa.types.is_large_string), (pa.types.is_integer,)
    wanted = {"id": texts, "prompt": texts, "negative_prompt": texts, "seed": numbers, "bytes": numbers}
    for name, kinds in wanted.items():
        if name not in schema.names:
            raise KeyError(name)
        kind = schema.field(name).type
        if not any(is_kind(kind) for is_kind in kinds) and not (name == "negative_prompt" and pa.types.is_null(kind)):
            raise KeyError(f"{name}: {kind}")


class _Rows:
    def __init__(self, makings: Makings | None) -> None:
        self._makings = makings
        self.ids, self.contents, self.files = bytearray(), bytearray(), bytearray()
        self.sizes: list[np.ndarray] = []
        self.shards: list[np.ndarray] = []
        self.shard_sizes: dict[int, int] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        if batch["id"].null_count or (self._makings is not None and batch["prompt"].null_count):
            raise KeyError("a row without id or prompt")
        self.ids += b"".join(id_digests(batch["id"].to_pylist()))
        if self._makings is not None and self._makings.columns:
            made = [self._makings.of_row(row) for row in batch.to_pylist()]
            self.contents += b"".join([one.told[:8] for one in made])
            if self._makings.files:
                self.files += b"".join([one.content[:8].ljust(8, b"\0") for one in made])
        elif self._makings is not None:
            values = [batch[name].to_pylist() for name in ("prompt", "negative_prompt", "seed")]
            self.contents += b"".join([key[:8] for key in map(content_digest, *values)])
        self.sizes.append(pc.fill_null(batch["bytes"], 0).to_numpy(zero_copy_only=False).astype(np.int64))
        self.shards.append(self._shards_of(batch))

    def _shards_of(self, batch: pa.RecordBatch) -> np.ndarray:
        if "shard" not in batch.schema.names or batch["shard"].null_count == len(batch):
            return np.full(len(batch), -1, np.int32)
        coded = pc.dictionary_encode(batch["shard"])
        numbers = [_number(name) for name in coded.dictionary.to_pylist()]
        codes = pc.fill_null(coded.indices, len(numbers)).to_numpy(zero_copy_only=False).astype(np.int64)
        shards = np.array([*numbers, -1], np.int32)[codes]
        sizes = pc.fill_null(batch["shard_bytes"], -1).to_numpy(zero_copy_only=False)
        # Of several rows of a shard, the last one's size counts.
        found, places = np.unique(shards[::-1], return_index=True)
        pairs = zip(found.tolist(), sizes[::-1][places].tolist(), strict=True)
        self.shard_sizes |= {number: size for number, size in pairs if number >= 0}
        return shards

    def part(self, path: str, schema: pa.Schema) -> Part:
        """Its index."""
        ids = np.frombuffer(bytes(self.ids), "S16")
        contents, files = (np.frombuffer(bytes(one), CONTENT) for one in (self.contents, self.files))
        contents = contents if self._makings is not None else np.zeros(len(ids), CONTENT)
        sizes = np.concatenate([np.array([], np.int64), *self.sizes])
        shards = np.concatenate([np.array([], np.int32), *self.shards])
        return Part(path, ids, contents, files, sizes, shards, self.shard_sizes, schema)


def _number(shard: str | None) -> int:
    number = None if shard is None else shard_number(PurePosixPath(shard).name)
    return -1 if number is None else number


class Merger:
    """Makes fewer parts of many, in place of them: `written` is told of each part that a job writes, `pass_by` of those
    that were there.

    A merged part is written before the parts go whose rows it has, and sorts where they did: whenever this is
    interrupted, each row is there, and of a clip's rows the last one stays the last. Parts whose columns do not go
    together are left as they are.

    Args:
        storage: of the dataset.
        act: runs an action that writes; after the ones before it.
        replaced: called with the parts that were merged, and with the new one.
    """

    def __init__(
        self,
        storage: Storage,
        act: Callable[[Callable[[], object]], None],
        replaced: Callable[[Sequence[str], str], None] = lambda old, new: None,
    ) -> None:
        self._storage = storage
        self._act = act
        self._replaced = replaced
        self._levels: list[list[tuple[str, int, bytes | None]]] = [[]]
        self._passing: list[tuple[str, bytes]] = []
        self._rows = 0

    def written(self, path: str, rows: int, data: bytes) -> None:
        """A part was written: every FAN of them become one, and every FAN of those, until it is no small one."""
        self._add(0, path, rows, data)

    def pass_by(self, path: str, rows: int, data: bytes | None) -> None:
        """A part was read, in order; small ones that follow one another become one. `data` None: it is no small one."""
        if data is None or rows >= SMALL_ROWS or path == METADATA_FILE:
            self.passed()
            return
        self._passing.append((path, data))
        self._rows += rows
        if self._rows >= MERGED_ROWS or sum(len(one) for _, one in self._passing) >= MERGED_BYTES:
            self.passed()

    def passed(self) -> None:
        """No more will pass by, or none that goes with those before."""
        parts, self._passing, self._rows = self._passing, [], 0
        if len(parts) >= LEAST:
            self._act(partial(self._merge, parts))

    def _add(self, level: int, path: str, rows: int, data: bytes | None) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append((path, rows, data))
        rows = sum(one[1] for one in self._levels[level])
        if len(self._levels[level]) < FAN and rows < MERGED_ROWS:
            return
        parts, self._levels[level] = self._levels[level], []
        merged = self._merge([(path, data) for path, _, data in parts]) if len(parts) > 1 else None
        if merged is not None and rows < MERGED_ROWS:
            self._add(level + 1, merged, rows, None)
        else:  # what waits there does not follow upon one another any more
            del self._levels[level + 1 :]

    def _merge(self, parts: Sequence[tuple[str, bytes | None]]) -> str | None:
        def load(part: tuple[str, bytes | None]) -> bytes:
            return self._storage.read(part[0]) if part[1] is None else part[1]

        paths = [path for path, _ in parts]
        try:
            tables = [_table(pa.BufferReader(data)) for data in self._storage.map(load, parts)]
            whole = pa.concat_tables(tables, promote_options="permissive")
        except (*BROKEN, FileNotFoundError):
            return None
        path, data = merged_part(paths[-1]), to_parquet(whole)
        del tables, whole
        pa.default_memory_pool().release_unused()
        self._storage.write(path, data)
        self._replaced(paths, path)
        self._storage.delete_many(paths)
        return path


def _table(file: pa.NativeFile) -> pa.Table:
    return pq.read_table(file, use_threads=False).replace_schema_metadata(None)


def read_all(storage: Storage, paths: Iterable[str], sizes: dict[str, int]) -> Iterator[pa.RecordBatch]:
    """All rows of parts, in order, in batches. Small parts are asked for sixteen at a time. Raises StorageError."""

    def load(path: str) -> tuple[str, bytes | None]:
        try:
            return path, storage.read(path) if sizes.get(path, 0) <= IN_MEMORY else None
        except FileNotFoundError:
            raise StorageError(
                f"cannot read {storage.url}/{path}: it has just disappeared; rerun the command"
            ) from None

    for path, data in storage.map(load, paths, weigh=lambda path: sizes.get(path, 0)):
        if data is None:
            yield from read_part(storage, path)
        else:
            with pq.ParquetFile(pa.BufferReader(data)) as parquet:
                yield from all_rows(parquet, ROWS_AT_ONCE, threads=False)
