"""Reads tables of prompts row by row, in flat memory: Parquet, CSV and JSON Lines, from any filesystem."""

from __future__ import annotations

import csv
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple, TextIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from show1_ray.errors import one_line, shown
from show1_ray.pipeline.inputs import NO_INPUTS, InputColumns

COLUMNS = ("prompt", "negative_prompt", "id", "seed")
SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
PACKED = (".gz", ".bz2", ".xz")
ROWS_AT_ONCE = 4096
MOST_FILES = 100_000
DATASET = "dataset.json"  # of the folder of a dataset, whose tables are no manifest
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
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


FILES_AT_ONCE = 64
"""Rows, where each may hold an image or a video."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


class UnreadableError(Exception):
    """A file that cannot be read, or not from here on; the message is one line that begins with its name."""


class Row(NamedTuple):
    """One row as it stands in the file; `number` is a person's: 1 is the first row of data (JSON Lines: the line)."""

    number: int
    prompt: Any
    negative_prompt: Any
    id: Any
    seed: Any
    extra: dict[str, Any]
    problem: str | None = None
    inputs: Mapping[str, Any] = NOTHING


@dataclass(frozen=True)
class Table:
    """One file of rows; `format` is parquet, csv or jsonl."""

    url: str
    format: str

    def rows(self, extra: bool, inputs: InputColumns = NO_INPUTS) -> Iterator[Row]:
        """The rows in order, without the values of other columns unless `extra`. Raises UnreadableError."""
        read = READERS[self.format]
        try:
            yield from read(self.url, extra, inputs)
        except Exception as error:
            if not is_read_error(error):
                raise
            raise self._unreadable(error) from error

    def other_columns(self, inputs: InputColumns = NO_INPUTS) -> pa.Schema:
        """The columns besides COLUMNS and inputs that the file declares: those of CSV are strings, JSON Lines declares
        none.

        Raises UnreadableError.
        """
        try:
            schema = _declared(self.url, self.format)
        except Exception as error:
            if not is_read_error(error):
                raise
            raise self._unreadable(error) from error
        if schema is None:
            return pa.schema([])
        if "prompt" not in schema.names:
            raise UnreadableError(f"{self.url}: no column 'prompt' (its columns: {', '.join(schema.names) or 'none'})")
        lacking = [name for name in inputs.needed if name not in schema.names]
        if lacking:
            raise UnreadableError(
                f"{self.url}: no column {lacking[0]!r}, which the pipeline's inputs name "
                f"(its columns: {', '.join(schema.names)})"
            )
        twice = [name for name in schema.names if schema.names.count(name) > 1]
        if twice:
            raise UnreadableError(f"{self.url}: two columns are named {twice[0]!r}")
        return pa.schema([(f.name, _plain(f.type)) for f in schema if f.name not in (*COLUMNS, *inputs.names)])

    def _unreadable(self, error: BaseException) -> UnreadableError:
        if isinstance(error, FileNotFoundError):
            return UnreadableError(f"{self.url}: no such file")
        return UnreadableError(f"{self.url}: not readable as {self.format}: {one_line(error)}")


def find_tables(url: str) -> list[Table]:
    """The files that a URL names: one file, those of a folder (by their suffix), or those that match a glob, sorted.

    Raises UnreadableError.
    """
    if not url.strip() or url.strip("/") in ("", "file:"):
        raise UnreadableError(f"{shown(url)}: give a file, a folder or a glob")
    try:
        paths = _paths(url)
    except Exception as error:  # each filesystem of fsspec has errors of its own, and so has each way to name nothing
        raise UnreadableError(f"{url}: cannot be opened: {one_line(error)}") from error
    if paths is None:
        return [_table(url)]
    dataset = next((p for p in paths if p.rpartition("/")[2] == DATASET), None)
    if dataset is not None:
        raise UnreadableError(f"{url}: {dataset} is of a dataset; give its metadata.parquet, or a folder without it")
    paths = [p for p in paths if format_of(p)]
    if not paths:
        raise UnreadableError(f"{url}: no such file, nor a folder or glob with .parquet, .csv or .jsonl files")
    if len(paths) > MOST_FILES:
        raise UnreadableError(f"{url}: {len(paths)} files; {MOST_FILES} are the most: put them together")
    fs = url_to_fs(url)[0]
    local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    return [_table(p if local else fs.unstrip_protocol(p)) for p in sorted(paths)]


def _paths(url: str) -> list[str] | None:
    """The files in a folder, or those that a glob matches; None where the URL is that of one file."""
    fs, path = url_to_fs(url)
    if fs.isfile(path):
        return None
    if fs.isdir(path):
        return [p for p in fs.find(path) if not _hidden(p.removeprefix(path))]
    return [p for p in fs.glob(path) if fs.isfile(p)] if re.search(r"[*?\[]", path) else []


