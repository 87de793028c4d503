"""A clip's noise: it comes from the clip's own generator, so that frames do not depend on the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from show1_ray.clip import mixed_seed

Noise = Callable[[Sequence[int]], Tensor]
"""Takes a shape, returns the clip's next standard normal draw of that shape, on the CPU."""

AHEAD = 2
"""How many draws `draw_ahead` keeps ready: one is in use while the next is drawn."""


def seeded_noise(seed: int, dtype: torch.dtype) -> Noise:
    """Draws from a new CPU generator, in `dtype`: what the published script's `torch.manual_seed(seed)` draws.

    Args:
        seed: `Clip.generator_seed`, 0 to 2³² − 1. Larger ones, up to 2⁶³ − 1, are mixed into 32 bits (`mixed_seed`): of
            7 + 2³² torch would take the 7.
        dtype: the weights' type. It decides the draws: half precision is drawn as such, not rounded from single.
    """
    generator = torch.Generator("cpu").manual_seed(mixed_seed(seed))
    return lambda shape: torch.randn(tuple(shape), generator=generator, dtype=dtype)


def draw_batch(noises: Sequence[Noise], shape: Sequence[int], like: Tensor) -> Tensor:
    """One draw a clip, stacked: B *shape*, on the device and in the dtype of `like`."""
    draws = torch.stack([noise(shape) for noise in noises])
    if not like.is_cuda:
        return draws.to(like)
    # From pinned memory the copy waits for nothing, and nobody waits for the copy.
    return draws.to(like.dtype).pin_memory().to(like.device, non_blocking=True)


def draw_ahead(noises: Sequence[Noise], shape: Sequence[int], like: Tensor, count: int) -> Iterator[Tensor]:
    """`count` times `draw_batch`, drawn by a thread while the device works on what was drawn before.

    One thread draws in order, so every clip's draws are what they would be without it.
    """
    if not count:
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = deque(pool.submit(draw_batch, noises, shape, like) for _ in range(min(AHEAD, count)))
        for i in range(count):
            draws = pending.popleft().result()
            if i + AHEAD < count:
                pending.append(pool.submit(draw_batch, noises, shape, like))
            yield draws
