"""What holds for all stages: a clip is a function of its prompt, its seed and the recipe."""

from __future__ import annotations

import pytest
import torch

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stage, load_stages, run_stages
from show1_ray.show1.stages import STAGES
from show1_ray.show1.super_resolution import window_slices
from show1_ray.stages.noise import seeded_noise
from show1_ray.stages.torch_stage import NonFiniteError, StageError

CLIPS = [
    Clip("a", "a red circle moving left", seed=1),
    Clip("b", "a blue square", negative_prompt="a dog", seed=2),
    Clip("c", "a green triangle growing", seed=2**63 - 1),
]


@pytest.fixture(scope="module")
def stages(tiny):
    return {stage.name: stage for stage in load_stages(Pipeline.load(tiny))}


@pytest.fixture(scope="module")
def inputs(stages):
    """What each stage is given, for `CLIPS`: {stage: [tensors of each clip]}."""
    tensors = [{} for _ in CLIPS]
    given = {}
    for name, stage in stages.items():
        given[name] = tensors
        tensors = [{**old, **new} for old, new in zip(tensors, stage(CLIPS, tensors), strict=True)]
    return given


def as_one_batch(stage, clips, tensors):
    """The stage's batch as a GPU runs it; on the CPU a call takes its clips one by one."""
    with torch.inference_mode():
        return stage.run(clips, tensors, [seeded_noise(clip.seed, stage.dtype) for clip in clips])


@pytest.mark.parametrize("name", STAGES)
def test_a_clip_does_not_depend_on_its_batch(tiny, inputs, name):
    # In double precision: these random networks amplify the last bits, which differ with the size of a batch.
    stage, tensors = load_stage(Pipeline.load(tiny), name), inputs[name]
    stage.dtype = torch.float64
    for network in stage.networks.values():
        network.double()
    together = as_one_batch(stage, CLIPS, tensors)
    turned = as_one_batch(stage, CLIPS[::-1], tensors[::-1])
    for i, clip in enumerate(CLIPS):
        alone = as_one_batch(stage, [clip], [tensors[i]])[0]
        for key in stage.gives:
            assert (together[i][key].double() - alone[key].double()).abs().max() <= 1e-5
            assert (turned[2 - i][key].double() - alone[key].double()).abs().max() <= 1e-5


@pytest.mark.parametrize("name", STAGES)
def test_on_the_cpu_a_clip_is_equal_bit_for_bit_in_any_batch(stages, inputs, name):
    stage, tensors = stages[name], inputs[name]
    together = stage(CLIPS, tensors)
    for i, clip in enumerate(CLIPS):
        alone = stage([clip], [tensors[i]])[0]
        assert all(torch.equal(alone[key], together[i][key]) for key in stage.gives)


def test_clips_that_differ_only_in_their_seed_differ(stages):
    videos = run_stages(stages.values(), [Clip("a", "a red circle", seed=1), Clip("b", "a red circle", seed=2)])
    assert not torch.equal(*videos)


def test_the_negative_prompt_of_a_clip_is_used(stages):
    clips = [Clip("a", "a red circle", seed=1), Clip("a", "a red circle", negative_prompt="snow", seed=1)]
    assert not torch.equal(*run_stages(stages.values(), clips))


def test_nothing_draws_from_the_global_generator(stages):
    state = torch.get_rng_state()
    run_stages(stages.values(), CLIPS[:1])
    assert torch.equal(torch.get_rng_state(), state)


def test_all_windows_of_all_clips_are_interpolated_in_one_batch(stages, inputs, network_calls):
    stage = stages["interpolation"]
    with network_calls(stage.unet) as sizes:
        as_one_batch(stage, CLIPS, inputs["interpolation"])
    windows = inputs["interpolation"][0]["keyframes"].shape[1] - 1
    assert sizes == [2 * 3 * windows] * stage.settings.steps  # 2: guidance


def test_super_resolution_batches_across_clips(stages, inputs, network_calls):
    stage = stages["super_resolution"]
    with network_calls(stage.unet) as sizes:
        as_one_batch(stage, CLIPS, inputs["super_resolution"])
    assert sizes == [2 * 3] * 2 * stage.settings.steps


def test_guidance_1_runs_the_prompt_alone(tiny, network_calls):
    stages = load_stages(Pipeline.load(tiny, ["keyframes.guidance=1"]))
    with network_calls(stages[1].unet) as sizes:
        stages[1](CLIPS[:1], stages[0](CLIPS[:1], [{}]))
    assert sizes == [1] * stages[1].settings.steps


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(8, [0]), (9, [0, 1]), (13, [0, 5]), (15, [0, 7]), (29, [0, 7, 14, 21]), (33, [0, 7, 14, 21, 25])],
)
def test_windows_cover_every_frame(frames, starts):
    slices = list(window_slices(frames, window=8, stride=7))
    assert [s.start for s in slices] == starts
    assert {i for s in slices for i in range(s.start, s.stop)} == set(range(frames))


def test_frames_behind_the_last_full_window_are_rendered(tiny):
    stages = load_stages(Pipeline.load(tiny, ["super_resolution.window=4", "super_resolution.stride=3"]))
    tensors: list = [{}]
    for stage in stages[:4]:
        tensors = [{**tensors[0], **stage(CLIPS[:1], tensors)[0]}]
    per_frame = tensors[0]["frames_sr"].std(dim=(0, 2, 3))
    assert len(per_frame) == 9
    assert (per_frame > 0.1).all()


@pytest.mark.parametrize("name", STAGES)
def test_non_finite_values_name_the_clip_and_the_stage(tiny, inputs, name):
    stage = {stage.name: stage for stage in load_stages(Pipeline.load(tiny))}[name]
    network = stage.networks["text_encoder" if name == "text" else "unet"]
    last = list(network.parameters())[-1]
    with torch.no_grad():
        last.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=f"clip b: stage {name}: .* NaN") as caught:
        stage(CLIPS[1:2], inputs[name][1:2])
    assert (caught.value.clip_id, caught.value.stage) == ("b", name)


def test_of_a_batch_the_clip_at_fault_is_named(stages, inputs):
    tensors = [dict(given) for given in inputs["interpolation"]]
    tensors[1]["keyframes"] = torch.full_like(tensors[1]["keyframes"], float("inf"))
    with pytest.raises(NonFiniteError, match="clip b: stage interpolation"):
        stages["interpolation"](CLIPS, tensors)


def test_a_missing_tensor_is_named(stages):
    with pytest.raises(StageError, match=r"clip a: stage interpolation: keyframes \(c k h w\) is missing"):
        stages["interpolation"](CLIPS[:1], [{}])


def test_a_stage_moves_all_its_networks(tiny):
    for stage in load_stages(Pipeline.load(tiny)):
        stage.to("meta")
        devices = {p.device.type for network in stage.networks.values() for p in network.parameters()}
        assert devices == {stage.device.type} == {"meta"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_cascade_runs_in_half_precision(tiny, dtype):
    video = run_stages(load_stages(Pipeline.load(tiny, [f"dtype={dtype}"])), CLIPS[:1])[0]
    assert (video.shape, video.dtype) == ((9, 24, 36, 3), torch.uint8)
