"""The stages, and the cascade, against the published pipelines and the published script."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from show1_ray.clip import Clip
from show1_ray.show1 import settings as recipe
from show1_ray.show1.interpolation import Interpolation
from show1_ray.show1.keyframes import Keyframes
from show1_ray.show1.latent_super_resolution import LatentSuperResolution, resize, to_uint8
from show1_ray.show1.super_resolution import FirstFrame, SuperResolution
from show1_ray.stages.noise import Noise, draw_batch, seeded_noise
from tests.goldens import ANY, Case


def check(case: Case, output: Tensor) -> None:
    assert output.shape == case.expected.shape
    assert (output - case.expected).abs().max() <= max(1e-3, 10 * case.meta["fp32_vs_fp64_max_abs"])


@pytest.mark.parametrize(
    "name", ["keyframe", "keyframe_long", "keyframe_b2_nocfg", "keyframe_gen_list", "keyframe_dpm_learned_range"]
)
def test_keyframes(golden, name):
    case = Case(golden, name)
    size = {"frames": case.call["f"], "height": case.call["h"], "width": case.call["w"]}
    stage = Keyframes(case.unet, case.scheduler, case.settings(recipe.Keyframes, **size))
    outputs = stage(case.clips, case.tensors(), case.noise)
    check(case, torch.stack([output["keyframes"] for output in outputs]))


@pytest.mark.parametrize("name", ["interp", "interp_own_noise_b2"])
def test_interpolation(golden, name):
    case = Case(golden, name)
    stage = Interpolation(case.unet, case.scheduler, case.settings(recipe.Interpolation, window=case.call["f"]))
    keyframes = case.inputs["pixel_values"][:, :, [0, -1]]
    outputs = stage(case.clips, case.tensors(keyframes=keyframes), case.noise)
    check(case, torch.stack([output["frames"] for output in outputs]))


def test_first_frame(golden):
    case = Case(golden, "sr1_image")
    settings = case.settings(recipe.FirstFrame, noise_level=case.call["noise_level"])
    first_frame = FirstFrame(case.unet, case.scheduler, case.noising, settings)
    with torch.inference_mode():
        check(case, first_frame(case.inputs["image"], *case.text, 4, case.noise))


@pytest.mark.parametrize("name", ["sr1", "sr1_nofirst_b2"])
def test_a_window_of_super_resolution(golden, name):
    case = Case(golden, name)
    stage = super_resolution(case, window=case.call["f"], noise_level=case.call["noise_level"])
    noise = case.noise
    x, condition_noise = (draw_batch(noise, case.expected.shape[1:], like=case.expected) for _ in range(2))
    first = case.inputs["first_frame_cond"][:, :, 0] if case.call["first"] else None
    with torch.inference_mode():
        check(case, stage.upscale_window(case.inputs["image"], first, *case.text, x, condition_noise))


@pytest.mark.parametrize("name", ["sr2", "sr2_diffusers_unet"])
def test_latent_super_resolution(golden, name):
    case = Case(golden, name)
    stage = latent_super_resolution(case, golden)
    with torch.inference_mode():
        check(case, stage.upscale(case.inputs["video_uint8"][None], *case.text, case.noise))


def super_resolution(case: Any, first_frame: Any = None, **settings: Any) -> SuperResolution:
    settings["first_frame"] = recipe.FirstFrame(checkpoint=ANY, steps=1, guidance=1)
    return SuperResolution(
        case.unet,
        case.scheduler,
        case.noising,
        first_frame,
        case.settings(recipe.SuperResolution, **settings),
    )


def latent_super_resolution(case: Any, golden: Any) -> LatentSuperResolution:
    settings = case.settings(recipe.LatentSuperResolution, strength=case.call["strength"])
    vae = golden.network("B_stage/vae")
    return LatentSuperResolution(case.unet, vae, None, case.scheduler, settings, vae_frames=2)  # type: ignore[arg-type]


class Script:
    """A stage of the published script's golden run; to the functions above it looks like a `Case`."""

    def __init__(self, golden: Any, name: str, **call: Any) -> None:
        meta = golden.meta("C_cascade")
        self.meta = meta
        self.call = {**call, "steps": meta["steps"][name], "g": meta["guidance"][name]}
        self.unet = golden.network(f"A_unet/{meta['unets'][name]}")
        self.scheduler = golden.scheduler(meta["schedulers"][name])
        noising = {"image": "image_noising", "sr1": "sr1_noising"}.get(name)
        self.noising = noising and golden.scheduler(meta["schedulers"][noising])
        self.clip = Clip("golden", "", seed=meta["seed"])

    def settings(self, kind: Any, **more: Any) -> Any:
        return kind(checkpoint=ANY, steps=self.call["steps"], guidance=self.call["g"], **more)

    @property
    def noise(self) -> list[Noise]:
        return [seeded_noise(self.clip.seed, torch.float32)]


