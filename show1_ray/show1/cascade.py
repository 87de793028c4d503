"""The stages of a pipeline, loaded and run one after the other in one process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from show1_ray.clip import Clip
from show1_ray.errors import ConfigError
from show1_ray.pipeline import Pipeline
from show1_ray.pipeline.checkpoints import CheckpointError
from show1_ray.show1 import settings as recipe
from show1_ray.show1.execution import prepare
from show1_ray.show1.loading import Checkpoints
from show1_ray.show1.stages import STAGES, CascadeStage
from show1_ray.stage import Context
from show1_ray.stages.torch_stage import TorchStage

if TYPE_CHECKING:
    from show1_ray.show1.random import RandomCheckpoints
    from show1_ray.stages.sampling import Scheduler

Parts: TypeAlias = "Checkpoints | RandomCheckpoints"

PIXELS, MASK = 3, 1  # channels


def build(
    stage: CascadeStage,
    device: str | torch.device = "cpu",
    source: Callable[[str | torch.device, torch.dtype], Parts] = Checkpoints,
) -> TorchStage:
    """What computes a stage, with its weights on `device`, in the pipeline's dtype.

    Libraries are imported by stage: a station begins with its first stage before it imports what the last one needs.

    Args:
        stage: says what it is made of.
        device: where it computes.
        source: where its parts come from; `RandomCheckpoints` needs no weights.

    Raises:
        CheckpointError: weights that are not to be had or do not fit.
        ConfigError: a network's or a scheduler's configuration that is not known.
    """
    parts = source(device, getattr(torch, stage.context.dtype))
    builders: dict[str, Callable[[Any, Any, Parts], TorchStage]] = {
        "Text": _text,
        "Keyframes": _keyframes,
        "Interpolation": _interpolation,
        "SuperResolution": _super_resolution,
        "LatentSuperResolution": _latent_super_resolution,
    }
    built = builders[type(stage).__name__](stage.settings, stage.execution, parts)
    prepare(built, stage.execution)
    return built


def load_stage(
    pipeline: Pipeline,
    name: str,
    device: str | torch.device = "cpu",
    source: Callable[[str | torch.device, torch.dtype], Parts] = Checkpoints,
) -> TorchStage:
    """One stage of a pipeline of Show-1's stages; see `build`. Raises KeyError if there is none of that name."""
    settings, execution = getattr(pipeline.stages, name), getattr(pipeline.execution, name)
    return build(STAGES[name](settings, execution, Context(name, pipeline.dtype, pipeline.fps)), device, source)


def load_stages(pipeline: Pipeline, device: str | torch.device = "cpu") -> list[TorchStage]:
    """All stages in their order; see `load_stage`."""
    return [load_stage(pipeline, name, device) for name in STAGES]


def run_stages(
    stages: Iterable[TorchStage],
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


def _scheduler(parts: Parts, settings: recipe.Denoising, component: str = "scheduler", **changes: Any) -> Scheduler:
    """Of a stage's checkpoint. Raises ConfigError with the checkpoint's name."""
    from show1_ray.stages.sampling import make_scheduler

    config = parts.scheduler_config(settings.checkpoint, component)
    try:
        return make_scheduler(config, **changes)
    except (ConfigError, NotImplementedError, ValueError, TypeError) as error:  # what diffusers' schedulers raise
        raise ConfigError(f"{settings.checkpoint}: {component}: {error}") from None


def _denoising(parts: Parts, settings: recipe.Denoising) -> Scheduler:
    return _scheduler(parts, settings, **settings.scheduler.model_dump(exclude_none=True))


def _noising(parts: Parts, settings: recipe.Denoising) -> Scheduler:
    return _scheduler(parts, settings, "image_noising_scheduler")


def _unet(parts: Parts, kind: type[nn.Module], settings: recipe.Denoising, channels: int) -> Any:
    """A stage's UNet. Raises CheckpointError if it is another stage's."""
    unet = parts.network(kind, settings.checkpoint)
    if unet.config.in_channels != channels:
        raise CheckpointError(
            f"{settings.checkpoint}: its unet takes {unet.config.in_channels} channels, this stage gives {channels}; "
            "is it another stage's checkpoint?"
        )
    return unet


def _text(settings: recipe.Text, execution: recipe.Execution, parts: Parts) -> TorchStage:
    from transformers import T5EncoderModel

    from show1_ray.show1.text import Text, TextEncoder

    tokenizer = parts.tokenizer(settings.checkpoint)
    model = parts.network(T5EncoderModel, settings.checkpoint)
    return Text(TextEncoder(tokenizer, model, settings.max_tokens, attends_mask=True), settings, parts.dtype)


def _keyframes(settings: recipe.Keyframes, execution: recipe.Execution, parts: Parts) -> TorchStage:
    from show1_ray.show1.keyframes import Keyframes
    from show1_ray.show1.video_unet import VideoUNet

    return Keyframes(_unet(parts, VideoUNet, settings, PIXELS), _denoising(parts, settings), settings)


def _interpolation(settings: recipe.Interpolation, execution: recipe.Execution, parts: Parts) -> TorchStage:
    from show1_ray.show1.interpolation import Interpolation
    from show1_ray.show1.video_unet import VideoUNet

    return Interpolation(_unet(parts, VideoUNet, settings, 2 * PIXELS + MASK), _denoising(parts, settings), settings)


def _super_resolution(settings: recipe.SuperResolution, execution: recipe.Execution, parts: Parts) -> TorchStage:
    from diffusers import UNet2DConditionModel

    from show1_ray.show1.super_resolution import FirstFrame, SuperResolution
    from show1_ray.show1.video_unet import VideoUNet

    first = settings.first_frame
    first_frame = FirstFrame(
        _unet(parts, UNet2DConditionModel, first, 2 * PIXELS),
        _denoising(parts, first),
        _noising(parts, first),
        first,
    )
    unet = _unet(parts, VideoUNet, settings, 2 * PIXELS)
    return SuperResolution(unet, _denoising(parts, settings), _noising(parts, settings), first_frame, settings)


def _latent_super_resolution(
    settings: recipe.LatentSuperResolution, execution: recipe.LatentExecution, parts: Parts
) -> TorchStage:
    from diffusers import AutoencoderKL, UNet3DConditionModel
    from transformers import CLIPTextModel

    from show1_ray.show1.latent_super_resolution import LatentSuperResolution
    from show1_ray.show1.text import TextEncoder

    clip = parts.network(CLIPTextModel, settings.checkpoint)
    tokenizer = parts.tokenizer(settings.checkpoint)
    vae = parts.network(AutoencoderKL, settings.checkpoint)
    return LatentSuperResolution(
        _unet(parts, UNet3DConditionModel, settings, vae.config.latent_channels),
        vae,
        TextEncoder(tokenizer, clip, clip.config.max_position_embeddings, attends_mask=False),
        _denoising(parts, settings),
        settings,
        execution.vae_frames,
    )
