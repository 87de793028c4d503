"""A pipeline of diffusers cut into text, denoising and decoding: bit for bit the clips of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.pipeline.lineup import blueprints
from show1_ray.stage import StageError
from tests import tiny_diffusers as tiny

CLIPS = [
    Clip("a", "a red ball", "blurred", 3),
    Clip("b", "a cat on a mat", None, 2**40 + 5, "low"),
    Clip("c", "a cat on a mat", None, 7),
]
SPLIT = sorted(tiny.FAMILIES.keys() - {"stable_diffusion"})


def work(stage: Any) -> Any:
    """The pipeline that a station holds."""
    return stage.stage.work


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPLIT)
def test_whole_and_split_are_the_direct_call(place: Path, name: str, dtype: str) -> None:
    expected = [tiny.direct(tiny.folder(name, place), clip, tiny.CALLS[name], dtype) for clip in CLIPS]
    whole = tiny.pipeline(place, name, dtype=dtype)
    split = tiny.pipeline(place, name, dtype=dtype, split=True)
    assert [stage.name for stage in split.wired()] == ["video_text", "video_denoise", "video_decode"]
    assert split.recipe() == whole.recipe()
    for pipeline in (whole, split):
        found = tiny.rendered(pipeline, CLIPS)
        assert [np.array_equal(one, other) for one, other in zip(found, expected, strict=True)] == [True] * 3
    assert not np.array_equal(expected[1], expected[2])


@pytest.mark.parametrize(
    "changes",
    [{}, {"scheduler": "FlowMatchEulerDiscreteScheduler"}, {"scheduler": {"class": "DPMSolverMultistepScheduler"}}],
)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_experts_apart_are_the_direct_call(place: Path, steps: int, changes: dict[str, Any]) -> None:
    """UniPC remembers steps that were; with one step the second expert has nothing to do, or the first."""
    call = {**tiny.CALLS["wan22"], "num_inference_steps": steps}
    whole = tiny.rendered(tiny.pipeline(place, "wan22", call, **changes), CLIPS)
    apart = tiny.pipeline(place, "wan22", call, split="experts", **changes)
    names = ["video_text", "video_high_noise", "video_low_noise", "video_decode"]
    assert [stage.name for stage in apart.wired()] == names
    for one, other in zip(tiny.rendered(apart, CLIPS), whole, strict=True):
        assert np.array_equal(one, other)


def test_each_piece_holds_its_own_networks_only(place: Path) -> None:
    apart = tiny.pipeline(place, "wan22", split="experts")
    held = {
        blueprint.context.name: sorted(
            name
            for name, one in work(blueprint.build("cpu")).pipe.components.items()
            if isinstance(one, torch.nn.Module)
        )
        for blueprint in blueprints(apart)
    }
    assert held == {
        "video_text": ["text_encoder"],
        "video_high_noise": ["transformer"],
        "video_low_noise": ["transformer_2"],
        "video_decode": ["vae"],
    }


def test_equal_texts_are_encoded_once(place: Path) -> None:
    text = blueprints(tiny.pipeline(place, "wan", split=True))[0].build("cpu")
    calls = []
    encoder = work(text).pipe.text_encoder
    encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    text(CLIPS, [{}] * 3)
    assert len(calls) == 4  # two prompts, "blurred", and the empty negative prompt
    text(CLIPS[1:], [{}] * 2)
    assert len(calls) == 4


def test_a_prompt_that_would_be_cut_is_refused_each_time(place: Path) -> None:
    text = blueprints(tiny.pipeline(place, "wan", split=True))[0].build("cpu")
    for clip in (Clip("x", "x" * 600), Clip("y", "x" * 600)):
        with pytest.raises(StageError, match=f"clip {clip.id}: .*601 tokens, but WanPipeline encodes 512"):
            text([clip], [{}])


def test_a_family_that_is_not_known_runs_whole_and_that_is_said(place: Path) -> None:
    pipeline = tiny.pipeline(place, "stable_diffusion", split=True)
    assert [stage.name for stage in pipeline.wired()] == ["video"]
    assert pipeline.notes() == ["video: StableDiffusionPipeline runs whole: how it would be split is not known"]
    pipeline = tiny.pipeline(place, "wan", split="experts")
    assert [stage.name for stage in pipeline.wired()] == ["video_text", "video_denoise", "video_decode"]
    assert pipeline.notes() == ["video: denoising stays in one: the checkpoint has one transformer"]


def test_pieces_are_executed_in_their_own_ways(place: Path) -> None:
    execution = {"video": {"batch_size": 4, "text": {"device": "cpu", "cpus": 2}, "decode": {"batch_size": 1}}}
    pipeline = tiny.pipeline(place, "wan", split=True, execution=execution)
    assert [(one.execution.batch_size, one.execution.device, one.execution.cpus) for one in pipeline.wired()] == [
        (4, "cpu", 2),
        (4, "auto", 1),
        (1, "auto", 1),
    ]
    pipeline = tiny.Pipeline.load(place / "wan.yaml", ["video.denoise.batch_size=8"])
    assert [one.execution.batch_size for one in pipeline.wired()] == [4, 8, 1]
    with pytest.raises(ConfigError, match=r"execution\.video\.denoise\.batch_sise: unknown key"):
        tiny.Pipeline.load(place / "wan.yaml", ["execution.video.denoise.batch_sise=8"])


def test_later_stages_know_what_is_cut_by_the_name_of_the_stage(place: Path) -> None:
    tiny.pipeline(place, "wan", split=True)
    said = tiny.yaml.safe_load((place / "wan.yaml").read_text())
    said["clip"] = "video.video"
    said["stages"]["again"] = {**said["stages"]["video"], "takes": {"max_sequence_length": "inputs.length"}}
    said["inputs"] = {"length": "int"}
    (place / "twice.yaml").write_text(tiny.yaml.safe_dump(said, sort_keys=False))
    pipeline = tiny.Pipeline.load(place / "twice.yaml")
    assert str(pipeline.video) == "video_decode.video"
    assert [stage.name for stage in pipeline.wired()][3:] == ["again_text", "again_denoise", "again_decode"]
    assert {str(ref) for ref in pipeline.wired()[4].takes.values()} == {
        *(f"again_text.{name}" for name in ("prompt_embeds", "negative_prompt_embeds")),
        "inputs.length",
    }
