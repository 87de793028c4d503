"""Landing: frames become a clip of the dataset, one file that carries its own row."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from show1_ray.clip import Clip, SeedRule
from show1_ray.dataset.layout import clip_path, stage_path
from show1_ray.dataset.lease import is_seen
from show1_ray.dataset.metadata import Row, is_whole
from show1_ray.dataset.place import SHARED
from show1_ray.dataset.storage import Storage, StorageError
from show1_ray.dataset.values import to_json
from show1_ray.dataset.video import BrokenVideoError, encode_video, read_comment
from show1_ray.pipeline.inputs import unsigned_value

SOFTWARE = ("show1-ray", "torch", "diffusers", "transformers", "ray", "av", "numpy")


@dataclass(frozen=True)
class Weights:
    """A checkpoint that a pipeline uses, and the licence that its clips are made under."""

    repo: str
    revision: str
    licence: str = ""


@dataclass(frozen=True)
class Origin:
    """What makes the clips of a dataset.

    `pipeline` is the whole resolved pipeline as JSON's types (its `execution` may change from run to run),
    `recipe` the part that says what a clip is, `recipe_hash` identifies it. `seed_rule` see `Clip.seed_rule`.
    """

    name: str
    pipeline: Mapping[str, Any]
    recipe: Mapping[str, Any]
    recipe_hash: str
    fps: float
    weights: Sequence[Weights] = ()
    seed_rule: SeedRule = "mixed"


@dataclass(frozen=True)
class Rendering:
    """How a clip was rendered: seconds and batch size by stage, and how often it was begun."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 1


_SEEN: set[tuple[str, str]] = set()
"""Storages in which this process has seen a writer's lease."""


@dataclass(frozen=True)
class Lander:
    """Lands clips. Picklable: goes to where the frames are.

    `token` is of the writer's lease: a process that does not see it in the storage, as it lies on this node, lands
    nothing. "": that is not looked at.
    """

    storage: Storage
    origin: Origin
    token: str = ""

    def __call__(self, clip: Clip, frames: np.ndarray, rendering: Rendering, extra: Mapping[str, Any]) -> Row:
        """Encode `frames` (F H W C, uint8 RGB) and put the file in its place; its row, for `Dataset.record`.

        `extra` are the values of the manifest's other columns. Raises StorageError; ValueError for wrong
        frames.
        """
        self._check_shared()
        row = self._row(clip, frames, rendering, extra)
        data = encode_video(frames, self.origin.fps, json.dumps(row, ensure_ascii=False))
        self.storage.write(row["file_name"], data)
        return row | _checksum(data)

    def save_stage(self, clip: Clip, stage: str, frames: np.ndarray) -> None:
        """Put what a stage made of a clip (F H W C, uint8 RGB) beside the clips. Raises as landing does."""
        self.storage.write(stage_path(stage, clip.id), encode_video(frames, self.origin.fps, ""))

    def _check_shared(self) -> None:
        """Before the first landing in a process. Raises StorageError."""
        here = (self.storage.url, self.token)
        if not self.token or here in _SEEN:
            return
        if not is_seen(self.storage, self.token):
            raise StorageError(
                f"dataset {self.storage.url}: node {platform.node()} does not find there what the job wrote, or its "
                f"lease is gone: give {SHARED}"
            )
        _SEEN.add(here)

    def _row(self, clip: Clip, frames: np.ndarray, rendering: Rendering, extra: Mapping[str, Any]) -> Row:
        return {
            "file_name": clip_path(clip.id),
            "id": clip.id,
            "prompt": clip.prompt,
            "negative_prompt": clip.negative_prompt,
            "seed": clip.seed,
            "pipeline": self.origin.name,
            "recipe": self.origin.recipe_hash,
            "revisions": json.dumps({w.repo: w.revision for w in self.origin.weights}),
            "frames": len(frames),
            "fps": self.origin.fps,
            "width": frames.shape[2],
            "height": frames.shape[1],
            "attempts": rendering.attempts,
            "execution": json.dumps(self.origin.pipeline.get("execution", {})),
            "versions": json.dumps(software()),
            "landed": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **{f"seconds_{stage}": round(seconds, 4) for stage, seconds in rendering.seconds.items()},
            **{f"batch_size_{stage}": size for stage, size in rendering.batch_sizes.items()},
            **{name: unsigned_value(to_json(value)) for name, value in extra.items()},
        }


def row_of_file(data: bytes, recipe_hash: str) -> Row | None:
    """The row in a landed file; None if the file is incomplete or was made with another recipe."""
    try:
        row = json.loads(read_comment(data))
    except (BrokenVideoError, ValueError):
        return None
    if not isinstance(row, dict) or row.get("recipe") != recipe_hash:
        return None
    row |= _checksum(data)
    return row if is_whole(row) else None


@cache
def software() -> dict[str, str]:
    """The versions of the software that renders here."""
    versions = {"python": platform.python_version()}
    for name in SOFTWARE:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _checksum(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
