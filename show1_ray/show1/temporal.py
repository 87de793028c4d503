"""Layers over frames: convolutions computed as 2D ones, attention within what a GPU kernel can take."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class TemporalConv(nn.Conv3d):
    """A `Conv3d` whose kernel is (k, 1, 1), with the same parameters and the same result to rounding.

    Height and width are one axis to it, so that libraries take their well-tuned 2D path: on a CPU, torch's 3D
    convolution copies its input k times first (4 times slower forward, 2.5 times backward).
    """

    def forward(self, input: Tensor) -> Tensor:
        """B C F H W in and out."""
        x = F.conv2d(input.flatten(3), self.weight.squeeze(-1), self.bias, padding=(self.padding[0], 0))  # type: ignore[arg-type]
        return x.unflatten(3, input.shape[3:])


def convolve_frames_in_2d(network: nn.Module) -> nn.Module:
    """Makes every `Conv3d` in `network` with a (k, 1, 1) kernel a `TemporalConv`, in place; returns `network`."""
    for module in network.modules():
        if type(module) is nn.Conv3d and module.kernel_size[1:] == (1, 1) and module.groups == 1:
            module.__class__ = TemporalConv
    return network


MOST_SEQUENCES = 65_535
"""Sequences that one call of CUDA's attention kernels may have: the bound of a grid's second and third dimension
(pytorch/pytorch#142228)."""


class ManySequences(AttnProcessor2_0):
    """Self-attention of any number of sequences. Over frames every pixel is one: super-resolution at batch 4 has more
    than `MOST_SEQUENCES`.
    """

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """B L D in and out."""
        if len(hidden_states) <= MOST_SEQUENCES:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        parts = hidden_states.split(MOST_SEQUENCES)
        return torch.cat([super(ManySequences, self).__call__(attn, part, *args, **kwargs) for part in parts])


def attend_many_sequences(network: nn.Module) -> nn.Module:
    """Lets the temporal transformers in `network` attend in parts where they must, in place; returns `network`."""
    for module in network.modules():
        if isinstance(module, TransformerTemporalModel):
            for layer in module.modules():
                if isinstance(layer, Attention):
                    layer.set_processor(ManySequences())
    return network
