"""Rows of JSON: an object a line, or an array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, TextIO

from show1_ray.errors import one_line
from show1_ray.manifest.delimited import NOT_UTF8
from show1_ray.manifest.files import WrongFormError, is_utf8, text_of
from show1_ray.manifest.naming import COLUMNS, Naming
from show1_ray.manifest.rows import NOTHING, Row, broken
from show1_ray.manifest.types import plain_id

CHUNK = 1 << 16
LONGEST = 1 << 26
"""Characters of an element of an array."""
BY_COLUMN = "an object of columns: write an object a row, in pandas with orient='records', lines=True"


def rows(url: str, kind: str, naming: Naming, extra: bool, constants: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a file in order; `kind` is "jsonl" or "json", which may be an array. `constants` are columns that its
    path gives it.
    """
    with text_of(url) as file:
        for number, value in _elements(file) if kind == "json" else _lines(file):
            if isinstance(value, _Wrong):
                yield broken(number, value.reason)
                continue
            if isinstance(value, str) and kind == "json":
                value = {"prompt": value} if "prompt" not in naming.columns.names else value
            if not isinstance(value, dict):
                yield broken(number, "not a JSON object")
                continue
            if _is_by_column(value, naming.sources.get("prompt", "")):
                raise WrongFormError(BY_COLUMN)
            values = {**constants, **value} if constants else value
            prompt, negative_prompt, clip_id, seed = (values.get(naming.sources.get(name, "")) for name in COLUMNS)
            inputs = naming.inputs.names
            yield Row(
                number,
                prompt,
                negative_prompt,
                plain_id(clip_id),
                seed,
                naming.carried_of(values) if extra else {},
                inputs={n: values[naming.sources[n]] for n in inputs if naming.sources.get(n) in values}
                if inputs
                else NOTHING,
            )


class _Wrong:
    """In place of a value that cannot be read."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _is_by_column(value: Mapping[str, Any], prompt: str) -> bool:
    """Whether an object is a whole table, as pandas writes one if nobody says otherwise."""
    inner = list(value.values()) if prompt not in value else [value[prompt]]
    return bool(inner) and all(isinstance(one, dict | list) for one in inner)


def _read(text: str) -> Any:
    if not is_utf8(text):
        return _Wrong(NOT_UTF8)
    try:
        return json.loads(text)
    except ValueError as error:
        return _Wrong(f"not valid JSON: {one_line(error)}")
    except RecursionError:
        return _Wrong("not valid JSON: nested too deeply")


def _lines(file: TextIO) -> Iterator[tuple[int, Any]]:
    return ((number, _read(line)) for number, line in enumerate(file, 1) if line.strip())


def _elements(file: TextIO) -> Iterator[tuple[int, Any]]:
    """The elements of an array with their numbers, or, where the file is none, its lines with theirs."""
    before: list[str] = []
    while not "".join(before[-1:]).strip():
        line = file.readline(CHUNK)
        if not line:
            return iter(())
        before.append(line)
    if before[-1].lstrip().startswith("["):
        return _array(file, before[-1].lstrip()[1:])
    while not before[-1].endswith(("\n", "\r")) and (line := file.readline()):  # of a line longer than a chunk
        before[-1] += line
    first = _read(before[-1])
    if isinstance(first, _Wrong):
        return iter([(len(before), _Wrong(f"{first.reason}; give an object a line, or an array of objects"))])
    whole = chain(before, file)
    return ((number, _read(line)) for number, line in enumerate(whole, 1) if line.strip())


def _array(file: TextIO, text: str) -> Iterator[tuple[int, Any]]:
    """What follows the bracket."""
    decoder, at, number, ended = json.JSONDecoder(), 0, 0, False
    while True:
        # Blanks and, before all elements but the first one, a comma.
        at, mark = _next(text, at)
        while not mark and not ended:
            text, at, ended = _more(file, text, at)
            at, mark = _next(text, at)
        if mark == "]":
            return
        if number and mark == ",":
            at, mark = _next(text, at + 1)
            while not mark and not ended:
                text, at, ended = _more(file, text, at)
                at, mark = _next(text, at)
        elif number:
            yield number + 1, _Wrong("not valid JSON: the array has no end" if not mark else "not valid JSON: no comma")
            return
        number += 1
        while True:
            try:
                value, end = decoder.raw_decode(text, at)
                break
            except RecursionError:
                yield number, _Wrong("not valid JSON: nested too deeply")
                return
            except ValueError as error:
                if ended or len(text) - at > LONGEST:
                    yield number, _Wrong(f"not valid JSON: {one_line(getattr(error, 'msg', error))}")
                    return
            text, at, ended = _more(file, text, at, len(text) - at)
        yield number, value if is_utf8(text[at:end]) else _Wrong(NOT_UTF8)
        at = end


def _next(text: str, at: int) -> tuple[int, str]:
    """The place of the next character that is no blank, and the character; "" at the end."""
    while at < len(text) and text[at] in " \t\r\n\ufeff":
        at += 1
    return at, text[at : at + 1]


def _more(file: TextIO, text: str, at: int, least: int = 0) -> tuple[str, int, bool]:
    """What is left of a text and more of its file; the place in it; and whether the file ends there."""
    more = file.read(max(CHUNK, least))
    return text[at:] + more, 0, not more
