"""Files of a dataset on any fsspec filesystem: each appears whole or not at all, and failures are tried again."""

from __future__ import annotations

import mimetypes
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from show1_ray.dataset import conditional, s3_listing
from show1_ray.dataset.conditional import TEMPORARY, Seen, copy_synced, write_local, write_synced
from show1_ray.dataset.patience import Retries, patiently
from show1_ray.errors import UserError, one_line
from show1_ray.manifest.files import is_local, protocols

A = TypeVar("A")
T = TypeVar("T")
SIMULTANEOUS = 16  # object stores answer slowly, but many at once
DOWNLOAD = 256 * 2**20
"""Bytes that a file is taken to have that comes whole to this machine: a shard's. How long to wait depends on it."""
AHEAD = 8 * 2**20
"""Bytes that are read before they are asked for."""
PIECE = 8 * 2**20
"""Bytes of a file that are uploaded together."""
DELETED_AT_ONCE = 1000  # what S3 takes in a request
OF_VOLUMES = ("lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir")
MEDIA_TYPE = {"s3": "ContentType", "gs": "content_type"}
"""How fsspec's filesystems take a file's media type, without which a browser saves a report instead of showing it."""


class StorageError(UserError):
    """Storage that still fails after all retries: one line."""


def is_of_volume(name: str) -> bool:
    """Whether a folder is what file systems keep at their roots, and everywhere: lost+found, .snapshot, .Trash-0."""
    return name.startswith(".") or name in OF_VOLUMES


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
        """The folder at `url`, which means the same in processes with another working directory.

        Raises StorageError: a URL that names none.
        """
        if not url.strip():
            raise StorageError("a dataset's folder or URL is empty")
        storage = cls(url.rstrip("/") or "/", retries or Retries())
        return cls(storage._place[1], storage.retries) if storage.is_local else storage

    def map(
        self,
        action: Callable[[A], T],
        arguments: Iterable[A],
        *,
        waiting: int = 4 * SIMULTANEOUS,
        weigh: Callable[[A], int] = lambda one: 0,
    ) -> Iterator[T]:
        """Do many small things with the storage at the same time; results in the order of the arguments.

        At most so many are begun and not asked for (`waiting`), of some 8 MB (`weigh`): memory is flat in their number.
        """
        with ThreadPoolExecutor(SIMULTANEOUS) as threads:
            begun: deque[tuple[Future[T], int]] = deque()
            held = 0
            try:
                for argument in arguments:
                    begun.append((threads.submit(action, argument), weigh(argument)))
                    held += begun[-1][1]
                    while begun and (len(begun) >= waiting or held >= AHEAD):
                        one, weight = begun.popleft()
                        held -= weight
                        yield one.result()
                while begun:
                    yield begun.popleft()[0].result()
            finally:
                for one, _ in begun:
                    one.cancel()

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        try:
            fs, root = url_to_fs(self.url, use_listings_cache=False)
        except Exception as error:  # each filesystem of fsspec has errors of its own
            raise StorageError(f"{self.url}: cannot be opened: {one_line(error)}") from error
        return fs, root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "retries": self.retries}

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's file tree."""
        return is_local(self._place[0])

    @property
    def is_exact(self) -> bool:
        """Whether `create`, `replace` and `remove` keep their conditions whatever others do at the same time."""
        return conditional.is_exact(self._place[0])

    def full(self, path: str) -> str:
        """The path that the filesystem knows."""
        return f"{self._place[1]}/{path}"

    def read(self, path: str) -> bytes:
        """The whole file."""
        return self._try("read", path, conditional.read)

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """The file on this machine: itself, or a temporary copy."""
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
            self._try(
                "write", path, lambda _, full: write_local(Path(full), lambda to: write_synced(to, data)), len(data)
            )
        else:
            self._try("write", path, lambda fs, full: fs.pipe_file(full, data, **_media_type(fs, path)), len(data))

    def upload(self, path: str, local: Path) -> None:
        """Put a file of this machine in its place, whole; large ones in parts where the store can."""
        size = local.stat().st_size
        if self.is_local:
            self._try("write", path, lambda _, full: write_local(Path(full), lambda to: copy_synced(local, to)), size)
        else:
            self._try("write", path, lambda fs, full: fs.put_file(str(local), full, **_piecewise(fs)), size)

    def upload_new(self, path: str, local: Path) -> bool:
        """Like `upload`, but only if there is no such file; returns whether it was written."""
        return self._try(
            "write", path, lambda fs, full: conditional.put_new_file(fs, full, local), local.stat().st_size
        )

    def look(self, path: str) -> Seen | None:
        """The current file, for `replace` and `remove`; None if there is none."""
        return self._try("read", path, conditional.look)

    def create(self, path: str, data: bytes) -> Seen | None:
        """Writes a small file if there is none; returns None if there is one."""
        return self._try("write", path, lambda fs, full: conditional.create(fs, full, data))

    def replace(self, path: str, data: bytes, seen: Seen) -> Seen | None:
        """Replaces the file that was seen; returns None if it has changed or gone."""
        return self._try("write", path, lambda fs, full: conditional.replace(fs, full, data, seen))

    def remove(self, path: str, seen: Seen) -> bool:
        """Deletes the file that was seen; returns False if it has changed or gone."""
        return self._try("delete", path, lambda fs, full: conditional.remove(fs, full, seen))

    def delete_many(self, paths: Sequence[str]) -> None:
        """Remove files that are there: on S3 a thousand in a request, elsewhere many at the same time."""
        if not hasattr(self._place[0], "call_s3"):
            for _ in self.map(self.delete, paths):
                pass
            return
        blocks = [paths[first : first + DELETED_AT_ONCE] for first in range(0, len(paths), DELETED_AT_ONCE)]
        for _ in self.map(self._delete_block, blocks):
            pass

    def _delete_block(self, paths: Sequence[str]) -> None:
        def remove(fs: Any, _: str) -> None:
            places = [fs.split_path(self.full(path)) for path in paths]
            keys = {"Objects": [{"Key": key} for _, key, _ in places], "Quiet": True}
            answer = fs.call_s3("delete_objects", Bucket=places[0][0], Delete=keys)
            if errors := answer.get("Errors"):  # s3fs' own rm says nothing of them
                raise OSError(f"{errors[0].get('Key')}: {errors[0].get('Message') or errors[0].get('Code')}")

        if paths:
            self._try("delete", paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more", remove)

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""

        def remove(fs: AbstractFileSystem, full: str) -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(full)

        self._try("delete", path, remove)

    def listing(self, folder: str) -> tuple[dict[str, int], list[str]]:
        """Name → bytes of the files right in a folder, and the names of the folders there, sorted, but for the volume's
        (`is_of_volume`); nothing where there is no such folder."""

        def entries(fs: AbstractFileSystem, full: str) -> tuple[dict[str, int], list[str]]:
            here = full.rstrip("/")
            try:
                if s3_listing.can_list(fs):
                    files, folders = s3_listing.list_folder(fs, here)
                    return files, [name for name in folders if not is_of_volume(name)]
                found = [one for one in fs.ls(here, detail=True) if one["name"].rstrip("/") != here]
            except (FileNotFoundError, NotADirectoryError):
                return {}, []
            names = [(PurePosixPath(one["name"].rstrip("/")).name, one["type"], one["size"]) for one in found]
            files = {name: int(size or 0) for name, kind, size in names if kind == "file"}
            return files, [name for name, kind, _ in names if kind != "file" and not is_of_volume(name)]

        files, folders = self._try("list", folder, entries)
        return files, sorted(folders)

    def sizes(self, folder: str) -> dict[str, int]:
        """Name → bytes of the files directly in a folder; empty if there is no such folder."""
        return self.listing(folder)[0]

    def folders(self, folder: str) -> list[str]:
        """The names of the folders right in a folder, sorted."""
        return self.listing(folder)[1]

    def tree(self, folder: str) -> Iterator[dict[str, int]]:
        """`<name of a folder in it>/<name>` → bytes of the files right in a folder's folders, some at a time."""
        names = self.folders(folder)
        if s3_listing.can_list(self._place[0]):
            # Pages go across folders: what begins alike is listed together, and as many beginnings at the same time.
            yield from self._pages(folder, sorted({name[0] for name in names}))
            return
        waiting = 1 if self.is_local else SIMULTANEOUS
        listings = self.map(lambda name: self.sizes(f"{folder}/{name}"), names, waiting=waiting)
        for name, listing in zip(names, listings, strict=True):
            yield {f"{name}/{file}": size for file, size in listing.items()}

    def _pages(self, folder: str, beginnings: Sequence[str]) -> Iterator[dict[str, int]]:
        def page(beginning: str, token: str | None) -> s3_listing.Page:
            def ask(fs: AbstractFileSystem, full: str) -> s3_listing.Page:
                try:
                    return s3_listing.list_page(fs, full, beginning, token)
                except FileNotFoundError:
                    return s3_listing.Page()

            return self._try("list", folder, ask)

        with ThreadPoolExecutor(SIMULTANEOUS) as threads:
            asked = deque((one, threads.submit(page, one, None)) for one in beginnings)
            try:
                while asked:
                    beginning, answer = asked.popleft()
                    found = answer.result()
                    if found.token is not None:
                        asked.append((beginning, threads.submit(page, beginning, found.token)))
                    yield {name: size for name, size in found.files.items() if name.count("/") == 1}
            finally:
                for _, answer in asked:
                    answer.cancel()

    def clean(self, folders: Iterable[str]) -> None:
        """Remove what interrupted writes have left in these folders; object stores have no such thing."""
        for folder in folders if self.is_local else []:
            for name in self.sizes(folder):
                if name.startswith(".") and name.endswith(TEMPORARY):
                    self.delete(f"{folder}/{name}" if folder else name)

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


def _media_type(fs: AbstractFileSystem, path: str) -> dict[str, str]:
    kind = mimetypes.guess_type(path)[0]
    return {MEDIA_TYPE[protocol]: kind for protocol in protocols(fs) if kind and protocol in MEDIA_TYPE}


def _piecewise(fs: AbstractFileSystem) -> dict[str, Any]:
    """Keeps s3fs from reading files of a hundred megabytes whole, and ten pieces of 50 MB of larger ones."""
    return {"chunksize": PIECE, "max_concurrency": 2} if "s3" in protocols(fs) else {}
