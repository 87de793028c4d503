"""Compilation of a network's repeated blocks, and the cache of compiled code."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

REGIONS = ("ResnetBlock2D", "TemporalConvLayer", "Attention", "Transformer2DModel", "TransformerTemporalModel")
"""Classes that networks repeat: large enough to fuse, small enough to compile quickly."""

VARIANTS = 256
"""Shapes of one class that are compiled at most. torch's default, 8, is less than one UNet has, and beyond it torch
goes on uncompiled without a word."""


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
