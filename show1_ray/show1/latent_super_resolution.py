"""Latent super-resolution: frames → the clip's final 8-bit frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from show1_ray.clip import Clip
from show1_ray.show1 import settings as recipe
from show1_ray.show1.temporal import attend_many_sequences, convolve_frames_in_2d
from show1_ray.show1.text import TextEncoder
from show1_ray.stages.noise import Noise, draw_batch
from show1_ray.stages.sampling import NoiseSchedule, Scheduler, denoise, guided_as_set
from show1_ray.stages.torch_stage import NonFiniteError, Tensors, TorchStage, device_and_dtype


class LatentSuperResolution(TorchStage):
    """Resizes, noises and denoises in a VAE's latent space: the "expert translation" of Show-1, section 3.3.

    Takes `frames_sr`, 3 F H W in about [−1, 1]. Gives `video`, F height width 3, uint8. The frames are quantised to 8
    bits and resized by Pillow first, as in the published script. Prompts go to CLIP as they are.

    Draws: the VAE posterior's, then the latents', each F 4 h w with h w = height width / the VAE's factor.
    """

    name = "latent_super_resolution"
    takes = {"frames_sr": "c f h w"}  # noqa: RUF012
    gives = {"video": "f h w c"}  # noqa: RUF012

    def __init__(
        self,
        unet: nn.Module,
        vae: AutoencoderKL,
        encoder: TextEncoder,
        scheduler: Scheduler,
        settings: recipe.LatentSuperResolution,
        vae_frames: int = 8,
    ) -> None:
        self.unet, self.vae, self.encoder = (
            attend_many_sequences(convolve_frames_in_2d(unet.eval())),
            vae.eval(),
            encoder,
        )
        self.scheduler, self.settings, self.vae_frames = scheduler, settings, vae_frames
        self.device, self.dtype = device_and_dtype(unet)

    def run(self, clips: Sequence[Clip], tensors: Sequence[Tensors], noise: Sequence[Noise]) -> list[dict[str, Tensor]]:
        """See `TorchStage`."""
        size = (self.settings.width, self.settings.height)
        frames = torch.stack([resize(to_uint8(given["frames_sr"]), size) for given in tensors])
        prompts = [clip.prompt for clip in clips]
        negatives = [
            self.settings.negative_prompt if clip.negative_prompt is None else clip.negative_prompt for clip in clips
        ]
        text, negative_text = self.encoder(prompts + negatives).to(self.device, self.dtype).split(len(clips))
        videos = self.upscale(frames, text, negative_text, noise)
        for clip, video in zip(clips, videos, strict=True):
            if not torch.isfinite(video).all():  # 8 bits would hide it
                raise NonFiniteError(clip.id, self.name, "video has NaN or infinite values")
        return [{"video": to_uint8(video)} for video in videos]

    def upscale(self, frames: Tensor, text: Tensor, negative_text: Tensor, noise: Sequence[Noise]) -> Tensor:
        """The diffusion alone (the published `VideoToVideoSDPipeline`).

        Args:
            frames: B F H W 3, uint8, of the final size.
            text, negative_text: B L D.
            noise: one for each of B.

        Returns:
            B 3 F H W in about [−1, 1], not clamped, in the stage's dtype, on its device.
        """
        batch, count = frames.shape[:2]
        pixels = rearrange(frames.to(self.device), "b f h w c -> (b f) c h w").float()
        pixels = (2 * (pixels / 255) - 1).to(self.dtype)
        mean, std = self._encode(pixels)
        latents = mean + std * draw_batch(noise, (count, *mean.shape[1:]), like=mean).flatten(0, 1)
        latents = latents * self.vae.config.scaling_factor

        schedule = NoiseSchedule.of(self.scheduler, self.settings.steps, self.settings.strength)
        x = schedule.add_noise(latents, draw_batch(noise, (count, *mean.shape[1:]), like=mean).flatten(0, 1))
        predict = guided_as_set(self.unet, text, negative_text, self.settings, schedule)
        x = denoise(predict, rearrange(x, "(b f) c h w -> b c f h w", b=batch), schedule, noise)
        decoded = self._decode(rearrange(x, "b c f h w -> (b f) c h w") / self.vae.config.scaling_factor)
        return rearrange(decoded, "(b f) c h w -> b c f h w", b=batch)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, a slice of frames at a time: each N 4 h w."""
        posteriors = [self.vae.encode(frames).latent_dist for frames in pixels.split(self.vae_frames)]
        return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])

    def _decode(self, latents: Tensor) -> Tensor:
        """N 4 h w → N 3 H W, a slice of frames at a time."""
        return torch.cat([self.vae.decode(frames).sample for frames in latents.split(self.vae_frames)])

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `TorchStage`."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.encoder.model}


def to_uint8(video: Tensor) -> Tensor:
    """3 F H W in [−1, 1] → F H W 3, uint8 on the CPU; clamped, truncated (the published `tensor2vid`)."""
    scaled = ((video.float() * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    return rearrange(scaled, "c f h w -> f h w c").cpu()


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bicubic, frame by frame: F H W 3 → F height width 3, uint8. `size` is (width, height)."""

    def resized(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(4) as threads:  # a GPU waits for it; Pillow lets go of Python's lock
        return torch.from_numpy(np.stack(list(threads.map(resized, frames.numpy()))))
