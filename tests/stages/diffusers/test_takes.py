"""Values of earlier stages and inputs as arguments of a pipeline of diffusers; and settings that change one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.pipeline.lineup import blueprints
from show1_ray.pipeline.pipeline import Pipeline
from show1_ray.stage import StageError
from tests import tiny_diffusers as tiny

CLIPS = [Clip("a", "a red ball", "bad", 3), Clip("b", "a cat", None, 4)]
STRENGTH = {"num_inference_steps": 4, "strength": 0.6, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


def stage(place: Path, family: str, pipeline: str = "", call: dict[str, Any] | None = None, **more: Any) -> Any:
    said = {"uses": "diffusers", "checkpoint": {"repo": str(tiny.folder(family, place))}, "pipeline": pipeline or None}
    return {**said, "call": tiny.CALLS[family] if call is None else call, **more}


def load(place: Path, stages: dict[str, Any], **more: Any) -> Pipeline:
    file = place / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"fps": 8, "dtype": "float32", **more, "stages": stages}, sort_keys=False))
    return Pipeline.load(file)


def values_of(pipeline: Pipeline, **given: Any) -> list[dict[str, Any]]:
    """All values on the line of each clip."""
    found: list[dict[str, Any]] = [dict(given) for _ in CLIPS]
    for blueprint in blueprints(pipeline):
        for known, new in zip(found, blueprint.build("cpu")(CLIPS, found), strict=True):
            assert isinstance(new, dict)
            known |= new
    return found


@pytest.mark.parametrize(
    ("before", "family", "cls", "takes", "argument"),
    [
        ("modelscope", "stable_diffusion", "StableDiffusionImg2ImgPipeline", {"image": "keyframes[1]"}, "image"),
        ("modelscope", "modelscope", "VideoToVideoSDPipeline", {"video": "keyframes"}, "video"),
        ("wan", "wan", "WanVideoToVideoPipeline", {}, "video"),  # the only thing of that name
    ],
)
def test_a_value_of_an_earlier_stage_is_an_argument(
    place: Path, before: str, family: str, cls: str, takes: dict[str, str], argument: str
) -> None:
    call = STRENGTH | ({"height": 32, "width": 32} if family == "wan" else {})
    pipeline = load(place, {"keyframes": stage(place, before), "video": stage(place, family, cls, call, takes=takes)})
    for clip, values in zip(CLIPS, values_of(pipeline), strict=True):
        frames = [Image.fromarray(frame) for frame in values["keyframes.video"]]
        taken: Any = frames[1] if argument == "image" else frames
        expected = tiny.direct(place / family, clip, {**call, argument: taken}, cls=cls)
        assert np.array_equal(values["video"], expected)


def test_an_input_of_an_arguments_name_is_that_argument(place: Path) -> None:
    pipeline = load(place, {"video": stage(place, "ltx", "LTXImageToVideoPipeline")}, inputs={"image": "image"})
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for clip, values in zip(CLIPS, values_of(pipeline, image=image), strict=True):
        call = {**tiny.CALLS["ltx"], "image": Image.fromarray(image)}
        assert np.array_equal(values["video"], tiny.direct(place / "ltx", clip, call, cls="LTXImageToVideoPipeline"))


@pytest.mark.parametrize("split", [False, True])
def test_a_row_sets_an_argument(place: Path, split: bool) -> None:
    inputs = {"count": {"int": "stages.video.call.num_frames"}}
    pipeline = load(place, {"video": stage(place, "wan", split=split)}, inputs=inputs)
    assert pipeline.row({"count": 5}).video_shape.sizes == (5, 32, 32, 3)
    with pytest.raises(ConfigError, match=r"'count' is 6: .* Wan makes 4·k \+ 1 frames, not 6; the nearest is 5"):
        pipeline.row({"count": 6})
    clips = [Clip("a", "a red ball", None, 3, inputs={"count": 5})]
    expected = tiny.direct(place / "wan", clips[0], {**tiny.CALLS["wan"], "num_frames": 5})
    assert np.array_equal(tiny.rendered(pipeline, clips)[0], expected)


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ({"takes": {"imag": "keyframes[0]"}}, "takes.imag: it takes no 'imag'; did you mean 'image'?"),
        ({"takes": {"latents": "keyframes"}}, "takes.latents: it takes no 'latents'"),
        ({"call": {"image": 1}, "takes": {"image": "keyframes[0]"}}, "call.image: is taken from an earlier stage"),
        ({}, "StableDiffusionImg2ImgPipeline needs 'image': give takes: {image: STAGE.VALUE[0]}, or an input"),
        ({"call": {"strength": 0.2, "num_inference_steps": 4}, "takes": {"image": "keyframes[0]"}}, "is not one step"),
    ],
)
def test_what_cannot_be_taken_is_refused(place: Path, video: dict[str, Any], expected: str) -> None:
    own = stage(place, "stable_diffusion", "StableDiffusionImg2ImgPipeline", STRENGTH) | video
    with pytest.raises(ConfigError) as error:
        load(place, {"keyframes": stage(place, "wan"), "video": own})
    assert expected in str(error.value)


def test_a_negative_prompt_that_the_family_does_not_have_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="negative_prompt: is given, but LTX2LatentUpsamplePipeline takes none"):
        load(place, {"video": stage(place, "wan", "LTX2LatentUpsamplePipeline", {}, negative_prompt="bad")})
    pipeline = load(place, {"video": stage(place, "wan", negative_prompt="blurred")})
    clip = Clip("b", "a cat", None, 4)
    expected = tiny.direct(place / "wan", Clip("b", "a cat", "blurred", 4), tiny.CALLS["wan"])
    assert np.array_equal(tiny.rendered(pipeline, [clip])[0], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"cache": {"class": "FirstBlock", "threshold": 0.5}},
        {"scheduler": {"flow_shift": 5.0}, "vae": ["tiling", "slicing"], "attention": "_native_math"},
    ],
)
def test_what_changes_a_pipeline_leaves_nothing_for_the_next_clip(place: Path, changes: dict[str, Any]) -> None:
    call = {**tiny.CALLS["wan"], "num_inference_steps": 8}
    first = tiny.rendered(load(place, {"video": stage(place, "wan", call=call)}), CLIPS)
    forth = tiny.rendered(load(place, {"video": stage(place, "wan", call=call, **changes)}), CLIPS)
    split = load(place, {"video": stage(place, "wan", call=call, split=True, **changes)})
    back = tiny.rendered(split, CLIPS[::-1])
    plain = tiny.rendered(load(place, {"video": stage(place, "wan", call=call)}), CLIPS)
    for one, other, without, before in zip(forth, reversed(back), plain, first, strict=True):
        assert np.array_equal(one, other)
        assert not np.array_equal(one, without)
        assert np.array_equal(without, before), "another pipeline of the same process is what it was"


def test_a_backend_of_attention_is_one_pipeline_s_alone(place: Path) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    before = registry.get_active_backend()
    tiny.rendered(load(place, {"video": stage(place, "wan", attention="_native_math")}), CLIPS[:1])
    assert registry.get_active_backend() == before


def test_frames_of_another_number_than_asked_are_refused_where_nobody_knew(place: Path) -> None:
    """Of a family that is not known: what comes out is held against what was asked for."""
    pipeline = load(place, {"video": stage(place, "stable_diffusion", call={**tiny.CALLS["stable_diffusion"]})})
    built = blueprints(pipeline)[0].build("cpu")
    settings = pipeline.parts[0].settings
    built.stage.configure(settings.model_copy(update={"call": {**settings.call, "height": 36}}))
    with pytest.raises((StageError, ValueError), match="36"):
        built(CLIPS[:1], [{}])
