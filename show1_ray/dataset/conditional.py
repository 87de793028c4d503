"""Writes that happen only if nobody else has written meanwhile, as far as the filesystem can guarantee that.

Local filesystems: a hard link is made or refused; replacing and removing go under a lock on the file itself. S3 and
what speaks its language: If-None-Match and If-Match. Elsewhere creating is left to the filesystem's own "create", and
the other two compare before they write, which leaves a gap (`is_exact`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from show1_ray.manifest.files import is_local, protocols

TEMPORARY = ".tmp"
LOCK_SECONDS = 2.0
"""How long to wait for a file that is being changed right now."""
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}


@dataclass(frozen=True)
class Seen:
    """A file as it was read: `version` is the store's name for this content, where it has one."""

    data: bytes
    version: str | None = None


def is_exact(fs: AbstractFileSystem) -> bool:
    """Whether conditions are kept by the filesystem itself."""
    return is_local(fs) or _is_s3(fs)


def look(fs: AbstractFileSystem, full: str) -> Seen | None:
    """The current file; None if there is none."""
    try:
        if _is_s3(fs):
            return _seen(fs, full)
        return Seen(fs.cat_file(full))
    except FileNotFoundError:
        return None


def read(fs: AbstractFileSystem, full: str) -> bytes:
    """The whole file, in one request. (`cat_file` of s3fs asks for the size first.)"""
    return _seen(fs, full).data if _is_s3(fs) else fs.cat_file(full)


def create(fs: AbstractFileSystem, full: str, data: bytes) -> Seen | None:
    """Writes a file if there is none; returns None if there is one with other content."""
    if is_local(fs):
        written = create_local(Path(full), lambda path: write_synced(path, data))
        return Seen(data) if written or _holds(fs, full, data) else None
    if _is_s3(fs):
        with suppress(_UnsupportedError):
            return _put(fs, full, data, IfNoneMatch="*")
    try:
        fs.pipe_file(full, data, mode="create")
    except FileExistsError:
        return look(fs, full) if _holds(fs, full, data) else None
    return Seen(data)


def replace(fs: AbstractFileSystem, full: str, data: bytes, seen: Seen) -> Seen | None:
    """Write over what was seen; None where the file is another one by now, or gone."""
    if _is_s3(fs) and seen.version:
        with suppress(_UnsupportedError):
            return _put(fs, full, data, IfMatch=seen.version)
    with _locked(fs, full) as here:
        if here and _holds(fs, full, seen.data):
            if is_local(fs):
                write_local(Path(full), lambda path: write_synced(path, data))
            else:
                fs.pipe_file(full, data)
            return Seen(data)
    return look(fs, full) if _holds(fs, full, data) else None


def remove(fs: AbstractFileSystem, full: str, seen: Seen) -> bool:
    """Remove what was seen; False where the file is another one by now, or gone."""
    if _is_s3(fs) and seen.version:
        with suppress(_UnsupportedError):
            return _called(fs, "delete_object", full, IfMatch=seen.version) is not None
    with _locked(fs, full) as here:
        if not here or not _holds(fs, full, seen.data):
            return False
        fs.rm_file(full)
        return True


# Local files


def write_local(path: Path, fill: Callable[[Path], None]) -> None:
    """Put a file in its place, whole, over one that may be there: `fill` writes it under another name."""
    temporary = _temporary(path)
    try:
        fill(temporary)
        try:
            temporary.replace(path)
        except FileNotFoundError:  # whoever finished this dataset has cleaned up, or removed it: to be tried again
            raise OSError(errno.ESTALE, f"{temporary.name} was removed while it was written") from None
    finally:
        temporary.unlink(missing_ok=True)


def create_local(path: Path, fill: Callable[[Path], None]) -> bool:
    """Like `write_local`, but only if there is no such file; returns whether it was written."""
    temporary = _temporary(path)
    try:
        fill(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_without_links(path, temporary)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and have it on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_synced(source: Path, path: Path) -> None:
    """Copy a file and have it on the disk."""
    with source.open("rb") as reader, path.open("wb") as writer:
        while block := reader.read(1 << 24):
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())


def _create_without_links(path: Path, content: Path) -> bool:
    """On filesystems without hard links: the name is taken first, and the content follows."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    content.replace(path)
    return True


def _temporary(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{path.parent} is not a folder") from None
    return path.parent / f".{uuid.uuid4().hex}{TEMPORARY}"


@contextmanager
def _locked(fs: AbstractFileSystem, full: str) -> Iterator[bool]:
    """Nobody else changes the file meanwhile, where it is local; whether there is one that can be changed.

    A process that stops in here keeps the lock, and with it what it is about to replace.
    """
    if not is_local(fs):
        yield True
        return
    try:
        number = os.open(full, os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(number) and _is_still(full, number)
    finally:
        os.close(number)


def _lock(number: int) -> bool:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError:  # a filesystem without locks
            return True
        else:
            return True


def _is_still(full: str, number: int) -> bool:
    try:
        now, then = Path(full).stat(), os.fstat(number)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)


# S3


class _UnsupportedError(Exception):
    """The store, or its client, knows no conditions."""


def _seen(fs: Any, full: str) -> Seen:
    return cast(Seen, sync(fs.loop, _get, fs, full))


async def _get(fs: Any, full: str) -> Seen:
    bucket, key, _ = fs.split_path(full)
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        return Seen(await body.read(), answer.get("ETag"))


def _put(fs: Any, full: str, data: bytes, **conditions: str) -> Seen | None:
    answer = _called(fs, "put_object", full, Body=data, **conditions)
    if answer is not None:
        return Seen(data, answer.get("ETag"))
    # Refused. An answer that got lost on its way looks like that, too: then this very content is there.
    seen = look(fs, full)
    return seen if seen and seen.data == data else None


def _called(fs: Any, method: str, full: str, **arguments: Any) -> dict[str, Any] | None:
    """S3's answer; None if the condition does not hold. Raises _UnsupportedError."""
    bucket, key, _ = fs.split_path(full)
    try:
        return fs.call_s3(method, Bucket=bucket, Key=key, **arguments)
    except Exception as error:
        code = _code(error)
        if code == "PreconditionFailed" or (code == "NoSuchKey" and "IfMatch" in arguments):
            return None
        if code == "NotImplemented" or type(error).__name__ == "ParamValidationError":
            raise _UnsupportedError from error
        raise


def _code(error: BaseException | None) -> str:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def put_new_file(fs: AbstractFileSystem, full: str, local: Path) -> bool:
    """Upload a file of this machine where there is none of that name; whether it was so.

    On S3 it is one put, which takes 5 GB at most: uploads in parts drop the condition.
    """
    if is_local(fs):
        return create_local(Path(full), lambda path: copy_synced(local, path))
    if _is_s3(fs):
        with suppress(_UnsupportedError), local.open("rb") as file:
            return _called(fs, "put_object", full, Body=file, IfNoneMatch="*") is not None
    if fs.exists(full):
        return False
    fs.put_file(str(local), full)
    return True


def _holds(fs: AbstractFileSystem, full: str, data: bytes) -> bool:
    try:
        return read(fs, full) == data
    except FileNotFoundError:
        return False


def _is_s3(fs: AbstractFileSystem) -> bool:
    return "s3" in protocols(fs) and hasattr(fs, "call_s3")
