"""Files of a dataset on any fsspec filesystem: each appears whole or not at all, and failures are tried again."""

from __future__ import annotations

import mimetypes
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from show1_ray.dataset.patience import Retries, patiently
from show1_ray.errors import UserError

A = TypeVar("A")
T = TypeVar("T")
TEMPORARY = ".tmp"
SIMULTANEOUS = 16  # object stores answer slowly, but many at once
DOWNLOAD = 256 * 2**20
"""Bytes that a file is taken to have that comes whole to this machine: a shard's. How long to wait depends on it."""
MEDIA_TYPE = {"s3": "ContentType", "gs": "content_type"}
"""How fsspec's filesystems take a file's media type, without which a browser saves a report instead of showing it."""


class StorageError(UserError):
    """Storage that does not take or give a file, however often it is asked: one line."""


@dataclass(frozen=True)
class Storage:
    """A folder at an fsspec URL. Paths are relative to it. Picklable; holds no open handles of its own.

    On local filesystems a file is written beside its place, flushed to disk, and renamed; elsewhere (object
    stores) it is one put, which those stores make visible only when it is complete.

    All methods raise StorageError when the retries are used up, or the store does not answer (see `patience`), or
    nothing can become of it; and FileNotFoundError at once.
    """

    url: str
    retries: Retries = field(default_factory=Retries)

    @classmethod
    def at(cls, url: str, retries: Retries | None = None) -> Storage:
        """The folder at `url`, which means the same in processes with another working directory."""
        storage = cls(url.rstrip("/") or "/", retries or Retries())
        return cls(storage._place[1], storage.retries) if storage.is_local else storage

    def map(self, action: Callable[[A], T], arguments: Iterable[A]) -> Iterator[T]:
        """Do many small things with the storage at the same time; results in the order of the arguments."""
        with ThreadPoolExecutor(SIMULTANEOUS) as threads:
            yield from threads.map(action, arguments)

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        try:
            fs, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{self.url}: cannot be opened: {' '.join(str(error).split())}") from error
        return fs, root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "retries": self.retries}

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's file tree."""
        return "file" in _protocols(self._place[0])

    def full(self, path: str) -> str:
        """The path that the filesystem knows."""
        return f"{self._place[1]}/{path}"

    def read(self, path: str) -> bytes:
        """The whole file."""
        return self._try("read", path, lambda fs, full: fs.cat_file(full))

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """The file on this machine: itself, or a copy that goes afterwards."""
        if self.is_local:
            yield Path(self.full(path))
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / PurePosixPath(path).name
            self._try("read", path, lambda fs, full: fs.get_file(full, str(local)), DOWNLOAD)
            yield local

    def write(self, path: str, data: bytes) -> None:
        """Put a file in its place, whole, over one that may be there."""
        if self.is_local:
            self._try("write", path, lambda _, full: _write_local(Path(full), data), len(data))
        else:
            self._try("write", path, lambda fs, full: fs.pipe_file(full, data, **_media_type(fs, path)), len(data))

    def upload(self, path: str, local: Path) -> None:
        """Put a file of this machine in its place, whole; large ones in parts where the store can."""
        size = local.stat().st_size
        if self.is_local:
            self._try("write", path, lambda _, full: _copy_local(local, Path(full)), size)
        else:
            self._try("write", path, lambda fs, full: fs.put_file(str(local), full), size)

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""

        def remove(fs: AbstractFileSystem, full: str) -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(full)

        self._try("delete", path, remove)

    def sizes(self, folder: str) -> dict[str, int]:
        """Name → bytes of the files right in a folder; nothing where there is no such folder."""
        return {PurePosixPath(name).name: int(size or 0) for name, kind, size in self._list(folder) if kind == "file"}

    def folders(self, folder: str) -> list[str]:
        """The names of the folders right in a folder, sorted."""
        return sorted(PurePosixPath(name.rstrip("/")).name for name, kind, _ in self._list(folder) if kind != "file")

    def clean(self, folders: list[str]) -> None:
        """Remove what interrupted writes have left in these folders."""
        for folder in folders if self.is_local else []:
            for name in self.sizes(folder):
                if name.startswith(".") and name.endswith(TEMPORARY):
                    self.delete(f"{folder}/{name}" if folder else name)

    def _list(self, folder: str) -> Iterator[tuple[str, str, int | None]]:
        def entries(fs: AbstractFileSystem, full: str) -> list[tuple[str, str, int | None]]:
            try:
                found = fs.ls(full.rstrip("/"), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            here = full.rstrip("/")
            return [(e["name"], e["type"], e["size"]) for e in found if e["name"].rstrip("/") != here]

        yield from self._try("list", folder, entries)

    def _try(self, verb: str, path: str, action: Callable[[AbstractFileSystem, str], T], size: int = 0) -> T:
        try:
            return patiently(lambda: action(self._place[0], self.full(path)), self.retries, self.url, size)
        except StorageError:
            raise
        except FileNotFoundError as error:
            if verb != "write":
                raise
            raise StorageError(f"cannot write {self.url}/{path}: no such place: {error}") from error
        except Exception as error:  # each store's client has exceptions of its own
            attempts = getattr(error, "attempts", 1)
            times = f" after {attempts} attempts" if attempts > 1 else ""
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(f"cannot {verb} {self.url}/{path}{times}: {reason}") from error


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _media_type(fs: AbstractFileSystem, path: str) -> dict[str, str]:
    kind = mimetypes.guess_type(path)[0]
    return {MEDIA_TYPE[protocol]: kind for protocol in _protocols(fs) if kind and protocol in MEDIA_TYPE}


def _write_local(path: Path, data: bytes) -> None:
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_local(source: Path, path: Path) -> None:
    temporary = _temporary(path)
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            while block := reader.read(1 << 24):
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{path.parent} is not a folder") from None
    return path.parent / f".{uuid.uuid4().hex}{TEMPORARY}"
