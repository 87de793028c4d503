"""Execution settings that change a stage's networks: memory layout and compilation."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from show1_ray.show1.settings import Execution
from show1_ray.stages.stage import Stage

REGIONS = ("ResnetBlock2D", "TemporalConvLayer", "Attention", "Transformer2DModel", "TransformerTemporalModel")
"""Classes that a network repeats, large enough to fuse and small enough to compile soon."""

VARIANTS = 256
"""Shapes of one class that are compiled at most. torch's default, 8, is less than one UNet has, and beyond it torch
goes on uncompiled without a word."""


def prepare(stage: Stage, execution: Execution) -> None:
    """Lays out and compiles a stage's networks, in place; texts' encoders stay as they are.

    Compilation is by region ("blocks") and for fixed shapes: the first batch of a size pays for it. What was compiled
    is kept on disk (see `keep_compiled`). "graphs" compiles each UNet whole and records it as a CUDA graph, which saves
    the launches of small networks; of a VAE, blocks. Fused networks (`fused.py`) need no compilation.
    """
    networks = {name: network for name, network in stage.networks.items() if name != "text_encoder"}
    if execution.channels_last or execution.fused:
        for network in networks.values():
            put_channels_last(network)
    if execution.fused:
        from show1_ray.show1.fused import fuse  # diffusers, which a text encoder does without

        for network in networks.values():
            fuse(network)
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


def compile_regions(network: nn.Module) -> None:
    """Compiles the outermost modules of the classes `REGIONS`, in place."""
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.accumulated_recompile_limit = 8 * VARIANTS
    for child in network.children():
        if type(child).__name__ in REGIONS:
            child.compile(dynamic=False)
        else:
            compile_regions(child)


def keep_compiled() -> None:
    """Lets torch's own caches of compiled code lie where they survive the process and a reboot.

    `TORCHINDUCTOR_CACHE_DIR`, if it is set (a folder that all nodes share, say), else a folder of the user's cache.
    torch looks up by code, shapes, versions and device, so that nothing stale is used.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # slow, and seldom needed

    name, default = "TORCHINDUCTOR_CACHE_DIR", default_cache_dir()
    if os.environ.get(name, default) == default:  # torch itself sets it to its default, under /tmp
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ[name] = str(cache / "show1-ray" / "inductor")
