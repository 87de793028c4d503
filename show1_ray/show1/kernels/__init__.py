"""Triton kernels for what video UNets do most beside convolutions, on frames that lie with channels last.

Each reads what it needs once and writes once; torch's own take several passes (group normalisation, FiLM and
activation), work on tiles that are mostly padding (attention over 8 frames in tiles of 128) or read two bytes at a time
(what is not contiguous). They take rows, (N R C) or (B F P C), contiguous, and compute in single precision.
`fused.py` calls them and has the same in plain torch.
"""

from show1_ray.show1.kernels.frames import attend_frames, convolve_frames
from show1_ray.show1.kernels.norms import Sums, group_norm, layer_norm
from show1_ray.show1.kernels.pixels import add, add_up, double, gated_gelu, halve, join, join_up

__all__ = [
    "Sums",
    "add",
    "add_up",
    "attend_frames",
    "convolve_frames",
    "double",
    "gated_gelu",
    "group_norm",
    "halve",
    "join",
    "join_up",
    "layer_norm",
]
