"""Names of the metadata's columns: the dataset's own, and those that a pipeline's inputs and plain values become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

OWN = (
    *("file_name", "id", "prompt", "negative_prompt", "seed", "pipeline", "recipe", "revisions", "frames", "fps"),
    *("width", "height", "sha256", "bytes", "attempts", "execution", "versions", "landed"),
    *("shard", "shard_bytes", "prompt_tokens", "prompt_truncated"),
)
"""A dataset's own metadata columns."""
READERS = ("video", "videos", "file_names", "label")
"""Columns with a special meaning for `datasets`."""
BY_STAGE = ("seconds_", "batch_size_")
"""Beginnings of columns, each followed by a stage's name."""
FILES = ("_file_name", "_file_names")
"""Endings of columns that `datasets` takes for file names."""


def is_own(column: str) -> bool:
    """Whether a column is the dataset's, or would be taken for one."""
    return column in (*OWN, *READERS) or column.startswith(BY_STAGE) or column.endswith(FILES)


def of_input(name: str) -> str:
    """The column of an input: its name, or `input_<name>` where the dataset has a column of that name itself."""
    return f"input_{name}" if is_own(name) else name


def of_content(name: str) -> str:
    """The column of the SHA-256 of what was read for an image or a video."""
    return f"{name}_sha256"


def of_value(stage: str, name: str) -> str:
    """The column of a stage's plain value."""
    return f"{stage}_{name}"


def clashes(columns: Iterable[tuple[str, tuple[str, ...], str]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Faults of columns that would be one: each is given with the key that it comes from and with what it is."""
    seen: dict[str, str] = {}
    for column, key, what in columns:
        if is_own(column):
            yield key, f"{what} would be the column {column!r}, which the dataset's metadata uses itself"
        elif column in seen:
            yield key, f"{what} and {seen[column]} would both be the column {column!r}"
        seen.setdefault(column, what)
