"""A whole pipeline of diffusers as a stage: bit for bit what its own call gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.stage import StageError
from tests import tiny_diffusers as tiny

CALL: dict[str, Any] = {"num_frames": 9, "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 5.0}
CLIPS = [Clip("a", "a red ball", "blurred", 3), Clip("b", "a cat on a mat", None, 2**40 + 5, "low")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["wan", "wan22"])
def test_clips_are_those_of_the_direct_call(place: Path, name: str, dtype: str) -> None:
    pipeline = tiny.pipeline(place, name, CALL, dtype)
    for clip, frames in zip(CLIPS, tiny.rendered(pipeline, CLIPS), strict=True):
        expected = tiny.direct(place / name, clip, CALL, dtype)
        assert frames.shape == (9, 32, 32, 3)
        assert np.array_equal(frames, expected)


def test_a_prompt_that_would_be_cut_fails_its_clip_unless_cutting_is_asked_for(place: Path) -> None:
    long = Clip("long", "x" * 600, None, 1)
    with pytest.raises(StageError, match=r"clip long: stage video: its prompt has 601 tokens, but .* 512"):
        tiny.rendered(tiny.pipeline(place, "wan", CALL), [long])
    cut = tiny.pipeline(place, "wan", CALL, long_prompts="cut")
    expected = tiny.direct(place / "wan", long, CALL)
    assert np.array_equal(tiny.rendered(cut, [long])[0], expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("call.num_frames=10", "call.num_frames: Wan makes 4·k + 1 frames, not 10; the nearest is 9"),
        ("call.num_frames=12", "the nearest is 13"),
        ("call.height=30", "call.height: Wan needs multiples of 16, not 30; the nearest is 32"),
        ("call.guidance=3", "call.guidance: WanPipeline takes no 'guidance'; did you mean 'guidance_scale'?"),
        ("call.num_frames=nine", "call.num_frames: must be a whole number (it is 'nine')"),
        ("call.prompt=x", "call.prompt: cannot be given here: it is the row's"),
        ("call.latents=[1]", "call.latents: cannot be given here"),
        ("call.callback_on_step_end=f", "functions cannot be given in a pipeline file"),
        ("custom_pipeline=x/y", "custom_pipeline: code of a model repository is never run"),
        ("call.trust_remote_code=true", "trust_remote_code: code of a model repository is never run"),
        ("pipeline=WanPipelin", "diffusers has no pipeline 'WanPipelin'; did you mean 'WanPipeline'?"),
        ("pipeline=StableAudioPipeline", "StableAudioPipeline gives sound"),
        ("pipeline=WanImageToVideoPipeline", "needs 'image': give takes: {image: STAGE.VALUE[0]}"),
        ("scheduler.class=UniPC", "did you mean 'UniPCMultistepScheduler'?"),
        ("scheduler={flow_shft: 5}", "UniPCMultistepScheduler has no 'flow_shft'; did you mean 'flow_shift'?"),
        ("attention=flsh", "did you mean 'flash'?"),
        ("cache={class: FirstBlok}", "diffusers has no cache 'FirstBlok'"),
        ("quantize={backend: torchaoo}", "did you mean 'torchao'?"),
        ("quantize={backend: torchao, components: transformr}", "did you mean 'transformer'?"),
        ("variant=fp16", "no weights of the variant 'fp16'"),
        ("checkpoint.repo=/nowhere", "no model_index.json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(place: Path, change: str, expected: str) -> None:
    tiny.pipeline(place, "wan", CALL)
    with pytest.raises(ConfigError) as error:
        tiny.Pipeline.load(place / "wan.yaml", [f"video.{change}"])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
