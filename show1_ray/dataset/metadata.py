"""A clip's row: JSON in its video file, and a row of Parquet."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from show1_ray.dataset.values import column, is_carried
from show1_ray.errors import UserError, one_line
from show1_ray.pipeline.columns import is_own

Row = dict[str, Any]  # JSON's types only

SCHEMA = pa.schema(
    [
        ("file_name", pa.string()),  # relative to the dataset's folder; in a shard: the member's name
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("pipeline", pa.string()),
        ("recipe", pa.string()),  # the hash
        ("revisions", pa.string()),  # JSON: weights → revision
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the video file
        ("bytes", pa.int64()),
        ("attempts", pa.int32()),
        ("execution", pa.string()),  # JSON: the pipeline's execution settings
        ("versions", pa.string()),  # JSON: software → version
        ("landed", pa.timestamp("ms", "UTC")),
    ]
)
BY_STAGE = {"seconds_": pa.float64(), "batch_size_": pa.int32()}  # each followed by a stage's name
IN_SHARDS = pa.schema([("shard", pa.string()), ("shard_bytes", pa.int64())])
OF_PROMPTS = pa.schema([("prompt_tokens", pa.int32()), ("prompt_truncated", pa.bool_())])
"""Where a pipeline tells how much of a prompt it takes."""
FAILURE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("stage", pa.string()),
        ("attempts", pa.int32()),
        ("error", pa.string()),
        ("failed", pa.timestamp("ms", "UTC")),
        ("inputs", pa.string()),  # JSON: the pipeline's inputs, files as the manifest names them
    ]
)
REJECTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("values", pa.string()),  # JSON: plain values, `<stage>_<name>` → value
        ("rejected", pa.timestamp("ms", "UTC")),
        ("inputs", pa.string()),
    ]
)


def check_columns(fields: Iterable[pa.Field]) -> None:
    """Refuses columns of a manifest that cannot be columns of the metadata. Raises UserError."""
    for field in fields:
        name = field.name
        if is_own(name):
            raise UserError(f"manifest: column {name!r} has a name that the dataset's metadata uses itself; rename it")
        if not is_carried(field.type):
            raise UserError(
                f"manifest: column {name!r} is {field.type}, which a video's metadata cannot carry; drop it"
            )
        try:
            file = io.BytesIO()
            pq.write_table(pa.table({name: pa.nulls(1, field.type)}), file)
            pq.read_schema(file)  # it writes lists in lists in lists that it does not read
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"manifest: column {name!r} cannot be a column of Parquet: {one_line(error)}") from None


def to_table(rows: Sequence[Row], extra: Iterable[pa.Field]) -> pa.Table:
    """Rows as a table: SCHEMA's columns, the stages', the manifest's (`extra`), and what else rows hold."""
    types = {field.name: field.type for field in [*SCHEMA, *extra]}
    if any("shard" in row for row in rows):
        types |= {field.name: field.type for field in IN_SHARDS}
    for field in OF_PROMPTS:
        if any(field.name in row for row in rows):
            types.setdefault(field.name, field.type)
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in types:
            types[name] = next((kind for prefix, kind in BY_STAGE.items() if name.startswith(prefix)), None)
    order = [*SCHEMA.names, *(name for name in (*OF_PROMPTS.names, *IN_SHARDS.names) if name in types)]
    order += sorted(name for name in types if name.startswith(tuple(BY_STAGE)))
    order += [name for name in types if name not in order]
    return pa.table({name: column([row.get(name) for row in rows], types[name]) for name in order})


NEEDED = ("file_name", "id", "prompt", "seed", "frames", "fps", "width", "height")


def is_whole(row: Row) -> bool:
    """Whether a row that may have been spoilt has what a clip's row needs, in its types."""
    if any(row.get(name) is None for name in NEEDED):
        return False
    try:
        to_table([row], ())
    except (pa.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
        return False
    return True


def to_parquet(table: pa.Table) -> bytes:
    """The bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def id_digest(clip_id: str) -> bytes:
    """16 bytes that stand for an id."""
    return digest(clip_id)


def id_digests(clip_ids: Iterable[str]) -> list[bytes]:
    """As `id_digest`, of many: three quarters of the time."""
    sha256 = hashlib.sha256
    return [sha256(one.encode(errors="surrogatepass")).digest()[:16] for one in clip_ids]


def content_digest(prompt: str, negative_prompt: str | None, seed: int) -> bytes:
    """16 bytes that stand for what a clip is made from, besides the recipe."""
    # As json.dumps([prompt, negative_prompt, seed]), in a third of the time.
    negative = "null" if negative_prompt is None else encode_basestring_ascii(negative_prompt)
    return digest(f"[{encode_basestring_ascii(prompt)}, {negative}, {seed}]")


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]  # file names may hold anything
