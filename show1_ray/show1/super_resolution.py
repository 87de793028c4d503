"""Super-resolution: small frames → frames `scale` times as wide and high."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from show1_ray.clip import Clip
from show1_ray.show1 import settings as recipe
from show1_ray.stages.noise import Noise, draw_batch, seeded_noise
from show1_ray.stages.replay import Replay
from show1_ray.stages.sampling import NoiseSchedule, Scheduler, denoise, guided_as_set
from show1_ray.stages.torch_stage import Tensors, TorchStage, device_and_dtype


class FirstFrame:
    """Super-resolution of single frames by DeepFloyd's IF-II-L (`UNet2DConditionModel`).

    Args:
        unet: takes 6 channels: the noisy frame, the upscaled frame with noise; and the noise's level as class label.
        scheduler: of the denoising loop.
        noising: `DDPMScheduler` that adds noise to the upscaled frame.
        settings: see `recipe.FirstFrame`.

    Attributes:
        replays: launch the UNet as a CUDA graph.
    """

    replays = False

    def __init__(self, unet: nn.Module, scheduler: Scheduler, noising: Scheduler, settings: recipe.FirstFrame) -> None:
        self.unet, self.scheduler, self.noising, self.settings = unet.eval(), scheduler, noising, settings

    def __call__(
        self, images: Tensor, text: Tensor, negative_text: Tensor, scale: int, noise: Sequence[Noise]
    ) -> Tensor:
        """Upscales.

        Draws: the start, the condition's noise, then one for each step but the last, each 3 H W.

        Args:
            images: B 3 H W.
            text, negative_text: B L D.
            scale: by how much.
            noise: one for each of B.

        Returns:
            B 3 scale·H scale·W.
        """
        upscaled = upscale(images, scale)
        x = draw_batch(noise, upscaled.shape[1:], like=images)
        labels = torch.full((len(images),), self.settings.noise_level, device=images.device)
        condition = self.noising.add_noise(upscaled, draw_batch(noise, upscaled.shape[1:], like=images), labels)
        schedule = NoiseSchedule.of(self.scheduler, self.settings.steps)
        is_replayed = self.replays and images.is_cuda and not self.settings.reuse
        unet = Replay(self.unet) if is_replayed else self.unet
        predict = guided_as_set(
            unet, text, negative_text, self.settings, schedule, condition=condition, class_labels=labels
        )
        frames = denoise(predict, x, schedule, noise)
        if isinstance(unet, Replay):
            unet.release()
        return frames


class SuperResolution(TorchStage):
    """Video super-resolution in windows: each starts from the last frame of the one before, the first from
    `FirstFrame`'s.

    Takes `frames`, 3 F H W, `prompt_embeds` and `negative_prompt_embeds`, L D. Gives `frames_sr`, 3 F scale·H scale·W
    in about [−1, 1]. Windows follow from one another, so the batch is across clips. Where the last window does not end
    with the clip it moves back, so that every frame is covered; a later window overwrites what it shares with an
    earlier one. (The published code leaves frames behind the last full window grey.)

    Draws: for the first frame see `FirstFrame`; then, from the seed anew, the start and the condition's noise, each
    3 window H W, the same for all windows.
    """

    name = "super_resolution"
    takes = {"frames": "c f h w", "prompt_embeds": "l d", "negative_prompt_embeds": "l d"}  # noqa: RUF012
    gives = {"frames_sr": "c f h w"}  # noqa: RUF012

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Scheduler,
        noising: Scheduler,
        first_frame: FirstFrame,
        settings: recipe.SuperResolution,
    ) -> None:
        self.unet, self.scheduler, self.noising = unet.eval(), scheduler, noising
        self.first_frame, self.settings = first_frame, settings
        self.device, self.dtype = device_and_dtype(unet)

    def run(self, clips: Sequence[Clip], tensors: Sequence[Tensors], noise: Sequence[Noise]) -> list[dict[str, Tensor]]:
        """See `TorchStage`. `noise` serves the windows; the first frame has its own from the clips' seeds."""
        frames = self.batch(tensors, "frames")
        text, negative = self.batch(tensors, "prompt_embeds"), self.batch(tensors, "negative_prompt_embeds")
        first_noise = [seeded_noise(clip.generator_seed, self.dtype) for clip in clips]
        first = self.first_frame(frames[:, :, 0], text, negative, self.settings.scale, first_noise)
        return [{"frames_sr": video} for video in self.upscale(frames, first, text, negative, noise).cpu()]

    def upscale(
        self, frames: Tensor, first: Tensor, text: Tensor, negative_text: Tensor, noise: Sequence[Noise]
    ) -> Tensor:
        """All windows, given the first frame.

        Args:
            frames: B 3 F H W.
            first: B 3 scale·H scale·W.
            text, negative_text: B L D.
            noise: one for each of B.

        Returns:
            B 3 F scale·H scale·W.
        """
        shape = (frames.shape[1], self.settings.window, *first.shape[-2:])
        x = draw_batch(noise, shape, like=frames)
        condition_noise = draw_batch(noise, shape, like=frames)
        video = torch.empty(*frames.shape[:3], *first.shape[-2:], device=frames.device, dtype=frames.dtype)
        video[:, :, 0] = first
        for window in window_slices(frames.shape[2], self.settings.window, self.settings.stride):
            # A window's first frame is there already: the image model's, or a frame of the window before.
            video[:, :, window] = self.upscale_window(
                frames[:, :, window],
                video[:, :, window.start],
                text,
                negative_text,
                x,
                condition_noise,
                noise,
            )
        return video

    def upscale_window(
        self,
        frames: Tensor,
        first: Tensor | None,
        text: Tensor,
        negative_text: Tensor,
        x: Tensor,
        condition_noise: Tensor,
        noise: Sequence[Noise] = (),
    ) -> Tensor:
        """One window.

        Args:
            frames: B 3 window H W.
            first: B 3 scale·H scale·W, the first frame as it shall be, which stays without noise in the condition; or
                None.
            text, negative_text: B L D.
            x: the noise to start from, like the result.
            condition_noise: like the result.
            noise: one for each of B, for schedulers that add noise at each step.

        Returns:
            B 3 window scale·H scale·W.
        """
        upscaled = rearrange(
            upscale(rearrange(frames, "b c f h w -> (b f) c h w"), self.settings.scale),
            "(b f) c h w -> b c f h w",
            b=len(frames),
        )
        labels = torch.full((len(frames),), self.settings.noise_level, device=frames.device)
        condition = self.noising.add_noise(upscaled, condition_noise, labels)
        if first is not None:
            condition[:, :, 0] = first
        schedule = NoiseSchedule.of(self.scheduler, self.settings.steps)
        predict = guided_as_set(
            self.unet, text, negative_text, self.settings, schedule, condition=condition, class_labels=labels
        )
        return denoise(predict, x, schedule, noise)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `TorchStage`."""
        return {"unet": self.unet, "first_frame.unet": self.first_frame.unet}


def upscale(images: Tensor, scale: int) -> Tensor:
    """Bilinear, corners aligned, as published: B C H W → B C scale·H scale·W."""
    size = (images.shape[-2] * scale, images.shape[-1] * scale)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=True)


def window_slices(frames: int, window: int, stride: int) -> Iterator[slice]:
    """Windows that cover `frames` frames: every `stride`, the last moved back to end with the last frame."""
    for start in range(0, frames - window + stride, stride):
        start = min(start, frames - window)
        yield slice(start, start + window)
