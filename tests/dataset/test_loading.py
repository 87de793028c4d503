"""What people load datasets with reads ours."""

from __future__ import annotations

import json

import pytest

from show1_ray.clip import Clip
from show1_ray.dataset.layout import clip_path
from show1_ray.dataset.video import decode_video, encode_video
from show1_ray.manifest import Entry
from tests.dataset.toys import entries, frames


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The `datasets` library, offline, with a cache of its own."""
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


@pytest.mark.parametrize("by", ["videofolder", "folder"])
def test_datasets_reads_videos_with_their_rows(job, datasets, by):
    job.run(6)
    arguments = {"path": "videofolder", "data_dir": job.url} if by == "videofolder" else {"path": job.url}
    loaded = datasets.load_dataset(**arguments, split="train")
    assert isinstance(loaded.features["video"], datasets.Video)
    rows = list(loaded.cast_column("video", datasets.Video(decode=False)))
    assert sorted(row["id"] for row in rows) == [entry.clip.id for entry in entries(6)]
    for row in rows:
        assert row["video"]["path"] == f"{job.url}/{clip_path(row['id'])}"
        assert (row["prompt"], row["split"]) == (f"prompt {row['seed']}", "train")


def test_datasets_reads_a_folder_whose_ids_look_like_splits(job, datasets):
    job.run([Entry(Clip(f"{name}-1", "p"), {"split": name}) for name in ("train", "test", "other")])
    loaded = datasets.load_dataset(job.url, split="train").cast_column("video", datasets.Video(decode=False))
    assert sorted(row["id"] for row in loaded) == ["other-1", "test-1", "train-1"]


def test_datasets_reads_shards(job, datasets):
    job.run(6, format="webdataset")
    loaded = datasets.load_dataset(job.url, split="train").cast_column("mp4", datasets.Video(decode=False))
    rows = list(loaded)
    assert sorted(row["__key__"] for row in rows) == [entry.clip.id for entry in entries(6)]
    assert [row["json"]["id"] for row in rows] == [row["__key__"] for row in rows]


def test_webdataset_reads_shards(job):
    import webdataset

    wanted = [*entries(5), Entry(Clip("with.dots.in", "p", None, 77), {})]
    job.run(wanted, format="webdataset")
    shards = webdataset.WebDataset(f"{job.url}/shards/shard-{{000000..000001}}.tar", shardshuffle=False)
    found = {json.loads(sample["json"])["id"]: sample for sample in shards}
    assert set(found) == {entry.clip.id for entry in wanted}
    for entry in wanted:
        expected = encode_video(frames(entry.clip), 8)
        assert (decode_video(found[entry.clip.id]["mp4"]) == decode_video(expected)).all()
