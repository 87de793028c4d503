"""Nano's networks: their sizes, and how they begin.

They are the published cascade's classes with narrower channels. Options not listed here are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn

from show1_ray.show1.random import published_config
from show1_ray.show1.temporal import convolve_frames_in_2d
from show1_ray.show1.video_unet import VideoUNet
from training.text import CLIP_WIDTH, POOLING_HEADS, TIME_WIDTH, WIDTH

PIXEL = {
    "encoder_hid_dim": WIDTH,
    "cross_attention_dim": 64,
    "addition_embed_type_num_heads": POOLING_HEADS,
    "attention_head_dim": 8,
    "time_embedding_dim": TIME_WIDTH,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
SMALL_3D = {
    **PIXEL,
    "block_out_channels": [64, 64, 64],
    "down_block_types": ["ResnetDownsampleBlock3D"] * 2 + ["SimpleCrossAttnDownBlock3D"],
    "up_block_types": ["SimpleCrossAttnUpBlock3D"] + ["ResnetUpsampleBlock3D"] * 2,
}
LARGE_3D = {
    **PIXEL,
    "block_out_channels": [32, 32, 64],
    "norm_num_groups": 4,
    "down_block_types": ["ResnetDownsampleBlock3D"] * 2 + ["SimpleCrossAttnDownBlock3D"],
    "up_block_types": ["SimpleCrossAttnUpBlock3D"] + ["ResnetUpsampleBlock3D"] * 2,
}
LARGE_2D = {
    **LARGE_3D,
    "down_block_types": ["ResnetDownsampleBlock2D"] * 2 + ["SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"] * 2,
}
LATENT_3D = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D"],
    "up_block_types": ["CrossAttnUpBlock3D", "UpBlock3D"],
    "layers_per_block": 1,
    "cross_attention_dim": CLIP_WIDTH,
    "attention_head_dim": 8,
}
VAE = {
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 1.0,
}


def config_of(stage: str) -> dict[str, Any]:
    """The configuration of a stage's network, as it is written to its `config.json`."""
    repo, component, changes = {
        "keyframes": ("show-1-base", "unet", SMALL_3D),
        "interpolation": ("show-1-interpolation", "unet", SMALL_3D),
        "super_resolution": ("show-1-sr1", "unet", LARGE_3D),
        "first_frame": ("IF-II-L-v1.0", "unet", LARGE_2D),
        "latent_super_resolution": ("show-1-sr2", "unet", LATENT_3D),
        "vae": ("show-1-sr2", "vae", VAE),
    }[stage]
    config = {**published_config(repo, component), **changes}
    if stage == "latent_super_resolution":  # the published file has options that diffusers' class does not know
        config = {
            key: value
            for key, value in config.items()
            if key in UNet3DConditionModel._get_init_keys(UNet3DConditionModel)
        }
    return config


def make(stage: str) -> Any:
    """A stage's network, untrained. Without dropout: what is learned is endless."""
    kind = {
        "first_frame": UNet2DConditionModel,
        "latent_super_resolution": UNet3DConditionModel,
        "vae": AutoencoderKL,
    }.get(stage, VideoUNet)
    network = convolve_frames_in_2d(kind.from_config(config_of(stage)))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, TransformerTemporalModel):  # as its temporal convolutions, it begins as the identity
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    return network


