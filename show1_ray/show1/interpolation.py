"""Interpolation: keyframes → all frames of a clip, still small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from show1_ray.clip import Clip
from show1_ray.show1 import settings as recipe
from show1_ray.stages.noise import Noise, draw_batch
from show1_ray.stages.sampling import NoiseSchedule, Scheduler, denoise, guided_as_set
from show1_ray.stages.torch_stage import Tensors, TorchStage, device_and_dtype


class Interpolation(TorchStage):
    """Fills each gap between neighbouring keyframes, all gaps of all clips as one batch.

    Takes `keyframes`, 3 K H W, `prompt_embeds` and `negative_prompt_embeds`, L D. Gives `frames`, 3 F H W with
    F = (K − 1)(window − 1) + 1, in about [−1, 1]. As in the published script no keyframe survives: a window generates
    its two ends anew, and the later of two windows writes the frame that they share.

    Draws: one of 3 window H W, which all windows of the clip start from.
    """

    name = "interpolation"
    takes = {"keyframes": "c k h w", "prompt_embeds": "l d", "negative_prompt_embeds": "l d"}  # noqa: RUF012
    gives = {"frames": "c f h w"}  # noqa: RUF012

    def __init__(self, unet: nn.Module, scheduler: Scheduler, settings: recipe.Interpolation) -> None:
        self.unet, self.scheduler, self.settings = unet.eval(), scheduler, settings
        self.device, self.dtype = device_and_dtype(unet)

    def run(self, clips: Sequence[Clip], tensors: Sequence[Tensors], noise: Sequence[Noise]) -> list[dict[str, Tensor]]:
        """See `TorchStage`."""
        keyframes = self.batch(tensors, "keyframes")
        windows = keyframes.shape[2] - 1
        text, negative = (
            self.batch(tensors, name).repeat_interleave(windows, dim=0)
            for name in ("prompt_embeds", "negative_prompt_embeds")
        )
        _, channels, _, height, width = keyframes.shape
        x = draw_batch(noise, (channels, self.settings.window, height, width), like=keyframes)
        condition = window_conditions(keyframes, self.settings.window)
        schedule = NoiseSchedule.of(self.scheduler, self.settings.steps)
        predict = guided_as_set(self.unet, text, negative, self.settings, schedule, condition=condition)
        x = denoise(predict, x.repeat_interleave(windows, dim=0), schedule, [n for n in noise for _ in range(windows)])
        return [{"frames": frames} for frames in join_windows(x, windows).cpu()]

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `TorchStage`."""
        return {"unet": self.unet}


def window_conditions(keyframes: Tensor, window: int) -> Tensor:
    """What the UNet is told of each window, beside its noise.

    Args:
        keyframes: B C K H W.
        window: frames a window.

    Returns:
        (B K−1) C+1 window H W: a linear blend from the window's first keyframe to its last, and a mask that is 1 on
        these two.
    """
    first, last = (
        rearrange(frames, "b c k h w -> (b k) c 1 h w") for frames in (keyframes[:, :, :-1], keyframes[:, :, 1:])
    )
    weights = torch.linspace(0, 1, window, device=first.device, dtype=torch.float32).to(first.dtype)
    blend = torch.lerp(first, last, weights[:, None, None])
    mask = torch.zeros_like(blend[:, :1])
    mask[:, :, [0, -1]] = 1
    return torch.cat([blend, mask], dim=1)


def join_windows(x: Tensor, windows: int) -> Tensor:
    """Windows that share their end frames → videos: (B windows) C F H W → B C windows·(F−1)+1 H W."""
    x = rearrange(x, "(b n) c f h w -> b n c f h w", n=windows)
    head = rearrange(x[:, :, :, :-1], "b n c f h w -> b c (n f) h w")
    return torch.cat([head, x[:, -1, :, -1:]], dim=2)
