"""Rows of text: CSV and TSV, and files of a prompt a line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from show1_ray.manifest.files import HOW_TO_SAVE, WrongFormError, is_utf8, text_of
from show1_ray.manifest.naming import COLUMNS, Naming
from show1_ray.manifest.rows import NOTHING, Row, broken
from show1_ray.manifest.types import WHOLE

DELIMITERS = {"csv": ",", "tsv": "\t"}
LONGEST_FIELD = 1 << 28
"""Characters: a quotation mark that nobody closes takes the rest of the file into one field."""
NOT_UTF8 = f"is not UTF-8: {HOW_TO_SAVE}"


def declared(url: str, kind: str) -> list[str]:
    """The columns' names. Raises WrongFormError for a header of another making, and what reading raises."""
    with _opened(url, kind) as reader:
        names: list[str] = next(reader, [])
    header = ",".join(names)
    if not is_utf8(header):
        raise WrongFormError(f"its header {NOT_UTF8}")
    if header.lower().startswith("sep="):
        raise WrongFormError(f"its first line is {header!r}, which only Excel reads: {HOW_TO_SAVE}")
    if len(names) == 1 and "prompt" not in names:
        for mark, what in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
            if mark in header:
                how = "call it .tsv" if mark == "\t" else "call it .csv" if mark == "," else HOW_TO_SAVE
                raise WrongFormError(f"its fields have {what} between them: {how}")
    return names


def rows(
    url: str, kind: str, naming: Naming, extra: bool, constants: Mapping[str, Any], makes: Mapping[str, Any]
) -> Iterator[Row]:
    """The rows of a file in order.

    Args:
        url, kind: the file, "csv" or "tsv".
        naming: of its columns.
        extra: whether the other columns' values are wanted.
        constants: columns that its path gives it.
        makes: what makes other values of their text, by the names that they are carried under.
    """
    added = {name: "" if value is None else str(value) for name, value in constants.items()}
    with _opened(url, kind) as reader:
        here: list[str] = next(reader, [])
        names = [*here, *(name for name in added if name not in here)]
        places = [_place(names, naming.sources.get(name)) for name in COLUMNS]
        brought = [(name, _place(names, naming.sources.get(name))) for name in naming.inputs.names]
        brought = [(name, place) for name, place in brought if place < len(names)]
        carried = [(i, naming.carried(name)) for i, name in enumerate(names) if name and not naming.is_read(name)]
        others = [(i, name, makes.get(name)) for i, name in carried if name is not None and extra]
        nameless = [i for i, name in enumerate(names) if not name]
        if nameless[:1] == [0]:
            naming.carried("")
            del nameless[0]
        whole_ids: bool | None = None
        number = 0
        for values in reader:
            if not any(values) and (len(here) > 1 or not values):
                naming.empty_rows += bool(values)
                continue
            number += 1
            if len(values) != len(here):
                yield broken(number, f"has {len(values)} fields, the header {len(here)}")
                continue
            if not is_utf8("".join(values)):
                yield broken(number, NOT_UTF8)
                continue
            if nameless and any(values[i] for i in nameless):
                yield broken(number, "has a value in a column without a name: name it in the header, or empty it")
                continue
            values += [added[name] for name in names[len(here) :]]
            values.append("")  # what a column that the file does not have holds
            prompt, negative_prompt, clip_id, seed = (values[i] or None for i in places)
            if clip_id is not None:
                if whole_ids is None:
                    whole_ids = WHOLE.fullmatch(clip_id) is not None and _all_whole(url, kind, places[2])
                clip_id = clip_id.removesuffix(".0") if whole_ids else clip_id
            yield Row(
                number,
                prompt,
                negative_prompt,
                clip_id,
                seed,
                {name: make(values[i]) if make and values[i] else values[i] or None for i, name, make in others},
                inputs={name: values[i] or None for name, i in brought} if brought else NOTHING,
            )


def lines(url: str, naming: Naming, extra: bool, constants: Mapping[str, Any]) -> Iterator[Row]:
    """A prompt a line; blank lines are none."""
    others = naming.carried_of(constants) if extra else {}
    given = [constants.get(naming.sources.get(name, "")) for name in COLUMNS[1:]]
    known = {name: naming.sources.get(name, "") for name in naming.inputs.names}
    inputs = {name: constants[source] for name, source in known.items() if source in constants}
    with text_of(url) as file:
        for number, line in enumerate(file, 1):
            prompt = line.strip()
            if not prompt:
                continue
            if not is_utf8(prompt):
                yield broken(number, NOT_UTF8)
                continue
            negative_prompt, clip_id, seed = given
            yield Row(number, prompt, negative_prompt, clip_id, seed, dict(others), inputs=inputs)


def _place(names: list[str], name: str | None) -> int:
    """Where a column is; one behind the last one where there is none."""
    return names.index(name) if name is not None and name in names else len(names)


def _all_whole(url: str, kind: str, place: int) -> bool:
    """Whether all ids are whole floats, as pandas writes integers where some are missing."""
    with _opened(url, kind) as reader:
        next(reader, None)
        try:
            return all(WHOLE.fullmatch(row[place]) for row in reader if len(row) > place and row[place])
        except (csv.Error, ValueError):  # which the reading of the rows tells
            return True


@contextmanager
def _opened(url: str, kind: str) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_FIELD)
    with text_of(url) as text:
        yield csv.reader(text, delimiter=DELIMITERS[kind], strict=True)