def start_as_identity(unet: Any, first: int = 0, sign: float = 1.0) -> None:
    """Sets weights so that an untrained network returns `sign` times three input channels from `first` on.

    At high noise the noise is nearly the input itself, and a hundredth of an error in it is a wrong clip. One group of
    the output's normalisation carries the input and its negative past the last block's residual branch, and
    gelu(x) − gelu(−x) is x. Two large constants in the same group, K and −K, make its variance a constant, so that the
    normalisation is a known factor.
    """
    large, group = 8.0, unet.conv_norm_out.num_channels // unet.conv_norm_out.num_groups
    if group < 8:
        raise ValueError(f"groups of {group} channels; eight are needed")
    last = unet.up_blocks[-1].resnets[-1]
    skip = last.in_channels - unet.conv_in.out_channels
    factor = math.sqrt((6 + 2 * large**2) / group)
    with torch.no_grad():
        unet.conv_in.weight[:8] = 0
        unet.conv_in.bias[:8] = 0
        unet.conv_in.bias[6], unet.conv_in.bias[7] = large, -large
        last.conv_shortcut.weight[:8] = 0
        last.conv_shortcut.bias[:8] = 0
        last.conv2.weight[:8] *= 0.01
        last.conv2.bias[:8] = 0
        unet.conv_out.weight *= 0.1
        nn.init.zeros_(unet.conv_out.bias)
        unet.conv_out.weight[:3, :8] = 0
        for channel in range(8):
            last.conv_shortcut.weight[channel, skip + channel] = 1
        for channel in range(3):
            for row, half in ((2 * channel, 1.0), (2 * channel + 1, -1.0)):
                unet.conv_in.weight[row, first + channel, 1, 1] = half
                unet.conv_out.weight[channel, row, 1, 1] = half * sign * factor


def number_frames(unet: Any, channel: int = 8, size: float = 0.5) -> None:
    """Sets weights so that each temporal convolution adds a ramp over the frames to `channel`, and its negative to the
    next one.

    Temporal attention does not know the order of frames, and a text is the same for all of them. That leaves the zeros
    that temporal convolutions pad with: a network that starts without a ramp learns that a shape moves sideways long
    before it learns which side (after 4,500 steps, left and right were still a coin's toss). Out of the padding four
    convolutions in a row make steps that begin or end at the third, second and first frame from either end; their sum
    is odd in time and grows with it. Channels go in pairs of opposite sign, as the normalisation's groups do.
    """
    constant, risen, risen_2, falling, falling_2 = range(0, 10, 2)
    before, now, after = range(3)  # taps of a kernel
    steps = [(risen, constant, before), (falling, constant, after)]
    later = [*((c, c, now) for c in (risen, falling)), (risen_2, risen, before), (falling_2, falling, after)]
    up, down = (constant, risen, risen_2), (constant, falling, falling_2)
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for layer in block.temp_convs:
            if layer.conv1[0].num_channels != 2 * layer.conv1[0].num_groups:
                raise ValueError("the groups of temporal convolutions' normalisation are not pairs")
            convolutions = [part[-1] for part in (layer.conv1, layer.conv2, layer.conv3, layer.conv4)]
            with torch.no_grad():
                for number, convolution in enumerate(convolutions[:3]):
                    weight, bias = convolution.weight, convolution.bias
                    weight[:10], bias[:10] = 0, 0
                    bias[constant], bias[constant + 1] = 1, -1
                    for out, source, tap in ((), steps, later)[number]:
                        weight[out, source, tap], weight[out + 1, source, tap] = 1, -1
                for out, sign in ((channel, size), (channel + 1, -size)):
                    convolutions[3].weight[out], convolutions[3].bias[out] = 0, 0
                    for source in up:
                        convolutions[3].weight[out, source, before] += sign / 3
                    for source in down:
                        convolutions[3].weight[out, source, after] -= sign / 3


class _Skip(nn.Module):
    """In a temporal layer's place: gives back what it is given, in the form that the layer would."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.wraps = isinstance(layer, TransformerTemporalModel)

    def forward(self, x: Tensor, num_frames: int) -> Any:
        return SimpleNamespace(sample=x) if self.wraps else x


@contextmanager
def single_frames(unet: Any) -> Iterator[None]:
    """Within it the temporal layers, which begin as identities, are left out: single frames cost less."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    kept = [
        (block, name, getattr(block, name))
        for block in blocks
        for name in ("temp_convs", "temp_attentions")
        if hasattr(block, name)
    ]
    for block, name, layers in kept:
        setattr(block, name, nn.ModuleList(_Skip(layer) for layer in layers))
    try:
        yield
    finally:
        for block, name, layers in kept:
            setattr(block, name, layers)
