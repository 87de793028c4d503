"""Where a dataset may lie: impossible places are refused at once, before anything is written."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from show1_ray.errors import UserError, escaped, printable, shown
from show1_ray.manifest.files import is_local, protocols

READ_ONLY = ("http", "https", "zip", "tar", "libarchive", "github", "git", "data", "reference", "jupyter")
"""Filesystems of fsspec that files can only be read from."""
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2", "b2", "tos", "obs", "hf")
"""Filesystems whose paths begin with an existing bucket (container, repository)."""
UNSHARED = ("memory:",)
"""Filesystems that end with the process."""
SHARED = "a folder or a URL that all processes of the job share"
GLOB = re.compile(r"[*?\[]")


def check_form(url: str, option: str = "--out") -> None:
    """Refuses what can be no folder of a dataset by its form alone: asks no storage.

    Raises UserError.
    """
    reason = _wrong_form(url)
    if reason:
        raise UserError(f"{option} {shown(url, 200)}: {reason}; give a folder, or a URL such as s3://bucket/clips")


def check_out(url: str, manifest: str) -> None:
    """Refuses where no dataset of a manifest can be written; writes nothing.

    Args:
        url: where the dataset is to be.
        manifest: its manifest, as for `open_manifest`.

    Raises:
        UserError: its form (`check_form`); a file, a link that leads nowhere, no permission; a repository that is not
            there; a process's memory; the manifest's own folder, one in it or around it.
    """
    check_form(url)
    try:
        fs, path = url_to_fs(url, use_listings_cache=False)
    except Exception as error:  # each filesystem has errors of its own
        raise UserError(f"--out {printable(url)}: cannot be opened: {' '.join(str(error).split())}") from None
    reason = _unusable_folder(Path(path)) if is_local(fs) else _unusable_bucket(fs, path)
    if reason:
        raise UserError(f"--out {printable(url)}: {reason}; give another folder")
    reason = _mixed_up(fs, path, manifest)
    if reason:
        raise UserError(f"--out {printable(url)}: {reason}: give a folder beside it")
    if url.startswith(UNSHARED):
        raise UserError(f"--out {printable(url)}: each process has a memory of its own: give {SHARED}")


def _wrong_form(url: str) -> str:
    """Why; "" where the form is right."""
    scheme, has_scheme, rest = url.partition("://")
    if not url.strip():
        return "is empty"
    if url != url.strip() or escaped(url, keep="") != url:
        return "begins or ends with blanks, or has characters that no name should have"
    if "::" in url:
        return "is a chain of filesystems"
    if GLOB.search(url.replace("[", "") if not has_scheme else url):
        return "is a pattern, or a URL with a query"
    if not has_scheme:
        if re.match(r"[a-z0-9+]+:/|[a-z0-9+]{2,}:$", url):
            return "is neither a path nor a URL"
        return "is the root of the file system" if _is_root(url) else _unknown_home(url)
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        return "is neither a path nor a URL"
    if scheme in READ_ONLY:
        return f"{scheme}:// can only be read"
    if "#" in rest:
        return "is a URL with a fragment"
    if re.match(r"[^/@]*:[^/@]*@", rest):
        return "has a password in it, which would be seen in reports and logs"
    if scheme in ("file", "local"):
        if not rest.startswith("/"):
            return f"{scheme}:// goes with a whole path, {scheme}:///…"
        return "is the root of the file system" if _is_root(rest) else ""
    if scheme in BUCKETS and not rest.strip("/").strip("."):
        return "names no bucket"
    if scheme in BUCKETS and rest.startswith("/"):
        return "names no bucket"
    return ""


def _is_root(path: str) -> bool:
    return os.path.normpath(path) in ("/", "//")


def _unknown_home(path: str) -> str:
    if not path.startswith("~"):
        return ""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return "is the home of nobody whom this machine knows"
    return ""


def _unusable_folder(path: Path) -> str:
    """Why no folder can be made there, or written to; "" where it can."""
    try:
        if path.is_symlink() and not path.exists():
            return "is a link that leads nowhere"
        real = path.resolve(strict=False)
        if _is_root(str(real)):
            return "is the root of the file system"
        place = next(one for one in (real, *real.parents) if os.path.lexists(one))
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; names that no file can have
        return f"cannot be a folder: {getattr(error, 'strerror', None) or error}"
    if not place.is_dir():
        return "is a file" if place == real else f"{place} is a file"
    longest = os.pathconf(place, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in real.parts):
        return "cannot be a folder: File name too long"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written to"


def _unusable_bucket(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """Why nothing can be written there; "" where that is not known before."""
    if "hf" not in protocols(fs):
        return ""
    try:
        fs.resolve_path(path)
    except Exception as error:
        return f"the hub has no such repository, or does not show it: {' '.join(str(error).split())}"
    return ""


def _mixed_up(fs: fsspec.AbstractFileSystem, path: str, manifest: str) -> str:
    """How a dataset and its manifest lie in one another; "" where they do not.

    What a job writes, tables too, must not be a part of the manifest that the next one reads, nor a manifest be in a
    dataset, where files come and go.
    """
    if "::" in manifest or manifest.strip().strip("/") in ("", "file:"):  # the manifest's own refusal says more
        return ""
    try:
        other, place = url_to_fs(manifest, use_listings_cache=False)
    except Exception:
        return ""
    if type(other) is not type(fs):
        return ""
    pattern = GLOB.search(place)
    if is_local(fs):
        path, place = os.path.realpath(path), place if pattern else os.path.realpath(place)
    out, source = PurePosixPath(path), PurePosixPath(place)
    if pattern and not _exists(fs, place):
        tables = (f"{path}/metadata.parquet", f"{path}/metadata/part.parquet", f"{path}/failures/part.parquet")
        matches = re.compile(glob_translate(place)).match
        return "the manifest's pattern would take the dataset's own tables" if any(map(matches, tables)) else ""
    if out == source:
        return "is the manifest"
    if out in source.parents:
        return "the manifest lies in it"
    if source in out.parents and not fs.isfile(place):
        return "lies in the manifest's folder, whose tables are all read"
    return ""


def _exists(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    try:
        return bool(fs.exists(path))
    except Exception:
        return False
