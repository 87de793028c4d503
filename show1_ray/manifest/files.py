"""Files of rows: which format a name tells, and how their bytes and text are read, packed or not."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, TextIO

import fsspec
import pyarrow as pa
from fsspec import AbstractFileSystem

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "txt",
}
TABLES = ("parquet", "csv", "tsv", "jsonl")
"""Formats of files that are tables for certain; .json and .txt beside them may be anything."""
KINDS = ".parquet, .csv, .tsv, .jsonl, .json or .txt"
PACKED: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"),
}
SHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
HOW_TO_SAVE = 'save it as UTF-8 with commas (in Excel: "CSV UTF-8 (Comma delimited)")'
SHEET = f"a spreadsheet: {HOW_TO_SAVE}"
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    ImportError,
    pa.ArrowException,
    csv.Error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google")
"""Packages through which fsspec talks to object stores; their errors have no base of the standard library."""


class WrongFormError(ValueError):
    """A file that is written in a way that is not read: which one, and how to write it."""


def is_read_error(error: BaseException) -> bool:
    """Whether this is the file's or the storage's fault, and not ours."""
    return isinstance(error, READ_ERRORS) or type(error).__module__.partition(".")[0] in CLIENTS


def name_in(url: str) -> str:
    """The path that a URL names: of a chain (`zip://a.csv::m.zip`) the innermost one, without a query string."""
    parts = url.split("::")
    for part in parts:
        _, is_url, path = part.partition("://")
        if not is_url and part is not parts[-1]:  # `simplecache::…`
            continue
        path = path if is_url else part
        if path.strip("/") or part is parts[-1]:
            before = re.split(r"[?#]", path, maxsplit=1)[0] if is_url else path
            return before if _format_of(before) else path
    return url


def format_of(url: str) -> str | None:
    """The format that a file's name tells, a value of SUFFIXES; None for others. All but Parquet may be packed."""
    return _format_of(name_in(url))


def _format_of(path: str) -> str | None:
    name = PurePosixPath(path.lower())
    if name.suffix in PACKED and SUFFIXES.get(name.with_suffix("").suffix, "parquet") != "parquet":
        name = name.with_suffix("")
    return SUFFIXES.get(name.suffix)


def why_not(url: str) -> str:
    """What to say of a file whose name tells no format."""
    name = PurePosixPath(name_in(url).lower())
    if name.suffix in SHEETS:
        return SHEET
    if name.suffix in (".zip", ".tar") or name.name.endswith((".tar.gz", ".tgz")):
        return f"an archive: give what is in it, such as zip://prompts.csv::{name.name}"
    return f"not a {KINDS} file"


def protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    """What URLs call a filesystem."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether a filesystem is this machine's."""
    return "file" in protocols(fs)


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked."""
    unpack = PACKED.get(PurePosixPath(name_in(url).lower()).suffix)
    with fsspec.open(url, "rb") as raw:
        if unpack is None:
            yield raw
            return
        with unpack(raw) as file:
            yield file


@contextmanager
def text_of(url: str) -> Iterator[TextIO]:
    """A file's text, with its line ends. Bytes that are not UTF-8 become lone surrogates, which `is_utf8` finds.

    Raises WrongFormError for UTF-16, and for a spreadsheet that is called otherwise.
    """
    with opened(url) as raw:
        beginning = _beginning(raw)
        if beginning[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
            raise WrongFormError(SHEET)
        if beginning[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in beginning[:4]:
            raise WrongFormError(f"UTF-16 text: {HOW_TO_SAVE}")
        whole = io.BufferedReader(_Joined(beginning, raw))
        with io.TextIOWrapper(whole, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield text


def is_utf8(text: str) -> bool:
    """Whether text has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _beginning(file: IO[bytes]) -> bytes:
    found = b""
    while len(found) < 4:
        more = file.read(4 - len(found))
        if not more:
            break
        found += more
    return found


class _Joined(io.RawIOBase):
    """A stream from its beginning on, of which some bytes have been read already."""

    def __init__(self, beginning: bytes, rest: IO[bytes]) -> None:
        self._beginning, self._rest = beginning, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._beginning or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        self._beginning = b""
        return len(data)
