"""WebDataset shards: tar files of `<key>.mp4` and `<key>.json`, compacted from landed clips."""

from __future__ import annotations

import filecmp
import io
import json
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from show1_ray.dataset.lander import row_of_file
from show1_ray.dataset.layout import shard_key, shard_path
from show1_ray.dataset.metadata import Row
from show1_ray.dataset.storage import Storage


@dataclass(frozen=True)
class Content:
    """What a shard holds: the rows of its clips that are this dataset's, how many other videos, whether it is whole."""

    rows: list[Row]
    others: int
    is_whole: bool

    @property
    def is_ours(self) -> bool:
        """Whether it can be kept as it is."""
        return self.is_whole and bool(self.rows)

    @property
    def is_foreign(self) -> bool:
        """Whether it is foreign."""
        return self.is_whole and not self.rows


def write_shard(storage: Storage, number: int, paths: Iterable[str], recipe_hash: str) -> dict[str, Row] | None:
    """Put landed clips into a new shard: their rows as they are there, by the paths of the single files; None where
    there is a shard of this number.

    Rows are taken from the files, which a late task of a killed job may have written again. A file that is not
    whole, or gone, is left out. The single files stay: they are for the caller to delete, once the rows are safe. The
    bytes of a shard are a function of its clips' files: members carry no time and no owner.

    Raises StorageError.
    """
    shard, rows = shard_path(number), dict[str, Row]()
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / PurePosixPath(shard).name
        with tarfile.open(local, "w", format=tarfile.PAX_FORMAT) as tar:
            for path, data in _files(storage, sorted(paths)):
                row = row_of_file(data, recipe_hash)
                if row is not None and row["file_name"] == path:
                    key = shard_key(row["id"])
                    rows[path] = row | {"file_name": f"{key}.mp4"}
                    _add(tar, f"{key}.mp4", data)
                    _add(tar, f"{key}.json", json.dumps(rows[path], ensure_ascii=False).encode())
        size = local.stat().st_size
        if rows and not storage.upload_new(shard, local) and not _is_same(storage, shard, local):
            return None
    return {path: row | {"shard": shard, "shard_bytes": size} for path, row in rows.items()}


def read_shard(storage: Storage, path: str, recipe_hash: str) -> Content:
    """What a shard holds, according to the rows in its videos."""
    rows, others = [], 0
    with storage.local_copy(path) as local, local.open("rb") as file:
        size = local.stat().st_size
        try:
            with tarfile.open(fileobj=file) as tar:
                for member in tar:
                    if member.name.endswith(".mp4"):
                        row = row_of_file(_content(tar, member), recipe_hash)
                        if row is None or member.name != f"{shard_key(row['id'])}.mp4":
                            others += 1
                        else:
                            rows.append(row | {"file_name": member.name, "shard": path, "shard_bytes": size})
        except tarfile.TarError:
            return Content(rows, others, False)
        return Content(rows, others, _ends(file, size))


def read_videos(storage: Storage, path: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of a shard's videos, as far as it can be read; none if it is gone."""
    with suppress(FileNotFoundError, tarfile.TarError), storage.local_copy(path) as local, tarfile.open(local) as tar:
        for member in tar:
            if member.name.endswith(".mp4"):
                yield member.name, _content(tar, member)


def _files(storage: Storage, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    def load(path: str) -> bytes | None:
        try:
            return storage.read(path)
        except FileNotFoundError:
            return None

    for path, data in zip(paths, storage.map(load, paths), strict=True):
        if data is not None:
            yield path, data


def _is_same(storage: Storage, path: str, local: Path) -> bool:
    """Whether a file is there already with this content: one whose answer was lost on its way."""
    with storage.local_copy(path) as there:
        return filecmp.cmp(there, local, shallow=False)


def _ends(file: IO[bytes], size: int) -> bool:
    """Whether a tar file has its end: two blocks of zeros (tarfile reads one that is cut between members as whole)."""
    if size < 2 * tarfile.BLOCKSIZE:
        return False
    file.seek(size - 2 * tarfile.BLOCKSIZE)
    return not any(file.read())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""
