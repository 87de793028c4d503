"""Where the files of a dataset are, relative to its folder."""

from __future__ import annotations

import hashlib
import re
import time
import uuid

DATASET = "dataset.json"
PIPELINE = "pipeline.yaml"
CARD = "README.md"
REPORT = "report.html"
LEASE = ".lease.json"
CLIPS = "clips"
SHARDS = "shards"
METADATA = "metadata"  # parts, while the dataset grows
METADATA_FILE = "metadata.parquet"  # all of it, at the end
FAILURES = "failures"
REJECTIONS = "rejections"
SAVED_FRAMES = "__stages__"


def clip_path(clip_id: str) -> str:
    """The video file of a clip: clips/<first two hex digits of sha256(id)>/<id>.mp4."""
    return f"{CLIPS}/{hashlib.sha256(clip_id.encode()).hexdigest()[:2]}/{clip_id}.mp4"


def new_part(folder: str) -> str:
    """The path of a new part of metadata or failures; names sort by time."""
    return f"{folder}/part-{time.time_ns():020}-{uuid.uuid4().hex[:8]}.parquet"


def merged_part(last: str) -> str:
    """The path of a new part with the rows of parts that follow one another, of which `last` is the last: it sorts
    behind what comes before them, and before what comes after them."""
    base = re.sub(r"(-m[0-9a-f]{8})?\.parquet$", "", last)
    return f"{base}-m{uuid.uuid4().hex[:8]}.parquet"


def stage_path(stage: str, clip_id: str) -> str:
    """The frames that a stage made of a clip, in a folder that `datasets` leaves alone."""
    return f"{SAVED_FRAMES}/{stage}/{clip_path(clip_id).removeprefix(CLIPS + '/')}"


def shard_path(number: int) -> str:
    """A WebDataset shard."""
    return f"{SHARDS}/shard-{number:06}.tar"


def shard_number(name: str) -> int | None:
    """The number of a shard, from the name of its file or of its metadata part; None for other names."""
    match = re.fullmatch(r"shard-(\d{6,})\.(tar|parquet)", name)
    return int(match[1]) if match else None


def shard_key(clip_id: str) -> str:
    """A clip's key in a shard: its id, but for dots, which WebDataset takes for the extension's beginning."""
    if "." not in clip_id:
        return clip_id
    return f"{clip_id.replace('.', '_')}-{hashlib.sha256(clip_id.encode()).hexdigest()[:8]}"
