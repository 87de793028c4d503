"""Seeds have 63 bits and torch's generators 32: which of them count, in new datasets and in those begun before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from show1_ray import Clip, Pipeline, UserError, render
from show1_ray.clip import GENERATOR_SEEDS, MAX_SEED, mixed_seed
from show1_ray.dataset import Dataset, read_status
from show1_ray.dataset.video import decode_video, encode_video
from show1_ray.job import origin
from show1_ray.manifest import open_manifest
from show1_ray.manifest.identity import derived_seed
from show1_ray.show1.cascade import load_stages, run_stages
from show1_ray.stages.noise import seeded_noise
from tests.own_ray import own_ray

LARGE = 7 + 2**32
BEFORE = Path(__file__).parent / "golden" / "begun_before"
ONE_STEP = [f"{key}.steps=1" for key in ("keyframes", "interpolation", "super_resolution")]
ONE_STEP += ["super_resolution.first_frame.steps=1", "latent_super_resolution.steps=4"]


def noise_of(clip: Clip) -> torch.Tensor:
    return seeded_noise(clip.generator_seed, torch.float32)((16,))


@given(st.integers(0, MAX_SEED), st.integers(0, 62))
@example(7, 32)
@example(2**32 - 1, 62)
def test_each_of_a_seeds_63_bits_changes_its_noise(seed, bit):
    other = seed ^ (1 << bit)
    assert not torch.equal(noise_of(Clip("a", "x", seed=seed)), noise_of(Clip("b", "x", seed=other)))


@given(st.integers(0, MAX_SEED))
def test_seeds_of_32_bits_stay_as_they_are_and_larger_ones_become_such(seed):
    assert 0 <= mixed_seed(seed) < GENERATOR_SEEDS
    assert mixed_seed(mixed_seed(seed)) == mixed_seed(seed)
    if seed < GENERATOR_SEEDS:
        generator = torch.Generator("cpu").manual_seed(seed)
        assert torch.equal(noise_of(Clip("a", "x", seed=seed)), torch.randn(16, generator=generator))


def test_mixing_is_what_it_was():
    assert [mixed_seed(seed) for seed in (2**32, LARGE, MAX_SEED)] == [1813816320, 801402108, 3007978544]


@given(st.text(st.characters(codec="ascii"), min_size=1), st.integers(0, MAX_SEED))
def test_a_row_without_a_seed_is_the_same_clip_by_both_rules(clip_id, seed):
    before, now = derived_seed(clip_id, seed, "low"), derived_seed(clip_id, seed)
    assert now < GENERATOR_SEEDS
    assert Clip("a", "x", seed=before, seed_rule="low").generator_seed == Clip("a", "x", seed=now).generator_seed


def manifest(folder: Path, **columns) -> str:
    path = folder / "prompts.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_clips_that_share_a_derived_seed_are_counted(tmp_path):
    # Two ids of which a search found that "0:<id>" has equal bits where the seed is.
    ids = ["clip-42194", "clip-70743"]
    assert len({derived_seed(clip_id, 0) for clip_id in ids}) == 1
    path = manifest(tmp_path, prompt=["a", "b", "c"], id=[*ids, "other"])
    assert open_manifest(path).shared_seeds() == 2
    assert open_manifest(path, seed=1).shared_seeds() == 0
    assert render(path, str(tmp_path / "out"), dry_run=True).notes == [
        "2 clips without a seed share their noise with another clip: seeds have 32 bits"
    ]
    many = open_manifest(path, samples=100_000)
    assert (many.unseeded, many.shared_seeds()) == (300_000, 21)  # n²/2³² are to be expected


def test_only_where_it_matters_is_the_rule_a_key_of_the_recipe(tiny, tmp_path):
    for name, seeds in (("small", [7, None]), ("large", [7, LARGE])):
        (tmp_path / name).mkdir()
        path = manifest(tmp_path / name, prompt=["a", "b"], seed=pa.array(seeds, pa.int64()))
        assert open_manifest(path).has_large_seeds == (name == "large")
    assert open_manifest(path, samples=2).has_large_seeds
    assert open_manifest(manifest(tmp_path, prompt=["a"], seed=[2**32 - 2]), samples=2).has_large_seeds is False
    assert open_manifest(manifest(tmp_path, prompt=["a"], seed=[2**32 - 2]), samples=3).has_large_seeds is True


@pytest.fixture(scope="module")
def local_ray():
    with own_ray(2, object_store_memory=300_000_000):
        yield


def frames_of(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: decode_video(path.read_bytes()) for path in out.glob("clips/*/*.mp4")}


def landed(video: torch.Tensor) -> np.ndarray:
    """Frames as a video file gives them back."""
    return decode_video(encode_video(video.numpy(), 8, ""))


def about(out: Path) -> dict:
    return json.loads((out / "dataset.json").read_text())


def test_a_dataset_without_large_seeds_is_not_continued_with_some(tiny, tmp_path):
    small, large = (
        manifest(folder, prompt=["x"], seed=[seed])
        for folder, seed in ((tmp_path / "a", 7), (tmp_path / "b", LARGE))
        if not folder.mkdir()
    )
    with Dataset.open(str(tmp_path / "out"), origin=origin(Pipeline.load(tiny).resolved())) as dataset:
        dataset.record_failure(next(iter(open_manifest(small))).clip, "text", 1, "boom")
    out = str(tmp_path / "out")
    assert about(tmp_path / "out")["recipe_hash"] == Pipeline.load(tiny).resolved().recipe_hash()
    assert render(small, out, str(tiny), dry_run=True).skipped_failures == 1
    with pytest.raises(UserError, match=r"made with another recipe: seeds None → 'mixed'"):
        render(large, out, str(tiny), dry_run=True)


@pytest.mark.usefixtures("local_ray")
def test_a_new_dataset_has_other_clips_for_seeds_that_differ_above_32_bits(tiny, tmp_path):
    path = manifest(
        tmp_path, prompt=["a red circle"] * 3, id=["a", "b", "c"], seed=pa.array([7, LARGE, None], pa.int64())
    )
    out = tmp_path / "out"
    assert render(path, str(out), str(tiny)).rendered == 3
    frames = frames_of(out)
    assert len({video.tobytes() for video in frames.values()}) == 3
    assert about(out)["recipe"]["seeds"] == "mixed"
    rows = {row["id"]: row for row in pq.read_table(out / "metadata.parquet").to_pylist()}
    assert {row["recipe"] for row in rows.values()} == {about(out)["recipe_hash"]}
    assert rows["b"]["seed"] == LARGE
    assert rows["c"]["seed"] < 2**32

    # What the metadata says makes the same clips again, and what is there is not rendered again.
    clips = [Clip(row["id"], row["prompt"], seed=row["seed"]) for row in rows.values()]
    for clip, video in zip(clips, run_stages(load_stages(Pipeline.load(tiny)), clips), strict=True):
        assert np.array_equal(landed(video), frames[clip.id])
    assert render(path, str(out), str(tiny), dry_run=True).done_before == 3
    assert render(path, str(out), str(tiny), limit=1, dry_run=True).done_before == 1


def test_a_dataset_begun_before_keeps_its_rule_and_is_neither_refused_nor_doubled(tmp_path):
    out = shutil.copytree(BEFORE, tmp_path / "out")
    rows = str(tmp_path / "rows.jsonl")
    shutil.move(out / "rows.jsonl", rows)
    frames = frames_of(out)
    assert np.array_equal(frames["a"], frames["b"])  # as it was
    survey = render(rows, str(out), "nano", overrides=ONE_STEP, dry_run=True)
    assert (survey.total, survey.done_before) == (6, 3)
    assert survey.notes[0].startswith("seeds from 2**32 on: this dataset uses only their low 32 bits")


@pytest.mark.usefixtures("local_ray")
def test_a_dataset_begun_before_gets_the_clips_that_it_would_have_got(tmp_path):
    out = shutil.copytree(BEFORE, tmp_path / "out")
    rows = str(tmp_path / "rows.jsonl")
    shutil.move(out / "rows.jsonl", rows)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/*.mp4")}
    before = about(out)
    assert render(rows, str(out), "nano", overrides=ONE_STEP).rendered == 3
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert about(out)["recipe"] == before["recipe"]
    assert "seeds" not in about(out)  # and the next job keeps to it, too
    assert read_status(str(out)).done == 6

    entries = {entry.clip.id: entry.clip for entry in open_manifest(rows).with_low_seeds()}
    seeds = dict(
        zip(*pq.read_table(out / "metadata.parquet", columns=["id", "seed"]).to_pydict().values(), strict=True)
    )
    assert seeds == {clip_id: clip.seed for clip_id, clip in entries.items()}
    assert seeds["c"] == 6846657573935923751  # of 63 bits, as the build before has written it down
    low = [Clip(clip_id, entries[clip_id].prompt, seed=seeds[clip_id] % 2**32) for clip_id in ("e", "f")]
    for clip, video in zip(low, run_stages(load_stages(Pipeline.load("nano", ONE_STEP)), low), strict=True):
        assert np.array_equal(landed(video), frames_of(out)[clip.id])


def test_a_dataset_begun_before_its_first_clip_landed_takes_the_new_rule(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(BEFORE / "dataset.json", out)
    survey = render(str(BEFORE / "rows.jsonl"), str(out), "nano", overrides=ONE_STEP, dry_run=True)
    assert (survey.done_before, survey.notes) == (0, [])
