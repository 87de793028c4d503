"""The stages of a pipeline, loaded, and run one after the other in one process: without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.pipeline import STAGES, Pipeline
from show1_ray.pipeline.checkpoints import CheckpointError
from show1_ray.show1.interpolation import Interpolation
from show1_ray.show1.keyframes import Keyframes
from show1_ray.show1.latent_super_resolution import LatentSuperResolution
from show1_ray.show1.loading import Checkpoints
from show1_ray.show1.random import RandomCheckpoints
from show1_ray.show1.settings import Denoising
from show1_ray.show1.super_resolution import FirstFrame, SuperResolution
from show1_ray.show1.text import Text, TextEncoder
from show1_ray.show1.video_unet import VideoUNet
from show1_ray.stages.compilation import prepare
from show1_ray.stages.sampling import Scheduler, make_scheduler
from show1_ray.stages.stage import Stage

Parts: TypeAlias = Checkpoints | RandomCheckpoints

PIXELS, MASK = 3, 1  # channels

STAGE_CLASSES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (Text, Keyframes, Interpolation, SuperResolution, LatentSuperResolution)
}


def load_stage(
    pipeline: Pipeline,
    name: str,
    device: str | torch.device = "cpu",
    source: type[Checkpoints | RandomCheckpoints] = Checkpoints,
) -> Stage:
    """One stage with its weights on `device`, in the pipeline's dtype.

    Args:
        pipeline: says what it is made of.
        name: one of `STAGES`.
        device: where it computes.
        source: where its parts come from; `RandomCheckpoints` needs no weights.

    Raises:
        CheckpointError: weights that are not to be had or do not fit.
        ConfigError: a network's or a scheduler's configuration that is not known.
        KeyError: no stage of that name.
    """
    parts = source(device, getattr(torch, pipeline.dtype))
    stage = {
        "text": _text,
        "keyframes": _keyframes,
        "interpolation": _interpolation,
        "super_resolution": _super_resolution,
        "latent_super_resolution": _latent_super_resolution,
    }[name](pipeline, parts)
    prepare(stage, getattr(pipeline.execution, name))
    return stage


def load_stages(pipeline: Pipeline, device: str | torch.device = "cpu") -> list[Stage]:
    """All stages in their order; see `load_stage`."""
    return [load_stage(pipeline, name, device) for name in STAGES]


def render(
    stages: Iterable[Stage],
    clips: Sequence[Clip],
    report: Callable[[str, list[dict[str, Tensor]]], None] = lambda name, tensors: None,
) -> list[Tensor]:
    """Runs clips through the stages as one batch.

    Args:
        stages: in their order.
        clips: the batch.
        report: called with each stage's name and what it gave.

    Returns:
        For each clip F H W 3, uint8.
    """
    tensors: list[dict[str, Tensor]] = [{} for _ in clips]
    for stage in stages:
        given = stage(clips, tensors)
        report(stage.name, given)
        tensors = [{**old, **new} for old, new in zip(tensors, given, strict=True)]
    return [clip_tensors["video"] for clip_tensors in tensors]


def _scheduler(parts: Parts, settings: Denoising, component: str = "scheduler", **changes: Any) -> Scheduler:
    """Of a stage's checkpoint. Raises ConfigError with the checkpoint's name."""
    config = parts.scheduler_config(settings.checkpoint, component)
    try:
        return make_scheduler(config, **changes)
    except (ConfigError, NotImplementedError, ValueError, TypeError) as error:  # what diffusers' schedulers raise
        raise ConfigError(f"{settings.checkpoint}: {component}: {error}") from None


def _denoising(parts: Parts, settings: Denoising) -> Scheduler:
    return _scheduler(parts, settings, **settings.scheduler.model_dump(exclude_none=True))


def _noising(parts: Parts, settings: Denoising) -> Scheduler:
    return _scheduler(parts, settings, "image_noising_scheduler")


def _unet(parts: Parts, kind: type[nn.Module], settings: Denoising, channels: int) -> Any:
    """A stage's UNet. Raises CheckpointError if it is another stage's."""
    unet = parts.network(kind, settings.checkpoint)
    if unet.config.in_channels != channels:
        raise CheckpointError(
            f"{settings.checkpoint}: its unet takes {unet.config.in_channels} channels, this stage gives {channels}; "
            "is it another stage's checkpoint?"
        )
    return unet


def _text(pipeline: Pipeline, parts: Parts) -> Stage:
    settings = pipeline.stages.text
    tokenizer = parts.tokenizer(settings.checkpoint)
    model = parts.network(T5EncoderModel, settings.checkpoint)
    return Text(TextEncoder(tokenizer, model, settings.max_tokens, attends_mask=True), settings, parts.dtype)


def _keyframes(pipeline: Pipeline, parts: Parts) -> Stage:
    settings = pipeline.stages.keyframes
    return Keyframes(_unet(parts, VideoUNet, settings, PIXELS), _denoising(parts, settings), settings)


def _interpolation(pipeline: Pipeline, parts: Parts) -> Stage:
    settings = pipeline.stages.interpolation
    return Interpolation(_unet(parts, VideoUNet, settings, 2 * PIXELS + MASK), _denoising(parts, settings), settings)


def _super_resolution(pipeline: Pipeline, parts: Parts) -> Stage:
    settings = pipeline.stages.super_resolution
    first = settings.first_frame
    first_frame = FirstFrame(
        _unet(parts, UNet2DConditionModel, first, 2 * PIXELS),
        _denoising(parts, first),
        _noising(parts, first),
        first,
    )
    unet = _unet(parts, VideoUNet, settings, 2 * PIXELS)
    return SuperResolution(unet, _denoising(parts, settings), _noising(parts, settings), first_frame, settings)


def _latent_super_resolution(pipeline: Pipeline, parts: Parts) -> Stage:
    settings = pipeline.stages.latent_super_resolution
    clip = parts.network(CLIPTextModel, settings.checkpoint)
    tokenizer = parts.tokenizer(settings.checkpoint)
    vae = parts.network(AutoencoderKL, settings.checkpoint)
    return LatentSuperResolution(
        _unet(parts, UNet3DConditionModel, settings, vae.config.latent_channels),
        vae,
        TextEncoder(tokenizer, clip, clip.config.max_position_embeddings, attends_mask=False),
        _denoising(parts, settings),
        settings,
        pipeline.execution.latent_super_resolution.vae_frames,
    )
