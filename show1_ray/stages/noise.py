"""Where a clip's noise comes from: a generator of its own, so that its frames do not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Noise = Callable[[Sequence[int]], Tensor]
"""Takes a shape, returns the clip's next standard normal draw of that shape, on the CPU."""


def seeded_noise(seed: int, dtype: torch.dtype) -> Noise:
    """Draws from a new CPU generator, in `dtype`: what the published script's `torch.manual_seed(seed)` draws.

    Args:
        seed: 0 to 2⁶³ − 1.
        dtype: the weights' type. It decides the draws: half precision is drawn as such, not rounded from single.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda shape: torch.randn(tuple(shape), generator=generator, dtype=dtype)


def stored_noise(draws: Iterable[Tensor]) -> Noise:
    """Hands out `draws` one after the other, to repeat what was drawn elsewhere.

    The function that it returns raises ValueError when a draw has another shape than the one asked for (axes of length
    1 in front do not count), or when there is none left.
    """
    remaining = iter(draws)

    def noise(shape: Sequence[int]) -> Tensor:
        draw = next(remaining, None)
        if draw is None:
            raise ValueError(f"no stored noise left for shape {tuple(shape)}")
        if draw.shape[-len(shape) :] != tuple(shape) or draw.numel() != torch.Size(shape).numel():
            raise ValueError(f"stored noise has shape {tuple(draw.shape)}; wanted {tuple(shape)}")
        return draw.reshape(tuple(shape))

    return noise


def draw_batch(noises: Sequence[Noise], shape: Sequence[int], like: Tensor) -> Tensor:
    """One draw a clip, stacked: B *shape*, on the device and in the dtype of `like`."""
    return torch.stack([noise(shape) for noise in noises]).to(like)
