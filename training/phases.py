"""The parts of the training, in their order, and the data and loss of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from show1_ray.show1.interpolation import window_conditions
from show1_ray.show1.random import published_config
from show1_ray.show1.super_resolution import upscale
from show1_ray.stages.sampling import make_scheduler
from training import networks, text
from training.captions import caption
from training.diffusion import Diffusion, variance_loss
from training.loop import Draw, Phase
from training.world import Scene, alike, draw, moments, sample_scene

KEYFRAMES, WINDOW = 8, 5
FRAMES = (KEYFRAMES - 1) * (WINDOW - 1) + 1
HEIGHT, WIDTH = 16, 24
SCALE, SR_WINDOW = 2, 8
FINAL_HEIGHT, FINAL_WIDTH = 96, 144
LAMBDA_MIN = {"keyframes": -2.0, "interpolation": -1.0, "super_resolution": -1.0}
"""log(alpha / sigma) where sampling begins: the scheduler's `lambda_min_clipped`, published as -5.1. What a small
network makes of less signal is only noise. Keyframes need more steps in which only the text says what is there."""
MOST_NOISE = 250
"""Below this are the noise levels of super-resolution's condition."""
SR_FRAMES, LATENT_FRAMES = 4, 4
"""Frames of the windows that these stages are trained on; they are used on longer ones."""
CROP = (48, 72)
"""Of final frames, in training."""
FIRST_FRAME_START = 930
"""Timestep that the first frame's DDPM starts below: 900 with ten steps."""
LATENT_START = 250
"""Timestep where latent super-resolution starts from noised frames."""
VARIANCE_WEIGHT, KL_WEIGHT = 1.0, 1e-4
ALIKE = 32
"""Scenes of one caption, whose mean is what keyframes learn where only the text tells anything: the mean of all is the
best that can be said there. One scene is mostly chance, in which what the caption says is hard to find."""
NO_CAPTION = 0.1
"""Share of the captions that are replaced by nothing, for guidance (Ho and Salimans, arXiv 2207.12598)."""


