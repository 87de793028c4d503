"""Which files a manifest's URL names: one, those of a folder or of a pattern; and what their paths tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from show1_ray.errors import one_line, shown
from show1_ray.manifest.files import KINDS, TABLES, format_of, is_local, name_in, why_not
from show1_ray.manifest.table import Table, UnreadableError
from show1_ray.manifest.types import INTEGER

MOST_FILES = 100_000
DATASET = "dataset.json"  # of the folder of a dataset, whose tables are no manifest
FORMATS_OF_FOLDERS = {
    "_delta_log": "a Delta table",
    ".hoodie": "a Hudi table",
    "_versions": "a Lance dataset",
}
"""Entries of folders in which the files alone do not tell which rows count."""
EXPORT = "export its rows to Parquet with what reads such tables, and give that"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
GLOB = re.compile(r"[*?\[]")
ABOUT = re.compile(r"(readme|licen[cs]e|notice|copying|changelog|requirements)\b.*", re.IGNORECASE)
"""Texts that are about a folder, and no prompts."""


@dataclass(frozen=True)
class Found:
    """The tables of a manifest, and what of a folder is none, for people."""

    tables: list[Table]
    notes: list[str] = field(default_factory=list)


def find_tables(url: str) -> Found:
    """The files that a URL names: one file, those of a folder (by their suffix), or those that a glob matches, sorted.

    Raises UnreadableError.
    """
    if not url.strip() or url.strip("/") in ("", "file:"):
        raise UnreadableError(f"{shown(url)}: give a file, a folder or a glob")
    try:
        fs, path = url_to_fs(url)
        found = None if _is_file(fs, path, url) else _found(fs, path)
    except Exception as error:  # each filesystem of fsspec has errors of its own, and so has each way to name nothing
        raise UnreadableError(f"{url}: cannot be opened: {one_line(error)}") from error
    if found is None:
        return Found(_tables([(url, name_in(url))]))
    _refuse_others(url, found)
    paths = [one for one in found if not _hidden(one.removeprefix(path))]
    known = [one for one in paths if format_of(one) and not _is_about(one)]
    if not known:
        raise UnreadableError(f"{url}: no such file, nor a folder or glob with {KINDS} files")
    if len(known) > MOST_FILES:
        raise UnreadableError(f"{url}: {len(known)} files; {MOST_FILES} are the most: put them together")
    kept, notes = (known, []) if GLOB.search(path) and not fs.isdir(path) else _rows_of_folder(known)
    return Found(_tables([(_url(fs, url, one), one) for one in sorted(kept)]), notes)


def partitions_of(path: str) -> list[tuple[str, str | None]]:
    """The columns that a path's folders give, as in …/lang=en/year=2024/part-0.parquet: those next to the file."""
    found: list[tuple[str, str | None]] = []
    for part in reversed(PurePosixPath(path).parts[:-1]):
        name, equals, value = part.partition("=")
        if not (name and equals):
            break
        found.append((unquote(name), None if value == NO_VALUE else unquote(value)))
    return found[::-1]


def _is_file(fs: AbstractFileSystem, path: str, url: str) -> bool:
    """Whether a URL names one file. What HTTP gives is one: a server that signs URLs may refuse to be asked else."""
    return url.startswith(("http://", "https://")) or bool(fs.isfile(path))


def _found(fs: AbstractFileSystem, path: str) -> list[str]:
    """The files in a folder, or those that a glob matches."""
    if fs.isdir(path):
        return list(fs.find(path))
    return [one for one in fs.glob(path) if fs.isfile(one)] if GLOB.search(path) else []


def _refuse_others(url: str, paths: Sequence[str]) -> None:
    """Raises UnreadableError for folders whose files are no manifest, or not all of them."""
    for path in paths:
        *folders, name = path.split("/")
        if name == DATASET:
            raise UnreadableError(f"{url}: {path} is of a dataset; give its metadata.parquet, or a folder without it")
        what = next((FORMATS_OF_FOLDERS[one] for one in folders if one in FORMATS_OF_FOLDERS), None)
        if what is None and folders[-1:] == ["metadata"] and name.endswith(".metadata.json"):
            what = "an Iceberg table"
        if what is not None:
            raise UnreadableError(f"{url}: {path} is of {what}, not all of whose files may count: {EXPORT}")


def _rows_of_folder(paths: list[str]) -> tuple[list[str], list[str]]:
    """Of a folder's files those that are rows: all tables; where there is none, .json, and without these .txt. And
    which others are left out, a line for people.
    """
    formats = {one: format_of(one) for one in paths}
    wanted = next(one for one in (TABLES, ("json",), ("txt",)) if any(kind in one for kind in formats.values()))
    kept = [one for one, kind in formats.items() if kind in wanted]
    left = [PurePosixPath(one).name for one, kind in formats.items() if kind not in wanted]
    more = f" and {len(left) - 3:,} more" if len(left) > 3 else ""
    return kept, [f"left out, beside files of tables: {', '.join(left[:3])}{more}"] if left else []


def _url(fs: AbstractFileSystem, url: str, path: str) -> str:
    """A file of a filesystem as a URL."""
    if "::" in url:  # what is in an archive, or behind a cache
        parts = url.split("::")
        place = next(i for i, part in enumerate(parts) if "://" in part or i == len(parts) - 1)
        scheme, is_url, _ = parts[place].partition("://")
        parts[place] = f"{scheme}://{path}" if is_url else path
        return "::".join(parts)
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def _is_about(path: str) -> bool:
    return format_of(path) == "txt" and ABOUT.fullmatch(PurePosixPath(path).name) is not None


def _tables(files: Iterable[tuple[str, str]]) -> list[Table]:
    """Tables of URLs and their paths. A column of paths has integers where all its values are."""
    given = [(url, partitions_of(path)) for url, path in files]
    texts = {
        name for _, columns in given for name, value in columns if value is not None and not INTEGER.fullmatch(value)
    }
    tables = []
    for url, columns in given:
        kind = format_of(url)
        if kind is None:
            raise UnreadableError(f"{url}: {why_not(url)}")
        typed = [(name, value if name in texts or value is None else int(value)) for name, value in columns]
        tables.append(Table(url, kind, tuple(typed)))
    return tables


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(path).parts)
