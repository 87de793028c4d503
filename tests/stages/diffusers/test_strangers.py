"""Pipelines of families that nothing is said of: whole, bit for bit what their own call gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError, UserError
from show1_ray.manifest import ManifestError, open_manifest
from show1_ray.pipeline.lineup import order_of_anybody
from show1_ray.stage import StageError
from tests import tiny_diffusers as tiny
from tests.tiny_strangers import STRANGERS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


@pytest.mark.parametrize("name", STRANGERS)
def test_clips_are_those_of_the_direct_call(place: Path, name: str) -> None:
    clips = [Clip("a", "a red ball", None if name == "svd" else "blurred", 3), Clip("b", "a cat", None, 7)]
    given: dict[str, Any] = {}
    if name == "svd":
        given = {"image": np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)}
    pipeline = tiny.pipeline(place, name, inputs=dict.fromkeys(given, "image"))
    found = tiny.rendered(pipeline, clips, **{key: [value] * 2 for key, value in given.items()})
    for clip, frames in zip(clips, found, strict=True):
        call = tiny.CALLS[name] | {key: Image.fromarray(value) for key, value in given.items()}
        assert np.array_equal(frames, tiny.direct(place / name, clip, call))
        assert frames.std() > 1
    assert not np.array_equal(found[0], found[1])


def test_a_prompt_that_is_shortened_before_it_is_cut_is_refused(place: Path) -> None:
    """diffusers 0.42.1's Kandinsky 5 logs it, and goes on."""
    call = {**tiny.CALLS["kandinsky5"], "max_sequence_length": 512}
    clip = Clip("a", "a cat", "", 3)
    with pytest.raises(StageError, match=r"clip a: .* tokens, but Kandinsky5T2VPipeline encodes 640: shorten it"):
        tiny.rendered(tiny.pipeline(place, "kandinsky5", call), [clip])
    found = tiny.rendered(tiny.pipeline(place, "kandinsky5", call, long_prompts="cut"), [clip])[0]
    assert np.array_equal(found, tiny.direct(place / "kandinsky5", clip, call))


def test_frames_follow_the_levels_of_a_vae_that_does_not_say_its_ratio(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"LTX-2 makes 2·k \+ 1 frames, not 4; the nearest is 3"):
        tiny.pipeline(place, "ltx2", {**tiny.CALLS["ltx2"], "num_frames": 4})
    with pytest.raises(ConfigError, match=r"LTX makes 4·k \+ 1 frames, not 7; the nearest is 5"):
        tiny.pipeline(place, "ltx", {**tiny.CALLS["ltx"], "num_frames": 7})


def test_a_family_that_cannot_decode_whole_is_refused_before_it_denoises(place: Path) -> None:
    """diffusers 0.42.1's Allegro raises NotImplementedError after its last step."""
    with pytest.raises(ConfigError, match="AllegroPipeline cannot decode without tiling: give vae: tiling"):
        tiny.pipeline(place, "wan", {}, pipeline="AllegroPipeline")


@pytest.mark.parametrize(
    ("name", "call", "reason"),
    [
        ("svd", {}, "StableVideoDiffusionPipeline takes none"),
        ("flux", {"true_cfg_scale": 1.0}, "FluxPipeline leaves it out with a true_cfg_scale of 1.0: give call: {true_"),
    ],
)
def test_rows_with_a_negative_prompt_that_would_be_dropped_are_refused_when_the_manifest_is_read(
    place: Path, name: str, call: dict[str, Any], reason: str
) -> None:
    inputs = {"image": "image"} if name == "svd" else {}
    pipeline = tiny.pipeline(place, name, tiny.CALLS[name] | call, inputs=inputs)
    table = place / "prompts.csv"
    Image.new("RGB", (32, 32)).save(place / "a.png")
    table.write_text(f"prompt,negative_prompt,image\na cat,,{place}/a.png\na dog,blurred,{place}/a.png\n")
    with pytest.raises(ManifestError) as error:
        open_manifest(str(table), inputs=pipeline.input_columns)
    assert f"row 2: 'negative_prompt' is given, but {reason}" in str(error.value)
    with pytest.raises(UserError, match="clip 'x': it has a negative prompt, but"):
        order_of_anybody(pipeline, Clip("x", "a dog", "blurred", 1))
    with pytest.raises(ConfigError, match=r"video\.negative_prompt: is given, but"):
        tiny.pipeline(place, name, tiny.CALLS[name] | call, inputs=inputs, negative_prompt="blurred")