@dataclass
class Texts:
    """The frozen text encoders with their tokenizers."""

    t5: text.Attributes
    t5_tokenizer: Any
    clip: text.Attributes
    clip_tokenizer: Any

    def embed(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """T5's embeddings: B L D, single precision."""
        ids, mask = text.tokenize(self.t5_tokenizer, captions, text.MAX_TOKENS)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.t5.encoder(ids.to(device), attention_mask=mask.to(device))[0]

    def embed_clip(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """CLIP's embeddings: B L D, single precision."""
        ids, _ = text.tokenize(self.clip_tokenizer, captions, text.CLIP_TOKENS)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.clip.encoder(ids.to(device))[0]


def scenes_and_captions(draw: Draw, count: int, drop: float = 0.0) -> tuple[list[Scene], list[str]]:
    """Random scenes that are not held out, and a caption of each, or none with probability `drop`."""
    scenes = [sample_scene(draw.rng) for _ in range(count)]
    captions = [caption(scene, draw.rng) for scene in scenes]
    return scenes, ["" if draw.rng.random() < drop else text for text in captions]


def pixels(scenes: Sequence[Scene], times: Tensor, scale: int, device: torch.device) -> Tensor:
    """Frames of −1 to 1 at `scale` times the keyframes' size: B 3 F H W. `times`: F or B F."""
    times = times.expand(len(scenes), -1)
    return 2 * draw(scenes, times, HEIGHT * scale, WIDTH * scale, device) - 1


def text_phase(name: str, folder: Path) -> Phase:
    """T5 or CLIP; `folder` holds its tokenizer, which is trained if it is not there."""
    make, width, length, write = {
        "t5": (text.make_t5, text.WIDTH, text.MAX_TOKENS, text.write_t5_tokenizer),
        "clip": (text.make_clip, text.CLIP_WIDTH, text.CLIP_TOKENS, text.write_clip_tokenizer),
    }[name]
    place = folder / f"{name}_tokenizer"
    if not place.is_dir():
        write(place)
    tokenizer = text.load_tokenizer(place)
    torch.manual_seed(0)
    network = text.Attributes(make(len(tokenizer)), width, mask=name == "t5")

    def loss(network: Any, draw: Draw, batch: int) -> Tensor:
        scenes, captions = scenes_and_captions(draw, batch)
        ids, mask = text.tokenize(tokenizer, captions, length)
        return network.loss(ids.to(draw.device), mask.to(draw.device), text.labels(scenes).to(draw.device))

    return Phase(name, 600, 64, 1e-3, network, loss, frozen=lambda parameter: parameter.startswith("heads."))


def new_unet(stage: str, texts: Texts) -> Any:
    """A pixel stage's UNet, untrained but for the pooling of the text."""
    torch.manual_seed(0)
    unet = networks.make(stage)
    unet.add_embedding.load_state_dict(texts.t5.pool.state_dict())
    if stage == "super_resolution":  # at high noise v is nearly −x0, and x0 nearly the condition
        networks.start_as_identity(unet, first=3, sign=-1.0)
    else:
        networks.start_as_identity(unet)
    return unet


def keyframe_images(texts: Texts) -> Phase:
    """Single frames: what spatial layers learn of shapes, colours and backgrounds, at an eighth of a clip's cost."""
    diffusion = Diffusion.of("show-1-base", lambda_min=LAMBDA_MIN["keyframes"])

    def loss(unet: Any, draw: Draw, batch: int) -> Tensor:
        scenes, captions = scenes_and_captions(draw, batch, NO_CAPTION)
        times = torch.rand(batch, 1, generator=draw.generator)
        with networks.single_frames(unet):
            return video_loss(unet, diffusion, pixels(scenes, times, 1, draw.device), texts, captions, draw)

    return Phase("keyframe_images", 1000, 64, 8e-4, new_unet("keyframes", texts), loss, frozen=_temporal)


def keyframes(texts: Texts, images: Any) -> Phase:
    """Clips of keyframes, from the weights of `keyframe_images`."""
    diffusion = Diffusion.of("show-1-base", lambda_min=LAMBDA_MIN["keyframes"])
    unet = new_unet("keyframes", texts)
    unet.load_state_dict(images.state_dict())
    networks.number_frames(unet)

    def loss(unet: Any, draw: Draw, batch: int) -> Tensor:
        scenes, captions = scenes_and_captions(draw, batch, NO_CAPTION)
        x0 = pixels(scenes, moments(KEYFRAMES), 1, draw.device)
        only_text = batch // 2
        for row in range(only_text):
            others = [alike(scenes[row], draw.rng) for _ in range(ALIKE)]
            x0[row] = pixels(others, moments(KEYFRAMES), 1, draw.device).mean(0)
        return video_loss(unet, diffusion, x0, texts, captions, draw, no_signal=only_text)

    # The ramp is set again after each step: before it is of use it is in the way, and would be unlearned.
    return Phase("keyframes", 5200, 8, 5e-4, unet, loss, new=_temporal, after=networks.number_frames)


def video_loss(
    unet: Any,
    diffusion: Diffusion,
    x0: Tensor,
    texts: Texts,
    captions: Sequence[str],
    draw: Draw,
    condition: Tensor | None = None,
    no_signal: int = 0,
    **inputs: Tensor,
) -> Tensor:
    """The loss of a pixel video UNet: a number.

    Args:
        unet: what learns.
        diffusion: its schedule.
        x0: B 3 F H W.
        texts, captions: B captions, and what embeds them.
        draw: timesteps and noise.
        condition: joined to the noised sample's channels.
        no_signal: how many of B, from the first, are noise alone: there only the text says what moves where.
        inputs: more of the UNet's.
    """
    timesteps = diffusion.sample_timesteps(len(x0), draw.generator)
    timesteps[:no_signal] = diffusion.last
    noisy = diffusion.noised(x0, draw.noise(x0), timesteps)
    sample = noisy if condition is None else torch.cat([noisy, condition], dim=1)
    output = unet(sample, timesteps.to(draw.device), texts.embed(captions, draw.device), **inputs)
    return diffusion.loss(output[:, :3], x0, noisy, timesteps).mean()


def interpolation(texts: Texts, keyframes: Any) -> Phase:
    """The frames between two keyframes, from the weights of `keyframes`, which knows nothing yet of its condition."""
    diffusion = Diffusion.of("show-1-interpolation", lambda_min=LAMBDA_MIN["interpolation"])
    unet = new_unet("interpolation", texts)
    weights = keyframes.state_dict()
    missing = unet.conv_in.in_channels - keyframes.conv_in.in_channels
    weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, missing))
    unet.load_state_dict(weights)

    def loss(unet: Any, draw: Draw, batch: int) -> Tensor:
        scenes, captions = scenes_and_captions(draw, batch, NO_CAPTION)
        first = torch.as_tensor(draw.rng.integers(KEYFRAMES - 1, size=(batch, 1))) * (WINDOW - 1)
        x0 = pixels(scenes, (first + torch.arange(WINDOW)) / (FRAMES - 1), 1, draw.device)
        condition = window_conditions(imperfect(x0[:, :, [0, -1]], draw), WINDOW)
        return video_loss(unet, diffusion, x0, texts, captions, draw, condition)

    return Phase("interpolation", 2000, 10, 6e-4, unet, loss)


