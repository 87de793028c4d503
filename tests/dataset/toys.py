"""What the dataset's tests render with. As a program it writes a dataset, for tests that kill it:

python toys.py FOLDER FORMAT CLIPS [hold]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.memory import MemoryFileSystem

from show1_ray.clip import Clip
from show1_ray.dataset import Dataset, LeaseTimes, Origin, Rendering, Retries, Settings
from show1_ray.dataset.metadata import Row
from show1_ray.manifest import Entry

ORIGIN = Origin(
    name="toy",
    pipeline={"name": "toy", "stages": {"keyframes": {"steps": 75}}, "execution": {"batch_size": 2}},
    recipe={"fps": 8, "stages": {"keyframes": {"steps": 75}}},
    recipe_hash="0123456789abcdef",
    fps=8,
)
QUICK = Retries(attempts=3, first_wait=0.001)
SETTINGS = Settings(part_rows=3, shard_clips=4, lease=LeaseTimes(settling=0.05))


def entries(count: int) -> list[Entry]:
    return [Entry(Clip(f"clip-{n}", f"prompt {n}", None, n), {"split": "train"}) for n in range(count)]


def frames(clip: Clip) -> np.ndarray:
    """Four frames of noise that a clip's seed decides: F H W C."""
    return np.random.default_rng(clip.seed).integers(0, 255, (4, 32, 48, 3), np.uint8)


class Job:
    """Renders entries into a dataset as a job does, without the job."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, **options: Any) -> Dataset:
        given: dict[str, Any] = {"origin": ORIGIN, "columns": [pa.field("split", pa.string())], "settings": SETTINGS}
        return Dataset.open(self.url, **(given | options))

    def run(self, wanted: int | Iterable[Entry], retry_failed: bool = False, **options: Any) -> list[str]:
        """Render what is missing, finish, and tell the ids that were rendered."""
        wanted = entries(wanted) if isinstance(wanted, int) else list(wanted)
        with self.open(**options) as dataset:
            rendered = [entry.clip.id for entry in dataset.missing(wanted, retry_failed) if land(dataset, entry)]
            dataset.finish()
        return rendered


def land(dataset: Dataset, entry: Entry) -> Row:
    row = dataset.lander(entry.clip, frames(entry.clip), Rendering({"keyframes": 1.5}, {"keyframes": 2}), entry.extra)
    dataset.record(row)
    return row


class FlakyFileSystem(MemoryFileSystem):
    """Fails the next `failures` writes, and counts them."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    failures = 0
    writes = 0

    def pipe_file(self, path, value, mode="overwrite", **options):
        type(self).writes += 1
        if type(self).failures:
            type(self).failures -= 1
            raise ConnectionResetError("connection reset\nby peer")
        super().pipe_file(path, value, mode, **options)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


def main(folder: str, format: str, count: str, hold: str = "") -> None:
    with Job(folder).open(format=format, job="worker") as dataset:
        print("open", flush=True)
        if hold:
            time.sleep(60)
        for entry in dataset.missing(entries(int(count))):
            land(dataset, entry)
            print(entry.clip.id, flush=True)
        dataset.finish()
        print("finished", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
