"""Rows that set settings of Show-1's stages: as a pipeline that says so for all its clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.lineup import blueprints

INPUTS = """
inputs:
  frames: {int: stages.keyframes.frames}
  window: {int: stages.interpolation.window}
  noise: {int: stages.super_resolution.first_frame.noise_level}
  scale: {int: stages.super_resolution.scale}
  width: {int: stages.latent_super_resolution.width}
  negative: {text: stages.latent_super_resolution.negative_prompt}
"""
SET = {"frames": 2, "window": 6, "noise": 900, "scale": 3, "width": 48, "negative": "snow"}
CHANGES = [
    "keyframes.frames=2",
    "interpolation.window=6",
    "super_resolution.first_frame.noise_level=900",
    "super_resolution.scale=3",
    "latent_super_resolution.width=48",
    "latent_super_resolution.negative_prompt=snow",
]
CLIP = Clip("a", "a red circle", seed=3)


@pytest.fixture(scope="module")
def rows(tiny: Path) -> Path:
    path = tiny.with_name("rows.yaml")
    path.write_text(tiny.read_text() + INPUTS)
    return path


def rendered(stages: list[Any], clip: Clip) -> dict[str, np.ndarray]:
    """All that the stages give for a clip."""
    values: dict[str, np.ndarray] = {}
    for stage in stages:
        values |= stage([clip], [values])[0]
    return values


def test_a_clip_is_what_its_settings_make_it_whoever_says_them_and_whatever_came_before(tiny, rows):
    stages = [blueprint.build("cpu") for blueprint in blueprints(Pipeline.load(rows))]
    before = rendered(stages, CLIP)
    ours = rendered(stages, replace(CLIP, inputs=SET))
    again = rendered(stages, CLIP)
    theirs = rendered([one.build("cpu") for one in blueprints(Pipeline.load(tiny, CHANGES))], CLIP)
    assert ours["video"].shape == (6, 24, 48, 3)
    for name, value in theirs.items():
        assert np.array_equal(ours[name], value), name
        assert np.array_equal(again[name], before[name]), name
        assert name.endswith("embeds") or before[name].shape != value.shape
