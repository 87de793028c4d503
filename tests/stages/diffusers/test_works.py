"""What pipelines of diffusers compute and weigh, by their configurations; and those that the package brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from show1_ray.errors import UserError
from show1_ray.pipeline.describe import check
from show1_ray.pipeline.file import names
from show1_ray.pipeline.pipeline import Pipeline
from show1_ray.planning.costs import count_stages
from show1_ray.planning.estimate import estimate
from tests import tiny_diffusers as tiny
from tests import tiny_images
from tests.stages.diffusers.test_frames import CALLS
from tests.stages.diffusers.test_frames import pipeline as over_frames

OF_DIFFUSERS = [
    *("cogvideox-5b", "hunyuanvideo-1.5", "ltx-video", "modelscope", "show1-modelscope", "show1-sdxl"),
    *("wan2.1-1.3b", "wan2.1-i2v-14b", "wan2.2-14b", "wan2.2-5b"),
]
FEW = ["video.call.num_inference_steps=4", "video.call.num_frames=5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("works")


def operations_of_the_call(place: Path, call: dict[str, Any]) -> int:
    """Of the real call, as it computes."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(place, dtype=torch.float32)
    # The counter does not know the CPU's own attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pipe("a text", **call, generator=torch.Generator("cpu").manual_seed(1))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", ["wan22", "ltx", "cogvideox", "modelscope"])
def test_counted_operations_are_those_of_the_call(place: Path, name: str) -> None:
    """But for the text encoder, which computes fewer tokens of a text that is not padded."""
    counts = count_stages(tiny.pipeline(place, name))
    expected = operations_of_the_call(place / name, tiny.CALLS[name])
    assert counts["video"].operations == pytest.approx(expected, rel=0.01)


def test_frames_that_are_gone_over_are_counted_each(place: Path) -> None:
    rendered = over_frames(place, "sdxl")
    wired = next(one for one in rendered.wired() if one.name == "video")
    image = Image.new("RGB", (24, 16))
    expected = operations_of_the_call(tiny_images.folder("sdxl", place), {"image": image, **CALLS["sdxl"]})
    found = wired.cls.operations(wired.settings, wired.context, wired.taken)
    assert found == pytest.approx(3 * expected, rel=0.01)


def test_pieces_share_out_the_operations_and_the_weights(place: Path) -> None:
    whole = count_stages(tiny.pipeline(place, "wan22"))["video"]
    pieces = count_stages(tiny.pipeline(place, "wan22", split="experts"))
    assert list(pieces) == ["video_text", "video_high_noise", "video_low_noise", "video_decode"]
    assert sum(one.operations for one in pieces.values()) == whole.operations
    assert sum(one.weights for one in pieces.values()) == whole.weights
    assert all(one.operations and one.weights for one in pieces.values())


@pytest.mark.parametrize("name", OF_DIFFUSERS)
def test_the_packages_pipelines_are_sound_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert name in names()
    pipeline = Pipeline.load(name)
    assert None not in pipeline.video_shape.sizes
    assert pipeline.notes() == []
    assert all(one.licence and one.revision for one in pipeline.checkpoints())
    weights = {one.name: one.cls.weights(one.settings, one.context) for one in pipeline.wired()}
    assert None not in weights.values()
    for one in pipeline.wired():
        assert one.execution.device == "cpu" or one.execution.memory * 2**30 > (weights[one.name] or 0)


def test_a_plan_of_a_pipeline_of_the_package_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipeline = Pipeline.load("wan2.2-14b", FEW)
    found = estimate(pipeline, 10, 2, "H100")
    assert [stage.name for stage in found.stages] == [
        *("video_text", "video_high_noise", "video_low_noise", "video_decode")
    ]
    counts = count_stages(pipeline)
    assert counts["video_high_noise"].weights == pytest.approx(28.6e9, rel=0.01)
    # 2 · 14.3e9 weights · (2 · 45 · 80) tokens for each half of guidance, and attention: 4 · 40 · 5120 · 7200²
    assert counts["video_low_noise"].operations == pytest.approx(
        2 * 2 * 7200 * (2 * 14e9 + 4 * 40 * 5120 * 7200 / 1), rel=0.5
    )
    with pytest.raises(UserError, match=r"RTX4090: .* too little for video_high_noise, which takes 37\.0 GiB"):
        estimate(pipeline, 10, 1, "RTX4090")


def test_a_plan_says_what_it_lacks_where_configurations_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pipeline = Pipeline.load("wan2.2-14b", ["video.checkpoint.repo=nobody/has-this"])
    with pytest.raises(UserError) as error:
        estimate(pipeline, 10, 1, "H100")
    assert str(error.value).startswith("nobody/has-this@main: not in the cache")
    assert "\n" not in str(error.value)


def test_check_tells_operations_of_each_piece(place: Path) -> None:
    found = check(tiny.pipeline(place, "wan22", split="experts"))
    assert [stage["operations"] > 0 for stage in found["stages"]] == [True] * 4
