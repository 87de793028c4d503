"""Compilation and memory layout: execution settings, which change how a clip is computed and not what it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.pipeline import Pipeline
from show1_ray.show1.cascade import load_stage
from show1_ray.show1.stages import STAGES
from show1_ray.show1.temporal import TemporalConv
from show1_ray.stages.compilation import REGIONS

CLIPS = [Clip("a", "a red circle", seed=1)]
LAST = ["keyframes.channels_last=true"]
TWO_LAYERS = """
import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from show1_ray.stages.compilation import compile_regions, keep_compiled
torch.set_num_threads(1)
torch.manual_seed(0)
block = {"in_channels": 8, "groups": 4, "temb_channels": 6}
layers = torch.nn.ModuleList(torch.nn.ModuleList([ResnetBlock2D(**block)]) for _ in "ab")
layers = layers.double().eval()
x, emb = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 6).double()
def run():
    with torch.inference_mode():
        return layers[1][0](layers[0][0](x, emb), emb)
expected = run()
keep_compiled()
compile_regions(layers)
assert (run() - expected).abs().max() <= 1e-10
counters = torch._dynamo.utils.counters
cache = {"autograd_cache_miss": 0, "autograd_cache_hit": 0, **counters["aot_autograd"]}  # it holds inductor's results
print(counters["stats"]["unique_graphs"], cache["autograd_cache_miss"], cache["autograd_cache_hit"])
"""


def test_blocks_give_the_same_to_rounding_and_another_process_does_not_compile_them_again(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def run() -> list[int]:
        command = [sys.executable, "-c", TWO_LAYERS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [int(number) for number in done.stdout.split()]

    graphs, missed, _ = run()
    assert graphs > 0
    assert missed > 0
    again, missed, found = run()
    assert (again, missed) == (graphs, 0)
    assert found > 0
    assert (tmp_path / "show1-ray" / "inductor").is_dir()


def test_execution_settings_are_off_unless_given_and_leave_the_recipe_alone(tiny):
    plain = Pipeline.load(tiny)
    assert {getattr(plain.execution, name).compile for name in STAGES} == {"off"}
    compiled = Pipeline.load(tiny, ["keyframes.compile=blocks", "keyframes.channels_last=true"])
    assert compiled.resolved().recipe_hash() == plain.resolved().recipe_hash()


@pytest.mark.parametrize("written", ["off", "'off'", "false"])
def test_off_is_off_however_yaml_reads_it(tiny, tmp_path, written):
    file = tmp_path / "plain.yaml"
    file.write_text(f"extends: {tiny}\nexecution: {{keyframes: {{compile: {written}}}}}\n")
    by_file, by_override = Pipeline.load(file), Pipeline.load(tiny, [f"keyframes.compile={written}"])
    assert {pipeline.execution.keyframes.compile for pipeline in (by_file, by_override)} == {"off"}


def test_on_does_not_say_what_to_compile(tiny):
    with pytest.raises(ConfigError, match=r"execution\.keyframes\.compile: .*'off', 'blocks' or 'graphs' \(it is True"):
        Pipeline.load(tiny, ["keyframes.compile=on"])


@pytest.mark.parametrize("name", list(STAGES)[1:])
def test_every_stage_has_regions_to_compile_and_text_encoders_are_left_alone(tiny, name):
    stage = load_stage(Pipeline.load(tiny, [f"{name}.compile=blocks"]), name)
    for part, network in stage.networks.items():
        compiled = [module for module in network.modules() if module._compiled_call_impl is not None]
        assert bool(compiled) == (part != "text_encoder")
        assert {type(module).__name__ for module in compiled} <= set(REGIONS)


def test_graphs_take_networks_whole(tiny):
    stage = load_stage(Pipeline.load(tiny, ["keyframes.compile=graphs"]), "keyframes")
    compiled = [module for module in stage.unet.modules() if module._compiled_call_impl is not None]
    assert compiled == [stage.unet]


def test_graphs_do_not_go_with_reuse(tiny):
    with pytest.raises(ConfigError, match=r"execution\.super_resolution\.compile: graphs do not go with reuse"):
        Pipeline.load(tiny, ["super_resolution.first_frame.reuse={every: 2}", "super_resolution.compile=graphs"])


def test_channels_last_is_a_layout_and_changes_no_more_than_the_last_bits(tiny):
    plain, last = (load_stage(Pipeline.load(tiny, options), "keyframes") for options in ([], LAST))
    assert last.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    temporal = next(module for module in last.unet.modules() if isinstance(module, TemporalConv))
    assert temporal.weight.squeeze(-1).is_contiguous(memory_format=torch.channels_last)
    text = load_stage(Pipeline.load(tiny), "text")(CLIPS, [{}])
    for stage in (plain, last):  # in double precision: these random networks amplify the last bits
        stage.dtype = torch.float64
        stage.unet.double()
    given, expected = (stage(CLIPS, text)[0]["keyframes"] for stage in (last, plain))
    assert (given - expected).abs().max() <= 1e-8


@pytest.mark.parametrize("name", list(STAGES)[1:])
def test_every_stage_can_be_laid_out_with_channels_last(tiny, name):
    stage = load_stage(Pipeline.load(tiny, [f"{name}.channels_last=true"]), name)
    kernels = [m.weight for n in stage.networks.values() for m in n.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
