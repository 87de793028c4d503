"""Clips that bring a real stage down, in a real job: exactly they end in failures, the rest is as if nothing was."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray import Pipeline, render
from show1_ray.dataset import Dataset, read_status
from show1_ray.dataset.video import decode_video
from show1_ray.job import Control, Summary, fill, orders_of, origin
from show1_ray.job.landing import specs
from show1_ray.line import Line, LineSettings
from show1_ray.line.running import Running
from show1_ray.manifest import open_manifest
from tests.own_ray import own_ray

COUNT, GUILTY = 8, "clip-5"


class Faulty:
    """A real stage that one clip brings down."""

    def __init__(self, build, fault: str, device: str) -> None:
        self.stage, self.fault = build(device), fault

    def __call__(self, clips, tensors):
        if self.fault == "out of memory" and len(clips) > 1:
            raise MemoryError(f"no memory for {len(clips)} clips")
        if GUILTY in [clip.id for clip in clips]:
            if self.fault == "kills its process":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fault == "never returns":
                time.sleep(3600)
            elif self.fault == "raises":
                raise ArithmeticError("cannot be rendered")
        return self.stage(clips, tensors)


@pytest.fixture(scope="module")
def local_ray():
    with own_ray(2, object_store_memory=300_000_000):
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "prompts.parquet"
    rows = {"id": [f"clip-{i}" for i in range(COUNT)], "prompt": ["a red circle"] * COUNT, "seed": list(range(COUNT))}
    pq.write_table(pa.table(rows), path)
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(local_ray, tiny, manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    render(manifest, str(out), str(tiny))
    return frames(out)


def frames(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: decode_video(path.read_bytes()) for path in out.glob("clips/*/*.mp4")}


@pytest.mark.parametrize("fault", ["raises", "kills its process", "never returns", "out of memory"])
def test_one_bad_clip_costs_one_clip(tiny, manifest, undisturbed, tmp_path, fault):
    pipeline = Pipeline.load(tiny, ["keyframes.batch_size=2"]).resolved()
    settings = LineSettings(max_attempts=2)
    if fault == "never returns":  # the others are not to be taken for it where the machine is slow
        settings = replace(settings, deadline_floor=6, deadline_factor=3, first_deadline=30)
    entries, out, summary = open_manifest(manifest), tmp_path / "out", Summary("out", total=COUNT)
    with Dataset.open(str(out), origin=origin(pipeline)) as dataset:
        stages = specs(pipeline, dataset.lander)
        stages[1] = replace(stages[1], build=partial(Faulty, stages[1].build, fault))
        fill(dataset, Running(Line(stages, settings), orders_of(pipeline, entries), COUNT), summary, Control())
        dataset.finish()

    guilty = [] if fault == "out of memory" else [GUILTY]
    status = read_status(str(out))
    assert [failure.id for failure in status.failures] == guilty
    assert {failure.stage for failure in status.failures} <= {"keyframes"}
    rendered = frames(out)
    assert sorted(rendered) == sorted(set(undisturbed) - set(guilty))
    assert all(np.array_equal(video, undisturbed[name]) for name, video in rendered.items())
    rows = pq.read_table(out / "metadata.parquet").to_pylist()
    assert sorted(row["id"] for row in rows) == sorted(rendered)
    if fault == "out of memory":
        assert {row["batch_size_keyframes"] for row in rows} == {1}
