"""Execution settings that change a stage's networks: memory layout, fused kernels, compilation."""

from __future__ import annotations

import torch
from torch import nn

from show1_ray.show1.settings import Execution
from show1_ray.stages.compilation import compile_regions, keep_compiled
from show1_ray.stages.torch_stage import TorchStage


def prepare(stage: TorchStage, execution: Execution) -> None:
    """Lays out and compiles a stage's networks, in place; texts' encoders stay as they are.

    Compilation is by region ("blocks") and for fixed shapes: the first batch of a size pays for it. What was compiled
    is kept on disk (see `keep_compiled`). "graphs" compiles each UNet whole and records it as a CUDA graph, which saves
    the launches of small networks; of a VAE, blocks. Fused networks (`fused.py`) need no compilation; the first frame's
    UNet, whose kernels are over sooner than they are launched, is then replayed as a graph.
    """
    networks = {name: network for name, network in stage.networks.items() if name != "text_encoder"}
    if execution.channels_last or execution.fused:
        for network in networks.values():
            put_channels_last(network)
    if execution.fused:
        from show1_ray.show1.fused import fuse  # diffusers, which a text encoder does without
        from show1_ray.show1.super_resolution import SuperResolution

        for network in networks.values():
            fuse(network)
        if isinstance(stage, SuperResolution):
            stage.first_frame.replays = True
    if execution.compile == "off":
        return
    keep_compiled()
    for name, network in networks.items():
        if execution.compile == "graphs" and name != "vae":
            network.compile(dynamic=False, mode="reduce-overhead")
        else:
            compile_regions(network)


def put_channels_last(network: nn.Module) -> None:
    """Lays out the kernels of 2D convolutions, in place; what goes through them follows."""
    from show1_ray.show1.temporal import TemporalConv  # diffusers, as above

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, TemporalConv):  # its kernel is used as a 2D one
            kernel = module.weight.data.squeeze(-1).contiguous(memory_format=torch.channels_last)
            module.weight.data = kernel.unsqueeze(-1)
