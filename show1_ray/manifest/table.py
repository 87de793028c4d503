"""A file of rows, whichever format it has: its columns and their types, and its rows in flat memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from show1_ray.errors import one_line
from show1_ray.manifest import delimited, jsons, parquet
from show1_ray.manifest.files import WrongFormError, is_read_error
from show1_ray.manifest.naming import Naming
from show1_ray.manifest.rows import Row
from show1_ray.manifest.types import Make, carried

NO_MAKES: Mapping[str, Make | None] = {}


class UnreadableError(Exception):
    """A file that cannot be read, or not from here on; the message is one line that begins with its name."""


@dataclass(frozen=True)
class Table:
    """One file of rows.

    Attributes:
        url: where it is.
        format: one of `files.SUFFIXES`' values.
        partitions: columns that its path gives it, as in lang=en/part-0.parquet, and their values.
    """

    url: str
    format: str
    partitions: tuple[tuple[str, str | int | None], ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether its values are text whatever they mean, as in CSV."""
        return self.format in delimited.DELIMITERS

    @property
    def tells_columns(self) -> bool:
        """Whether it tells of itself what columns it has."""
        return self.format not in ("json", "jsonl")

    def rows(self, naming: Naming, extra: bool, makes: Mapping[str, Make | None] = NO_MAKES) -> Iterator[Row]:
        """The rows in order, without the values of other columns unless `extra`.

        Args:
            naming: of the columns.
            extra: whether the values of columns are wanted that the line does not read.
            makes: what makes these values of text, by the names that they are carried under.

        Raises:
            UnreadableError: the file cannot be read.
        """
        constants = dict(self.partitions)
        try:
            if self.format == "parquet":
                yield from parquet.rows(self.url, naming, extra, constants)
            elif self.is_text:
                yield from delimited.rows(self.url, self.format, naming, extra, constants, makes)
            elif self.format == "txt":
                yield from delimited.lines(self.url, naming, extra, constants)
            else:
                yield from jsons.rows(self.url, self.format, naming, extra, constants)
        except Exception as error:
            if not is_read_error(error):
                raise
            raise self._unreadable(error) from error

    def other_columns(self, naming: Naming) -> pa.Schema:
        """The columns that the line does not read, as the metadata calls them and with the types that it carries: those
        of CSV are text, and JSON declares none but what its path gives.

        Raises:
            UnreadableError: the file cannot be read, or lacks a column.
        """
        try:
            schema = self._declared()
        except Exception as error:
            if not is_read_error(error):
                raise
            raise self._unreadable(error) from error
        if self.tells_columns:
            lacking = naming.lacking(schema.names)
            if lacking:
                raise UnreadableError(f"{self.url}: {lacking}")
        others = [f for f in schema if not naming.is_read(f.name) and (f.name or self.format == "parquet")]
        named = [(naming.carried(one.name), carried(one.type)) for one in others]
        return pa.schema([(name, kind) for name, kind in named if name is not None])

    def _declared(self) -> pa.Schema:
        if self.format == "parquet":
            there = parquet.declared(self.url)
        elif self.is_text:
            there = pa.schema([(name, pa.string()) for name in delimited.declared(self.url, self.format)])
        else:
            there = pa.schema([("prompt", pa.string())] if self.format == "txt" else [])
        fields = list(there)
        for name, value in self.partitions:
            if name not in there.names:
                fields.append(pa.field(name, pa.int64() if isinstance(value, int) else pa.string()))
        return pa.schema(fields)

    def _unreadable(self, error: BaseException) -> UnreadableError:
        if isinstance(error, FileNotFoundError):
            return UnreadableError(f"{self.url}: no such file")
        if isinstance(error, WrongFormError):
            return UnreadableError(f"{self.url}: {error}")
        return UnreadableError(f"{self.url}: not readable as {self.format}: {one_line(error)}")