@pytest.fixture(scope="module")
def script(golden):
    """What the script gave, and the text embeddings that it was given."""
    files = ("embeds", "1_keyframes_interp", "2_sr1", "3_sr2")
    return {name: tensor for file in files for name, tensor in golden.tensors(f"C_cascade/{file}").items()}


def assert_within(output: Tensor, expected: Tensor, floor: float) -> None:
    assert output.shape == expected.shape
    assert (output - expected).abs().max() <= max(1e-3, 10 * floor)


def assert_same_8_bit(output: Tensor, expected: Tensor) -> None:
    assert output.shape == expected.shape
    assert ((output.int() - expected.int()).abs() <= 1).float().mean() >= 0.99


def test_the_cascade_up_to_super_resolution_is_the_script_s(golden, script):
    meta = golden.meta("C_cascade")
    floors = meta["fp32_vs_fp64_max_abs"]
    tensors = {
        "prompt_embeds": script["t5_prompt_embeds"][0],
        "negative_prompt_embeds": script["t5_negative_embeds"][0],
    }

    base = Script(golden, "base")
    size = {"frames": 8, "height": meta["h"], "width": meta["w"]}
    stage: Any = Keyframes(base.unet, base.scheduler, base.settings(recipe.Keyframes, **size))
    tensors |= stage([base.clip], [tensors])[0]
    assert_within(tensors["keyframes"], script["keyframes"][0], floors["keyframes"])

    interp = Script(golden, "interp")
    stage = Interpolation(interp.unet, interp.scheduler, interp.settings(recipe.Interpolation))
    tensors |= stage([interp.clip], [tensors])[0]
    assert_within(tensors["frames"], script["interp_video"][0], floors["interp_video"])

    image, sr1 = Script(golden, "image"), Script(golden, "sr1")
    first_frame = FirstFrame(image.unet, image.scheduler, image.noising, image.settings(recipe.FirstFrame))
    stage = super_resolution(sr1, first_frame)
    tensors |= stage([sr1.clip], [tensors])[0]
    video = tensors["frames_sr"]
    assert_within(video[None, :, 21:], script["sr1_window.3"], floors["sr1_window.3"])
    assert_same_8_bit(to_uint8(video), script["sr1_video_uint8"])


def test_latent_super_resolution_of_the_script_s_8_bit_frames_is_the_script_s(golden, script):
    case = Script(golden, "sr2", strength=0.8)
    stage = latent_super_resolution(case, golden)
    text = script["clip_prompt_embeds"], script["clip_negative_embeds"]
    with torch.inference_mode():
        output = stage.upscale(script["sr2_input_uint8"][None], *text, case.noise)
    every_other = output[:, :, ::2]  # the frames that the archive keeps
    assert_within(every_other, script["sr2_output"], case.meta["fp32_vs_fp64_max_abs"]["sr2_output"])
    assert_same_8_bit(to_uint8(every_other[0]), to_uint8(script["sr2_output"][0]))


def test_frames_are_quantised_and_resized_as_in_the_script(script):
    resized = resize(
        script["sr1_video_uint8"], (script["sr2_input_uint8"].shape[2], script["sr2_input_uint8"].shape[1])
    )
    assert torch.equal(resized, script["sr2_input_uint8"])


def test_8_bit_conversion_truncates():
    levels = torch.tensor([-1, -0.5, 0, 0.5, 1, 1.02]).expand(3, 1, 1, 6)
    assert to_uint8(levels)[0, 0, :, 0].tolist() == [0, 63, 127, 191, 255, 255]
