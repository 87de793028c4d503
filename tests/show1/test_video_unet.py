"""The networks against the published code."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer

from show1_ray.errors import ConfigError
from show1_ray.show1 import VideoUNet
from show1_ray.show1.random import published_config, without_unknown

CASES = [(name, case) for name in ("keyframe", "interp", "sr1", "sr1_image", "sr2") for case in (0, 1)] + [
    ("sr2", 2),
    ("sr2_diffusers", 0),
]
FULL_SIZE: list[tuple[str, str, str, Any]] = [
    ("show-1-base", "show-1-base", "unet", VideoUNet),
    ("show-1-interpolation", "show-1-interpolation", "unet", VideoUNet),
    ("show-1-sr1", "show-1-sr1", "unet", VideoUNet),
    ("IF-II-L-image-sr", "IF-II-L-v1.0", "unet", UNet2DConditionModel),
    ("show-1-sr2", "show-1-sr2", "unet", UNet3DConditionModel),
    ("show-1-sr2-vae", "show-1-sr2", "vae", AutoencoderKL),
]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_network_gives_what_the_published_one_gives(golden, name, case):
    network = golden.network(f"A_unet/{name}")
    inputs = golden.tensors(f"A_unet/{name}/case{case}.inputs")
    expected = golden.tensors(f"A_unet/{name}/case{case}.output")["sample"]
    with torch.inference_mode():
        output = network(**inputs)
    output = output if isinstance(output, torch.Tensor) else output.sample
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("listed", "repo", "component", "kind"), FULL_SIZE)
def test_names_and_shapes_of_the_full_size_networks_are_the_published_ones(golden, listed, repo, component, kind):
    config = published_config(repo, component)
    if kind is UNet3DConditionModel:
        config["attention_head_dim"] = 64
    with torch.device("meta"):
        network = kind.from_config(config)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == golden.meta("D_fullsize", f"{listed}.state_dict")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("class_embed_type", "identity"),
        ("time_embedding_type", "fourier"),
        ("only_cross_attention", True),
        ("transfromer_in_opt", True),
        ("dual_cross_attention", True),
        ("a_new_option", 1),
        ("down_block_types", ["CrossAttnDownBlock3D"] * 4),
    ],
)
def test_an_option_that_no_published_checkpoint_uses_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=option):
        VideoUNet.from_config({**published_config("show-1-base", "unet"), option: value})


def test_temporal_attention_has_heads_and_dimension_exchanged():
    with torch.device("meta"):
        unet = VideoUNet.from_config(published_config("show-1-base", "unet"))
    block = unet.down_blocks[1]
    assert (block.attentions[0].heads, block.attentions[0].inner_dim) == (10, 640)
    assert block.temp_attentions[0].num_attention_heads == 64
    assert block.temp_attentions[0].attention_head_dim == 10


VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention_head_dim": 16, "addition_embed_type_num_heads": 4, "time_embedding_dim": 96},
    {"attention_head_dim": [32, 16, 8], "layers_per_block": [1, 3, 2]},  # a list is not reversed for the up blocks
    {"block_out_channels": [32, 32], "layers_per_block": 2, "norm_num_groups": 8, "out_channels": 3},
    {
        "block_out_channels": [32, 64, 32, 96],
        "class_embed_type": "timestep",
        "in_channels": 6,
        "mid_block_scale_factor": 1.41421,
        "resnet_out_scale_factor": 1.41421,
        "resnet_skip_time_act": True,
        "time_embedding_act_fn": "gelu",
    },
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_without_its_temporal_layers_it_is_the_image_unet_of_diffusers_for_each_frame(changes):
    config = {
        **published_config("show-1-base", "unet"),
        "block_out_channels": [32, 64, 96],
        "attention_head_dim": 32,
        "layers_per_block": 2,
        "encoder_hid_dim": 48,
        "cross_attention_dim": 64,
        "addition_embed_type_num_heads": 8,
        **changes,
    }
    kinds = ["SimpleCrossAttn"] * (len(config["block_out_channels"]) - 1)
    config["down_block_types"] = ["ResnetDownsampleBlock3D", *(f"{kind}DownBlock3D" for kind in kinds)]
    config["up_block_types"] = [*(f"{kind}UpBlock3D" for kind in kinds), "ResnetUpsampleBlock3D"]
    torch.manual_seed(0)
    video = VideoUNet.from_config(config).eval()
    flat = json.loads(json.dumps(config).replace("3D", "2D"))
    image = UNet2DConditionModel.from_config(without_unknown(UNet2DConditionModel, flat)).eval()
    temporal = {name for name in video.state_dict() if "temp_" in name}
    image.load_state_dict({name: weight for name, weight in video.state_dict().items() if name not in temporal})
    with torch.no_grad():
        for name, module in video.named_modules():  # what is left of them is the residual connection
            if isinstance(module, TemporalConvLayer):
                torch.nn.init.zeros_(module.conv4[-1].weight)
                torch.nn.init.zeros_(module.conv4[-1].bias)
            if name.endswith("proj_out") and "temp_attentions" in name:
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)
    x = torch.randn(2, config["in_channels"], 3, 16, 24)
    text, timestep = torch.randn(2, 7, config["encoder_hid_dim"]), torch.tensor([7, 900])
    labels = torch.tensor([3, 250]) if config["class_embed_type"] else None
    with torch.inference_mode():
        whole = video(x, timestep, text, class_labels=labels)
        frames = [image(x[:, :, i], timestep, text, class_labels=labels).sample for i in range(3)]
    expected = torch.stack(frames, dim=2)
    assert (whole - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_size_that_cannot_be_halved_is_refused(golden):
    unet = golden.network("A_unet/keyframe")
    with pytest.raises(ValueError, match="divisible by 4"):
        unet(torch.zeros(1, 3, 2, 10, 16), 5, torch.zeros(1, 11, 64))


def test_it_is_saved_and_loaded_like_a_network_of_diffusers(golden, tmp_path):
    unet = golden.network("A_unet/sr1")
    unet.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "VideoUNet"
    loaded = VideoUNet.from_pretrained(tmp_path)
    inputs = golden.tensors("A_unet/sr1/case0.inputs")
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(**inputs), unet(**inputs))
