"""Shortcuts of the denoising loop: which steps they touch, that off is off, and that they are counted."""

from __future__ import annotations

import pytest
import torch

from show1_ray.clip import Clip
from show1_ray.pipeline import Pipeline
from show1_ray.planning.costs import count_stages
from show1_ray.show1.cascade import load_stage, load_stages, run_stages
from show1_ray.stages.noise import seeded_noise
from show1_ray.stages.operations import counted, operations_of
from show1_ray.stages.settings import Denoising
from show1_ray.stages.steps import plan_steps

LOOPS = ("keyframes", "interpolation", "super_resolution", "super_resolution.first_frame", "latent_super_resolution")
CLIPS = [Clip("a", "a red circle moving left", seed=1), Clip("b", "a blue square", seed=2)]
NO_SHORTCUTS = [f"{loop}.{key}" for loop in LOOPS for key in ("guidance_interval=[0, 1]", "reuse=null")]
INTERVAL = [f"{loop}.guidance_interval=[0, 0.5]" for loop in LOOPS]
REUSE = [f"{loop}.reuse={{every: 2, levels: 1}}" for loop in LOOPS]
MORE_STEPS = [*(f"{loop}.steps=4" for loop in LOOPS[:-1]), "latent_super_resolution.steps=5"]


def walk(count: int, **settings: object) -> str:
    """A letter a step: guided or the prompt alone, in capitals where the whole network runs."""
    loop = Denoising.model_validate({"checkpoint": {"repo": "/"}, "steps": count, "guidance": 3, **settings})
    letters = {(True, True): "G", (True, False): "g", (False, True): "P", (False, False): "p"}
    return "".join(letters[step.guided, step.whole] for step in plan_steps(loop, count))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, "GGGGGGGGGG"),
        ({"guidance": 1}, "PPPPPPPPPP"),
        ({"guidance_interval": [0, 1]}, "GGGGGGGGGG"),
        ({"guidance_interval": [0.2, 0.8]}, "PPGGGGGGPP"),
        ({"guidance_interval": [0.2, 0.8], "guidance": 1}, "PPPPPPPPPP"),
        ({"reuse": {"every": 2}}, "GgGgGgGgGg"),
        ({"reuse": {"every": 4}}, "GgggGgggGg"),
        ({"reuse": {"every": 4}, "guidance": 1}, "PpppPpppPp"),
        ({"reuse": {"every": 4}, "guidance_interval": [0, 0.5]}, "GgggGpppPp"),
        ({"reuse": {"every": 4}, "guidance_interval": [0.3, 1]}, "PppGgggGgg"),
    ],
)
def test_the_steps_of_a_loop(settings, steps):
    assert walk(10, **settings) == steps


def test_shortcuts_that_are_off_are_bit_equal_and_leave_the_recipe_as_it_was(tiny):
    exact, off = Pipeline.load(tiny), Pipeline.load(tiny, NO_SHORTCUTS)
    for video, same in zip(run_stages(load_stages(exact), CLIPS), run_stages(load_stages(off), CLIPS), strict=True):
        assert torch.equal(video, same)
    without = Pipeline.load(tiny, [f"{loop}.{key}=null" for loop in LOOPS for key in ("guidance_interval", "reuse")])
    assert without.resolved().recipe_hash() == exact.resolved().recipe_hash()
    assert "reuse" not in str(exact.recipe())


@pytest.mark.parametrize("shortcut", [INTERVAL, REUSE], ids=["interval", "reuse"])
def test_a_shortcut_is_part_of_the_recipe_and_of_the_clip(tiny, shortcut):
    exact, fast = Pipeline.load(tiny, MORE_STEPS), Pipeline.load(tiny, [*MORE_STEPS, *shortcut])
    assert fast.resolved().recipe_hash() != exact.resolved().recipe_hash()
    assert not torch.equal(run_stages(load_stages(fast), CLIPS[:1])[0], run_stages(load_stages(exact), CLIPS[:1])[0])


def test_operations_with_shortcuts_are_those_of_the_calls_that_are_made(tiny):
    pipeline, exact = Pipeline.load(tiny, [*MORE_STEPS, *INTERVAL, *REUSE]), Pipeline.load(tiny, MORE_STEPS)
    tensors: list = [{}]
    for name, count in count_stages(pipeline).items():
        stage = load_stage(pipeline, name)
        with counted(stage) as calls:
            given = stage(CLIPS[:1], tensors)[0]
        tensors = [{**tensors[0], **given}]
        made = sum(number * operations_of(network, *call) for (network, *call), number in calls.items())
        # The negative prompt, which counts once for many clips, is the only difference.
        if name != "text":
            assert made == pytest.approx(count.operations, rel=2e-3)
            assert count.operations < 0.99 * count_stages(exact)[name].operations
        assert count.weights == count_stages(exact)[name].weights


def test_a_clip_does_not_depend_on_its_batch_with_shortcuts_either(tiny):
    pipeline = Pipeline.load(tiny, [*MORE_STEPS, *INTERVAL, *REUSE])
    tensors: list = [{} for _ in CLIPS]
    for name in ("text", "keyframes", "interpolation", "super_resolution"):
        stage = load_stage(pipeline, name)
        stage.dtype = torch.float64
        for network in stage.networks.values():
            network.double()
        with torch.inference_mode():
            together, alone = (
                [
                    given
                    for part in parts
                    for given in stage.run(*part, [seeded_noise(c.seed, stage.dtype) for c in part[0]])
                ]
                for parts in ([(CLIPS, tensors)], [([c], [t]) for c, t in zip(CLIPS, tensors, strict=True)])
            )
        for one, other in zip(together, alone, strict=True):
            assert all((one[key] - other[key]).abs().max() <= 1e-5 for key in one)
        tensors = [{**old, **new} for old, new in zip(tensors, together, strict=True)]


def test_outside_the_interval_the_prompt_s_half_runs_alone(tiny, network_calls):
    stages = load_stages(Pipeline.load(tiny, [*MORE_STEPS, *INTERVAL]))
    with network_calls(stages[1].unet) as sizes:
        stages[1](CLIPS[:1], stages[0](CLIPS[:1], [{}]))
    assert sizes == [2, 2, 1, 1]


def test_show1_fast_takes_less_than_a_quarter_of_the_operations():
    exact, fast = (count_stages(Pipeline.load(name)) for name in ("show1-demo", "show1-fast"))
    total = [sum(count.operations for count in counts.values()) / 1e15 for counts in (exact, fast)]
    assert total[1] < 0.24 * total[0]
    # By hand, 16 of 20 steps are guided; a shallow call is .213 of a whole one: 18 of each.
    calls = (18 + 0.213 * 18) / (2 * 50)
    assert fast["interpolation"].operations == pytest.approx(calls * exact["interpolation"].operations, rel=0.01)