def imperfect(frames: Tensor, draw: Draw, most: float = 0.15) -> Tensor:
    """Frames with noise, as those that an earlier stage generates have: B C F H W, standard deviation up to `most`."""
    level = torch.rand(len(frames), 1, 1, 1, 1, generator=draw.generator).to(draw.device) * most
    return frames + level * draw.noise(frames)


def upscaled_condition(low: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Super-resolution's condition, B 3 F H W, noised as its stage does it, and the noise levels, B."""
    noising = make_scheduler(published_config("show-1-sr1", "image_noising_scheduler"))
    levels = torch.randint(MOST_NOISE, (len(low),), generator=draw.generator)
    frames = rearrange(low, "b c f h w -> (b f) c h w")
    large = rearrange(upscale(frames, SCALE), "(b f) c h w -> b c f h w", b=len(low))
    return noising.add_noise(large, draw.noise(large), levels), levels.to(draw.device)


def super_resolution(texts: Texts) -> Phase:
    """Windows of frames twice as large; the first frame of most is given."""
    diffusion = Diffusion.of("show-1-sr1", lambda_min=LAMBDA_MIN["super_resolution"])
    unet = new_unet("super_resolution", texts)

    def loss(unet: Any, draw: Draw, batch: int) -> Tensor:
        scenes, captions = scenes_and_captions(draw, batch, NO_CAPTION)
        times = some_frames(draw, batch, SR_FRAMES)
        x0 = pixels(scenes, times, SCALE, draw.device)
        condition, levels = upscaled_condition(imperfect(pixels(scenes, times, 1, draw.device), draw), draw)
        given = torch.rand(batch, 1, 1, 1, generator=draw.generator).to(draw.device) < 0.9
        condition[:, :, 0] = torch.where(given, imperfect(x0[:, :, :1], draw, 0.05)[:, :, 0], condition[:, :, 0])
        return video_loss(unet, diffusion, x0, texts, captions, draw, condition, class_labels=levels)

    return Phase("super_resolution", 1500, 6, 8e-4, unet, loss)


def some_frames(draw: Draw, batch: int, count: int) -> Tensor:
    """When `count` frames in a row are, of some place in a clip: B F."""
    start = torch.as_tensor(draw.rng.integers(FRAMES - count + 1, size=(batch, 1)))
    return (start + torch.arange(count)) / (FRAMES - 1)


def first_frame(texts: Texts) -> Phase:
    """Super-resolution of a clip's first frame, with a learned variance."""
    diffusion = Diffusion.of("IF-II-L-v1.0", last=FIRST_FRAME_START)
    scheduler = make_scheduler(published_config("IF-II-L-v1.0", "scheduler"))
    unet = new_unet("first_frame", texts)

    def loss(unet: Any, draw: Draw, batch: int) -> Tensor:
        scenes, captions = scenes_and_captions(draw, batch, NO_CAPTION)
        times = torch.zeros(batch, 1)
        x0 = pixels(scenes, times, SCALE, draw.device)[:, :, 0]
        low = imperfect(pixels(scenes, times, 1, draw.device), draw)
        condition, levels = upscaled_condition(low, draw)
        timesteps = diffusion.sample_timesteps(batch, draw.generator).clamp(min=1)
        noisy = diffusion.noised(x0, draw.noise(x0), timesteps)
        inputs = torch.cat([noisy, condition[:, :, 0]], dim=1)
        embeds = texts.embed(captions, draw.device)
        output = unet(inputs, timesteps.to(draw.device), embeds, class_labels=levels).sample
        variance = variance_loss(output, x0, noisy, timesteps, scheduler).mean()
        return diffusion.loss(output[:, :3], x0, noisy, timesteps).mean() + VARIANCE_WEIGHT * variance

    return Phase("first_frame", 1000, 24, 8e-4, unet, loss)


def vae() -> Phase:
    """The autoencoder: squared error of pixels and of their differences, where flat shapes have all their detail."""
    torch.manual_seed(0)

    def loss(network: Any, draw: Draw, batch: int) -> Tensor:
        x = final_frames(draw, batch, 1)[1][:, :, 0]
        posterior = network.encode(x).latent_dist
        decoded = network.decode(posterior.mean + posterior.std * draw.noise(posterior.mean)).sample.float()
        error = decoded - x
        edges = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
        return error.square().mean() + edges + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    return Phase("vae", 2000, 12, 2e-3, networks.make("vae"), loss)


def final_frames(draw: Draw, batch: int, count: int) -> tuple[list[str], Tensor, Tensor]:
    """Crops of final frames.

    Returns:
        Captions; frames, and what super-resolution makes of them resized, each B 3 F `CROP`.
    """
    scenes, captions = scenes_and_captions(draw, batch, NO_CAPTION)
    times = some_frames(draw, batch, count)
    frames = pixels(scenes, times, FINAL_HEIGHT // HEIGHT, draw.device)
    small = imperfect(pixels(scenes, times, SCALE, draw.device), draw, 0.05)
    flat = rearrange(small, "b c f h w -> (b f) c h w")
    resized = F.interpolate(flat, size=(FINAL_HEIGHT, FINAL_WIDTH), mode="bicubic", antialias=True).clamp(-1, 1)
    resized = rearrange(resized, "(b f) c h w -> b c f h w", b=batch)
    top = 4 * draw.rng.integers((FINAL_HEIGHT - CROP[0]) // 4 + 1)
    left = 4 * draw.rng.integers((FINAL_WIDTH - CROP[1]) // 4 + 1)
    crop = (..., slice(top, top + CROP[0]), slice(left, left + CROP[1]))
    return captions, frames[crop], resized[crop]


def latent_super_resolution(texts: Texts, autoencoder: Any) -> Phase:
    """Latents of sharp frames out of noised latents of blurred ones.

    As sampling starts from noised, resized frames, so does this: at its first timestep the sample is that; towards the
    last it becomes the sharp frames'. The noise to predict is what leads from the sample to the sharp frames.
    """
    diffusion = Diffusion.of("show-1-sr2", last=LATENT_START)
    torch.manual_seed(0)
    scale = autoencoder.config.scaling_factor

    def latents(frames: Tensor, draw: Draw) -> Tensor:
        with torch.no_grad():
            posterior = autoencoder.encode(rearrange(frames, "b c f h w -> (b f) c h w")).latent_dist
            sample = (posterior.mean + posterior.std * draw.noise(posterior.mean)) * scale
        return rearrange(sample.float(), "(b f) c h w -> b c f h w", b=len(frames))

    def loss(unet: Any, draw: Draw, batch: int) -> Tensor:
        captions, sharp, blurred = final_frames(draw, batch, LATENT_FRAMES)
        x0, x_blurred = latents(sharp, draw), latents(blurred, draw)
        timesteps = diffusion.sample_timesteps(batch, draw.generator)
        share = (timesteps / LATENT_START).clamp(max=1).view(-1, 1, 1, 1, 1).to(draw.device)
        mixed = torch.lerp(x0, x_blurred, share)
        noisy = diffusion.noised(mixed, draw.noise(x0), timesteps)
        output = unet(noisy, timesteps.to(draw.device), texts.embed_clip(captions, draw.device)).sample
        return diffusion.loss(output, x0, noisy, timesteps).mean()

    return Phase("latent_super_resolution", 1600, 6, 1e-3, networks.make("latent_super_resolution"), loss)


def scaling_factor(autoencoder: Any, device: torch.device) -> float:
    """One over the latents' standard deviation."""
    _, frames, _ = final_frames(Draw.of("scaling_factor", 0, 0, device), 16, 1)
    with torch.no_grad():
        return round(1 / autoencoder.encode(frames[:, :, 0]).latent_dist.mean.std().item(), 4)


def _temporal(name: str) -> bool:
    return ".temp_convs." in name or ".temp_attentions." in name