def format_of(path: str) -> str | None:
    """The format that a file's name tells: parquet, csv or jsonl, the last two also compressed; None for others."""
    if path.startswith(("http://", "https://")):  # a signed URL goes on behind the name
        path = re.split("[?#]", path, maxsplit=1)[0]
    name = PurePosixPath(path.lower())
    if name.suffix in PACKED and SUFFIXES.get(name.with_suffix("").suffix) in ("csv", "jsonl"):
        name = name.with_suffix("")
    return SUFFIXES.get(name.suffix)


def is_read_error(error: BaseException) -> bool:
    """Whether this is the file's or the storage's fault, and not ours."""
    return isinstance(error, READ_ERRORS) or type(error).__module__.partition(".")[0] in CLIENTS


def _table(url: str) -> Table:
    kind = format_of(url)
    if kind is None:
        raise UnreadableError(f"{url}: not a .parquet, .csv or .jsonl file")
    return Table(url, kind)


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(path).parts)


def _declared(url: str, kind: str) -> pa.Schema | None:
    if kind == "parquet":
        with fsspec.open(url) as file:
            return pq.read_schema(file)
    if kind == "csv":
        with _csv_text(url) as text:
            return pa.schema([(name, pa.string()) for name in next(csv.reader(text, strict=True), [])])
    return None


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves: what a dictionary encodes, what an extension type stores."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    return _plain(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _csv_text(url: str) -> TextIO:
    # Bytes that are not UTF-8 become lone surrogates, which the check of each row finds.
    text: TextIO = fsspec.open(
        url, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="", compression="infer"
    ).open()
    return text


def _parquet_rows(url: str, extra: bool, inputs: InputColumns) -> Iterator[Row]:
    # Buffered column streams: a row group is read bit by bit, however large it is.
    with fsspec.open(url) as file, pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
        names = table.schema_arrow.names
        own = [name for name in (*COLUMNS, *inputs.names) if name in names]
        at_once = FILES_AT_ONCE if inputs.has_files else ROWS_AT_ONCE
        number = 0
        for batch in all_rows(table, at_once, None if extra else own):
            values = [batch[name].to_pylist() if name in own else [None] * len(batch) for name in COLUMNS]
            others = batch.drop_columns(own).to_pylist() if extra else [{}] * len(batch)
            given = [name for name in inputs.names if name in own]
            brought = batch.select(given).to_pylist() if given else [NOTHING] * len(batch)
            for prompt, negative_prompt, clip_id, seed, rest, mine in zip(*values, others, brought, strict=True):
                number += 1
                yield Row(number, prompt, negative_prompt, clip_id, seed, rest, inputs=mine)


def all_rows(table: pq.ParquetFile, at_once: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """All rows of a Parquet file, in batches.

    Raises ArrowInvalid where the columns have more or fewer than the file says: a damaged page makes pyarrow give fewer
    without a word.
    """
    left = table.metadata.num_rows
    for batch in table.iter_batches(at_once, columns=columns):
        left -= len(batch)
        if left < 0:
            break
        yield batch
    if left:
        raise pa.ArrowInvalid(f"its columns do not have the {table.metadata.num_rows} rows that it tells of")


def _csv_rows(url: str, extra: bool, inputs: InputColumns) -> Iterator[Row]:
    with _csv_text(url) as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        places = [names.index(name) if name in names else len(names) for name in COLUMNS]
        brought = [(i, name) for i, name in enumerate(names) if name in inputs.names]
        own = (*COLUMNS, *inputs.names)
        others = [(i, name) for i, name in enumerate(names) if name not in own] if extra else []
        number = 0
        for values in reader:
            if not values:  # a blank line
                continue
            number += 1
            if len(values) != len(names):
                yield _broken(number, f"has {len(values)} fields, the header {len(names)}")
                continue
            values.append("")  # what a column that the file does not have holds
            prompt, negative_prompt, clip_id, seed = (values[i] or None for i in places)
            yield Row(
                number,
                prompt,
                negative_prompt,
                clip_id,
                seed,
                {name: values[i] or None for i, name in others},
                inputs={name: values[i] or None for i, name in brought} if brought else NOTHING,
            )


def _jsonl_rows(url: str, extra: bool, inputs: InputColumns) -> Iterator[Row]:
    with fsspec.open(url, compression="infer") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                yield _broken(number, f"not valid JSON: {one_line(error)}")
                continue
            except RecursionError:
                yield _broken(number, "not valid JSON: nested too deeply")
                continue
            if not isinstance(values, dict):
                yield _broken(number, "not a JSON object")
                continue
            prompt, negative_prompt, clip_id, seed = (values.pop(name, None) for name in COLUMNS)
            brought = {name: values.pop(name) for name in inputs.names if name in values} if inputs.names else NOTHING
            yield Row(number, prompt, negative_prompt, clip_id, seed, values if extra else {}, inputs=brought)


def _broken(number: int, problem: str) -> Row:
    return Row(number, None, None, None, None, {}, problem)


READERS: dict[str, Callable[[str, bool, InputColumns], Iterator[Row]]] = {
    "parquet": _parquet_rows,
    "csv": _csv_rows,
    "jsonl": _jsonl_rows,
}
